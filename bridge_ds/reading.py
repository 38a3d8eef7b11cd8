"""Reading text and JSON files, the user's and our own: whatever they hold, a value or a ValueError that says why.

JSON parsers silently keep the last of two equal keys, so that a sample may get another target than the user reads in
the file; they accept half of a surrogate pair, which no file can then hold; and they fail by RecursionError where
brackets are nested deeply. Here each of these is a ValueError. (YAML: :mod:`bridge_ds.config.text`.)
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

__all__ = ["BOM", "NotText", "decoded", "is_macos", "json_object", "json_value", "refuse_surrogates", "twice"]

_Item = TypeVar("_Item", bound=Hashable)
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # those of UTF-32 begin or end with them
_DEPTH = 100
"""Most levels of brackets of a JSON text."""
_HALF = re.compile("[\ud800-\udfff]")
BOM = "\ufeff"
"""The byte-order mark, which editors on Windows write before a text."""


class NotText(ValueError):
    """Bytes that are not UTF-8; the message completes a sentence that begins with the file's name."""


def decoded(raw: bytes) -> str:
    """Decode UTF-8, without a byte-order mark; line ends stay as they are.

    Raises:
        NotText: other bytes, or UTF-16 (recognized by its byte-order mark, or by zero bytes).
    """
    if raw.startswith(_WIDE) or b"\0" in raw[:4]:
        raise NotText("is UTF-16 or UTF-32; expected UTF-8; convert it (iconv -f UTF-16 -t UTF-8)")
    try:
        return raw.decode("utf-8").removeprefix(BOM)
    except UnicodeDecodeError as error:
        raise NotText(f"is not UTF-8 ({error.reason} at byte {error.start}); convert it to UTF-8") from None


def json_value(text: str | bytes, finite: bool = False) -> Any:
    """As `json.loads`, with or without a byte-order mark.

    Args:
        text: JSON; bytes are UTF-8.
        finite: refuse NaN and infinities, which `json.loads` reads though they are no JSON, and numbers beyond floats.

    Raises:
        ValueError: malformed; an object has a key twice; a text holds half of a surrogate pair; brackets are nested
            more than 100 deep; a number has thousands of digits. The message can follow `cannot be read: `.
    """
    if isinstance(text, bytes):
        text = text.decode()
    else:
        text.encode()  # a lone surrogate in the text itself: UnicodeEncodeError, which is a ValueError
    text = text.removeprefix(BOM)
    if text.count("[") + text.count("{") > _DEPTH and _depth(text) > _DEPTH:
        raise ValueError(f"its brackets are nested more than {_DEPTH} deep; expected at most that")
    try:
        numbers: dict[str, Any] = {"parse_constant": _not_finite, "parse_float": _finite} if finite else {}
        value = json.loads(text, object_pairs_hook=_object, **numbers)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        raise ValueError("it holds a number of thousands of digits; expected fewer") from None
    if "\\ud" in text or "\\uD" in text:
        refuse_surrogates(value)
    return value


def json_object(path: Path | bytes) -> dict[str, Any]:
    """The object in a JSON file that a program wrote: as :func:`json_value`, and neither NaN nor an infinity.

    Args:
        path: the file, or its content.

    Raises:
        ValueError: not UTF-8, not such JSON, or no object; the message completes a sentence that begins with the file.
        OSError: it cannot be opened or read.
    """
    text = decoded(path if isinstance(path, bytes) else path.read_bytes())
    try:
        value = json_value(text, finite=True)
        if not isinstance(value, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise ValueError(f"is not readable as JSON ({error})") from None
    return value


def refuse_surrogates(value: Any) -> None:
    """Raises ValueError where a text in `value` (JSON-like) holds half of a surrogate pair, which UTF-8 cannot hold."""
    if isinstance(value, str):
        if found := _HALF.search(value):
            raise ValueError(
                f"a text in it holds \\u{ord(found[0]):04x}, half of a surrogate pair, at character "
                f"{found.start() + 1}; expected whole characters"
            )
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_surrogates(key)
            refuse_surrogates(item)
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_surrogates(item)


def twice(items: Iterable[_Item]) -> _Item | None:
    """The first item that occurs twice, or None."""
    seen: set[_Item] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


def is_macos(name: str) -> bool:
    """Whether a path is a file that macOS adds: `._NAME`, `.DS_Store`, anything in `__MACOSX`."""
    *folders, base = name.rstrip("/").split("/")
    return base.startswith("._") or base in (".DS_Store", "__MACOSX") or "__MACOSX" in folders


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"it has the key {twice(key for key, _ in pairs)!r} twice in one object; keep one of them")
    return found


def _depth(text: str) -> int:
    """Most brackets that are open at one place, texts in quotation marks left out."""
    deepest = level = 0
    for sign in re.findall(r"[\[{\]}]", re.sub(r'"(?:[^"\\]|\\.)*+"', "", text)):
        level += 1 if sign in "[{" else -1
        deepest = max(deepest, level)
    return deepest


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}; expected a finite number")


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) != float("inf") else _not_finite(text[:20])
