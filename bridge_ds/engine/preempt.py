"""Preemption: a signal only sets a flag; the loop reads it where all ranks can agree.

A rank that saved alone would wait for the others forever, so the handler never saves: see :func:`agree_on_data`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from types import FrameType

__all__ = ["StopRequest"]


class StopRequest:
    """Whether this process was asked to save and stop."""

    def __init__(self) -> None:
        self.signal = ""
        """Name of the signal received, such as `SIGUSR2`; empty = none."""
        self._process = os.getpid()

    def __bool__(self) -> bool:
        return bool(self.signal)

    def listen(self, names: Sequence[str]) -> StopRequest:
        """Set the flag at these signals (`USR2`, `TERM`, ...) from now on. Main thread only."""
        for name in names:
            signal.signal(getattr(signal, f"SIG{name}"), self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        # A forked process inherits the handler; nobody reads its flag.
        if os.getpid() == self._process:
            self.signal = signal.Signals(number).name
