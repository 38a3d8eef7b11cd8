"""Texts to token ids and back, for many threads at a time: a tokenizer is used by one thread at once."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from bridge_ds.data.text.chat import has_template
from bridge_ds.data.text.prompting import DoesNotFit
from bridge_ds.errors import BridgeError
from bridge_ds.generate.pipeline import Pipeline
from bridge_ds.serve.schema import APIError, Ask
from bridge_ds.serve.work import Event, Row

__all__ = ["Texts"]


class Texts:
    """Both tokenizers, behind a lock."""

    def __init__(self, answerer: Pipeline) -> None:
        self._lock = threading.Lock()
        self._answerer = answerer
        self._processor = answerer.processor
        model = answerer.model
        self.positions = model.positions
        """Places of the LLM; 0 = unknown."""
        self.default_tokens = int(model.generation_config.max_new_tokens or self._processor.max_new_tokens)
        """max_tokens of a request that names none."""
        ends = model.generation_config.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])
        """Ids that end an answer."""

    @property
    def has_chat(self) -> bool:
        """Whether the LLM's tokenizer has a chat template."""
        return has_template(self._processor.tokenizer)

    def rows(self, ask: Ask, sink: Callable[[Event], None]) -> list[Row]:
        """A row for each text, with the ids that `python -m bridge_ds.generate` would give it: cut as in training where
        it is too long, which the reply says.

        Raises:
            APIError: it leaves no place to answer.
        """
        if ask.chat and not self.has_chat:
            raise APIError(
                "the LLM's tokenizer has no chat template, so there are no chats here; use /v1/completions.",
                param="messages",
            )
        languages = self._processor.tokenizers.languages
        if languages and ask.language:
            try:
                languages.tag(ask.language)
            except BridgeError as error:
                raise APIError(str(error), param="language") from None
        style = dataclasses.replace(self._answerer.options, chat=ask.chat, max_new_tokens=ask.max_tokens)
        answerer = Pipeline(self._answerer.model, self._processor, style)
        with self._lock:
            return [self._row(answerer, ask, index, sink) for index in range(len(ask.texts))]

    def _row(self, answerer: Pipeline, ask: Ask, index: int, sink: Callable[[Event], None]) -> Row:
        param = "messages" if ask.chat else "prompt"
        try:
            ids = answerer.row(ask.texts[index], ask.language)
        except BridgeError as error:
            code = "context_length_exceeded" if isinstance(error, DoesNotFit) else None
            raise APIError(str(error), param=param, code=code) from None
        length = self._processor.length(ids)
        truncated = bool(ids.cut)
        most = ask.max_tokens or self.default_tokens
        if self.positions:
            most = min(most, self.positions - length)
        if most < 1:
            raise APIError("the text leaves the LLM no place to answer.", code="context_length_exceeded", param=param)
        return Row(ids, length, most, ask.sampling, ask.stops, ask.stream, index, sink, ask.chat, truncated)

    def decoder(self, row: Row) -> Callable[[Sequence[int]], tuple[str, str]]:
        """:meth:`decode` for the answers of a row."""
        return functools.partial(self.decode, chat=row.chat)

    def decode(self, ids: Sequence[int], chat: bool = False) -> tuple[str, str]:
        """An answer as the LLM wrote it, and as it is answered; `chat`: after a chat template."""
        listed: Any = list(ids)
        with self._lock:
            raw = self._processor.tokenizer.decode(listed, skip_special_tokens=True)
            return raw, self._processor.bare(raw, chat)
