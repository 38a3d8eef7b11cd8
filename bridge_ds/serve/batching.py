"""Rows that wait, the queue that holds them, and the one thread that owns the models and answers batch after batch."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bridge_ds.data.text.prompting import ContextIds
from bridge_ds.errors import BridgeError
from bridge_ds.inference.choice import BRIDGE
from bridge_ds.inference.generator import Sampling, write_as_alone
from bridge_ds.inference.stops import Answer
from bridge_ds.serve.protocol import APIError
from bridge_ds.serve.replies import Event

__all__ = ["Backend", "BackendLost", "RequestQueue", "Row", "Scheduler", "choose_batch"]

_log = logging.getLogger(__name__)
_numbers = itertools.count()


@dataclass(eq=False)
class Row:
    """One text of a request: its prompt, and its answer as it grows."""

    ids: ContextIds
    length: int
    """LLM positions of the prompt."""
    limit: int
    """Most tokens of the answer."""
    answer: Answer
    sampling: Sampling
    seed: int | None
    """Of sampling. A row with a seed is a batch of its own, so that its answer depends on nothing else."""
    index: int
    """In its request."""
    sink: Callable[[Event], None]
    """Takes events, from any thread."""
    way: str = BRIDGE
    """Who answers: BRIDGE, or LLM for the LLM alone."""
    cancelled: bool = False
    """Nobody waits for it any more."""
    number: int = field(default_factory=lambda: next(_numbers))
    """Order of arrival."""

    @property
    def truncated(self) -> bool:
        """Whether only a part of the text is read."""
        return bool(self.ids.truncated)

    @property
    def key(self) -> tuple[Sampling, str, int]:
        """The same in all rows of a batch."""
        return self.sampling, self.way, -1 if self.seed is None else self.number

    def send(self, text: str, tokens: int | None = None) -> None:
        """Send text that is new, and the end if the answer is finished.

        Args:
            text: as :meth:`bridge_ds.inference.stops.Answer.add` gives it.
            tokens: of the whole answer; none = those that `answer` was given.
        """
        reason = self.answer.reason
        if text or reason:
            written = len(self.answer.tokens) if tokens is None else tokens
            self.sink(Event(self.index, text, reason, written if reason else 0))

    def fail(self, why: APIError) -> None:
        """Send that there will be no answer."""
        if not self.cancelled and self.answer.reason is None:
            self.answer.reason = "failed"
            self.sink(Event(self.index, failure=why))


def choose_batch(rows: Sequence[Row], size: int, positions: int) -> list[Row]:
    """The row that has waited longest, and rows with the same sampling and way that are nearest to it in length.

    Rows only share a batch where each can still write as much as alone; its answer is then the one that it would get
    alone.

    Args:
        rows: in order of arrival.
        size: most rows of a batch.
        positions: of the LLM; 0 = unknown.
    """
    if not rows:
        return []
    first = rows[0]
    chosen, length, limit = [first], first.length, first.limit
    alike = [row for row in rows[1:] if row.key == first.key]
    for row in sorted(alike, key=lambda row: (abs(row.length - first.length), row.number)):
        if len(chosen) == size:
            break
        longest, highest = max(length, row.length), max(limit, row.limit)
        if write_as_alone(longest, highest, positions):
            chosen, length, limit = [*chosen, row], longest, highest
    return chosen


class RequestQueue:
    """A queue of limited length; many threads offer rows, one takes batches."""

    def __init__(self, limit: int, size: int, positions: int, concurrency: int = 1) -> None:
        """Args:
        limit: most rows that wait.
        size: most rows of a batch.
        positions: of the LLM; 0 = unknown.
        concurrency: no batch starts while this many rows are running.
        """
        self.limit, self.size, self.positions, self.concurrency = limit, size, positions, concurrency
        self.running = 0
        """Rows that are being answered."""
        self.draining = False
        """No more rows are accepted."""
        self.dropping = False
        """Rows that wait will not be answered."""
        self.batch_s = 1.0
        """Running mean of the time a batch takes; seconds."""
        self._rows: list[Row] = []
        self._changed = threading.Condition()
        self._began = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        with self._changed:
            return not self._rows and not self.running

    def check_room(self, rows: int) -> None:
        """Raise unless this many rows can be accepted now.

        Raises:
            APIError: 503 while draining, 429 with the time to wait when the queue is full.
        """
        if self.draining:
            raise APIError("the server is shutting down and accepts no requests.", 503, code="draining", retry_s=5)
        if rows > self.limit:
            raise APIError(f"the request holds {rows} texts; at most {self.limit} can wait here.")
        with self._changed:
            self._forget()
        if len(self._rows) + rows > self.limit:
            wait = math.ceil(self.batch_s * (1 + len(self._rows) // self.size))
            message = f"{len(self._rows)} texts wait already, of at most {self.limit}; try again in {wait} s."
            raise APIError(message, 429, code="queue_full", retry_s=min(max(1, wait), 600))

    def offer(self, rows: Sequence[Row]) -> None:
        """Accept all rows of a request, or none.

        Raises:
            APIError: as of :meth:`check_room`.
        """
        with self._changed:
            self.check_room(len(rows))
            self._rows += rows
            self._changed.notify()

    def drain(self) -> None:
        """Accept no more rows; asked again, :meth:`drop` those that wait. For a signal handler, so it takes no lock."""
        self.draining, self.dropping = True, self.draining

    def drop(self, why: APIError) -> None:
        """Fail the rows that wait."""
        with self._changed:
            rows, self._rows = self._rows, []
        for row in rows:
            row.fail(why)

    def take(self, timeout_s: float) -> list[Row]:
        """The next batch, counted as running until :meth:`done`; empty after the timeout."""
        with self._changed:
            self._changed.wait_for(self._ready, timeout_s)
            if not self._ready():
                return []
            batch = choose_batch(self._rows, self.size, self.positions)
            self._rows = [row for row in self._rows if row not in batch]
            self.running += len(batch)
            self._began = time.monotonic()
            return batch

    def done(self, rows: int) -> None:
        """This many running rows have ended."""
        with self._changed:
            self.running -= rows
            self.batch_s += 0.2 * (time.monotonic() - self._began - self.batch_s)
            self._changed.notify()

    def _ready(self) -> bool:
        """Whether a batch can start."""
        self._forget()
        return bool(self._rows) and self.running < self.concurrency and not self.dropping

    def _forget(self) -> None:
        """Drop cancelled rows."""
        self._rows = [row for row in self._rows if not row.cancelled]


class Backend(Protocol):
    """Writes answers."""

    def start(self, rows: Sequence[Row], done: Callable[[int], None]) -> None:
        """Answer a batch, or begin to; calls `done` with the number of rows that have ended, until all have."""


class BackendLost(Exception):
    """The backend cannot answer this batch nor any other."""


class Scheduler:
    """The thread that takes batches and gives them to the backend. After a batch that fails it goes on; after any other
    error it ends, with all requests that wait or run."""

    def __init__(self, queue: RequestQueue, backend: Backend) -> None:
        self.queue, self.backend = queue, backend
        self.observe: Callable[[int], None] = lambda rows: None
        """Called with the size of each batch."""
        self.failure: BaseException | None = None
        """What ended the thread, if not :meth:`stop`."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it after the batch that is running."""
        self._end.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and self.failure is None

    def _run(self) -> None:
        rows: list[Row] = []
        try:
            while not self._end.is_set():
                rows = self.queue.take(0.2)
                if rows:
                    self.observe(len(rows))
                    self._answer(rows)
        except BaseException as error:  # whatever it is: nobody else would answer those who wait
            self.failure = error
            self.queue.draining = True
            why = APIError("the server has failed and ends (see its log).", 500, code="internal")
            for row in rows:
                row.fail(why)
            self.queue.drop(why)

    def _answer(self, rows: Sequence[Row]) -> None:
        try:
            self.backend.start(rows, self.queue.done)
        except BackendLost:
            raise
        except Exception as error:
            # One batch that fails must not end the server; its requests get an error, the log the traceback.
            if isinstance(error, APIError):
                _log.error("a batch of %d rows failed: %s", len(rows), error)
            else:
                _log.exception("a batch of %d rows failed", len(rows))
                message = (
                    str(error) if isinstance(error, BridgeError) else "the answer could not be written (see the log)."
                )
                error = APIError(message, 500, code="internal")
            for row in rows:
                row.fail(error)
