"""What every command does first and last: switch to UTF-8, and turn errors into sentences and an exit status."""

from __future__ import annotations

import contextlib
import errno
import io
import locale
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from bridge_ds.errors import EXIT_LOST, EXIT_PREEMPTED, EXIT_USER_ERROR, BridgeError, LaunchError, Preempted, last_words
from bridge_ds.log import setup_logging
from bridge_ds.streams import guard_streams, unwritten_result
from bridge_ds.world import World

__all__ = ["exit_status", "lost_peer", "reader_is_gone", "run_command", "use_utf8"]

_PORT_TAKEN = """\
error: another process uses the port that the ranks meet at (MASTER_PORT, 29500 by default); expected a free one; \
choose another (bridge-ds train ... -- --master_port N, deepspeed --master_port N ..., torchrun --master_port N ...)."""
_OF_THE_DISK = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ENOTDIR", "EISDIR", "ENAMETOOLONG",
                 "ELOOP", "EMFILE", "ENFILE", "EFBIG", "ENODEV")
)  # fmt: skip
"""Errors of the operating system that the user's disk, folders or limits cause."""
_TRACEBACK = "BRIDGE_DS_TRACEBACK"
"""Environment variable: also print the traceback of a user error."""


def run_command(main: Callable[[], Any]) -> NoReturn:
    """Run the `main` of a script or module as a command: `if __name__ == "__main__": run_command(main)`.

    Where the reader of its output has left (`bridge-ds --help | head -1`), it ends without a traceback, with the status
    of a program that SIGPIPE ends.
    """
    use_utf8()
    guard_streams()
    setup_logging()
    status: Any = 0
    try:
        status = exit_status(main)
        print(end="", flush=True)
    except BrokenPipeError:
        if not reader_is_gone():
            raise
        # Python flushes both streams once more when it exits.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        status = status or 128 + signal.SIGPIPE
    except OSError as error:
        status = _unforeseen(error)
    if not status and (lost := unwritten_result()):  # the error may have been passed over, as argparse does
        status = _unforeseen(lost)
    if status and (torch := sys.modules.get("torch")) and torch.distributed.is_initialized():
        # The group's threads still run, and the end of the interpreter may come upon one: "terminate called without an
        # active exception" and SIGABRT instead of the status. A group that did its work has been destroyed.
        os._exit(status)
    sys.exit(status)


def exit_status(main: Callable[[], Any]) -> Any:
    """Run the `main` of a command; a user error becomes one sentence on stderr and exit status 2.

    Rank 0 prints at once. Other ranks wait 3 s first: if all fail for the same reason, the launcher ends them after
    rank 0, and the sentence is printed once. Every failing rank of several exits here by `os._exit`, because a rank
    that hangs in the teardown of its process group would keep the whole job alive (pytorch#76287).
    """
    try:
        return main()
    except SystemExit as left:  # argparse's, after --help
        return left.code
    except BridgeError as error:
        return _leave(f"error: {error}", EXIT_USER_ERROR)
    except Preempted as why:
        return _leave(f"{why}; the same command continues.", EXIT_PREEMPTED)
    except KeyboardInterrupt:
        return _leave("stopped by the user; the same command continues.", 130)
    except Exception as error:
        return _unforeseen(error)


def _unforeseen(error: Exception) -> int:
    if isinstance(error, BrokenPipeError) and reader_is_gone():
        raise error
    if lost_peer(error):
        if "EADDRINUSE" in str(error):
            # A job script that reads the status starts again, with another port.
            return _leave(_PORT_TAKEN, EXIT_LOST if os.environ.get("BRIDGE_DS_LAST_WORDS") else EXIT_USER_ERROR)
        return _leave(traceback.format_exc(), EXIT_LOST)
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        where = error.filename2 or error.filename or "a file"
        return _leave(
            f"error: {where} cannot be used ({error.strerror}); expected space, and the permission to read and write "
            "it; make room or choose another place, then give the same command.",
            EXIT_USER_ERROR,
        )
    return _leave(traceback.format_exc(), 1)


def lost_peer(error: BaseException) -> bool:
    """Whether an error means that another rank is gone."""
    torch = sys.modules.get("torch")  # not imported here: most commands end without it
    if torch and isinstance(error, torch.distributed.DistNetworkError | torch.distributed.DistBackendError):
        return True
    # gloo raises plain RuntimeErrors, which name its source file and the socket error.
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "Connection closed by peer" in text or "Connection reset by peer" in text or "/gloo/transport/" in text
    )


def _leave(text: str, status: int) -> int:
    try:
        world = World.detect()
    except LaunchError:  # which is the error that is reported
        world = World()
    if status == EXIT_PREEMPTED and not world.is_main:
        os._exit(status)  # all ranks agreed; rank 0 prints it
    if status == 1 or (world.is_main and status in (EXIT_USER_ERROR, EXIT_PREEMPTED)):
        # Also after an unexpected error of one rank: the launcher ends the others by a signal, as if they were lost.
        last_words(text if status != 1 else f"error: {text.strip().splitlines()[-1]} (its traceback is above)", status)
    if not world.is_main:
        time.sleep(3)
        text = f"[rank {world.rank}] {text}"
    if os.environ.get(_TRACEBACK) and status == EXIT_USER_ERROR:
        traceback.print_exc()
    print(text, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):  # a full disk, which may be what the text says
        sys.stdout.flush()
    if world.size > 1:
        os._exit(status)
    # A single process has no process group to hang in; threads that still write (tracking) are daemons.
    return status


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
