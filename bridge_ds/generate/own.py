"""What the LLM alone answers to English texts, greedily: the targets of self-teaching (`data.objective`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from bridge_ds.bridge import LLMAlone
from bridge_ds.config.load import to_dict
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.tokenize import check_vocabulary, load_tokenizers
from bridge_ds.data.text.convention import READ
from bridge_ds.data.text.prompting import Context, ContextIds
from bridge_ds.data.text.truncate import side_of
from bridge_ds.engine.setup import base_identities, quiet_transformers
from bridge_ds.errors import DataError, LaunchError
from bridge_ds.inference.choice import LLM
from bridge_ds.inference.generator import Generator
from bridge_ds.inference.prompt import PromptBuilder
from bridge_ds.llm.frozen import load_llm

__all__ = ["OwnAnswers"]


class OwnAnswers:
    """The LLM of a run's config without a bridge, which reads and writes as the run would have it."""

    choice = None
    positions = 0
    """As if unknown: greedily, a row that shares a batch has the positions that it has alone."""

    def __init__(self, config: Config, max_new_tokens: int | None = None, device: str = "cpu") -> None:
        """Args:
        config: `model.llm` and `data` are used.
        max_new_tokens: most tokens of an answer; None = data.max_target_tokens.
        device: where it runs.

        Raises:
            ConfigError: the LLM is missing, incomplete or of the wrong kind.
        """
        quiet_transformers()
        self._config = replace(config, model=replace(config.model, encoder="none"))
        self._tokenizers = load_tokenizers(self._config.model, data=config.data)
        llm = load_llm(config.model)
        check_vocabulary(self._tokenizers.llm, llm.vocab_size, "model.llm")
        self._model = LLMAlone(llm, self._tokenizers.bos_id).to(device).eval()
        self._prompts = PromptBuilder.of(config.data, self._tokenizers, llm.positions, bridge=False)
        self._generator = Generator(self._model, self._tokenizers)
        self._most = max_new_tokens or config.data.max_target_tokens

    def way(self, language: str = "") -> str:
        """Who answers: the LLM."""
        return LLM

    def row(self, text: Any, language: str = "", prompt: Any = None) -> ContextIds:
        """Token ids of one text; the LLM reads no other one here.

        Raises:
            DataError: it is no text, or empty.
        """
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{str(text)[:80]!r} is no text; expected one, in English.")
        return self._prompts.ids(Context(text), self._prompts.room(self._most))

    def needs(self, row: ContextIds) -> tuple[int, int]:
        """As of :meth:`bridge_ds.generate.pipeline.Pipeline.needs`."""
        return self._prompts.length(row), self._most

    @torch.no_grad()
    def write(self, rows: Sequence[ContextIds], seed: int = 0, way: str = LLM) -> list[str]:
        """Answers to rows, in their order.

        Raises:
            LaunchError: the device's memory does not suffice.
        """
        try:
            prefix = self._generator.prefix(self._prompts.batch(rows))
            return self._generator.texts(self._generator.greedy(prefix, self._most))
        except torch.OutOfMemoryError:
            raise LaunchError(
                f"{len(rows)} texts at a time do not fit into the device's memory; expected fewer; lower --batch."
            ) from None

    def identity(self) -> str:
        """Hex digest over all that decides an answer besides the text."""
        data = to_dict(self._config)["data"]
        facts = {key: data[key] for key in READ} | {"side": side_of(self._config.data), "most": self._most}
        base = base_identities(self._config, self._model, self._tokenizers)
        return hashlib.sha256(json.dumps([facts, base, self._config.model.dtype]).encode()).hexdigest()

    def print_truncated(self) -> None:
        """Say on stdout how many texts were truncated."""
        for line in self._prompts.truncation_lines():
            print(line)
