"""A server on a free port of loopback, in a thread of the test's process, and a client of the standard library."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from bridge_ds.generate.pipeline import Pipeline
from bridge_ds.serve.app import Service
from bridge_ds.serve.backends import LocalBackend, ServedModel
from bridge_ds.serve.batching import RequestQueue, Scheduler
from bridge_ds.serve.protocol import ServerLimits
from bridge_ds.serve.server import bind, serve
from bridge_ds.serve.vllm import VllmBackend


class Client:
    """Talks to one server; a connection for each request."""

    def __init__(self, port: int) -> None:
        self.port = port

    def open(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"} | (headers or {}))
        return connection, connection.getresponse()

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers (names in lower case), and the JSON or text of the answer."""
        connection, answer = self.open(method, path, body, headers)
        with contextlib.closing(connection):
            text = answer.read().decode()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, json.loads(text) if "json" in found.get("content-type", "") else text

    def complete(self, prompt: Any, **more: Any) -> tuple[int, dict[str, str], Any]:
        return self.ask("POST", "/v1/completions", {"model": "tiny", "prompt": prompt, **more})

    def chat(self, messages: Any, **more: Any) -> tuple[int, dict[str, str], Any]:
        return self.ask("POST", "/v1/chat/completions", {"model": "tiny", "messages": messages, **more})

    def events(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Of a stream, up to its last line, which must be [DONE]."""
        connection, answer = self.open("POST", path, {"model": "tiny", "stream": True, **body})
        with contextlib.closing(connection):
            assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.read().decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@contextlib.contextmanager
def served(
    answerer: Pipeline,
    *,
    backend: LocalBackend | VllmBackend | None = None,
    queue: int = 64,
    batch: int = 4,
    concurrency: int = 1,
    limits: ServerLimits | None = None,
    key: str = "",
) -> Iterator[tuple[Client, Service]]:
    """While open, a server answers."""
    backend = backend or LocalBackend(ServedModel(answerer.model))
    waiting = RequestQueue(queue, batch, backend.model.positions, concurrency)
    scheduler = Scheduler(waiting, backend)
    service = Service("tiny", backend.model, scheduler, limits or ServerLimits(tokens=64), key)
    listening = bind("127.0.0.1", 0)
    client = Client(listening.getsockname()[1])
    thread = threading.Thread(target=serve, args=(service, listening, 400), daemon=True)
    thread.start()
    try:
        until(lambda: reachable(client))
        yield client, service
    finally:
        waiting.drain()
        thread.join(60)
        assert not thread.is_alive(), "the server has not ended"


def until(true: Any, seconds: float = 60) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def reachable(client: Client) -> bool:
    """Whether the server answers."""
    try:
        return client.ask("GET", "/health")[0] == 200
    except OSError:
        return False
