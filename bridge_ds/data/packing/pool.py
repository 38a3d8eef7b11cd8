"""Processes that work for a command, and end with it."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from bridge_ds.errors import DataError

__all__ = ["process_pool"]


@contextlib.contextmanager
def process_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of `count` processes. Those still at work when the block ends by an exception are killed.

    Raises:
        DataError: one was killed, or the system gives no more of them.
    """
    pool = ProcessPoolExecutor(count, initializer=_end_with_parent)
    try:
        yield pool
    except BaseException as error:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise DataError(
                "a packing process was killed, most likely because memory ran out; the same command continues "
                "with the parts that are missing: lower --processes."
            ) from None
        if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM):
            raise DataError(
                f"the system gives no more processes or memory ({error.strerror}); expected enough for "
                "--processes; lower it: the same command then continues with the missing parts."
            ) from None
        raise
    pool.shutdown()


def _end_with_parent() -> None:
    # Otherwise the workers of a killed command would wait for work for ever, and hold its lock.
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches them too: no traceback of each
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
