"""Who may ask, and the body of a request: API key, host names of a server without one, size, time, JSON."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request

from bridge_ds.errors import ConfigError
from bridge_ds.reading import decoded, json_value
from bridge_ds.serve.protocol import APIError

__all__ = ["authorize", "check_key", "is_loopback", "read_json"]

_BODY_S = 30
"""Seconds in which a request must have arrived whole."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def check_key(name: str, key: str) -> None:
    """Raise unless a key can be sent in a header.

    Args:
        name: of the environment variable that holds it.
        key: may be empty.

    Raises:
        ConfigError: it cannot.
    """
    if not key.isascii() or any(sign <= " " or sign == "\x7f" for sign in key):
        raise ConfigError(
            f"{name} holds a space, a line end or a character that is not ASCII; expected a key that a header can "
            "hold; set another."
        )


def authorize(request: Request, key: str) -> None:
    """Whether a request may be answered: it brings the key; without one (the server then listens on loopback), it was
    addressed to this machine. A page of another site that has its own name point here (DNS rebinding) is refused.

    Args:
        request: headers are enough.
        key: empty = none.

    Raises:
        APIError: 401 or 403.
    """
    if key:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        # Starlette decodes headers as Latin-1.
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), key.encode()):
            message = "the API key is missing or wrong; expected Authorization: Bearer KEY."
            raise APIError(message, 401, code="invalid_api_key")
        return
    for name in ("host", "origin"):
        for value in request.headers.getlist(name):
            try:
                found = urlsplit(f"//{value}" if name == "host" else value).hostname
            except ValueError:
                found = None
            if not is_loopback(found or ""):
                raise APIError(
                    f"the header {name.title()} is {value[:80]!r}; expected localhost or a loopback address, because "
                    "the server has no API key (BRIDGE_DS_API_KEY).",
                    403,
                    code="host_not_allowed",
                )


async def read_json(request: Request, most: int) -> Any:
    """The body's JSON.

    Args:
        request: the body has not been read.
        most: bytes.

    Raises:
        APIError: 400, 408, 413 or 415.
    """
    # A page in a browser can post a form to this port, but not JSON without asking first.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise APIError(f"the content type is {kind[:80]!r}; expected application/json.", 415)
    too_large = APIError(f"the request is larger than {most} bytes; expected fewer.", 413)
    if int(request.headers.get("content-length", "0")) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise APIError(f"the request did not arrive within {_BODY_S} s.", 408) from None
    except ClientDisconnect:
        raise APIError("the request was cut off.", 400) from None
    try:
        return json_value(decoded(bytes(body)), finite=True)
    except ValueError as error:
        raise APIError(f"the body is not JSON ({str(error)[:200]}).") from None
