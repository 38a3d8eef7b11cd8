"""Reading users' text files: UTF-8 with or without a byte-order mark, and no key twice.

JSON parsers silently keep the last of two equal keys, so that a sample may get another target than the user reads in
the file. Here the second one is an error that names the key. (YAML: :mod:`bridge_ds.config.text`.)
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

__all__ = ["BOM", "NotText", "decoded", "is_macos", "json_value", "twice"]

_Item = TypeVar("_Item", bound=Hashable)
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # those of UTF-32 begin or end with them
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


def json_value(text: str | bytes) -> Any:
    """As `json.loads`, with or without a byte-order mark.

    Raises:
        ValueError: malformed, or an object has a key twice.
    """
    return json.loads(text.removeprefix(BOM) if isinstance(text, str) else text, object_pairs_hook=_object)


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
