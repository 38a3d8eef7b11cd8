"""Work that goes on after a kill: a file with a header that says what it is of, then a line for each piece done."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from bridge_ds.disk import real
from bridge_ds.errors import LaunchError

__all__ = ["PartFile", "writing"]

_Piece = TypeVar("_Piece")


class PartFile:
    """One such file. It is removed by whoever has put the pieces together."""

    def __init__(self, path: Path, header: str) -> None:
        """Args:
        path: folders above it are made.
        header: one line; a file with another header is started over.
        """
        self.path, self.header = path, header
        self.replaced = False
        """It held other work."""

    def resume(self, parse: Callable[[str], _Piece]) -> list[_Piece]:
        """The pieces that an earlier start left; what follows them, such as an incomplete line, is cut off.

        Args:
            parse: makes a piece of its line; ValueError, TypeError, KeyError or AttributeError = not to be used.
        """
        with writing(self.path):
            real(self.path.parent).mkdir(parents=True, exist_ok=True)
            header, *lines = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
            found, length = [], len(header) + 1
            ours = bool(lines) and header == self.header.encode()
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                for line in lines[:-1] if ours else ():
                    found.append(parse(line.decode()))
                    length += len(line) + 1
            if ours:
                os.truncate(self.path, length)
            else:
                self.replaced = bool(header or lines)
                self.path.write_text(f"{self.header}\n", encoding="utf-8")
        return found

    def add(self, line: str) -> None:
        """Append a piece."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises LaunchError where `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise LaunchError(
            f"{path} cannot be written ({error.strerror}); expected free space and the permission to write; make room "
            "and start again, what is done stays."
        ) from None
