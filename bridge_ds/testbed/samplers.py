"""Draw meanings for the three tasks. The label of a meaning is decided here, before it has words.

In every task the label depends on what content words mean, not on how many words there are: all labels of a task draw
the shapes of their sentences (adjective or not, negated or not, long or short) from the same chances.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from .lexicon import (
    ADJECTIVE_KINDS,
    BUYERS,
    CITIES,
    FEELINGS,
    MILD_DEGREES,
    NEWS_ADJECTIVES,
    NEWS_VERBS,
    NOUN_KINDS,
    OBJECT_KINDS,
    PRODUCTS,
    PURCHASES,
    QUALITIES,
    SENTIMENTS,
    STRONG_DEGREES,
    SUBJECT_KINDS,
    TIMES,
    TOPICS,
    VERB_KINDS,
)
from .meaning import Clause, NounPhrase

__all__ = ["SAMPLERS", "inference", "news", "reviews"]


def _phrase(rng: random.Random, noun: str, adjective: str | None = None, degree: str | None = None) -> NounPhrase:
    return NounPhrase(noun, rng.random() < 0.4, rng.choice(("the", "the", "a", "")), adjective, degree)


def _maybe_time(rng: random.Random, chance: float) -> dict[str, Any]:
    return {"time": rng.choice(TIMES), "time_first": rng.random() < 0.5} if rng.random() < chance else {}


def _maybe_place(rng: random.Random, chance: float) -> NounPhrase | None:
    return NounPhrase(rng.choice(CITIES), False, "the") if rng.random() < chance else None


def news(rng: random.Random, label: int) -> tuple[Clause, ...]:
    """One sentence of the topic ``label``: its agent, and its verb or a verb of every topic, and its thing."""
    topic = list(TOPICS.values())[label]
    adjective = rng.choice(NEWS_ADJECTIVES) if rng.random() < 0.4 else None
    verb = rng.choice(topic.verbs if rng.random() < 0.6 else NEWS_VERBS)
    return (
        Clause(
            _phrase(rng, rng.choice(topic.agents), adjective),
            verb,
            _phrase(rng, rng.choice(topic.things)),
            past=rng.random() < 0.5,
            place=_maybe_place(rng, 0.4),
            **_maybe_time(rng, 0.4),
        ),
    )


def _opinion(rng: random.Random, strength: int) -> tuple[str, str | None]:
    """An adjective of a strength, half the time with an adverb; strong opinions are often weak words made stronger."""
    if rng.random() < 0.5:
        return rng.choice(SENTIMENTS[strength]), None
    if abs(strength) == 2:
        return rng.choice(SENTIMENTS[strength // 2 if rng.random() < 0.7 else strength]), rng.choice(STRONG_DEGREES)
    degrees = MILD_DEGREES if strength else MILD_DEGREES + STRONG_DEGREES
    return rng.choice(SENTIMENTS[strength]), rng.choice(degrees)


def reviews(rng: random.Random, label: int) -> tuple[Clause, ...]:
    """One sentence of opinion; ``label`` 0 ... 4 is a strength of -2 ... +2."""
    strength, past = label - 2, rng.random() < 0.5
    shape = rng.random()
    if shape < 0.5:
        adjective, degree = _opinion(rng, strength)
        subject = _phrase(rng, rng.choice(PRODUCTS + QUALITIES))
        return (Clause(subject, predicate=adjective, degree=degree, past=past, **_maybe_time(rng, 0.3)),)
    buyer = _phrase(rng, rng.choice(BUYERS))
    if shape < 0.8:
        adjective, degree = _opinion(rng, strength)
        thing = _phrase(rng, rng.choice(PRODUCTS), adjective, degree)
        return (Clause(buyer, rng.choice(PURCHASES), thing, past=past, **_maybe_time(rng, 0.3)),)
    thing = _phrase(rng, rng.choice(PRODUCTS + QUALITIES))
    return (Clause(buyer, rng.choice(FEELINGS[strength]), thing, past=past, **_maybe_time(rng, 0.5)),)


ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)


def _change(rng: random.Random, kinds: dict[str, tuple[str, ...]], kind: str, label: int) -> tuple[str, str]:
    """A word and what the hypothesis says instead: a dog is an animal, an animal may be a dog, a dog is no cat."""
    one, other = rng.sample(kinds[kind], 2)
    return {ENTAILMENT: (one, kind), NEUTRAL: (kind, one), CONTRADICTION: (one, other)}[label]


def inference(rng: random.Random, label: int) -> tuple[Clause, ...]:
    """A premise, and a hypothesis that differs from it in one word, and sometimes by a "not"."""
    kind, object_kind = rng.choice(SUBJECT_KINDS), rng.choice(OBJECT_KINDS)
    action, quality = rng.choice(tuple(VERB_KINDS)), rng.choice(tuple(ADJECTIVE_KINDS))
    subject = replace(_phrase(rng, rng.choice(NOUN_KINDS[kind])), article="the")
    thing = _phrase(rng, rng.choice(NOUN_KINDS[object_kind]))
    extras: dict[str, Any] = {"past": rng.random() < 0.5, **_maybe_time(rng, 0.3)}
    clause = Clause(subject, rng.choice(VERB_KINDS[action]), thing, **extras)
    shape = rng.choice(("subject", "object", "verb", "adjective", "predicate"))
    negated = shape in ("verb", "predicate") and rng.random() < 0.5
    # "Red" entails "not blue" and contradicts "not coloured"; "coloured" implies nothing about "not red".
    relation = CONTRADICTION - label if negated else label
    if shape == "predicate":
        before, after = _change(rng, ADJECTIVE_KINDS, quality, relation)
        premise = Clause(replace(thing, article="the"), predicate=before, **extras)
        return premise, replace(premise, predicate=after, negated=negated)
    if shape == "verb":
        before, after = _change(rng, VERB_KINDS, action, relation)
        return replace(clause, verb=before), replace(clause, verb=after, negated=negated)
    if shape == "adjective":
        words = _change(rng, ADJECTIVE_KINDS, quality, relation)
        return tuple(replace(clause, object=replace(thing, adjective=word)) for word in words)
    if shape == "subject":
        words = _change(rng, NOUN_KINDS, kind, relation)
        return tuple(replace(clause, subject=replace(subject, noun=word)) for word in words)
    words = _change(rng, NOUN_KINDS, object_kind, relation)
    return tuple(replace(clause, object=replace(thing, noun=word)) for word in words)


SAMPLERS = {"inference": inference, "news": news, "reviews": reviews}
