"""Clients that mean harm or have bad luck, with real sockets: others are answered within 2 s."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from bridge_ds.generate.pipeline import Pipeline
from bridge_ds.serve import access, connections
from bridge_ds.serve import server as server_module
from bridge_ds.serve.app import Service
from bridge_ds.serve.backends import LocalBackend, ServedModel
from bridge_ds.serve.batching import BackendLost, RequestQueue, Row, Scheduler
from bridge_ds.serve.protocol import ServerLimits
from bridge_ds.serve.server import DrainingServer, bind, serve
from tests.serve.served import Client, reachable, served, until

Server = tuple[Client, Service]
MANY = 500
ASKED = {"model": "tiny", "prompt": "a dog", "max_tokens": 20, "stream": True}


def request(
    body: bytes = b"", *headers: str, line: str = "POST /v1/completions HTTP/1.1", length: bool = True
) -> bytes:
    lines = [line, "Host: localhost", "Content-Type: application/json", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@contextlib.contextmanager
def many(client: Client, first: bytes, receive: int = 0) -> Iterator[list[socket.socket]]:
    """500 connections that have sent something.

    Args:
        client: knows the port.
        first: what each sends.
        receive: bytes of the buffer in which it takes what it is sent; 0 = as usual.
    """
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(MANY):
            one = stack.enter_context(socket.socket())
            if receive:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
            one.connect(("127.0.0.1", client.port))
            one.sendall(first)
            found.append(one)
        yield found


def answered_soon(client: Client) -> None:
    began = time.monotonic()
    assert client.ask("GET", "/health")[0] == 200
    assert time.monotonic() - began < 2
    began = time.monotonic()
    assert client.complete("a dog", max_tokens=3)[0] == 200
    assert time.monotonic() - began < 2


def raw(client: Client, data: bytes, seconds: float = 20) -> bytes:
    """What comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=seconds) as one:
        one.sendall(data)
        return b"".join(iter(lambda: one.recv(65536), b""))


def healthy(one: socket.socket) -> None:
    one.sendall(request(line="GET /health HTTP/1.1"))
    told = b""
    while not told.endswith(b"}"):
        got = one.recv(1000)
        assert got, "it is closed"
        told += got
    assert told.startswith(b"HTTP/1.1 200")


def closed(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1 << 20) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("first", [b"", b"POST /v1/comp", request(b"{}")[:-1]])
def test_500_that_send_nothing_or_little_lock_nobody_out(server: Server, first: bytes) -> None:
    client, _ = server
    with many(client, first) as found:
        answered_soon(client)
        assert sum(map(closed, found)) >= MANY - 400, "the oldest make room: 400 connections are allowed"


def test_500_that_never_read_their_streams_lock_nobody_out(server: Server) -> None:
    client, service = server
    with many(client, request(json.dumps(ASKED).encode()), receive=2048):
        assert client.ask("GET", "/health")[0] == 200
        # While their answers are written, the queue is full, as it would be with clients that read.
        until(lambda: client.complete("a dog", max_tokens=3)[0] == 200)
        until(lambda: service.scheduler.queue.idle)
        answered_soon(client)


