"""Answers in the form of OpenAI's API: whole, or as server-sent events. Pure, but for the clock and the id.

Field names: OpenAI's API reference, "The completion object", "The chat completion chunk object".
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from bridge_ds.serve.schema import APIError
from bridge_ds.serve.work import Event, Row

__all__ = ["DONE", "TRUNCATED", "Reply", "line"]

TRUNCATED = "X-Bridge-Truncated"
"""Header with the number of texts that were too long to be read whole; absent = none was."""
DONE = b"data: [DONE]\n\n"
"""The last line of a stream."""


def line(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


class Reply:
    """What is said in answer to one request."""

    def __init__(self, rows: Sequence[Row], model: str, chat: bool) -> None:
        """Args:
        rows: of the request, in order.
        model: its name.
        chat: whether messages or prompts were asked.
        """
        self.rows, self.chat = rows, chat
        self.texts = ["" for _ in rows]
        self.reasons: list[str | None] = [None for _ in rows]
        self.written = 0
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._kind = kind

    def take(self, event: Event) -> None:
        """Count an event in.

        Raises:
            APIError: the row has failed.
        """
        if event.failure is not None:
            raise event.failure
        self.texts[event.index] += event.text
        self.written += event.tokens
        self.reasons[event.index] = event.reason

    @property
    def complete(self) -> bool:
        """Every row is at its end."""
        return all(self.reasons)

    @property
    def usage(self) -> dict[str, int]:
        """Places that the prompts take in the LLM (a soft prompt's among them), tokens written, and texts that were not
        read whole (`truncated`, a field of ours)."""
        read = sum(row.length for row in self.rows)
        counts = {"prompt_tokens": read, "completion_tokens": self.written, "total_tokens": read + self.written}
        return counts | {"truncated": self.truncated}

    @property
    def truncated(self) -> int:
        """Texts that were too long to be read whole."""
        return sum(row.truncated for row in self.rows)

    @property
    def headers(self) -> dict[str, str]:
        """Of the response, known before anything is written."""
        return {TRUNCATED: str(self.truncated)} if self.truncated else {}

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        choices = [
            {
                "index": index,
                **({"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}),
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(self.texts, self.reasons, strict=True))
        ]
        return {**self._head, "object": self._kind, "choices": choices, "usage": self.usage}

    def opening(self) -> list[bytes]:
        """Events before the first text: in a chat, who speaks."""
        if not self.chat:
            return []
        delta = {"role": "assistant", "content": ""}
        return [self._chunk([{"index": row.index, "delta": delta, "finish_reason": None}]) for row in self.rows]

    def piece(self, event: Event) -> bytes:
        """The server-sent event for an event."""
        choice: dict[str, Any] = {"index": event.index, "finish_reason": event.reason}
        if self.chat:
            choice["delta"] = {"content": event.text} if event.text else {}
        else:
            choice |= {"text": event.text, "logprobs": None}
        return self._chunk([choice])

    def ending(self, usage: bool) -> list[bytes]:
        """What follows the last piece."""
        return [*([self._chunk([], usage=self.usage)] if usage else []), DONE]

    @staticmethod
    def failed(why: APIError) -> list[bytes]:
        """The end of a stream that cannot go on; its status was sent long ago."""
        return [line(why.body()), DONE]

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = f"{self._kind}.chunk" if self.chat else self._kind
        return line({**self._head, "object": kind, "choices": choices, **more})
