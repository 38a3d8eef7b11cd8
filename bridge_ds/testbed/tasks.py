"""The three tasks as prompts and labels, every example in parallel in all languages, train and test apart."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from bridge_ds.errors import ConfigError, DataError

from .languages import ENGLISH, LANGUAGES, UNSEEN
from .meaning import Clause
from .render import Word, render
from .samplers import SAMPLERS

__all__ = [
    "ENGLISH_ROWS",
    "LABELS",
    "PROMPTS",
    "TASKS",
    "Meaning",
    "TestbedExample",
    "english_rows",
    "examples",
    "meanings",
    "source_words",
]

LABELS: dict[str, tuple[str, ...]] = {
    "inference": ("Entailment", "Neutral", "Contradiction"),
    "news": ("Business", "Entertainment", "Political", "Sports", "Science"),
    "reviews": ("Very Negative", "Negative", "Neutral", "Positive", "Very Positive"),
}
TASKS = tuple(LABELS)
PROMPTS: dict[str, str] = {
    "inference": "Premise: {premise} Hypothesis: {hypothesis} Label: ",
    "news": "News Sentence: {sentence} Category: ",
    "reviews": "Review: {text} Label: ",
}
SPLITS = ("train", "test")
ENGLISH_ROWS = 24_000
"""English rows in the embedded data set (`data.shards=testbed/english`)."""
_TEST_SHARE = 8
"""One meaning in this many belongs to the test split."""
_PATIENCE = 10_000
"""Draws without a new meaning after which a stream gives up."""


@dataclass(frozen=True, slots=True)
class TestbedExample:
    """One labelled prompt in one language."""

    source: str
    """The complete prompt, without the space at its end."""
    target: str
    """The text of the label."""
    label: int
    """The index of the label in ``LABELS[task]``."""
    task: str
    language: str
    key: str
    """The name of the meaning: the same in every language, and unique among examples."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an example says, before any language."""

    task: str
    label: int
    clauses: tuple[Clause, ...]
    key: str

    def in_language(self, language: str) -> TestbedExample:
        """The example in a language."""
        source = " ".join(word.text for word in source_words(self, language))
        return TestbedExample(source, LABELS[self.task][self.label], self.label, self.task, language, self.key)


def _split_of(digest: str) -> str:
    return "test" if int(digest, 16) % _TEST_SHARE == 0 else "train"


def meanings(task: str, split: str, seed: int = 0) -> Iterator[Meaning]:
    """Meanings of one task and split, no two alike, the labels in rotation. Ends when no new ones are found."""
    if task not in LABELS:
        raise ConfigError(f"task {task!r} is not one of the testbed's: {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    rng = random.Random(f"{task} {split} {seed}")
    seen: set[str] = set()
    while True:
        order = list(range(len(LABELS[task])))
        rng.shuffle(order)
        for label in order:
            for _ in range(_PATIENCE):
                clauses = SAMPLERS[task](rng, label)
                digest = hashlib.sha1(repr(clauses).encode()).hexdigest()[:16]
                if digest not in seen and _split_of(digest) == split:
                    break
            else:
                return
            seen.add(digest)
            yield Meaning(task, label, clauses, f"{task}-{digest}")


def source_words(meaning: Meaning, language: str) -> list[Word]:
    """The words of the complete prompt, those of the template included; their slots hold the number of the sentence."""
    clauses = iter(enumerate(meaning.clauses))
    words: list[Word] = []
    for position, piece in enumerate(PROMPTS[meaning.task].split()):
        if piece.startswith("{"):
            number, clause = next(clauses)
            words += [word._replace(slot=word.slot and f"{number}.{word.slot}") for word in render(clause, language)]
        else:
            words.append(Word(piece, piece, f"template.{position}"))
    return words


def examples(task: str, language: str, split: str, count: int, seed: int = 0) -> list[TestbedExample]:
    """``count`` examples of a task in a language.

    The same arguments but for the language give the same meanings in the same order. The labels are exactly balanced
    when ``count`` is a multiple of their number (and off by one at most when not).
    """
    if language not in (*LANGUAGES, UNSEEN):
        raise ConfigError(f"language {language!r} is not one of the testbed's: {', '.join(LANGUAGES)}")
    found = [meaning.in_language(language) for meaning in islice(meanings(task, split, seed), count)]
    if len(found) < count:
        raise DataError(f"the testbed has {len(found)} {split} examples of {task}, not {count}; ask for fewer")
    return found


def english_rows(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """``count`` rows to train a bridge on: English only, from the train split, the tasks in rotation."""
    streams = {task: meanings(task, "train", seed) for task in TASKS}
    for number in range(count):
        task = TASKS[number % len(TASKS)]
        meaning = next(streams[task], None)
        if meaning is None:
            raise DataError(f"the testbed ran out of {task} meanings at row {number} of {count}; ask for fewer")
        example = meaning.in_language(ENGLISH)
        yield {"id": example.key, "source": example.source, "target": example.target, "task": task, "lang": ENGLISH}
