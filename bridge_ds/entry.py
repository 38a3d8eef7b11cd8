"""What every command does first: switch to UTF-8, whatever the locale is."""

from __future__ import annotations

import io
import locale
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from bridge_ds.log import setup_logging

__all__ = ["run_command", "use_utf8"]


def run_command(main: Callable[[], Any]) -> NoReturn:
    """Run the `main` of a script or module as a command: `if __name__ == "__main__": run_command(main)`."""
    use_utf8()
    setup_logging()
    sys.exit(main())


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
