"""Texts in, answers out: a loaded bridge, its processor, and the options to generate with."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList

from bridge_ds.checkpoint.load import trained_tensors
from bridge_ds.data.text.chat import has_template, messages_of
from bridge_ds.data.text.prompting import Context, ContextIds
from bridge_ds.errors import ConfigError, DataError, LaunchError
from bridge_ds.hub.model import BridgeForCausalLM
from bridge_ds.hub.processor import BridgeProcessor
from bridge_ds.inference.choice import BRIDGE, CHOICE, ChoiceTable, expected
from bridge_ds.inference.generator import AnswerLength, Sampling, mixed_seed, stops_of
from bridge_ds.inference.stops import answers_criterion

__all__ = ["GenerateOptions", "Pipeline"]


@dataclass(frozen=True)
class GenerateOptions:
    """How answers are written; see `bridge-ds generate --help`."""

    max_new_tokens: int | None = None
    """Most LLM tokens of an answer; None = the longest target of the training."""
    temperature: float = 0.0
    """Of sampling; 0 = greedy."""
    top_p: float | None = None
    """Share of probability that is sampled from (0 to 1)."""
    top_k: int | None = None
    """Tokens that are sampled from."""
    beams: int = 1
    """Of a beam search."""
    seed: int = 0
    """Of sampling."""
    stop: tuple[str, ...] = ()
    """Stop strings."""
    chat: bool = False
    """Use the LLM's chat template."""
    system: str = ""
    """System message of a chat that has none."""
    language: str = ""
    """Of the texts, for encoders that are told it, and for `choose`; empty = not known."""
    choose: bool = False
    """Let the LLM alone answer in languages in which it is better (choice.json)."""

    def generation(self) -> dict[str, Any]:
        """As options of transformers' generate, but for the stop strings."""
        found = Sampling(self.temperature, self.top_p or 1.0, self.top_k or 0, self.beams).options()
        return found if self.max_new_tokens is None else {**found, "max_new_tokens": self.max_new_tokens}


