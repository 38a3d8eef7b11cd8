"""Answers on the terminal, word by word as they are written."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from transformers import TextStreamer

from bridge_ds.errors import DataError
from bridge_ds.generate.answer import Answerer
from bridge_ds.reading import BOM

__all__ = ["say", "talk"]


class _Spoken(TextStreamer):
    """Prints an answer while it is written, up to a stop."""

    def __init__(self, answerer: Answerer) -> None:
        super().__init__(answerer.processor.tokenizer, skip_special_tokens=True)
        self.answerer = answerer
        self.text, self.shown, self.begun = "", 0, False
        # A stop that has only begun must not be shown yet.
        self.held = max((len(stop) for stop in answerer.style.stop), default=0)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Of TextStreamer: more text is certain."""
        if text and not self.begun:  # the first space alone may be a piece
            self.begun, text = True, self.answerer.processor.bare(text, self.answerer.style.chat)
        self.text += text
        whole = self.answerer.cut(self.text)
        end = len(whole) if stream_end or len(whole) < len(self.text) else max(self.shown, len(whole) - self.held)
        print(whole[self.shown : end], end="\n" if stream_end else "", flush=True)
        self.shown = max(self.shown, end)


def say(answerer: Answerer, text: str, seed: int = 0) -> None:
    """Print the answer to one text, as it is written where that is possible."""
    row = answerer.row(text)
    if answerer.style.beams > 1:  # of several beams none is the answer until the end
        print(answerer.write([row], seed)[0], flush=True)
    else:
        answerer.write([row], seed, streamer=_Spoken(answerer))


def talk(answerer: Answerer) -> None:
    """Answer line after line until there are no more; each by itself. Ctrl-C ends an answer, Ctrl-D the command."""
    for number, line in enumerate(_lines(), 1):
        if not line.strip():
            continue
        try:
            say(answerer, line, number)
        except KeyboardInterrupt:
            print()
        except DataError as error:
            if not sys.stdin.isatty():
                raise
            print(f"error: {error}", file=sys.stderr)


def _piped() -> Iterator[str]:
    number = 0
    try:
        for number, line in enumerate(sys.stdin, 1):
            text = line.rstrip("\n")
            if "\0" in text:
                raise DataError(f"line {number} of the standard input holds a zero byte; expected UTF-8 (not UTF-16).")
            yield text.removeprefix(BOM) if number == 1 else text
    except UnicodeDecodeError as error:
        raise DataError(
            f"the standard input is not UTF-8 ({error.reason}, after line {number}); convert it to UTF-8."
        ) from None


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
        except EOFError:
            print()
            return
