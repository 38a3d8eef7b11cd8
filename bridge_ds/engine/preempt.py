"""Preemption: a signal only sets a flag; the loop reads it where all ranks can agree.

A rank that saved alone would wait for the others forever, so the handler never saves: see :func:`agree_on_data`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType

__all__ = ["StopRequest"]


class StopRequest:
    """Whether this process was asked to save and stop."""

    def __init__(self) -> None:
        self.signal = ""
        """Name of the signal received, such as `SIGUSR2`; empty = none."""
        self._process = os.getpid()
        self._listening: set[signal.Signals] = set()

    def __bool__(self) -> bool:
        return bool(self.signal)

    def listen(self, names: Sequence[str]) -> StopRequest:
        """Set the flag at these signals (`USR2`, `TERM`, ...) from now on. Main thread only."""
        for name in names:
            number = signal.Signals[f"SIG{name}"]
            signal.signal(number, self._note)
            self._listening.add(number)
        # A process that pass_on() was called in, and that became this one, has left them blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._listening)
        return self

    def pass_on(self) -> None:
        """Keep what was noted, and what comes from then on, for the program by which exec replaces this process at
        once: a blocked signal waits, through exec too (signal(7)), until the next :meth:`listen`. Main thread only."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._listening)
        if self:  # sent to this thread: one to the process would be taken by another thread, and end with it
            signal.pthread_kill(threading.get_ident(), signal.Signals[self.signal])

    def _note(self, number: int, _: FrameType | None) -> None:
        # A forked process inherits the handler; nobody reads its flag.
        if os.getpid() == self._process:
            self.signal = signal.Signals(number).name
