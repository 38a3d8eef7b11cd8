"""English and five constructed languages: their words, their endings and the order of their words.

The constructed languages are NOT Sinhala, Tamil, Bengali or Malayalam, nor any other language that people speak.
They use the same scripts, and nothing else: every word is drawn by a seeded generator, so no word means here what it
may mean to a reader of that script. Their codes ``qaa`` ... ``qae`` are in the range that ISO 639 reserves for private
use.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from .lexicon import LEXICON, forms

__all__ = [
    "ENGLISH",
    "GRAMMARS",
    "LANGUAGES",
    "LANGUAGE_NAMES",
    "UNSEEN",
    "Grammar",
    "Vocabulary",
    "vocabulary",
    "word_list",
]

ENGLISH = "en"
LANGUAGE_NAMES: dict[str, str] = {
    "en": "English",
    "qaa": "constructed, Sinhala letters",
    "qab": "constructed, Tamil letters",
    "qac": "constructed, Bengali letters",
    "qad": "constructed, Malayalam letters",
    "qae": "constructed, Latin letters",
}
LANGUAGES = tuple(LANGUAGE_NAMES)
UNSEEN = "qaf"
"""One more constructed language, in Tifinagh letters, which neither tokenizer has and the encoder has never read."""

ENGLISH_FUNCTION_WORDS = ("the", "a", "an", "in", "is", "are", "was", "were", "does", "do", "did")


@dataclass(frozen=True, slots=True)
class Grammar:
    """How a constructed language builds a sentence and its words."""

    consonants: str
    vowels: tuple[str, ...]
    """Vowel signs; the empty string where a bare consonant is a syllable."""
    order: str
    """The order of subject, verb and object, such as ``SOV``."""
    adjective_first: bool
    negation_first: bool
    """The word for "not" comes before the verb or the predicate, otherwise after it."""
    time_first: bool
    marks_subject: bool
    """The subject takes an ending."""
    marks_object: bool
    """The object takes an ending."""
    locative: str
    """How a place is marked: ``suffix``, or ``before`` or ``after`` with a word of its own."""
    copula: bool
    """A sentence that says what something is like has a word for "is"."""


GRAMMARS: dict[str, Grammar] = {
    "qaa": Grammar(
        "කගජටඩතදනපබමයරලවසහ",
        ("", "ා", "ි", "ු", "ෙ"),
        "SOV",
        adjective_first=True,
        negation_first=False,
        time_first=True,
        marks_subject=False,
        marks_object=True,
        locative="suffix",
        copula=False,
    ),
    "qab": Grammar(
        "கசடணதநனபமயரலவழளற",
        ("", "ா", "ி", "ு", "ே"),
        "VSO",
        adjective_first=False,
        negation_first=True,
        time_first=False,
        marks_subject=False,
        marks_object=False,
        locative="after",
        copula=True,
    ),
    "qac": Grammar(
        "কখগচজটডতদনপবমরলসহ",
        ("", "া", "ি", "ু", "ে"),
        "SVO",
        adjective_first=False,
        negation_first=False,
        time_first=True,
        marks_subject=True,
        marks_object=False,
        locative="before",
        copula=False,
    ),
    "qad": Grammar(
        "കഗചജടഡതദനപബമയരലവസഹ",
        ("", "ാ", "ി", "ു", "േ"),
        "VOS",
        adjective_first=True,
        negation_first=True,
        time_first=False,
        marks_subject=False,
        marks_object=True,
        locative="suffix",
        copula=True,
    ),
    "qae": Grammar(
        "jkqvwxz",
        ("a", "e", "i", "o", "u", "y"),
        "OSV",
        adjective_first=False,
        negation_first=False,
        time_first=True,
        marks_subject=True,
        marks_object=True,
        locative="suffix",
        copula=False,
    ),
}

GRAMMARS[UNSEEN] = Grammar(
    "ⴱⴳⴷⴼⴽⵀⵃⵇⵍⵎⵏⵔⵙⵛⵜⵟ",
    ("", "ⴰ", "ⵉ", "ⵓ", "ⴻ"),
    "OVS",
    adjective_first=False,
    negation_first=True,
    time_first=False,
    marks_subject=False,
    marks_object=True,
    locative="before",
    copula=True,
)

_PARTICLES = ("is", "in")
_ENDINGS = ("plural", "subject", "object", "place", "past")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of one constructed language."""

    stems: dict[str, str]
    """Concept to stem."""
    particles: dict[str, str]
    """The words for "is" and "in", where the language has them."""
    endings: dict[str, str]

    def noun(self, concept: str, plural: bool, case: str | None) -> str:
        """A noun in its number and case (``subject``, ``object``, ``place`` or none)."""
        return self.stems[concept] + (self.endings["plural"] if plural else "") + (self.endings[case] if case else "")

    def verb(self, concept: str, past: bool) -> str:
        """A verb in its tense."""
        return self.stems[concept] + (self.endings["past"] if past else "")


@cache
def vocabulary(language: str) -> Vocabulary:
    """The words of a constructed language, the same in every run.

    Stems have two syllables, endings and particles one. So no two forms collide, whatever endings a stem takes.
    """
    grammar = GRAMMARS[language]
    rng = random.Random(f"bridge_ds testbed {language}")
    syllables = [consonant + vowel for consonant in grammar.consonants for vowel in grammar.vowels]
    short = rng.sample(syllables, len(_PARTICLES) + len(_ENDINGS))
    stems = rng.sample([first + second for first in syllables for second in syllables], len(LEXICON))
    return Vocabulary(
        stems=dict(zip(LEXICON, stems, strict=True)),
        particles=dict(zip(_PARTICLES, short, strict=False)),
        endings=dict(zip(_ENDINGS, short[len(_PARTICLES) :], strict=True)),
    )


def _cases(grammar: Grammar) -> tuple[str | None, ...]:
    marked = (
        ("subject", grammar.marks_subject),
        ("object", grammar.marks_object),
        ("place", grammar.locative == "suffix"),
    )
    return (None, *(case for case, is_marked in marked if is_marked))


@cache
def word_list(language: str) -> tuple[str, ...]:
    """Every surface form that sentences of a language can hold, each once."""
    if language == ENGLISH:
        return (*ENGLISH_FUNCTION_WORDS, *dict.fromkeys(form for concept in LEXICON for form in forms(concept)))
    grammar, words = GRAMMARS[language], vocabulary(language)
    found = [words.particles["is"]] if grammar.copula else []
    found += [words.particles["in"]] if grammar.locative != "suffix" else []
    for concept, part in LEXICON.items():
        if part == "noun":
            found += [words.noun(concept, many, case) for many in (False, True) for case in _cases(grammar)]
        elif part == "verb":
            found += [words.verb(concept, past) for past in (False, True)]
        else:
            found.append(words.stems[concept])
    return tuple(found)
