"""The HTTP side: paths, the key, limits on bodies, and the way from a request to its rows and back."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bridge_ds.reading import json_value
from bridge_ds.serve.metrics import Metrics
from bridge_ds.serve.replies import Reply
from bridge_ds.serve.scheduler import Scheduler
from bridge_ds.serve.schema import APIError, Ask, ServerLimits, parse_chat, parse_completion
from bridge_ds.serve.texts import Texts
from bridge_ds.serve.work import Event, Row

__all__ = ["Service", "make_app"]

_BODY_S = 30
"""Seconds in which a request must have arrived whole."""


@dataclass
class Service:
    """All that the paths need."""

    name: str
    """Of the model, for `/v1/models` and `model`."""
    texts: Texts
    """Both tokenizers."""
    scheduler: Scheduler
    """Of the models."""
    limits: ServerLimits
    """Of a request."""
    key: str = ""
    """That a request must bring; empty = none."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""
    metrics: Metrics = field(init=False)
    """For Prometheus."""

    def __post_init__(self) -> None:
        waiting = self.scheduler.waiting
        self.metrics = Metrics(lambda: len(waiting), lambda: waiting.running)
        self.scheduler.observe = self.metrics.batch.observe


def make_app(service: Service) -> Starlette:
    """The ASGI application."""

    async def completions(request: Request) -> Response:
        return await _answer(service, request, parse_completion)

    async def chat(request: Request) -> Response:
        return await _answer(service, request, parse_chat)

    async def models(request: Request) -> Response:
        _authorize(service, request)
        card = {"id": service.name, "object": "model", "created": service.created, "owned_by": "bridge_ds"}
        return JSONResponse({"object": "list", "data": [card]})

    async def health(request: Request) -> Response:
        draining, alive = service.scheduler.waiting.draining, service.scheduler.alive
        status = "draining" if draining else "ok" if alive else "dead"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    async def metrics(request: Request) -> Response:
        _authorize(service, request)
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, APIError)
        return _refusal(service, request, error)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        told = {404: "there is no such path here.", 405: "the path does not take this method."}
        return _refusal(service, request, APIError(told.get(error.status_code, str(error.detail)), error.status_code))

    async def fault(request: Request, error: Exception) -> Response:
        return _refusal(service, request, APIError("the server has made a mistake (see its log).", 500))

    routes = [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    handlers: dict[Any, Any] = {APIError: refused, HTTPException: http_error, Exception: fault}
    return Starlette(routes=routes, exception_handlers=handlers)


def _refusal(service: Service, request: Request, why: APIError) -> Response:
    service.metrics.requests.labels(_path(request), str(why.status)).inc()
    headers = {"Retry-After": str(why.retry_s)} if why.retry_s else {}
    if why.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(why.body(), why.status, headers)


def _path(request: Request) -> str:
    # Only ours: a label for each path that someone tries would grow without end.
    return request.url.path if request.url.path in ("/v1/completions", "/v1/chat/completions") else "other"


def _authorize(service: Service, request: Request) -> None:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if service.key and not (
        kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), service.key.encode())
    ):
        told = "the API key is missing or wrong; expected Authorization: Bearer KEY."
        raise APIError(told, 401, code="invalid_api_key")


async def _answer(service: Service, request: Request, parse: Callable[[Any, str, ServerLimits], Ask]) -> Response:
    began = time.monotonic()
    _authorize(service, request)
    ask = parse(await _json(request, service.limits.body), service.name, service.limits)
    waiting = service.scheduler.waiting
    waiting.refuse(len(ask.texts))  # before any work is done for it
    events: asyncio.Queue[Event] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def sink(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody reads any more
            loop.call_soon_threadsafe(events.put_nowait, event)

    rows = await run_in_threadpool(service.texts.rows, ask, sink)
    waiting.offer(rows)
    reply = Reply(rows, service.name, ask.chat)
    if ask.stream:
        stream = _stream(service, request, ask, reply, events, began)
        headers = {"Cache-Control": "no-cache", **reply.headers}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    try:
        while not reply.complete:
            event = await _next(request, events)
            if event is None:
                return Response(status_code=499)  # nobody is there to read it
            reply.take(event)
    finally:
        _leave(rows)
    _count(service, request, reply, began)
    return JSONResponse(reply.whole(), headers=reply.headers)


async def _stream(
    service: Service, request: Request, ask: Ask, reply: Reply, events: asyncio.Queue[Event], began: float
) -> AsyncIterator[bytes]:
    try:
        for chunk in reply.opening():
            yield chunk
        while not reply.complete:
            event = await _next(request, events)
            if event is None:
                return
            reply.take(event)
            yield reply.piece(event)
        _count(service, request, reply, began)
        for chunk in reply.ending(ask.usage):
            yield chunk
    except APIError as why:
        service.metrics.requests.labels(_path(request), str(why.status)).inc()
        for chunk in reply.failed(why):
            yield chunk
    finally:
        _leave(list(reply.rows))


async def _next(request: Request, events: asyncio.Queue[Event]) -> Event | None:
    """The next event; none when the client has gone."""
    while True:
        try:
            return await asyncio.wait_for(events.get(), 0.5)
        except TimeoutError:
            if await request.is_disconnected():
                return None


def _leave(rows: list[Row]) -> None:
    """Nobody reads these any more: what is not written yet need not be."""
    for row in rows:
        row.cancelled = True


def _count(service: Service, request: Request, reply: Reply, began: float) -> None:
    service.metrics.requests.labels(_path(request), "200").inc()
    service.metrics.seconds.observe(time.monotonic() - began)
    service.metrics.tokens.labels("prompt").inc(reply.usage["prompt_tokens"])
    service.metrics.tokens.labels("completion").inc(reply.written)
    service.metrics.truncated.inc(reply.truncated)


async def _json(request: Request, most: int) -> Any:
    # A page in a browser can post a form to this port, but not JSON without asking first.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise APIError(f"the content type is {kind[:80]!r}; expected application/json.", 415)
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise APIError(f"the request is larger than {most} bytes; expected fewer.", 413)
    except TimeoutError:
        raise APIError(f"the request did not arrive within {_BODY_S} s.", 408) from None
    except ClientDisconnect:
        raise APIError("the request broke off.", 400) from None
    try:
        return json_value(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise APIError(f"the body is no JSON ({str(error)[:200]}).") from None
