"""A real HTTP server on loopback that serves a folder, and misbehaves on demand."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Faults:
    """What to do to the next requests of a name: a list of `drop`, `half`, `short`, `error`, `wrong`; then serve."""

    def __init__(self) -> None:
        self.next: dict[str, list[str]] = {}
        self.served: Counter[str] = Counter()
        self.always = ""
        self.lock = threading.Lock()

    def take(self, name: str) -> str:
        with self.lock:
            self.served[name] += 1
            waiting = self.next.get(name, [])
            return waiting.pop(0) if waiting else self.always if name.endswith(".tar") else ""


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, Faults]]:
    """Serve a folder; yields its URL and the faults to come."""
    faults = Faults()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            path = folder / name
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            fault = faults.take(name)
            if fault == "drop":
                self._break()
                return
            if fault == "error":
                self.send_error(503)
                return
            if fault == "wrong":
                content = bytes([content[0] ^ 1]) + content[1:]
            self.send_response(200)
            # `half`: the connection breaks in the middle. `short`: half a file that claims to be whole.
            sent = content[: len(content) // 2] if fault in ("half", "short") else content
            self.send_header("Content-Length", str(len(sent if fault == "short" else content)))
            self.end_headers()
            self.wfile.write(sent)
            if fault == "half":
                self.wfile.flush()
                self._break()

        def _break(self) -> None:
            # Not close alone: a process forked meanwhile would hold the connection open.
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/data", faults
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
