"""Is a text that is being written the right one? As text: tokens and the white space around it do not count. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.inference.stops import Decoder

__all__ = ["Wanted"]

_WHITE = 16
"""Characters of white space before or after, or tokens without text, after which an answer is given up."""


@dataclass(frozen=True)
class Wanted:
    """A right answer, asked about as an answer grows."""

    target: str
    """The right text."""
    of: Tokenizers
    """Of the run. If its targets have no end token nothing ends an answer, so that a right beginning is right."""

    def open(self, ids: Sequence[int]) -> bool:
        """Whether more tokens are needed to know: the text may still become the right one, or continue."""
        text, right = self._text(ids).rstrip("\ufffd"), self.target.strip()  # incomplete UTF-8
        bare = text.lstrip()
        # A token writes at least a byte, or nothing that is seen.
        if len(text) - len(bare) > _WHITE or len(ids) > len(right.encode()) + _WHITE:
            return False
        return right.startswith(bare) if len(bare) < len(right) else self.of.end and bare.rstrip() == right

    def done(self, ids: Sequence[int]) -> bool:
        """Whether an answer, whole or no longer open, is the right text."""
        text, right = self._text(ids).strip(), self.target.strip()
        return text == right if self.of.end else text.startswith(right)

    def _text(self, ids: Sequence[int]) -> str:
        return Decoder(self.of).raw(ids)
