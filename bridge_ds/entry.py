"""What every command does first and last: switch to UTF-8, and leave quietly where nobody reads its output."""

from __future__ import annotations

import io
import locale
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from bridge_ds.log import setup_logging

__all__ = ["reader_is_gone", "run_command", "use_utf8"]


def run_command(main: Callable[[], Any]) -> NoReturn:
    """Run the `main` of a script or module as a command: `if __name__ == "__main__": run_command(main)`.

    Where the reader of its output has left (`bridge-ds --help | head -1`), it ends without a traceback, with the status
    of a program that SIGPIPE ends.
    """
    use_utf8()
    setup_logging()
    status: Any = 0
    try:
        try:
            status = main()
        except SystemExit as left:  # argparse's, after --help
            status = left.code
        print(end="", flush=True)
    except BrokenPipeError:
        if not reader_is_gone():
            raise
        # Python flushes both streams once more when it exits.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        status = status or 128 + signal.SIGPIPE
    sys.exit(status)


def reader_is_gone() -> bool:
    """Whether stdout or stderr is a pipe whose reader has closed it, as `head` does."""
    poll = select.poll()
    poll.register(1, 0)
    poll.register(2, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def use_utf8() -> None:
    """Make arguments, file names, files that libraries open, and the standard streams UTF-8.

    Under another locale (ISO-8859-1, or C without coercion) Python would decode a Bengali line wrongly and fail where
    it prints one. Arguments and file names are decoded before this code runs, so Python then restarts itself in its
    UTF-8 mode (PEP 540), in the same process.
    """
    foreign = {sys.getfilesystemencoding().lower(), locale.getpreferredencoding(False).lower()} - {"utf-8", "utf8"}
    # PYTHONUTF8 is set already and ignored (-I, -X utf8=0): a restart would change nothing.
    if foreign and sys.executable and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # Neither PYTHONIOENCODING nor a lone surrogate in a name or a text may make print() fail.
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)
