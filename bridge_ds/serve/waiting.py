"""Rows that wait for the models: a queue of limited length, and which of them share the next batch."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence

from bridge_ds.serve.schema import APIError
from bridge_ds.serve.work import Row

__all__ = ["RequestQueue", "choose"]


def choose(rows: Sequence[Row], size: int, positions: int) -> list[Row]:
    """The next batch: the row that has waited longest, and those of its kind that are nearest to it in length.

    Padding counts as places, so rows are only put together where each has the room that it would have alone; its answer
    then is the one that it would get alone.

    Args:
        rows: that wait, in order of arrival.
        size: most rows of a batch.
        positions: places of the LLM; 0 = unknown.

    Returns:
        1 to `size` of them, none if there are none.
    """
    if not rows:
        return []
    first = rows[0]
    chosen, length, most = [first], first.length, first.most
    alike = [row for row in rows[1:] if row.key == first.key]
    for row in sorted(alike, key=lambda row: (abs(row.length - first.length), row.number)):
        if len(chosen) == size:
            break
        longer, further = max(length, row.length), max(most, row.most)
        if not positions or longer + further <= positions:
            chosen, length, most = [*chosen, row], longer, further
    return chosen


class RequestQueue:
    """The queue. Many threads offer, one takes."""

    def __init__(self, limit: int, size: int, positions: int, at_once: int = 1) -> None:
        """Args:
        limit: most rows that wait.
        size: most rows of a batch.
        positions: places of the LLM; 0 = unknown.
        at_once: no batch is begun while so many rows are being written.
        """
        self.limit, self.size, self.positions, self.at_once = limit, size, positions, at_once
        self.running = 0
        """Rows that are being written."""
        self.draining = False
        """No more are taken in."""
        self.batch_s = 1.0
        """How long a batch has taken lately, a running mean; seconds."""
        self._rows: list[Row] = []
        self._changed = threading.Condition()
        self._began = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is written."""
        with self._changed:
            return not self._rows and not self.running

    def refuse(self, rows: int) -> None:
        """Raise unless so many rows can be taken in now.

        Raises:
            APIError: 503 while draining, 429 with the time to wait when there is no room.
        """
        if self.draining:
            raise APIError("the server is going down and takes no more requests.", 503, code="draining", retry_s=5)
        if rows > self.limit:
            raise APIError(f"the request holds {rows} texts; at most {self.limit} can wait here.")
        if len(self._rows) + rows > self.limit:
            wait = math.ceil(self.batch_s * (1 + len(self._rows) // self.size))
            raise APIError(
                f"{len(self._rows)} texts wait already, of at most {self.limit}; try again in {wait} s.",
                429, code="queue_full", retry_s=min(max(1, wait), 600),
            )  # fmt: skip

    def offer(self, rows: Sequence[Row]) -> None:
        """Take in all rows of a request, or none.

        Raises:
            APIError: as of :meth:`refuse`.
        """
        with self._changed:
            self.refuse(len(rows))
            self._rows += rows
            self._changed.notify()

    def drain(self) -> None:
        """Take in nothing more. Called by a signal's handler, so it must not wait for a lock."""
        self.draining = True

    def take(self, timeout_s: float) -> list[Row]:
        """The next batch, counted as running until :meth:`done`; empty if none came in time."""
        with self._changed:
            self._changed.wait_for(self._ready, timeout_s)
            if not self._ready():
                return []
            batch = choose(self._rows, self.size, self.positions)
            taken = {row.number for row in batch}
            self._rows = [row for row in self._rows if row.number not in taken]
            self.running += len(batch)
            self._began = time.monotonic()
            return batch

    def done(self, rows: int) -> None:
        """So many of those that were taken are at their end."""
        with self._changed:
            self.running -= rows
            self.batch_s += 0.2 * (time.monotonic() - self._began - self.batch_s)
            self._changed.notify()

    def _ready(self) -> bool:
        """Whether a batch can begin; rows that nobody waits for any more are forgotten."""
        self._rows = [row for row in self._rows if not row.cancelled]
        return bool(self._rows) and self.running < self.at_once
