"""Answers on the terminal, printed while they are written."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from bridge_ds.errors import DataError
from bridge_ds.generate.pipeline import Pipeline
from bridge_ds.reading import NotText, decoded

__all__ = ["say", "talk"]


def say(pipeline: Pipeline, text: str, seed: int = 0) -> None:
    """Print the answer to one text."""
    pipeline.stream(pipeline.row(text), seed, lambda piece: print(piece, end="", flush=True), pipeline.way())
    print(flush=True)


def talk(pipeline: Pipeline) -> None:
    """Answer line after line, each by itself. Ctrl-C stops an answer, Ctrl-D the command."""
    for number, line in enumerate(_lines(), 1):
        if not line.strip():
            continue
        try:
            say(pipeline, line, number)
        except KeyboardInterrupt:
            print()
        except DataError as error:
            if not sys.stdin.isatty():
                raise
            print(f"error: {error}", file=sys.stderr)


def _piped() -> Iterator[str]:
    # Bytes, so that every line before one that is not UTF-8 is answered.
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            text = decoded(raw) if number == 1 else raw.decode()
        except (NotText, UnicodeDecodeError) as error:
            why = error if isinstance(error, NotText) else f"is not UTF-8 ({error.reason}); convert it to UTF-8"
            raise DataError(f"line {number} of the standard input {why}.") from None
        if "\0" in text:
            raise DataError(f"line {number} of the standard input holds a zero byte; expected UTF-8 (not UTF-16).")
        yield text.rstrip("\r\n")


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from _piped()
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrow keys and history)
    print("Type a text and press Enter; Ctrl-C stops an answer, Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print()
        except UnicodeDecodeError:
            print("error: the line is not UTF-8; set the terminal to UTF-8.", file=sys.stderr)
        except EOFError:
            print()
            return
