"""uvicorn around the application, and its end: accepted requests are finished, new ones refused."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from bridge_ds.errors import LaunchError
from bridge_ds.serve.app import Service, make_app
from bridge_ds.serve.connections import Connection
from bridge_ds.serve.protocol import APIError

__all__ = ["DrainingServer", "allow_connections", "bind", "serve"]

_log = logging.getLogger(__name__)
_ACCEPTED = 64
"""Connections that asyncio accepts at once, before any of them can be closed."""
_OTHER_FILES = 256
"""Open files besides connections."""
_LAST_S = 10
"""Seconds in which clients must have read their answers when the server ends."""
_BACKLOG = 1024
"""Connections that wait to be accepted; Linux has its own limit."""


class DrainingServer(uvicorn.Server):
    """After a SIGTERM or SIGINT new requests get 503, and it ends when all are answered; after a second one requests
    that wait get 503, too; after a third one nothing is finished."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._told = -float("inf")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._aborting = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of uvicorn: a signal has come."""
        queue = self.service.scheduler.queue
        if queue.dropping:
            # Not force_exit at once: uvicorn would then log a traceback for each request that it cancels.
            self.should_exit, self.force_exit, self._aborting = True, self._aborting, True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._abort, lambda connection: True)
        queue.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Of uvicorn: listen, then log where.

        Raises:
            LaunchError: the port has been taken since :func:`bind`.
        """
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets)
            for found in sockets or []:
                found.listen(_BACKLOG)
        except OSError as error:
            raise _unusable(_address(sockets[0]) if sockets else "the address", error) from None
        self._loop.set_exception_handler(self._loop_error)
        for found in sockets or []:
            _log.info("serving %s on http://%s/v1", self.service.name, _address(found))

    async def on_tick(self, counter: int) -> bool:
        """Of uvicorn, ten times a second: whether to end."""
        scheduler = self.service.scheduler
        if scheduler.queue.dropping:
            scheduler.queue.drop(APIError("the server is shutting down.", 503, code="draining", retry_s=5))
        if not scheduler.alive or (scheduler.queue.draining and scheduler.queue.idle):
            self.should_exit = True
        if counter % 10 == 0:
            now = time.monotonic()
            self._abort(lambda connection: connection.overdue(now))
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Of uvicorn: close what is idle, and wait for answers to be sent."""
        delay_s = 0 if self._aborting else _LAST_S
        asyncio.get_running_loop().call_later(delay_s, self._abort, lambda connection: True)
        await super().shutdown(sockets)

    def _abort(self, which: Callable[[Connection], bool]) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection) and which(connection):
                connection.abort()

    def _loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Of asyncio, which has not accepted a connection and tries again after a second."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (
            errno.EMFILE,
            errno.ENFILE,
            errno.ENOBUFS,
            errno.ENOMEM,
        ):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._told > 60:
            self._told = time.monotonic()
            _log.warning("a connection cannot be accepted (%s); expected room for it; see ulimit -n.", error.strerror)


def _address(found: socket.socket) -> str:
    host, port = found.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _unusable(address: str, error: Exception) -> LaunchError:
    why = getattr(error, "strerror", None) or error
    return LaunchError(f"{address} cannot be listened on ({why}); choose another with --host or --port.")


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is found before models are loaded.

    Raises:
        LaunchError: no such host, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: a host that is no domain name
        raise _unusable(f"{host}:{port}", error) from None
    return found


def allow_connections(connections: int) -> None:
    """Let this process have so many connections at a time.

    Raises:
        LaunchError: the limit on open files is lower and cannot be raised.
    """
    needed = connections + _ACCEPTED + _OTHER_FILES
    soft, hard = (
        needed if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if hard < needed:
        raise LaunchError(
            f"{connections} connections need {needed} open files, and the limit is {hard}; expected a higher one; "
            "raise it (ulimit -n) or lower --queue or --at-once."
        )
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def serve(service: Service, listening: socket.socket, connections: int) -> None:
    """Serve until a signal ends it.

    Args:
        service: its scheduler is started, and stopped at the end.
        listening: of :func:`bind`.
        connections: most that are open; with more, the one that has waited longest without a request is closed.

    Raises:
        RuntimeError: the scheduler's thread has failed.
    """
    config = uvicorn.Config(
        make_app(service), log_level="error", access_log=False, lifespan="off", limit_concurrency=connections,
        timeout_keep_alive=30, server_header=False, http=Connection, ws="none", backlog=_ACCEPTED,
    )  # fmt: skip
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):  # for one more, when uvicorn's own handlers are gone again
            signal.signal(number, lambda *_: os._exit(0))
    service.scheduler.start()
    try:
        DrainingServer(config, service).run(sockets=[listening])
    finally:
        service.scheduler.stop()
    if service.scheduler.failure:
        raise RuntimeError("the thread that runs the models has failed") from service.scheduler.failure
