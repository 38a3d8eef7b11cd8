"""Where a text may be split: between words, and in scripts without spaces between characters.

Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan and some other scripts write words without spaces. A text in one
of them is one "word" to anything that looks for spaces, so that it could not be split, and a paragraph of it would
look like a heading. Characters and the marks that belong to them stay together (close to the grapheme clusters of
Unicode annex 29, plus the vowels of Thai and Lao that are written apart).
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Iterable

from bridge_ds.data.sampling.order import uniform
from bridge_ds.errors import DataError

__all__ = ["is_parted", "is_word", "joined", "split_text", "starts", "without_spaces", "words_of"]

_UNSPACED = re.compile(
    "[\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0edf\u0f40-\u0fbc\u1000-\u103f\u1050-\u109f\u1780-\u17d3\u1950-\u19df\u1a20-\u1aad"
    "\u1b00-\u1b4c\u3005-\u3007\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48c"
    "\ua980-\ua9ff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
"""Characters of scripts without spaces: Thai, Lao, Tibetan, Myanmar, Khmer, Tai Le, New Tai Lue, Tai Tham, Balinese,
kana, Bopomofo, Han, Yi, Javanese, Tai Viet."""
_WIDE = re.compile(
    "[\u3000-\u303f\u3041-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
"""Han, kana and their punctuation: a line that ends in one of these is not parted from the next by a space."""
_STACKS = "\u0f84\u1039\u17d2\u1a60\ua9c0\u1b44\u200d"
"""Signs that put the next character under this one (virama, coeng), and the joiner."""
_BEFORE = re.compile("[\u0e40-\u0e44\u0ec0-\u0ec4]")
"""Vowels of Thai and Lao that are written before the consonant after which they are spoken."""
_AFTER = re.compile("[\u0e30\u0e32\u0e33\u0e45-\u0e46\u0eb0\u0eb2\u0eb3\u3005\u309d\u309e\u30fc-\u30fe]")
"""Characters that belong to the one before them: vowels of Thai and Lao, marks that repeat or lengthen."""


def without_spaces(text: str) -> bool:
    """Whether the characters of a text are mostly of scripts without spaces."""
    if not _UNSPACED.search(text):
        return False
    others = sum(map(str.isalpha, _UNSPACED.sub("", text)))
    return len(_UNSPACED.findall(text)) > others


def starts(text: str) -> list[int]:
    """Indices at which a word begins; in a text without spaces, also those of the characters of such a script.

    Such a text may hold some spaces (Thai and Khmer have them between sentences): a word begins after each, too. A text
    of other scripts is split at its spaces alone, whatever else it holds.
    """
    words = [match.start() for match in re.finditer(r"\S+", text)]
    if not words or not (without_spaces(text) or (len(words) == 1 and _UNSPACED.search(text))):
        return words
    first, *rest = (at for at in range(words[0], len(text)) if not text[at].isspace())
    return [first, *(at for at in rest if _begins(text, at))]


def words_of(text: str) -> list[str]:
    """The words that :func:`starts` finds, each with the white space before it; that at the text's end is dropped."""
    found, before = [], ""
    for start, end in itertools.pairwise([0, *starts(text)[1:], len(text)]):
        word = text[start:end].rstrip()
        if word:
            found.append(before + word)
        before = text[start + len(word) : end]
    return found


def split_text(text: str, seed: int, epoch: int, number: int) -> tuple[str, str]:
    """Split a text between two words, after 10 % to 90 % of them: a pure function.

    Returns:
        The words before the split and the words after it, inner white space kept.

    Raises:
        DataError: the text has fewer than two words.
    """
    words = starts(text)
    if len(words) < 2:
        raise DataError(f"has {len(words)} words in `text`; a prefix and a rest need at least two: join or remove it.")
    lowest = max(1, math.ceil(0.1 * len(words)))
    highest = min(len(words) - 1, math.floor(0.9 * len(words)))
    at = words[lowest + int(uniform(seed, epoch, number) * (highest - lowest + 1))]
    return text[:at].strip(), text[at:].strip()


def is_parted(text: str, before: str) -> bool:
    """Whether white space follows the first part of :func:`split_text` in its text."""
    return text.lstrip()[len(before)].isspace()


def is_word(text: str) -> bool:
    """Whether it is one word or none, so that it cannot be split."""
    # starts() alone would do; split() is the quick check.
    return len(text.split(maxsplit=1)) < 2 and len(starts(text)) < 2


def joined(lines: Iterable[str]) -> str:
    """Lines of one paragraph as one text, with a space between two of them where their script has spaces."""
    pieces: list[str] = []
    for line in lines:
        if pieces and not (_WIDE.fullmatch(pieces[-1][-1]) and _WIDE.fullmatch(line[0])):
            pieces.append(" ")
        pieces.append(line)
    return "".join(pieces)


def _begins(text: str, position: int) -> bool:
    """Whether the text may be split before this character, next to one of a script without spaces."""
    before, here = text[position - 1], text[position]
    if before.isspace():
        return True
    if before in _STACKS or _BEFORE.fullmatch(before) or unicodedata.category(before) in ("Ps", "Pi"):
        return False
    kind = unicodedata.category(here)
    if kind[0] == "M" or kind == "Cf" or _AFTER.fullmatch(here) or (kind[0] == "P" and kind not in ("Ps", "Pi")):
        return False
    if _UNSPACED.fullmatch(here):
        return True
    # A word of another script or a number is not split: it begins after such a character, a mark or punctuation.
    return bool(_UNSPACED.fullmatch(before)) or unicodedata.category(before)[0] in "P"
