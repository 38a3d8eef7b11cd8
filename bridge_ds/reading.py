"""What users hand over as text: UTF-8 with or without a byte-order mark, and nothing in it given twice.

JSON and YAML parsers keep the last of two equal keys and say nothing, so that a sample has another target, or a run
another learning rate, than the line above says. Here the second one is an error that names the key.
"""

from __future__ import annotations

import codecs
import functools
import json
from collections.abc import Hashable, Iterable
from typing import Any, TypeVar

__all__ = ["BOM", "NotText", "decoded", "is_macos", "json_value", "twice", "yaml_loader"]

_Item = TypeVar("_Item", bound=Hashable)
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # those of UTF-32 begin or end with them
BOM = "\ufeff"
"""The byte-order mark, which Windows' editors put before a text; it is no part of it."""


class NotText(ValueError):
    """Bytes that are no UTF-8; the message is the rest of a sentence that began with the file's name."""


def decoded(raw: bytes) -> str:
    """UTF-8 as text, without a byte-order mark; all else stays (line ends too).

    Raises:
        NotText: other bytes, or UTF-16 (which is told by its mark, or by the zeros that Latin letters have in it).
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
    """The first that comes a second time, or none."""
    seen: set[_Item] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None


def is_macos(name: str) -> bool:
    """Whether a path is of a file that macOS puts beside a user's own: `._NAME`, `.DS_Store`, all in `__MACOSX`."""
    *folders, base = name.rstrip("/").split("/")
    return base.startswith("._") or base in (".DS_Store", "__MACOSX") or "__MACOSX" in folders


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"it has the key {twice(key for key, _ in pairs)!r} twice in one object; keep one of them")
    return found


@functools.cache
def yaml_loader() -> Any:
    """`yaml.SafeLoader` that refuses a key which a mapping has already; a key over one that `<<` brings is none."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in seen:
                        raise yaml.composer.ComposerError(
                            None, None, f"the key {key.value!r} is given twice; keep one of them", key.start_mark
                        )
                    seen.add((key.tag, key.value))
            return node

    return Loader
