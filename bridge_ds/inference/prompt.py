"""Text to a prompt: context, token ids, batch, by the rules of the run. The same for every use of a trained bridge.

What is truncated is decided in :mod:`bridge_ds.data.text.truncate`, where the soft prompt stands among the ids in
:func:`bridge_ds.data.text.prompting.context_ids`, and the batch becomes embeddings in
:meth:`bridge_ds.bridge.BridgeModel.spliced`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bridge_ds.config.schema import DataConfig
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.data.text.chat import messages_of, render
from bridge_ds.data.text.prompting import Context, ContextIds, answers, context_ids, framed, parse
from bridge_ds.data.text.truncate import LOST, PER_TOKEN, Limits, SoftPrompt
from bridge_ds.errors import ConfigError, brief

__all__ = ["PromptBuilder", "truncation_lines"]


@dataclass
class PromptBuilder:
    """Makes the prompts of one run, and counts those that are truncated."""

    tokenizers: Tokenizers
    """Both, with the run's chat template."""
    limits: Limits
    """Most tokens, and the side on which longer texts are truncated."""
    bridge: bool = True
    """The encoder reads the source; False = the LLM alone reads it."""
    prompt: bool = False
    """Beside the soft prompt the LLM reads the source too (data.augment_prompt)."""
    system_prompt: str = ""
    """Of chats that have no system message (data.system_prompt)."""
    language: str = ""
    """Of texts whose language is not given, for an encoder that needs it (data.source_language)."""
    truncated: Counter[str] = field(default_factory=Counter)
    """Texts seen (`texts`), and how many of them were truncated for the encoder (`source`) and for the LLM
    (`prompt`)."""

    @classmethod
    def of(
        cls,
        data: DataConfig,
        tokenizers: Tokenizers,
        positions: int,
        soft: SoftPrompt = PER_TOKEN,
        *,
        bridge: bool = True,
    ) -> PromptBuilder:
        """As a run was trained.

        Args:
            data: of the run.
            tokenizers: both.
            positions: of the LLM (:attr:`bridge_ds.llm.base.LLM.positions`); 0 = unknown.
            soft: which of them the soft prompt takes.
            bridge: False = the LLM alone.
        """
        limits = replace(Limits.of(data), positions=positions, soft=soft)
        return cls(tokenizers, limits, bridge, data.augment_prompt, data.system_prompt, data.source_language)

    @property
    def reads_text(self) -> bool:
        """Whether the LLM reads text in place of the soft prompt, or beside it."""
        return self.prompt or not self.bridge

    def alone(self) -> PromptBuilder:
        """The same for the LLM alone, which reads the source itself; both count truncated texts together."""
        return replace(self, bridge=False)

    def rendered(self, messages: Sequence[Mapping[str, Any]], answering: bool = True, **options: Any) -> str:
        """A chat in the LLM's own template, see :func:`bridge_ds.data.text.chat.render`.

        Args:
            messages: with `role` and `content`.
            answering: open the assistant's turn; False = the last message is the beginning of the answer.
            options: of the template.

        Raises:
            ConfigError: the tokenizer has no chat template, or several and none of them is the default.
            DataError: a message that is not text.
        """
        try:
            return render(self.tokenizers.llm, messages_of(messages), answering, self.system_prompt, **options)
        except ValueError as error:
            raise ConfigError(
                f"the tokenizer of the LLM cannot render a chat ({brief(error, 120)}); expected a chat template; give "
                "plain texts, or choose an instruction-tuned LLM."
            ) from None

    def chat(
        self, messages: Sequence[Mapping[str, Any]], answering: bool = True, language: str = "", **options: Any
    ) -> Context:
        """The same as a context; `language` is that of the user's turns, empty = not known."""
        return replace(parse(self.rendered(messages, answering, **options)), language=language)

    def ids(self, context: Context, following: int) -> ContextIds:
        """Token ids of a context, truncated to what fits, in the run's chat template where it has none itself.

        Args:
            context: the text.
            following: positions of the LLM to keep free behind it: the tokens of the longest choice, or what
                :meth:`room` gives for an answer that is to be written.

        Raises:
            DoesNotFit: what is not to be truncated is too long.
            DataError: a language that the encoder does not have.
        """
        context = framed(context, self.tokenizers.frame)
        if not context.language:
            context = replace(context, language=self.language)
        found = context_ids(self.tokenizers, context, self.limits, following, bridge=self.bridge, prompt=self.prompt)
        self.truncated.update(texts=1, **{part: int(part in found.truncated) for part in ("source", "prompt")})
        return found

    def room(self, max_new_tokens: int) -> int:
        """Positions to keep free for an answer of at most so many tokens: no more than half of the LLM's."""
        return min(max_new_tokens, self.limits.positions // 2) if self.limits.positions else max_new_tokens

    def length(self, ids: ContextIds) -> int:
        """Positions of the LLM's input that a prompt takes, a soft prompt there with its end vector included."""
        soft = self.limits.soft.positions(len(ids.source))
        return len(ids.head) + soft + len(ids.prompt) + len(ids.tail)

    def batch(self, rows: Sequence[ContextIds], targets: Sequence[Sequence[int]] | None = None) -> Batch:
        """Prompts as one right-padded batch, without its layout.

        Args:
            rows: of :meth:`ids`.
            targets: LLM ids to predict after each, see :meth:`answers`; None = none.
        """
        samples = [
            TokenizedSample(row.source, [*row.prompt, *row.tail], list(target), row.truncated, tuple(row.head))
            for row, target in zip(rows, targets or [()] * len(rows), strict=True)
        ]
        return collate(samples, self.tokenizers.encoder_pad_id, self.tokenizers.pad_id)

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """LLM ids of whole answers as training predicts them, what closes them included."""
        return answers(self.tokenizers, texts, self.tokenizers.frame.before_answer)

    def truncation_lines(self) -> list[str]:
        """See :func:`truncation_lines`, of all texts up to now."""
        return truncation_lines(self.truncated, self.limits)


def truncation_lines(truncated: Mapping[str, int], limits: Limits) -> list[str]:
    """How many texts were truncated, for the user: no line if none was.

    Args:
        truncated: see :attr:`PromptBuilder.truncated`.
        limits: in use.
    """
    parts = (("source", limits.source), ("prompt", limits.prompt))
    fewer = ", fewer where the LLM has no positions left" if limits.positions else ""
    return [
        f"{truncated[part]} of {truncated['texts']} texts lost their {LOST[limits.side]}: at most {most} {part} tokens "
        f"fit{fewer}."
        for part, most in parts
        if truncated.get(part)
    ]
