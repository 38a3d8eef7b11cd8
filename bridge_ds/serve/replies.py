"""Replies of OpenAI's API, whole or as server-sent events.

Field names: OpenAI's API reference, "The completion object", "The chat completion chunk object".
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bridge_ds.serve.protocol import APIError

__all__ = ["Event", "Reply"]

TRUNCATED = "X-Bridge-Truncated"
"""Response header with the number of texts that were truncated; absent if none was."""
ANSWERED_BY = "X-Bridge-Answered-By"
"""Response header with `bridge` or `llm`, where the server chooses by language."""
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Event:
    """What is new in one answer of a request."""

    index: int
    """Of the answer in its request."""
    text: str = ""
    """Final: later events only append."""
    reason: str | None = None
    """At the end: `stop` (end token or stop string) or `length`."""
    tokens: int = 0
    """LLM tokens of the answer, at the end."""
    failure: APIError | None = None
    """Why there is no answer."""


class Reply:
    """The reply to one request, collected from its events."""

    def __init__(self, model: str, chat: bool, lengths: Sequence[int], truncated: int, way: str = "") -> None:
        """Args:
        model: its name.
        chat: whether the request was a chat.
        lengths: LLM positions of each prompt, those of the soft prompt included.
        truncated: number of texts that were truncated.
        way: who answers; empty = not said.
        """
        self.truncated, self.written = truncated, 0
        self.headers = ({TRUNCATED: str(truncated)} if truncated else {}) | ({ANSWERED_BY: way} if way else {})
        self._chat, self._read = chat, sum(lengths)
        self._texts = ["" for _ in lengths]
        self._reasons: list[str | None] = [None for _ in lengths]
        self._kind = "chat.completion" if chat else "text_completion"
        self._head: dict[str, Any] = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def add(self, event: Event) -> None:
        """Take in an event.

        Raises:
            APIError: the answer has failed.
        """
        if event.failure is not None:
            raise event.failure
        self._texts[event.index] += event.text
        self._reasons[event.index] = event.reason
        self.written += event.tokens

    @property
    def complete(self) -> bool:
        """Whether every answer has ended."""
        return all(self._reasons)

    @property
    def usage(self) -> dict[str, int]:
        """LLM positions and tokens of the whole request; `truncated` is not a field of OpenAI's."""
        counts = {"prompt_tokens": self._read, "completion_tokens": self.written}
        return counts | {"total_tokens": self._read + self.written, "truncated": self.truncated}

    def whole(self) -> dict[str, Any]:
        """All answers in one object."""
        choices = [
            {
                "index": index,
                **({"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}),
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(self._texts, self._reasons, strict=True))
        ]
        return {**self._head, "object": self._kind, "choices": choices, "usage": self.usage}

    def opening(self) -> list[bytes]:
        """Before the first text of a stream: in a chat the role."""
        delta = {"role": "assistant", "content": ""}
        indices = range(len(self._texts)) if self._chat else ()
        return [self._chunk([{"index": index, "delta": delta, "finish_reason": None}]) for index in indices]

    def chunk(self, event: Event) -> bytes:
        """An event as part of a stream."""
        choice: dict[str, Any] = {"index": event.index, "finish_reason": event.reason}
        if self._chat:
            choice["delta"] = {"content": event.text} if event.text else {}
        else:
            choice |= {"text": event.text, "logprobs": None}
        return self._chunk([choice])

    def ending(self, include_usage: bool) -> list[bytes]:
        """After the last chunk."""
        return [*([self._chunk([], usage=self.usage)] if include_usage else []), _DONE]

    @staticmethod
    def failed(why: APIError) -> list[bytes]:
        """The end of a stream that fails after its status was sent."""
        return [_line(why.body()), _DONE]

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = f"{self._kind}.chunk" if self._chat else self._kind
        return _line({**self._head, "object": kind, "choices": choices, **more})


def _line(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