def test_a_byte_a_second_is_no_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sending resets no clock: neither for headers nor for a body; who waits between requests is not meant."""
    monkeypatch.setattr(connections, "_HEADERS_S", 1)
    monkeypatch.setattr(access, "_BODY_S", 1)
    client, _ = server
    address = ("127.0.0.1", client.port)
    with contextlib.ExitStack() as stack:
        kept, headers, body = (stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(3))
        healthy(kept)
        body.sendall(request(b"{" * 500)[:-490])
        told = b""
        for sign in b"POST /v1/completions HTTP/1.1":
            with contextlib.suppress(OSError):
                headers.send(bytes([sign]))
                body.send(b" ")
            time.sleep(0.1)
        assert closed(headers)
        with contextlib.suppress(OSError):
            while got := body.recv(1000):
                told += got
        assert told.startswith(b"HTTP/1.1 408") and b"did not arrive within 1 s" in told
        healthy(kept)


def test_who_never_reads_is_closed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_UNREAD_S", 1)
    client, _ = server
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as one:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 15:
                one.sendall(request(line="GET /metrics HTTP/1.1"))
        assert 1 < time.monotonic() - began < 10


def test_an_endless_body_is_not_read_after_its_413(server: Server) -> None:
    client, _ = server
    head = request(b"", "Transfer-Encoding: chunked", length=False)
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as one:
        one.sendall(head)
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 15:
                one.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert time.monotonic() - began < 10
    answer = raw(client, request(b"", "Content-Length: 2000000", "Expect: 100-continue", length=False))
    assert answer.startswith(b"HTTP/1.1 413"), "not even 100 Continue"


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (403, b"GET /v1/models HTTP/1.1\r\nHost: evil.example:8000\r\nConnection: close\r\n\r\n"),
        (403, b"GET /v1/models HTTP/1.1\r\nHost: [::1\r\nConnection: close\r\n\r\n"),
        (403, request(b"{}", "Origin: https://evil.example", "Connection: close")),
        (403, request(b"{}", "Origin: null", "Connection: close")),
        (200, b"GET /v1/models HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n"),
        (200, request(b"", "Origin: http://localhost:3000", "Connection: close", line="GET /v1/models HTTP/1.1")),
        (200, b"GET /v1/models HTTP/1.0\r\n\r\n"),
        (405, request(b"", "Connection: close", line="OPTIONS /v1/completions HTTP/1.1")),
        (200, request(b"", "Connection: Upgrade, close", "Upgrade: websocket", line="GET /health HTTP/1.1")),
        (400, request(b"{}", "Content-Length: -2", length=False)),
        (400, request(b"zz\r\n{}", "Transfer-Encoding: chunked", length=False)),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200))),
        (400, b"GET /" + b"\xff" * 9 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        (400, b"GET /health HTTP/1.1\r\nX: " + b"a" * 300_000),
    ],
    ids=lambda value: repr(value)[:50],
)  # fmt: skip
def test_odd_http_gets_a_4xx_and_no_traceback(
    server: Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    data: bytes,
) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)  # uvicorn says no
    client, _ = server
    answer = raw(client, data)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    if status in (400, 403, 405):
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"].endswith(".")
    assert not caplog.records


def test_one_model_by_its_name(answerer: Pipeline) -> None:
    model = ServedModel(answerer.model)
    scheduler = Scheduler(RequestQueue(4, 4, model.positions), LocalBackend(model))
    with running(Service("some/one:7b", model, scheduler, ServerLimits())) as (client, _):
        for path in ("/v1/models/some/one:7b", "/v1/models/some%2Fone%3A7b"):
            status, _, card = client.ask("GET", path)
            assert (status, card["id"], card["object"]) == (200, "some/one:7b", "model")
        for path in ("/v1/models", "/v1/models/"):
            assert card == client.ask("GET", path)[2]["data"][0]
        for name in ("one:7b", "some", "%ed%a0%80"):
            status, _, body = client.ask("GET", f"/v1/models/{name}")
            assert status == 404 and (body["error"]["code"], body["error"]["param"]) == ("model_not_found", "model")


@contextlib.contextmanager
def running(service: Service) -> Iterator[tuple[Client, list[BaseException]]]:
    """A server that may end by itself, and what it then raises."""
    listening = bind("127.0.0.1", 0)
    client, raised = Client(listening.getsockname()[1]), []

    def run() -> None:
        try:
            serve(service, listening, 100)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(lambda: reachable(client))
    try:
        yield client, raised
    finally:
        service.scheduler.queue.drain()
        thread.join(30)
        assert not thread.is_alive(), "the server has not ended"


class Failing(LocalBackend):
    """Waits for a gate, then fails."""

    def __init__(self, answerer: Pipeline, error: BaseException) -> None:
        super().__init__(ServedModel(answerer.model))
        self.began, self.gate, self.error = threading.Event(), threading.Event(), error

    def _start(self, rows: Sequence[Row]) -> None:
        self.began.set()
        assert self.gate.wait(60)
        raise self.error


@pytest.mark.parametrize("error", [SystemExit(3), torch.AcceleratorError("device-side assert triggered")], ids=repr)
def test_what_cannot_be_survived_fails_all_requests_and_ends_the_server(
    answerer: Pipeline, error: BaseException
) -> None:
    backend = Failing(answerer, error)
    service = Service("tiny", backend.model, Scheduler(RequestQueue(9, 1, 0), backend), ServerLimits())
    with running(service) as (client, raised), ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(client.complete, "a dog") for _ in range(3)]
        # Not two of three while none is taken yet: the third would then come to a server that has ended.
        until(lambda: backend.began.is_set() and len(service.scheduler.queue) == 2)
        backend.gate.set()
        for each in asked:
            status, _, body = each.result(20)
            assert status == 500 and "failed and ends" in body["error"]["message"]
        assert service.status == "dead"
    cause = raised[0].__cause__
    assert cause is error or (isinstance(cause, BackendLost) and cause.__cause__ is error)


class Endless(LocalBackend):
    """Writes until nobody listens any more."""

    def _start(self, rows: Sequence[Row]) -> None:
        while not rows[0].cancelled:
            rows[0].send("x")
            time.sleep(0.01)


def test_a_third_sigterm_ends_what_runs_without_a_traceback(
    answerer: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[DrainingServer] = []

    class Known(DrainingServer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(server_module, "DrainingServer", Known)
    backend = Endless(ServedModel(answerer.model))
    service = Service("tiny", backend.model, Scheduler(RequestQueue(9, 1, 0), backend), ServerLimits())
    with running(service) as (client, raised), ThreadPoolExecutor(1) as pool:
        connection, stream = client.open("POST", "/v1/completions", ASKED)
        assert stream.readline().startswith(b"data:")
        whole = pool.submit(client.complete, "a dog")
        until(lambda: len(service.scheduler.queue) == 1)
        for _ in range(2):
            made[0].handle_exit(signal.SIGTERM, None)
        assert whole.result(20)[0] == 503
        assert stream.readline() is not None and not stream.isclosed(), "what runs goes on"
        began = time.monotonic()
        made[0].handle_exit(signal.SIGTERM, None)
        with contextlib.suppress(OSError, http.client.HTTPException):
            stream.read()
        until(lambda: not reachable(client))
        connection.close()
    assert time.monotonic() - began < 5 and not raised
    assert "Traceback" not in capsys.readouterr().err


def test_a_batch_that_does_not_fit_in_memory_is_a_503(answerer: Pipeline, offline: Callable[..., str]) -> None:
    backend = Failing(answerer, torch.OutOfMemoryError("CUDA out of memory"))
    backend.gate.set()
    with served(answerer, backend=backend) as (client, service):
        status, _, body = client.complete("a dog")
        assert (status, body["error"]["code"]) == (503, "out_of_memory")
        assert service.status == "ok"
        backend.__class__ = LocalBackend
        body = client.complete("a dog")[2]
        assert body["choices"][0]["text"] == offline("a dog")


def test_who_waits_and_goes_leaves_its_place(answerer: Pipeline) -> None:
    """While a batch runs: else a full queue would refuse others for the sake of nobody."""
    backend = Failing(answerer, RuntimeError())
    with served(answerer, backend=backend, queue=1, batch=1) as (client, service), ThreadPoolExecutor(2) as pool:
        queue: Any = service.scheduler.queue
        first = pool.submit(client.complete, "a")
        until(lambda: queue.running == 1)
        connection, answer = client.open("POST", "/v1/completions", ASKED)
        assert client.complete("a")[0] == 429
        answer.close()
        connection.close()
        until(lambda: all(row.cancelled for row in queue._rows))
        second = pool.submit(client.complete, "a")
        until(lambda: len(queue) == 1 and not queue._rows[0].cancelled)
        backend.gate.set()
        assert first.result(20)[0] == second.result(20)[0] == 500
