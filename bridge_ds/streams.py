"""stdout and stderr on a full disk: messages are left out, a result that cannot be written is an error."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any

__all__ = ["Stream", "guard_streams", "leave_out_unwritable", "unwritten_result"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ENXIO, errno.ESTALE, errno.ENODEV}


class Stream(io.FileIO):
    """The file behind sys.stdout or sys.stderr. A write that fails is lost; what is written later is tried again."""

    def __init__(self, descriptor: int, name: str, required: bool) -> None:
        """Args:
        descriptor: 1 or 2; not closed.
        name: for messages.
        required: whether the first write that fails is an OSError, and all later ones are lost without one.
        """
        super().__init__(descriptor, "w", closefd=False)
        self.title, self.required = name, required
        self.failed: OSError | None = None

    def write(self, data: Any) -> int:
        """All of it, or what fits. Raises OSError, see above; BrokenPipeError always."""
        rest = memoryview(data).cast("B")
        length = len(rest)
        try:
            while rest and not (self.failed and self.required):
                written = super().write(rest)
                if written is None:  # not blocking, and its reader is behind
                    select.select([], [self.fileno()], [])
                rest = rest[written or 0 :]
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self.failed = OSError(error.errno, error.strerror, self.title)
            if self.required:
                raise self.failed from None
        return length


def guard_streams() -> None:
    """Make messages on stderr optional, and the result on stdout required. For a command, before it prints."""
    for name, descriptor, title in (("stdout", 1, "standard output"), ("stderr", 2, "standard error")):
        stream = getattr(sys, name)
        if stream is None:
            # Closed (`2>&-`). The next file that is opened would get its number, and the messages of libraries.
            null = os.open(os.devnull, os.O_WRONLY)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            setattr(sys, name, io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper) and not isinstance(_raw(stream), Stream):
            stream.flush()
            raw = Stream(descriptor, title, required=name == "stdout")
            unbuffered = isinstance(stream.buffer, io.RawIOBase)
            guarded = io.TextIOWrapper(
                raw if unbuffered else io.BufferedWriter(raw),  # type: ignore[arg-type]
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, guarded)


def leave_out_unwritable() -> None:
    """From now on stdout has messages only: what cannot be written is left out, and nothing ends for it."""
    raw = _raw(sys.stdout)
    if isinstance(raw, Stream):
        raw.required = False


def unwritten_result() -> OSError | None:
    """Why the result on stdout is incomplete; None if it is complete."""
    raw = _raw(sys.stdout)
    return raw.failed if isinstance(raw, Stream) and raw.required else None


def _raw(stream: Any) -> Any:
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)
