"""From a meaning to the words of a language, each word tagged with its concept and its slot.

The tags serve the encoder's pretraining (:mod:`bridge_ds.testbed.pretrain_encoder`); tasks use the text alone.
"""

from __future__ import annotations

from typing import NamedTuple

from .languages import ENGLISH, GRAMMARS, Grammar, Vocabulary, vocabulary
from .lexicon import conjugate, plural
from .meaning import Clause, NounPhrase

__all__ = ["Word", "render"]


class Word(NamedTuple):
    """A word of a rendered sentence."""

    text: str
    concept: str
    slot: str
    """Its role, such as ``subject.adjective``: the same in every language, so that words of parallel sentences pair up.
    Empty for words that only some languages have, such as articles."""


def render(clause: Clause, language: str) -> list[Word]:
    """The words of a clause in a language."""
    if language == ENGLISH:
        return _english(clause)
    return _constructed(clause, GRAMMARS[language], vocabulary(language))


def _english_phrase(phrase: NounPhrase, slot: str) -> list[Word]:
    words = []
    if phrase.adjective:
        if phrase.degree:
            words.append(Word(phrase.degree, phrase.degree, f"{slot}.degree"))
        words.append(Word(phrase.adjective, phrase.adjective, f"{slot}.adjective"))
    words.append(Word(plural(phrase.noun) if phrase.plural else phrase.noun, phrase.noun, slot))
    article = phrase.article
    if article == "a":
        article = "" if phrase.plural else "an" if words[0].text[0] in "aeiou" else "a"
    return [Word(article, "the", ""), *words] if article else words


def _english_verb(clause: Clause) -> list[Word]:
    many = clause.subject.plural
    negation = [Word("not", "not", "not")] if clause.negated else []
    if clause.predicate:
        copula = ("were" if many else "was") if clause.past else ("are" if many else "is")
        degree = [Word(clause.degree, clause.degree, "predicate.degree")] if clause.degree else []
        return [Word(copula, "is", ""), *negation, *degree, Word(clause.predicate, clause.predicate, "predicate")]
    assert clause.verb is not None
    if clause.negated:
        auxiliary = "did" if clause.past else "do" if many else "does"
        return [Word(auxiliary, "do", ""), *negation, Word(clause.verb, clause.verb, "verb")]
    third, past = conjugate(clause.verb)
    text = past if clause.past else clause.verb if many else third
    return [Word(text, clause.verb, "verb")]


def _english(clause: Clause) -> list[Word]:
    words = [*_english_phrase(clause.subject, "subject"), *_english_verb(clause)]
    if clause.object:
        words += _english_phrase(clause.object, "object")
    if clause.place:
        words += [Word("in", "in", ""), *_english_phrase(clause.place, "place")]
    if clause.time:
        time = [Word(clause.time, clause.time, "time")]
        words = time + words if clause.time_first else words + time
    return words


def _phrase(phrase: NounPhrase, slot: str, case: str | None, grammar: Grammar, words: Vocabulary) -> list[Word]:
    noun = [Word(words.noun(phrase.noun, phrase.plural, case), phrase.noun, slot)]
    if not phrase.adjective:
        return noun
    adjective = [Word(words.stems[phrase.adjective], phrase.adjective, f"{slot}.adjective")]
    if phrase.degree:
        adjective.insert(
            0 if grammar.adjective_first else 1, Word(words.stems[phrase.degree], phrase.degree, f"{slot}.degree")
        )
    return adjective + noun if grammar.adjective_first else noun + adjective


def _verb(clause: Clause, grammar: Grammar, words: Vocabulary) -> list[Word]:
    if clause.predicate:
        core = [Word(words.stems[clause.predicate], clause.predicate, "predicate")]
        if clause.degree:
            core.insert(
                0 if grammar.adjective_first else 1, Word(words.stems[clause.degree], clause.degree, "predicate.degree")
            )
        if grammar.copula:
            core.append(Word(words.particles["is"], "is", ""))
    else:
        assert clause.verb is not None
        core = [Word(words.verb(clause.verb, clause.past), clause.verb, "verb")]
    if not clause.negated:
        return core
    negation = [Word(words.stems["not"], "not", "not")]
    return negation + core if grammar.negation_first else core + negation


def _constructed(clause: Clause, grammar: Grammar, words: Vocabulary) -> list[Word]:
    case_of = {
        "subject": "subject" if grammar.marks_subject else None,
        "object": "object" if grammar.marks_object else None,
        "place": "place" if grammar.locative == "suffix" else None,
    }

    def phrase(part: NounPhrase | None, slot: str) -> list[Word]:
        return _phrase(part, slot, case_of[slot], grammar, words) if part else []

    parts = {
        "S": phrase(clause.subject, "subject"),
        "V": _verb(clause, grammar, words),
        "O": phrase(clause.object, "object"),
    }
    sentence = [word for part in grammar.order for word in parts[part]]
    place = phrase(clause.place, "place")
    if place and grammar.locative != "suffix":
        place.insert(0 if grammar.locative == "before" else len(place), Word(words.particles["in"], "in", ""))
    sentence += place
    time = [Word(words.stems[clause.time], clause.time, "time")] if clause.time else []
    return time + sentence if grammar.time_first else sentence + time
