"""uvicorn around the application, and its shutdown: running requests are finished, new ones refused."""

from __future__ import annotations

import logging
import socket
from types import FrameType

import uvicorn

from bridge_ds.errors import LaunchError
from bridge_ds.serve.app import Service, make_app

__all__ = ["DrainingServer", "bind", "serve"]

_log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """After a SIGTERM or SIGINT new requests get 503, and it ends when all is answered; after a second one rows that
    wait are dropped."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of uvicorn: a signal has come."""
        queue = self.service.scheduler.queue
        if queue.draining:
            self.should_exit = self.force_exit = True
        queue.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Of uvicorn: listen, then log where.

        Raises:
            LaunchError: the port has been taken since :func:`bind`.
        """
        try:
            await super().startup(sockets)
        except OSError as error:
            raise _unusable(_address(sockets[0]) if sockets else "the address", error) from None
        for found in sockets or []:
            _log.info("serving %s on http://%s/v1", self.service.name, _address(found))

    async def on_tick(self, counter: int) -> bool:
        """Of uvicorn, ten times a second: whether to end."""
        scheduler = self.service.scheduler
        if scheduler.queue.draining and (scheduler.queue.idle or not scheduler.alive):
            self.should_exit = True
        return await super().on_tick(counter)


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


def serve(service: Service, listening: socket.socket, connections: int) -> None:
    """Serve until a signal ends it.

    Args:
        service: its scheduler is started, and stopped at the end.
        listening: of :func:`bind`.
        connections: open connections above which uvicorn itself answers 503.
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
