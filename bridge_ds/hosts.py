"""Slurm's host list expressions, such as `node[01-03,07],gpu-1[2-4]x`; a container has no scontrol to expand them."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["host_names"]

_LISTED = re.compile(r"(?:\[[^\[\]]*\]|[^,\[\]])+")
"""One entry of a list: commas inside brackets do not end it."""
_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


def host_names(expression: str) -> Iterator[str]:
    """The host names of an expression one by one, in its order; numbers keep the width of a range's first.

    Raises:
        ValueError: it is no such expression.
    """
    position = 0
    while True:
        entry = _LISTED.match(expression, position)
        if entry is None:
            raise ValueError(f"no host name at character {position}")
        yield from _names(entry[0])
        position = entry.end()
        if position == len(expression):
            return
        if expression[position] != ",":
            raise ValueError(f"a {expression[position]!r} at character {position}")
        position += 1


def _names(entry: str) -> Iterator[str]:
    before, bracket, rest = entry.partition("[")
    if not bracket:
        yield entry
        return
    inside, _, after = rest.partition("]")
    for text in inside.split(","):
        found = _RANGE.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} in brackets")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"the range {text!r}")
        for number in range(first, last + 1):
            for ending in _names(after) if after else ("",):
                yield f"{before}{number:0{len(found[1])}d}{ending}"
