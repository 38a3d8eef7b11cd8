"""A text whose letters are replaced by others, as a language that the LLM cannot read would look to it. Pure.

Where the LLM reads an English text beside the soft prompt (`data.augment_prompt`), it needs no bridge and none is
learned. Of a text in cipher it understands nothing, while the encoder has read the English: so the bridge learns to
answer beside a text that says nothing, which is what it meets in a language that the LLM does not know.
"""

from __future__ import annotations

import unicodedata
from functools import cache

from bridge_ds.data.sampling.order import uniforms

__all__ = ["SCRIPTS", "cipher"]

SCRIPTS: dict[str, tuple[int, int]] = {
    "Cyrillic": (0x430, 0x45F),
    "Armenian": (0x561, 0x586),
    "Hebrew": (0x5D0, 0x5EA),
    "Arabic": (0x620, 0x64A),
    "N'Ko": (0x7CA, 0x7EA),
    "Devanagari": (0x904, 0x939),
    "Bengali": (0x985, 0x9B9),
    "Gujarati": (0xA85, 0xAB9),
    "Tamil": (0xB85, 0xBB9),
    "Telugu": (0xC05, 0xC39),
    "Malayalam": (0xD05, 0xD39),
    "Sinhala": (0xD85, 0xDC6),
    "Thai": (0xE01, 0xE2E),
    "Tibetan": (0xF40, 0xF6C),
    "Burmese": (0x1000, 0x102A),
    "Ethiopic": (0x1200, 0x1357),
    "Khmer": (0x1780, 0x17B3),
    "Ol Chiki": (0x1C5A, 0x1C77),
    "Tifinagh": (0x2D30, 0x2D67),
    "Hangul": (0xAC00, 0xD7A3),
}
"""First and last code point that letters are drawn from."""

_LATIN = "abcdefghijklmnopqrstuvwxyz"
_SALT = 2_000_003
"""Tells the draws from others of the same seed, epoch and sample."""


def cipher(text: str, seed: int, epoch: int, number: int) -> str:
    """The text with each letter replaced by another one, the same wherever it occurs. For each sample and epoch other
    ones: half of the time Latin letters, else those of one of :data:`SCRIPTS`.

    What is no letter (digits, punctuation, white space, combining marks) stays; a capital stays one where the other
    script has capitals.

    Args:
        text: any.
        seed: of the run.
        epoch: how often the sample has been read before.
        number: of the sample in the corpus.
    """
    letters = sorted({small for character in text if character.isalpha() for small in character.lower()})
    script, *draws = uniforms(seed + _SALT, epoch, number, 1 + len(letters)).tolist()
    names = list(SCRIPTS)
    drawn = int((2 * script - 1) * len(names))
    left = list(_LATIN if script < 0.5 else _letters(names[drawn]))
    table: dict[str, str] = {}
    for letter, draw in zip(letters, draws, strict=True):
        at = int(draw * len(left))
        # Letters are used once as long as there are any: then the cipher keeps which words are the same.
        table[letter] = left.pop(at) if len(left) > 1 else left[at]
    return "".join(_replaced(character, table) for character in text)


def _replaced(character: str, table: dict[str, str]) -> str:
    if not character.isalpha():
        return character
    small = character.lower()
    found = "".join(table[each] for each in small)
    return found if small == character else found.upper()


@cache
def _letters(script: str) -> str:
    first, last = SCRIPTS[script]
    every = map(chr, range(first, last + 1))
    return "".join(c for c in every if unicodedata.category(c) in ("Ll", "Lo"))
