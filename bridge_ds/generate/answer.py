"""A loaded bridge and the way in which it is to write: texts in, answers out."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bridge_ds.checkpoint.load import trained_tensors
from bridge_ds.data.text.chat import has_template, messages_of, render
from bridge_ds.data.text.prompting import Context, parse
from bridge_ds.data.text.truncate import LOST
from bridge_ds.errors import ConfigError, DataError, LaunchError
from bridge_ds.hub.model import BridgeForCausalLM
from bridge_ds.hub.processor import BridgeProcessor
from bridge_ds.inference.generator import mixed_seed
from bridge_ds.inference.stops import StopStrings

__all__ = ["Answerer", "Style"]

Row = tuple[list[int], list[int], list[int]]
"""Ids before the soft prompt, of the text, and after the soft prompt."""


@dataclass(frozen=True)
class Style:
    """How answers are written; see `python -m bridge_ds.generate --help`."""

    max_new_tokens: int | None = None
    """Most LLM tokens of an answer; none = the bridge's own (the longest target of its training)."""
    temperature: float = 0.0
    """Of sampling; 0 = the likeliest token each time."""
    top_p: float | None = None
    """Share of probability that is sampled from (0 to 1)."""
    top_k: int | None = None
    """Tokens that are sampled from."""
    beams: int = 1
    """Of a beam search."""
    seed: int = 0
    """Of sampling."""
    stop: tuple[str, ...] = ()
    """Texts before which an answer ends."""
    chat: bool = False
    """The LLM's chat template stands around the soft prompt."""
    system: str = ""
    """Message for the LLM in front of a chat."""
    language: str = ""
    """Of the texts, for an encoder that is told it; empty = not known."""

    def generation(self) -> dict[str, Any]:
        """As options of transformers' generate."""
        found: dict[str, Any] = {"num_beams": self.beams, "do_sample": self.temperature > 0}
        if self.max_new_tokens is not None:
            found["max_new_tokens"] = self.max_new_tokens
        if self.temperature > 0:
            found["temperature"] = self.temperature
            # transformers' own default is the 50 likeliest.
            found |= {"top_p": self.top_p or 1.0, "top_k": self.top_k or 0}
        if self.stop:
            found["stop_strings"] = list(self.stop)
        return found


class Answerer:
    """Model, processor and style."""

    def __init__(self, model: BridgeForCausalLM, processor: BridgeProcessor, style: Style) -> None:
        self.model, self.processor, self.style = model, processor, style

    @classmethod
    def load(cls, run: str, style: Style, **loading: Any) -> Answerer:
        """Load model and processor.

        Args:
            run: what BridgeForCausalLM.from_pretrained takes.
            style: how to write.
            loading: more of its options.
        """
        from transformers.utils import logging as hf_logging

        if not sys.stderr.isatty():
            hf_logging.disable_progress_bar()
        both = ("encoder", "llm", "trust_remote_code", "allow_base_mismatch")
        shared = {name: loading[name] for name in both if name in loading}
        processor = BridgeProcessor.from_pretrained(run, **shared)
        if style.chat and not has_template(processor.tokenizer):
            raise ConfigError(
                f"--chat needs a chat template, and the tokenizer of {processor.config.llm!r} has none; leave the "
                "option out, or choose an instruction-tuned LLM."
            )
        return cls(BridgeForCausalLM.from_pretrained(run, **loading), processor, style)

    def row(self, text: Any, language: str = "") -> Row:
        """Token ids of one text, or with `chat` of one list of messages.

        Args:
            text: the one or the other.
            language: of this text; empty = the style's.

        Raises:
            DataError: neither of these, or a language that the encoder does not have.
        """
        if self.style.chat:
            if not text or not isinstance(text, str | list):
                raise DataError(f"{str(text)[:80]!r} is no chat; expected a text or messages with role and content.")
            history = messages_of([{"role": "user", "content": text}] if isinstance(text, str) else text)
            if self.style.system and history[0]["role"] != "system":
                history.insert(0, {"role": "system", "content": self.style.system})
            context = parse(render(self.processor.tokenizer, history, system=self.processor.config.system_prompt))
        elif isinstance(text, str):
            context = Context(text)
        else:
            raise DataError(f"{str(text)[:80]!r} is no text; expected one (a list of messages needs --chat).")
        context = dataclasses.replace(context, language=language or self.style.language)
        return self.processor.context_ids(context, self.style.max_new_tokens)

    def check_language(self) -> None:
        """Say that a language is of no use to this encoder.

        Raises:
            ConfigError: the encoder does not have the style's language.
        """
        languages = self.processor.tokenizers.languages
        if languages:
            languages.check("--language", self.style.language)
        elif self.style.language:
            print("note: this encoder is not told a language; --language changes nothing.", file=sys.stderr)

    @torch.no_grad()
    def write(self, rows: Sequence[Row], seed: int = 0, **options: Any) -> list[str]:
        """Answers to rows, in their order.

        Args:
            rows: of :meth:`row`.
            seed: added to the style's: of sampling; the same rows and seed give the same answers.
            options: more of generate (streamer).

        Raises:
            LaunchError: the device's memory does not suffice.
        """
        torch.manual_seed(mixed_seed(self.style.seed, seed))
        features = self.processor.collate(rows)
        try:
            written = self.model.generate(**features, **self.style.generation(), **options)
        except torch.OutOfMemoryError:
            raise LaunchError(
                f"{len(rows)} texts at a time do not fit into the device's memory; expected fewer; lower --batch or "
                "--max-new-tokens, or load the LLM with --load-in 4bit."
            ) from None
        return [self.cut(text) for text in self.processor.batch_decode(written, chat=self.style.chat)]

    def cut(self, text: str) -> str:
        """What stands before the first stop."""
        return StopStrings(self.style.stop).cut(text)

    def identity(self) -> str:
        """Hex digest over all that decides an answer besides the text: what was trained, base models, number formats,
        style."""
        digest = hashlib.sha256()
        for name, tensor in sorted(trained_tensors(self.model.bridge).items()):
            digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
        formats = [str(part.model.dtype) for part in (self.model.bridge.encoder, self.model.bridge.llm)]
        style = dataclasses.asdict(self.style)
        if not style["language"]:
            del style["language"]  # as before there was one: a file that was begun then goes on
        facts = [self.model.config.to_json_string(), formats, style]
        quantized = getattr(self.model.bridge.llm.model.config, "quantization_config", None)
        digest.update(repr([*facts, str(quantized), self.model.generation_config.to_json_string()]).encode())
        return digest.hexdigest()

    def tell_cuts(self) -> None:
        """Say on stderr how many texts were truncated."""
        cut, limits = self.processor.cut, self.processor
        lost = LOST[limits.config.truncation_side]
        for part, limit in (("source", limits.max_source_tokens), ("prompt", limits.max_prompt_tokens)):
            if cut[part]:
                print(
                    f"{cut[part]} of {cut['texts']} texts lost their {lost}: at most {limit} {part} tokens fit.",
                    file=sys.stderr,
                )
