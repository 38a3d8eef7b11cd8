"""How every command begins: in UTF-8, whatever the machine's locale says."""

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
    """Arguments, file names, files that libraries open, and the three streams are UTF-8 from here on.

    Under another locale (ISO-8859-1, or C where nothing coerces it) Python would read a Bengali line as other letters
    and die where it prints one. File names and arguments are decoded before any line of ours runs, so there Python is
    started again in its UTF-8 mode (PEP 540), in the same process.
    """
    foreign = {sys.getfilesystemencoding().lower(), locale.getpreferredencoding(False).lower()} - {"utf-8", "utf8"}
    # PYTHONUTF8 set already and not heard (-I, -X utf8=0): a second start would change nothing.
    if foreign and sys.executable and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # PYTHONIOENCODING, and half letters in a name or a text, must not end a command where it prints.
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)
