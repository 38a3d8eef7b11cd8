"""The one thread that owns the models: batch after batch from the queue to the writer, until it is told to end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from bridge_ds.errors import BridgeError
from bridge_ds.serve.schema import APIError
from bridge_ds.serve.waiting import RequestQueue
from bridge_ds.serve.work import Row

__all__ = ["Scheduler", "Writer"]

_log = logging.getLogger(__name__)


class Writer(Protocol):
    """Whatever can write answers."""

    def start(self, rows: Sequence[Row], done: Callable[[int], None]) -> None:
        """Write all, or begin to; call `done` for each row or for several, once each is at its end."""


class Scheduler:
    """Takes batches and has them written; a batch that fails is told to its requests, and the next is taken."""

    def __init__(self, waiting: RequestQueue, writer: Writer, observe: Callable[[int], None]) -> None:
        """Args:
        waiting: the queue.
        writer: of the answers.
        observe: told the size of each batch.
        """
        self.waiting, self.writer, self.observe = waiting, writer, observe
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the batch that is being written."""
        self._end.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether rows are still being taken."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._end.is_set():
            rows = self.waiting.take(0.2)
            if not rows:
                continue
            self.observe(len(rows))
            try:
                self.writer.start(rows, self.waiting.done)
            except Exception as error:
                # One bad batch must not end the server; its requests are told, the log has the rest.
                _log.exception("a batch of %d rows failed", len(rows))
                unknown = "the answer could not be written (see the log)."
                told = str(error) if isinstance(error, BridgeError) else unknown
                for row in rows:
                    row.fail(APIError(told, 500, code="internal"))
