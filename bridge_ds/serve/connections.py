"""Connections with limits: none can occupy the server by sending nothing, by sending slowly, or by not reading."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from bridge_ds.serve.protocol import APIError

__all__ = ["Connection"]

_HEADERS_S = 10
"""Seconds in which the headers of a request must have arrived. (`timeout_keep_alive`: until they begin to.)"""
_UNREAD_S = 60
"""Seconds in which a client must have read something of what it was sent."""
_CLOSING_S = 2
"""Seconds for which a connection stays open for reading after its last answer: closed at once while the client still
sends, TCP would discard the answer too."""


class Connection(H11Protocol):
    """uvicorn's connection, with time limits, and closed if it is in the way of others: when there are more than
    `limit_concurrency` connections, the one that has waited longest without a request makes room."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # uvicorn would answer 503 to whoever comes last, /health included.
        self._most, self.limit_concurrency = self.limit_concurrency, None
        self._since = self._read_at = time.monotonic()  # the phase began; the client read something
        self._headers_since: float | None = self._since
        self._unread = 0
        self._closing = False

    def connection_made(self, transport: Any) -> None:
        """Of asyncio: it is open; closes another one if there are too many."""
        super().connection_made(transport)
        if self._most is not None and len(self.connections) > self._most:
            others = [each for each in self.connections if isinstance(each, Connection) and each.rank is not None]
            # It is one of `others` itself, the last.
            min(others, key=lambda each: each.rank or (0, 0)).abort()

    @property
    def rank(self) -> tuple[int, float] | None:
        """Which is closed first where there are too many: the lowest. None: a request is being answered."""
        if self.transport.get_write_buffer_size():
            return 2, self._read_at
        if self._waits:
            return 0, self._since
        return (1, self._since) if self.cycle.more_body else None

    @property
    def _waits(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def overdue(self, now: float) -> bool:
        """Whether a time limit has passed; to be asked about once a second."""
        size = self.transport.get_write_buffer_size()
        if not size or size < self._unread:
            self._read_at = now
        self._unread = size
        if now - self._read_at > _UNREAD_S:
            return True
        return self._waits and self._headers_since is not None and now - self._headers_since > _HEADERS_S

    def abort(self) -> None:
        """Close it, whatever it is doing."""
        self.connections.discard(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        if self._closing:
            return
        if self._headers_since is None:
            self._headers_since = time.monotonic()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Of uvicorn. Where the request has not arrived whole, the rest is not read: the connection is closed."""
        self._since, self._headers_since = time.monotonic(), None
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._close_soon()
        else:
            super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Of uvicorn: what was received is not HTTP."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of an answer
            self.abort()
            return
        body = json.dumps(APIError("the request is not HTTP as this server reads it.").body()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        if not self._waits:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._close_soon()

    def shutdown(self) -> None:
        """Of uvicorn: the server ends."""
        with contextlib.suppress(h11.LocalProtocolError):
            return super().shutdown()
        self.abort()

    def _close_soon(self) -> None:
        self._closing = True
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(_CLOSING_S, self.transport.abort)

    def _should_upgrade(self) -> bool:
        return False  # to WebSocket or HTTP/2: answered as if it were not asked for