class Pipeline:
    """Model, processor and options."""

    def __init__(self, model: BridgeForCausalLM, processor: BridgeProcessor, options: GenerateOptions) -> None:
        self.model, self.processor, self.options = model, processor, options
        self.choice = _choice(model, options) if options.choose else None
        self.length = AnswerLength.of(options.generation(), model.generation_config.to_dict())
        """Of answers."""
        self.stops = options.stop or stops_of(model.generation_config)
        """Stop strings: those that are asked for, or the bridge's own."""

    @classmethod
    def load(cls, run: str, options: GenerateOptions, **loading: Any) -> Pipeline:
        """Load model and processor.

        Args:
            run: as for BridgeForCausalLM.from_pretrained.
            options: to generate with.
            loading: more options of from_pretrained.

        Raises:
            ConfigError: a chat is asked for and there is no chat template, or a choice and there is no choice.json; or
                as from_pretrained.
            CheckpointError: choice.json was measured with other weights or settings; or as from_pretrained.
        """
        from transformers.utils import logging as hf_logging

        if not sys.stderr.isatty():
            hf_logging.disable_progress_bar()
        both = ("encoder", "llm", "trust_remote_code", "allow_base_mismatch")
        processor = BridgeProcessor.from_pretrained(run, **{name: loading[name] for name in both if name in loading})
        if options.chat and not has_template(processor.tokenizer):
            raise ConfigError(
                f"--chat needs a chat template, and the tokenizer of {processor.config.llm!r} has none; leave the "
                "option out, or choose an instruction-tuned LLM."
            )
        return cls(BridgeForCausalLM.from_pretrained(run, **loading), processor, options)

    def way(self, language: str = "") -> str:
        """BRIDGE, or LLM where choice.json is followed and the LLM alone answers; the language as of :meth:`row`."""
        return self.choice.way(language or self.options.language) if self.choice else BRIDGE

    def row(self, text: Any, language: str = "", prompt: Any = None) -> ContextIds:
        """Token ids of one text, or with `chat` of one list of messages.

        Args:
            text: the one or the other.
            language: of this text; empty = that of the options.
            prompt: what the LLM reads in place of it, where it reads text at all; empty = the text itself.

        Raises:
            DataError: neither of these, a prompt that is to be read and is no text, or a language that the encoder does
                not have.
        """
        language = language or self.options.language
        prompts = self.processor.prompts if self.way(language) == BRIDGE else self.processor.prompts.alone()
        if not self.options.chat:
            if not isinstance(text, str):
                raise DataError(f"{str(text)[:80]!r} is no text; expected one (a list of messages needs --chat).")
            context = Context(text, language=language)
        elif text and isinstance(text, str | list):
            history = messages_of([{"role": "user", "content": text}] if isinstance(text, str) else text)
            if self.options.system and history[0]["role"] != "system":
                history.insert(0, {"role": "system", "content": self.options.system})
            context = prompts.chat(history, language=language)
        else:
            raise DataError(f"{str(text)[:80]!r} is no chat; expected a text or messages with role and content.")
        if prompt and prompts.reads_text:
            if not isinstance(prompt, str):
                raise DataError(f"its prompt is {str(prompt)[:80]!r}; expected a text, which the LLM is to read.")
            context = dataclasses.replace(context, prompt=prompt)
        return self.processor.context_ids(context, self.options.max_new_tokens, prompts)

    @property
    def positions(self) -> int:
        """Of the LLM, or fewer where prompt and answer together may take fewer; 0 = unknown."""
        return min(filter(None, (self.model.generator.positions, self.length.whole)), default=0)

    def needs(self, row: ContextIds) -> tuple[int, int]:
        """The LLM's positions that the prompt of a row takes, and the most tokens of its answer where it is alone."""
        used = self.processor.prompts.length(row)
        most = self.length.after(used)
        return used, min(most, self.positions - used) if self.positions else most

    def check_language(self) -> None:
        """Warn that a language has no effect on this encoder, or say whether the bridge answers in it.

        Raises:
            ConfigError: the encoder does not have the language of the options.
        """
        languages = self.processor.tokenizers.languages
        if languages and self.way(self.options.language) == BRIDGE:
            languages.check("--language", self.options.language)
        elif not languages and self.options.language and not self.choice:
            print("note: this encoder is not told a language; --language changes nothing.", file=sys.stderr)
        if self.choice:
            print(f"note: {self.choice.sentence(self.options.language)}", file=sys.stderr)

    def write(self, rows: Sequence[ContextIds], seed: int = 0, way: str = BRIDGE) -> list[str]:
        """Answers to rows, in their order.

        Args:
            rows: of :meth:`row`.
            seed: added to that of the options; the same rows and seed give the same answers.
            way: who answers, see :meth:`way`; the same for all rows.

        Raises:
            LaunchError: the device's memory does not suffice.
        """
        written = self._generate(rows, seed, way)
        return self.model.generator.texts(written.tolist(), self.stops, self.options.chat)

    def stream(self, row: ContextIds, seed: int, take: Callable[[str], Any], way: str = BRIDGE) -> None:
        """One answer, handed to `take` in pieces as soon as they are certain; arguments as of :meth:`write`."""
        if self.options.beams > 1:  # none of the beams is the answer before the end
            take(self.write([row], seed, way)[0])
            return
        answer = self.model.generator.answer(stops=self.stops, chat=self.options.chat, streamed=True)
        criterion = answers_criterion([answer], lambda _, text: take(text) or True)
        self._generate([row], seed, way, stopping_criteria=StoppingCriteriaList([criterion]))
        take(answer.finish())

    @torch.no_grad()
    def _generate(self, rows: Sequence[ContextIds], seed: int, way: str, **options: Any) -> torch.Tensor:
        torch.manual_seed(mixed_seed(self.options.seed, seed))
        generator = self.model.generator if way == BRIDGE else self.model.generator.alone()
        options |= self.options.generation() | ({"stop_strings": list(self.stops)} if self.stops else {})
        try:
            prefix = generator.prefix(self.processor.prompts.batch(rows))
            written: torch.Tensor = generator.generate(prefix, None, self.model.generation_config, **options)
        except torch.OutOfMemoryError:
            raise LaunchError(
                f"{len(rows)} texts at a time do not fit into the device's memory; expected fewer; lower --batch or "
                "--max-new-tokens, or load the LLM with --load-in 4bit."
            ) from None
        return written

    def identity(self) -> str:
        """Hex digest over all that decides an answer besides the text."""
        digest = hashlib.sha256()
        for name, tensor in sorted(trained_tensors(self.model.bridge).items()):
            digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
        dtypes = [str(part.model.dtype) for part in (self.model.bridge.encoder, self.model.bridge.llm)]
        options = dataclasses.asdict(self.options)
        for name in ("language", "choose"):
            if not options[name]:
                del options[name]  # as before the option existed, so that a file begun then is completed
        facts = [self.model.config.to_json_string(), dtypes, options, *([self.choice] if self.choice else [])]
        quantized = getattr(self.model.bridge.llm.model.config, "quantization_config", None)
        digest.update(repr([*facts, str(quantized), self.model.generation_config.to_json_string()]).encode())
        return digest.hexdigest()

    def print_truncated(self) -> None:
        """Say on stderr how many texts were truncated."""
        for line in self.processor.prompts.truncation_lines():
            print(line, file=sys.stderr)


def _choice(model: BridgeForCausalLM, options: GenerateOptions) -> ChoiceTable:
    table = expected(model.choice, model.config.name_or_path)
    if options.chat and not table.of_chats:
        raise ConfigError(
            f"--chat and --choose are given, and {CHOICE} was measured without the chat template; expected one of "
            "them; leave the other out."
        )
    return table
