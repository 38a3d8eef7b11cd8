"""Word mixing: some English words of a source are replaced by their translations in a dictionary. A pure function.

A bridge is trained on English sources; with a dictionary its encoder reads words of other languages between English
ones. As in mixed-language fine-tuning (arXiv 2406.16135, at the level of words), CoSDA-ML (arXiv 2006.06402)
and LinguaLIFT (arXiv 2412.12499), each word is replaced or not by itself, and draws its language by itself.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from bridge_ds.data.sampling.order import uniforms
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.reading import NotText, decoded

__all__ = ["WordMixer", "read_mixer"]

_LETTERS = r"(?:[^\W_]|[\u0300-\u036f])+"
_WORD = re.compile(rf"{_LETTERS}(?:['’‐-]{_LETTERS})*")
"""A word, with the apostrophes and hyphens inside it: of `well-known` and `dog's` no part is a word by itself."""
_COLUMNS = "expected three columns with tabs between them: English, word, language"
_SHOWN = 12
"""Most languages that a message lists."""


class WordMixer:
    """A dictionary, and how much of a text is replaced by it."""

    def __init__(self, words: Mapping[str, Sequence[Sequence[str]]], share: float, sha256: str = "") -> None:
        """Args:
        words: English (one word or several) -> its translations, language by language.
        share: probability (0 to 1) that a word that is in the dictionary is replaced.
        sha256: hex, of the dictionary's file.
        """
        self._words = {_key(english): tuple(map(tuple, found)) for english, found in words.items()}
        self._longest = max((len(_WORD.findall(key)) for key in self._words), default=0)
        self.share, self.sha256 = share, sha256

    def mix(self, text: str, seed: int, epoch: int, number: int) -> str:
        """A text with some of its words replaced; what is not replaced stays as it is, character by character.

        Only whole words are replaced, and the longest entry that matches; upper and lower case do not matter for that.
        A replacement of a capitalized word is capitalized, that of one in capitals is in capitals.

        Args:
            text: English.
            seed: of the run.
            epoch: how often the sample has been read before.
            number: of the sample in the corpus.
        """
        words = list(_WORD.finditer(text))
        draws = uniforms(seed, epoch, number, 3 * len(words)).reshape(-1, 3)
        pieces, end, at = [], 0, 0
        while at < len(words):
            count = self._match(text, words, at)
            replaced, language, which = draws[at].tolist()
            if count and replaced < self.share:
                start, stop = words[at].start(), words[at + count - 1].end()
                languages = self._words[_key(text[start:stop])]
                choices = languages[int(language * len(languages))]
                pieces += [text[end:start], _in_case_of(text[start:stop], choices[int(which * len(choices))])]
                end = stop
            at += count or 1
        return "".join(pieces) + text[end:]

    def knows(self, text: str) -> bool:
        """Whether a word of the text is in the dictionary."""
        words = list(_WORD.finditer(text))
        return any(self._match(text, words, at) for at in range(len(words)))

    def _match(self, text: str, words: Sequence[re.Match[str]], at: int) -> int:
        """Of how many words the longest entry is that begins with word `at`; 0 = none does."""
        for count in range(min(self._longest, len(words) - at), 0, -1):
            if _key(text[words[at].start() : words[at + count - 1].end()]) in self._words:
                return count
        return 0


def read_mixer(path: str, share: float, languages: Sequence[str] = ()) -> WordMixer:
    """Read a dictionary: UTF-8, a line an entry, English, word and language with tabs between them. Empty lines, and a
    first line whose last column is `language`, are left out; an entry that occurs again counts once.

    Args:
        path: of the file.
        share: see :class:`WordMixer`.
        languages: those to use; empty = all.

    Raises:
        DataError: it cannot be read, or a line has not three columns, or it has no entry.
        ConfigError: it has no entry of one of `languages`.
    """
    name = f"data.mix_words {path}"
    try:
        raw = Path(path).read_bytes()
        lines = decoded(raw).split("\n")
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}); expected a dictionary; {_COLUMNS}.") from None
    except NotText as error:
        raise DataError(f"{name} {error}.") from None
    found: dict[str, dict[str, dict[str, None]]] = {}
    known: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        columns = [column.strip() for column in line.split("\t")]
        if not line.strip() or (number == 1 and columns[-1].lower() == "language"):
            continue
        if len(columns) != 3:
            raise DataError(f"{name} has {len(columns)} columns in line {number}; {_COLUMNS}.")
        if not all(columns):
            raise DataError(f"{name} has an empty column in line {number}; {_COLUMNS}; fill it or remove the line.")
        english, word, language = columns
        known[language] = None
        if not languages or language in languages:
            found.setdefault(_key(english), {}).setdefault(language, {})[word] = None
    if not known:
        raise DataError(f"{name} holds no entry; {_COLUMNS}.")
    for language in languages:
        if language not in known:
            raise ConfigError(
                f"data.mix_words_languages has {language!r}, which no line of {path} has in its third column; expected "
                f"some of {', '.join(list(known)[:_SHOWN])}{', ...' if len(known) > _SHOWN else ''}."
            )
    words = {english: [list(of) for of in by_language.values()] for english, by_language in found.items()}
    return WordMixer(words, share, hashlib.sha256(raw).hexdigest())


def _key(text: str) -> str:
    """What is the same for all ways to write an entry."""
    return " ".join(unicodedata.normalize("NFC", text).replace("’", "'").casefold().split())


def _in_case_of(text: str, word: str) -> str:
    """A word in upper and lower case as the text that it replaces. `I` says nothing: it always is a capital."""
    if len(text) > 1 and text.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if text[0].isupper() and text != "I" else word
