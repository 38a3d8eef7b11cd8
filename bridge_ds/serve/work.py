"""One row of work: token ids that wait, then an answer that grows token by token until something ends it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bridge_ds.inference.stops import StopStrings
from bridge_ds.serve.schema import APIError, Sampling

__all__ = ["Event", "Row"]

_numbers = itertools.count()


@dataclass(frozen=True)
class Event:
    """News of a row, for the request that it belongs to."""

    index: int
    """Of the row in its request."""
    text: str = ""
    """What is new in the answer, and will not change."""
    reason: str | None = None
    """Set at the end: `stop` (end token or stop text) or `length`."""
    tokens: int = 0
    """LLM tokens written, at the end."""
    failure: APIError | None = None
    """Why there is no answer."""


@dataclass(eq=False)
class Row:
    """A text on its way through the server."""

    ids: tuple[list[int], list[int], list[int]]
    """LLM ids before the soft prompt, encoder ids, LLM ids after it."""
    length: int
    """Places of the LLM that these take."""
    most: int
    """Tokens to write at most."""
    sampling: Sampling
    """How."""
    stops: tuple[str, ...]
    """Texts before which the answer ends."""
    streamed: bool
    """Text is wanted as soon as it is certain."""
    index: int
    """In its request."""
    sink: Callable[[Event], None]
    """Takes events, from any thread."""
    chat: bool = False
    """The answer stands after a chat template that was asked for."""
    truncated: bool = False
    """Of the text only a part was read."""
    cancelled: bool = False
    """Nobody waits for it any more."""
    tokens: list[int] = field(default_factory=list)
    """Written so far, the end token included."""
    reason: str | None = None
    """Why it is at its end; none = it is not."""
    shown: int = 0
    """Letters that were sent."""
    number: int = field(default_factory=lambda: next(_numbers))
    """Order of arrival."""

    @property
    def ended(self) -> bool:
        """Nothing is to be written any more."""
        return self.cancelled or self.reason is not None

    @property
    def key(self) -> tuple[Sampling, int]:
        """Rows of one batch have the same."""
        return self.sampling, self.number if self.sampling.seed is not None else -1

    def add(self, token: int, ends: frozenset[int], decode: Callable[[Sequence[int]], tuple[str, str]]) -> None:
        """Take one more token.

        Args:
            token: LLM id.
            ends: ids that end an answer.
            decode: ids to (text as it is, text as it is answered: without the leading space of training).
        """
        if self.ended:
            return
        self.tokens.append(token)
        if token in ends:
            self.reason = "stop"
        raw, text = decode(self.tokens) if self.stops or self.streamed else ("", "")
        # Half a letter, which decodes to U+FFFD, is no stop yet.
        if self.reason is None and any(stop in raw.rstrip("\ufffd") for stop in self.stops):
            self.reason = "stop"
        if self.reason is None and len(self.tokens) >= self.most:
            self.reason = "length"
        if self.reason is not None:
            self.finish(decode)
        elif self.streamed:
            self.show(text, self.reason)

    def finish(self, decode: Callable[[Sequence[int]], tuple[str, str]]) -> None:
        """Send what is left, and the end."""
        self.show(decode(self.tokens)[1], self.reason or "length")

    def show(self, text: str, reason: str | None) -> None:
        """Send what is new and certain in `text`, the answer so far; all of it with a `reason` to end."""
        whole = StopStrings(self.stops).cut(text)
        end = len(whole)
        if reason is None:
            # Half a letter decodes to U+FFFD; and a stop that has only begun must not be seen.
            end = len(whole.rstrip("\ufffd")) - max((len(stop) for stop in self.stops), default=0)
        new = whole[self.shown : max(end, self.shown)]
        self.shown += len(new)
        if new or reason is not None:
            self.sink(Event(self.index, new, reason, len(self.tokens) if reason is not None else 0))

    def fail(self, why: APIError) -> None:
        """Say that there will be no answer."""
        if not self.ended:
            self.reason = "failed"
            self.sink(Event(self.index, failure=why))
