"""uvicorn around the application, and an end in order: what runs is finished, what comes is refused."""

from __future__ import annotations

import socket
import sys
from types import FrameType

import uvicorn

from bridge_ds.errors import LaunchError
from bridge_ds.serve.app import Service, make_app

__all__ = ["DrainingServer", "bind", "serve"]


class DrainingServer(uvicorn.Server):
    """After a SIGTERM or SIGINT new requests get 503, and it ends when all is written; a second drops what waits."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of uvicorn: a signal has come."""
        waiting = self.service.scheduler.waiting
        if waiting.draining:
            self.should_exit = self.force_exit = True
        waiting.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Of uvicorn: begin to listen; then say where."""
        await super().startup(sockets)
        for place in (found.getsockname() for found in sockets or []):
            print(f"serving {self.service.name} on http://{place[0]}:{place[1]}/v1", file=sys.stderr, flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Of uvicorn, ten times a second: whether to end."""
        waiting = self.service.scheduler.waiting
        if waiting.draining and (waiting.idle or not self.service.scheduler.alive):
            self.should_exit = True
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port in use is known before models are loaded.

    Raises:
        LaunchError: it cannot be had.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
    except OSError as error:
        raise LaunchError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); choose another with --host or --port."
        ) from None
    return found


def serve(service: Service, listening: socket.socket, connections: int) -> None:
    """Serve until a signal ends it.

    Args:
        service: the scheduler is started, and stopped at the end.
        listening: of :func:`bind`.
        connections: above so many open ones uvicorn itself answers 503.
    """
    config = uvicorn.Config(
        make_app(service), log_level="warning", access_log=False, lifespan="off", limit_concurrency=connections,
        timeout_keep_alive=30, server_header=False,
    )  # fmt: skip
    service.scheduler.start()
    try:
        DrainingServer(config, service).run(sockets=[listening])
    finally:
        service.scheduler.stop()
