"""Measure a reader on parallel sentences: retrieval by place, tokens, what the tokenizer loses; and what that means."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from bridge_ds.encoder.retrieval import Floats, Retrieval, centered, retrieval
from bridge_ds.errors import DataError
from bridge_ds.probe.parallel import Parallel
from bridge_ds.probe.reader import FUSION, MAPPING, Reader
from bridge_ds.reading import decoded
from bridge_ds.report.languages import find_language
from bridge_ds.typed import Count, Share, typed

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
    "read_probe",
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
    tokens: Count
    """Of all sentences, without special ones."""
    tokens_per_word: float | None
    """Tokens for a word; None where words are not separated by spaces."""
    tokens_per_english_token: float
    """Tokens for one token of the same sentences in English."""
    unknown_tokens: Share
    """Share of tokens that are the unknown token (one stands for a character, or for a word)."""
    lost_letters: Share
    """Share of letters and digits that no token stands for, see :func:`letters_lost`."""
    truncated: Share
    """Share of sentences that were too long for the encoder (or the run's data.max_source_tokens)."""
    retrieval: dict[str, Retrieval]
    """By place, cosines of the states as they are."""
    retrieval_centered: dict[str, Share]
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
        if self.lost_letters >= LOST:
            return "unread"
        return "well" if self.best >= WELL else "partly" if self.best >= PARTLY else "barely"

    def as_json(self) -> dict[str, Any]:
        """For probe.json: what was measured, and what follows."""
        follows = ("verdict", "best", "best_layer", "last", "mean")
        return {"name": find_language(self.code).name, **{key: getattr(self, key) for key in follows}, **asdict(self)}


@dataclass(frozen=True)
class _Stored:
    languages: dict[str, LanguageProbe]


def read_probe(path: Path) -> list[LanguageProbe]:
    """The languages of a probe.json.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        found = typed(decoded(path.read_bytes()), _Stored).languages
        if not found or not all(of.layers for of in found.values()):
            raise ValueError("has a language without encoder layers")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); expected a probe.json; check the path.") from None
    except ValueError as error:
        raise DataError(f"{path} {error}; expected a probe.json as bridge-ds probe writes it; probe again.") from None
    return list(found.values())


class _Read(NamedTuple):
    """The sentences of a language as the reader has read them."""

    code: str
    texts: Sequence[str]
    rows: Sequence[list[int]]
    tokens: Sequence[list[int]]
    """Of `rows`, without special ones."""
    vectors: Sequence[Floats]


def probe(reader: Reader, parallel: Parallel) -> list[LanguageProbe]:
    """All languages, English first."""
    from tqdm import tqdm

    total = sum(map(len, parallel.texts.values()))
    special = set(reader.tokenizer.all_special_ids) - {reader.tokenizer.unk_token_id}
    found: list[LanguageProbe] = []
    english: _Read | None = None
    with tqdm(total=total, unit="sentence", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        for code, texts in parallel.texts.items():
            bar.set_postfix_str(code)
            rows = reader.ids(texts, code)
            tokens = [[each for each in row if each not in special] for row in rows]
            own = _Read(code, texts, rows, tokens, reader.vectors(rows, bar.update))
            english = english or own
            found.append(_measured(reader, own, english))
    return found


def _measured(reader: Reader, own: _Read, english: _Read) -> LanguageProbe:
    count, english_count = (sum(map(len, of.tokens)) for of in (own, english))
    words = sum(len(text.split()) for text in own.texts)
    unknown = reader.tokenizer.unk_token_id
    known = [[each for each in row if each != unknown] for row in own.tokens]
    pairs = list(zip(reader.places, own.vectors, english.vectors, strict=True))
    return LanguageProbe(
        code=own.code,
        tokens=count,
        tokens_per_word=count / words if find_language(own.code).has_spaces else None,
        tokens_per_english_token=count / max(1, english_count),
        unknown_tokens=1 - sum(map(len, known)) / max(1, count),
        lost_letters=letters_lost(own.texts, known, reader.tokenizer),
        truncated=fmean(len(reader.cut(row)) < len(row) for row in own.rows),
        retrieval={place: retrieval(one, other) for place, one, other in pairs},
        retrieval_centered={place: retrieval(centered(one), centered(other)).both for place, one, other in pairs},
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
