"""From contexts and continuations in words to likelihoods and written text, by the bridge or by the LLM alone.

Letters: B contexts, R continuations of all of them, K places, X prefix length, T continuation tokens, H LLM width,
V vocabulary, N places predicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.data.loading.collate import pad
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.data.text.chat import Frame
from bridge_ds.data.text.plain import behind
from bridge_ds.data.text.prompting import Context, answers, context_ids, framed
from bridge_ds.data.text.truncate import Limits
from bridge_ds.harness.requests import Continuation
from bridge_ds.llm.generate import cut_at, end_ids, positions_of
from bridge_ds.llm.score import score_choices
from bridge_ds.llm.splice import Spliced

__all__ = ["Answerer", "Options"]


@dataclass(frozen=True)
class Options:
    """How contexts become input."""

    bridge: bool = True
    """False: the LLM alone, which reads the source itself."""
    prompt: bool = False
    """Beside the soft prompt the LLM reads the source itself too."""
    end_token: bool = True
    """An answer is scored with the end token after it, as training taught it."""
    max_source_tokens: int = 512
    """Encoder tokens of a source."""
    max_prompt_tokens: int = 512
    """LLM tokens of a source that the LLM reads."""
    truncation_side: str = "right"
    """Which part of a longer context is cut."""
    frame: Frame = field(default_factory=Frame)
    """The chat template that stands around contexts which have none."""


class Answerer:
    """The model behind the harness."""

    def __init__(
        self, model: BridgeModel, tokenizers: Tokenizers, device: torch.device | str, options: Options
    ) -> None:
        self.model, self.tokenizers, self.device, self.options = model, tokenizers, device, options
        llm = model.llm.model
        self.positions = positions_of(llm)
        """Places that the LLM was built for; 0 = unknown."""
        self.ends = end_ids(llm, tokenizers.eos_id)
        # generate() fills what it is not told from here: the penalties that some models ship cannot see a soft prompt.
        llm.generation_config = type(llm.generation_config)()
        self.cut: Counter[str] = Counter()
        """Contexts seen (`contexts`), and how many sources and prompts were truncated (`source`, `prompt`)."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """LLM tokens of each text, as targets."""
        return [len(ids) for ids in self.tokenizers.targets(texts)]

    @torch.no_grad()
    def score(
        self, contexts: Sequence[Context], continuations: Sequence[Sequence[Continuation]]
    ) -> list[list[tuple[float, bool]]]:
        """For each context and each of its continuations: log-probability (nats), and whether it is the greedy text.

        Raises:
            DataError: a continuation is longer than the LLM's input.
        """
        contexts = self._framed(contexts)
        ids = [
            [self._continuation(context, each) for each in of]
            for context, of in zip(contexts, continuations, strict=True)
        ]
        prefix = self._prefix(contexts, [max(map(len, own), default=0) for own in ids])
        with self.model.llm.without_adapters(not self.options.bridge):
            scores_R, greedy_R = score_choices(self.model.llm, prefix, ids)
        answers = iter(zip(scores_R.tolist(), greedy_R.tolist(), strict=True))
        return [[next(answers) for _ in own] for own in ids]

    @torch.no_grad()
    def write(
        self, contexts: Sequence[Context], tokens: int, stops: Sequence[str], sampling: dict[str, Any] | None = None
    ) -> list[str]:
        """Text after each context, up to the end token, a stop or `tokens`; stops are left out.

        Args:
            sampling: more options of `transformers.GenerationConfig`; none = greedy.
        """
        from transformers import GenerationConfig, StoppingCriteriaList

        contexts = self._framed(contexts)
        tokens = min(tokens, self.positions // 2) if self.positions else tokens
        prefix = self._prefix(contexts, [tokens] * len(contexts))
        llm, of = self.model.llm.model, self.tokenizers
        ends = self.ends | {id for stop in stops if (id := of.llm.get_added_vocab().get(stop)) is not None}
        with self.model.llm.without_adapters(not self.options.bridge):
            written = llm.generate(
                inputs_embeds=prefix.embeds_BXH,
                attention_mask=prefix.mask_BX,
                generation_config=GenerationConfig(
                    max_new_tokens=tokens,
                    eos_token_id=sorted(ends),
                    pad_token_id=of.pad_id,
                    **(sampling or {"do_sample": False}),
                ),
                stopping_criteria=StoppingCriteriaList([_stop_at(of, stops)] if stops else []),
            )
        texts = of.llm.batch_decode([_until(row, ends) for row in written.tolist()], skip_special_tokens=True)
        return [self._finish(context, text, stops) for context, text in zip(contexts, texts, strict=True)]

    def _finish(self, context: Context, text: str, stops: Sequence[str]) -> str:
        return cut_at(text if context.is_chat else self.tokenizers.answer(text), stops)

    def _framed(self, contexts: Sequence[Context]) -> list[Context]:
        return [framed(context, self.options.frame) for context in contexts]

    def _continuation(self, context: Context, of: Continuation) -> list[int]:
        if context.begun:  # goes on in the middle of an answer
            ids = behind(self.tokenizers.llm, context.tail[-1:], [of.text])[0] if of.text else []
        else:
            tail = context.tail if context.is_chat else None
            found = answers(self.tokenizers, [of.text], tail, closed=False, parted=[of.parted])
            ids = found[0] if of.text.strip() else []
        return [*ids, self.tokenizers.eos_id] if of.whole and self.options.end_token else ids

    def _prefix(self, contexts: Sequence[Context], following: Sequence[int]) -> Spliced:
        """[BOS, head | soft, end | prompt | tail], left-padded; `following` = places to keep free behind each."""
        rows = [self._row(context, room) for context, room in zip(contexts, following, strict=True)]
        heads, sources, prompts, tails = zip(*rows, strict=True)
        after = [[*prompt, *tail] for prompt, tail in zip(prompts, tails, strict=True)]
        pads = (
            (heads, self.tokenizers.pad_id),
            (sources, self.tokenizers.encoder_pad_id),
            (after, self.tokenizers.pad_id),
        )
        padded = (pad(ids, by) for ids, by in pads)
        before, source, behind = ((ids.to(self.device), mask.to(self.device)) for ids, mask in padded)
        return self.model.around(before, source, behind)

    def _row(self, context: Context, following: int) -> tuple[list[int], list[int], list[int], list[int]]:
        """Token ids: head, source, prompt, tail."""
        options = self.options
        limits = Limits(
            options.max_source_tokens, options.max_prompt_tokens, self.positions, side=options.truncation_side,
            soft=self.model.mapping.fixed_length,
        )  # fmt: skip
        ids = context_ids(self.tokenizers, context, limits, following, bridge=options.bridge, prompt=options.prompt)
        self.cut.update(contexts=1, source="source" in ids.cut, prompt="prompt" in ids.cut)
        return ids.head, ids.source, ids.prompt, ids.tail


def _stop_at(tokenizers: Tokenizers, stops: Sequence[str]) -> Any:
    """A criterion that ends each row at the first stop in what it has written."""
    from transformers import StoppingCriteria

    # A character is at most four tokens; only the last tokens can have completed a stop.
    tail = 4 * max(map(len, stops)) + 4

    class AtStops(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # type: ignore[override]
            texts = tokenizers.llm.batch_decode(input_ids[:, -tail:].tolist(), skip_special_tokens=True)
            found = [any(stop in text for stop in stops if stop) for text in texts]
            return torch.tensor(found, dtype=torch.bool, device=input_ids.device)

    return AtStops()


def _until(ids: list[int], ends: set[int]) -> list[int]:
    at = next((place for place, each in enumerate(ids) if each in ends), len(ids))
    return ids[:at]
