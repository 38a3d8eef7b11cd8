"""What a sentence says, without any language: the clause that every language renders in its own way."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Clause", "NounPhrase"]


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """Things or beings that take part in a clause."""

    noun: str
    plural: bool = False
    article: str = ""
    """``the``, ``a`` or nothing; the constructed languages have no articles and leave it out."""
    adjective: str | None = None
    degree: str | None = None
    """An adverb that strengthens the adjective."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One sentence: somebody does something (``verb``, ``object``) or something has a property (``predicate``)."""

    subject: NounPhrase
    verb: str | None = None
    """A verb concept; None in a sentence that only says what its subject is like."""
    object: NounPhrase | None = None
    predicate: str | None = None
    """An adjective said of the subject, in a sentence without a verb of its own."""
    degree: str | None = None
    """An adverb that strengthens the predicate."""
    past: bool = False
    negated: bool = False
    place: NounPhrase | None = None
    time: str | None = None
    time_first: bool = False
    """English only: the adverb of time opens the sentence. Each constructed language has one fixed position for it."""
