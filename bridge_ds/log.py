"""Messages of a command: plain lines on stderr, from rank 0; warnings and errors from every rank."""

from __future__ import annotations

import logging
import sys

from bridge_ds.errors import LaunchError
from bridge_ds.world import World

__all__ = ["setup_logging"]

_LOGGERS = ("bridge_ds", "__main__")
"""Of the package, and of the module that was started (`bridge-ds evaluate`, a script of tools/)."""


def setup_logging(rank: int | None = None) -> None:
    """Print the messages of `logging.getLogger(__name__)`; called by :func:`bridge_ds.entry.run_command`.

    Without it (in a notebook, in a test) messages go where the user's own logging configuration sends them. Other
    libraries' loggers are not touched.

    Args:
        rank: of this process; by default that of the launcher's variables.
    """
    if rank is None:
        try:
            rank = World.detect().rank
        except LaunchError:  # the command reports it
            rank = 0
    handler = _Handler(logging.INFO if rank == 0 else logging.WARNING)
    handler.setFormatter(_Formatter())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False  # a library that configures the root logger must not print our lines again


class _Formatter(logging.Formatter):
    """The message, with `warning:` or `error:` in front of warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


class _Handler(logging.Handler):
    """Writes to the current `sys.stderr`, above open progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if "tqdm" in sys.modules:
                from tqdm import tqdm

                tqdm.write(text, file=sys.stderr)
            else:
                sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)
