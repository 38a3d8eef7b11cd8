"""Measure a reader on parallel sentences: retrieval by place, tokens, what the tokenizer loses; and what that means."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bridge_ds.probe.parallel import Parallel
from bridge_ds.probe.reader import FUSION, MAPPING, Reader
from bridge_ds.probe.retrieval import Floats, Retrieval, centered, retrieval
from bridge_ds.report.languages import find_language

__all__ = [
    "LONG",
    "LOST",
    "NOTED",
    "PARTLY",
    "SENTENCES",
    "WELL",
    "LanguageProbe",
    "letters_lost",
    "probe",
]

SENTENCES = 100
"""Sentences that WELL and PARTLY are meant for; among more, each is harder to find."""
WELL, PARTLY = 0.8, 0.5
"""Least retrieval (both directions, best layer) of the verdicts `well` and `partly`; less is `barely`. Set before any
accuracy was seen: MEXA takes this share of the accuracy in English as its estimate for a language."""
LOST = 0.5
"""Share of lost letters from which a language is `unread`, whatever retrieval says: digits and Latin names remain, and
find some translations."""
NOTED = 0.1
"""Share of lost letters from which they are mentioned."""
LONG = 3.0
"""Tokens for one English token from which they are mentioned: such texts are truncated first, and cost as much more."""


@dataclass(frozen=True)
class LanguageProbe:
    """One language."""

    code: str
    """As the data writes it."""
    tokens: int
    """Of all sentences, without special ones."""
    per_word: float | None
    """Tokens for a word; None where words are not separated by spaces."""
    per_english: float
    """Tokens for one token of the same sentences in English."""
    unknown: float
    """Share of tokens that are the unknown token (one stands for a character, or for a word)."""
    lost: float
    """Share of letters and digits that no token stands for, see :func:`letters_lost`."""
    truncated: float
    """Share of sentences that were too long for the encoder (or the run's data.max_source_tokens)."""
    retrieval: dict[str, Retrieval]
    """By place, cosines of the states as they are."""
    centered: dict[str, float]
    """`both` of retrieval by place, each language's mean taken away first. For comparison; decides nothing."""

    @property
    def layers(self) -> list[str]:
        """Places in the encoder."""
        return [place for place in self.retrieval if place not in (FUSION, MAPPING)]

    @property
    def best_layer(self) -> str:
        """The first of the layers with the best retrieval."""
        return max(self.layers, key=lambda place: self.retrieval[place].both)

    @property
    def best(self) -> float:
        """Retrieval (both directions) at the best layer."""
        return self.retrieval[self.best_layer].both

    @property
    def last(self) -> float:
        """At the last layer."""
        return self.retrieval[self.layers[-1]].both

    @property
    def mean(self) -> float:
        """Mean over the layers."""
        return fmean(self.retrieval[place].both for place in self.layers)

    @property
    def verdict(self) -> str:
        """`well`, `partly`, `barely` or `unread`."""
        if self.lost >= LOST:
            return "unread"
        return "well" if self.best >= WELL else "partly" if self.best >= PARTLY else "barely"

    def as_json(self) -> dict[str, Any]:
        """For probe.json."""
        directions = ("both", "to_english", "from_english")
        return {
            "name": find_language(self.code).name, "verdict": self.verdict,
            "best": self.best, "best_layer": self.best_layer, "last": self.last, "mean": self.mean,
            "tokens": self.tokens, "tokens_per_word": self.per_word, "tokens_per_english_token": self.per_english,
            "unknown_tokens": self.unknown, "lost_letters": self.lost, "truncated": self.truncated,
            "retrieval": {
                name: {place: getattr(found, name) for place, found in self.retrieval.items()} for name in directions
            },
            "retrieval_centered": self.centered,
        }  # fmt: skip


def probe(reader: Reader, parallel: Parallel) -> list[LanguageProbe]:
    """All languages, English first."""
    from tqdm import tqdm

    total = sum(map(len, parallel.texts.values()))
    found: list[LanguageProbe] = []
    english: list[Floats] = []
    english_tokens = 0
    with tqdm(total=total, unit="sentence", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        for code, texts in parallel.texts.items():
            bar.set_postfix_str(code)
            rows = reader.ids(texts, code)
            vectors = reader.vectors(rows, bar.update)
            english = english or vectors
            tokens = [_without_special(row, reader.tokenizer) for row in rows]
            english_tokens = english_tokens or sum(map(len, tokens))
            found.append(_language(code, texts, tokens, rows, reader, vectors, english, english_tokens))
    return found


def _language(
    code: str,
    texts: Sequence[str],
    tokens: Sequence[list[int]],
    rows: Sequence[list[int]],
    reader: Reader,
    vectors: Sequence[Floats],
    english: Sequence[Floats],
    english_tokens: int,
) -> LanguageProbe:
    count = sum(map(len, tokens))
    unknown = reader.tokenizer.unk_token_id
    pairs = list(zip(reader.places, vectors, english, strict=True))
    return LanguageProbe(
        code=code,
        tokens=count,
        per_word=count / sum(len(text.split()) for text in texts) if find_language(code).has_spaces else None,
        per_english=count / max(1, english_tokens),
        unknown=sum(each == unknown for row in tokens for each in row) / max(1, count),
        lost=letters_lost(texts, [[each for each in row if each != unknown] for row in tokens], reader.tokenizer),
        truncated=fmean(len(reader.cut(row)) < len(row) for row in rows),
        retrieval={place: retrieval(own, of_english) for place, own, of_english in pairs},
        centered={place: retrieval(centered(own), centered(of_english)).both for place, own, of_english in pairs},
    )


def letters_lost(texts: Sequence[str], tokens: Sequence[list[int]], tokenizer: Any) -> float:
    """Share of letters, marks and digits that are not in the text that the tokens are decoded to.

    Both in compatibility decomposition (NFKD) and lower case: a tokenizer that makes these equal loses nothing.

    Args:
        texts: the sentences.
        tokens: their ids, without special and unknown ones.
        tokenizer: has `decode`.
    """
    whole = lost = 0
    for text, ids in zip(texts, tokens, strict=True):
        had, kept = _letters(text), _letters(tokenizer.decode(ids) if ids else "")
        whole += had.total()
        lost += (had - kept).total()
    return lost / max(1, whole)


def _letters(text: str) -> Counter[str]:
    plain = unicodedata.normalize("NFKD", text).lower()
    return Counter(sign for sign in plain if unicodedata.category(sign)[0] in "LMN")


def _without_special(row: Sequence[int], tokenizer: Any) -> list[int]:
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return [each for each in row if each not in special]
