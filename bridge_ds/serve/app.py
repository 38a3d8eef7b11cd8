"""The ASGI application: routes, API key, limits on bodies, metrics, and the way from a request to its rows and back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bridge_ds.serve.access import authorize, read_json
from bridge_ds.serve.backends import ServedModel
from bridge_ds.serve.batching import Row, Scheduler
from bridge_ds.serve.protocol import (
    APIError,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    ServerLimits,
    check_model,
    parse_request,
)
from bridge_ds.serve.replies import Event, Reply

__all__ = ["Service", "make_app"]


class Metrics:
    """Prometheus metrics in a registry of their own, so that several servers can live in one process."""

    def __init__(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        """Args:
        waiting: called for the number of rows in the queue.
        running: called for the number of rows that are being answered.
        """
        self._registry = to = CollectorRegistry()
        self.requests = Counter(
            "bridge_requests", "Requests, by path and HTTP status.", ["path", "status"], registry=to
        )
        self.tokens = Counter("bridge_tokens", "LLM positions of prompts, tokens of answers.", ["kind"], registry=to)
        self.truncated = Counter("bridge_truncated_texts", "Texts that were truncated.", registry=to)
        self.seconds = Histogram(
            "bridge_request_seconds", "From the first byte to the end of the answer.", registry=to,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
        )  # fmt: skip
        self.batch = Histogram("bridge_batch_rows", "Rows of a batch.", registry=to, buckets=(1, 2, 4, 8, 16, 32, 64))
        Gauge("bridge_waiting_rows", "Rows in the queue.", registry=to).set_function(waiting)
        Gauge("bridge_running_rows", "Rows that are being answered.", registry=to).set_function(running)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


@dataclass
class Service:
    """What the routes need."""

    name: str
    """Of the model, for `/v1/models` and `model`."""
    model: ServedModel
    scheduler: Scheduler
    limits: ServerLimits
    key: str = ""
    """That a request must bring; empty = none."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        queue = self.scheduler.queue
        self.metrics = Metrics(lambda: len(queue), lambda: queue.running)
        self.scheduler.observe = self.metrics.batch.observe

    @property
    def status(self) -> str:
        """`ok`, `draining` or `dead` (its scheduler has ended)."""
        return "dead" if not self.scheduler.alive else "draining" if self.scheduler.queue.draining else "ok"


def make_app(service: Service) -> Starlette:
    """The ASGI application."""

    async def completions(request: Request) -> Response:
        return await _answer(service, request, CompletionRequest)

    async def chat(request: Request) -> Response:
        return await _answer(service, request, ChatRequest)

    card = {"id": service.name, "object": "model", "created": service.created, "owned_by": "bridge_ds"}

    async def models(request: Request) -> Response:
        authorize(request, service.key)
        return JSONResponse({"object": "list", "data": [card]})

    async def model(request: Request) -> Response:
        authorize(request, service.key)
        check_model(request.path_params["name"], service.name)
        return JSONResponse(card)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": service.status}, 200 if service.status == "ok" else 503)

    async def metrics(request: Request) -> Response:
        authorize(request, service.key)
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def failed(request: Request, error: Exception) -> Response:
        headers = {}
        if isinstance(error, HTTPException):
            known = {404: "there is no such path here.", 405: "the path does not allow this method."}
            headers = dict(error.headers or {})  # Allow
            error = APIError(known.get(error.status_code, str(error.detail)), error.status_code)
        if not isinstance(error, APIError):
            error = APIError("internal error of the server (see its log).", 500)
        return _failure(service, request, error, headers)

    routes = [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    handlers: dict[Any, Any] = dict.fromkeys((APIError, HTTPException, Exception), failed)
    return Starlette(routes=routes, exception_handlers=handlers)


def _failure(service: Service, request: Request, why: APIError, headers: dict[str, str]) -> Response:
    service.metrics.requests.labels(_path(request), str(why.status)).inc()
    if why.retry_s:
        headers["Retry-After"] = str(why.retry_s)
    if why.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(why.body(), why.status, headers)


def _path(request: Request) -> str:
    # Only known paths: a label for each path that somebody tries would grow without bound.
    return request.url.path if request.url.path in ("/v1/completions", "/v1/chat/completions") else "other"


async def _answer(service: Service, request: Request, kind: type[GenerationRequest]) -> Response:
    began = time.monotonic()
    authorize(request, service.key)
    asked = parse_request(kind, await read_json(request, service.limits.body), service.name, service.limits)
    queue = service.scheduler.queue
    queue.check_room(len(asked.inputs))  # before any work is done for it
    events: asyncio.Queue[Event] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def sink(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            loop.call_soon_threadsafe(events.put_nowait, event)

    rows = await run_in_threadpool(service.model.rows, asked, sink)
    queue.offer(rows)
    way = rows[0].way if service.model.choice else ""
    reply = Reply(service.name, asked.chat, [row.length for row in rows], sum(row.truncated for row in rows), way)
    if asked.stream:
        stream = _stream(service, request, asked, reply, rows, events, began)
        headers = {"Cache-Control": "no-cache", **reply.headers}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    with _cancelled_at_exit(rows):
        async for event in _arriving(request, rows, events):
            reply.add(event)
    if not reply.complete:
        return Response(status_code=499)  # the client has disconnected
    _count(service, request, reply, began)
    return JSONResponse(reply.whole(), headers=reply.headers)


async def _stream(
    service: Service, request: Request, asked: GenerationRequest, reply: Reply, rows: Sequence[Row],
    events: asyncio.Queue[Event], began: float,
) -> AsyncIterator[bytes]:  # fmt: skip
    try:
        with _cancelled_at_exit(rows):
            for chunk in reply.opening():
                yield chunk
            async for event in _arriving(request, rows, events):
                reply.add(event)
                yield reply.chunk(event)
        if reply.complete:
            _count(service, request, reply, began)
            for chunk in reply.ending(asked.include_usage):
                yield chunk
    except APIError as why:
        service.metrics.requests.labels(_path(request), str(why.status)).inc()
        for chunk in reply.failed(why):
            yield chunk


@contextlib.contextmanager
def _cancelled_at_exit(rows: Sequence[Row]) -> Iterator[None]:
    """However a request ends (failure, disconnect, cancelled task): rows that have not ended need not be answered."""
    try:
        yield
    finally:
        for row in rows:
            row.cancelled = True


async def _arriving(request: Request, rows: Sequence[Row], events: asyncio.Queue[Event]) -> AsyncIterator[Event]:
    """Events until every row has ended or the client has disconnected."""
    left = len(rows)
    while left:
        try:
            event = await asyncio.wait_for(events.get(), 0.5)
        except TimeoutError:
            if await request.is_disconnected():
                return
            continue
        left -= event.reason is not None
        yield event


def _count(service: Service, request: Request, reply: Reply, began: float) -> None:
    service.metrics.requests.labels(_path(request), "200").inc()
    service.metrics.seconds.observe(time.monotonic() - began)
    service.metrics.tokens.labels("prompt").inc(reply.usage["prompt_tokens"])
    service.metrics.tokens.labels("completion").inc(reply.written)
    service.metrics.truncated.inc(reply.truncated)
