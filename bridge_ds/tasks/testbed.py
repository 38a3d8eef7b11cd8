"""The testbed's three tasks in English and its constructed languages; generated, no download."""

from __future__ import annotations

from dataclasses import dataclass

from bridge_ds import testbed
from bridge_ds.tasks.base import Example

__all__ = ["DEFAULT_SAMPLES", "TASKS", "ConstructedTask"]

DEFAULT_SAMPLES = 300
"""Test samples per language when no limit is given: the generator has no end."""


@dataclass(frozen=True)
class ConstructedTask:
    """One of ``testbed.TASKS``; the same samples in every language, balanced labels."""

    subject: str
    """inference | news | reviews."""
    kind: str = "labels"
    """As of :class:`Task`."""

    @property
    def name(self) -> str:
        """`testbed_` and the subject."""
        return f"testbed_{self.subject}"

    @property
    def labels(self) -> tuple[str, ...]:
        """The label texts."""
        return testbed.LABELS[self.subject]

    @property
    def languages(self) -> tuple[str, ...]:
        """English and the constructed languages."""
        return testbed.LANGUAGES

    @property
    def on_request(self) -> tuple[str, ...]:
        """The one in letters that neither tokenizer has: what `bridge-ds adapt` is tried on."""
        return (testbed.UNSEEN,)

    @property
    def chance(self) -> float:
        """One of the labels, which are balanced."""
        return 1 / len(self.labels)

    def code_of(self, language: str) -> str:
        """Each has one name."""
        return language

    def examples(self, language: str, limit: int) -> list[Example]:
        """The first `limit` test samples (0 = 300)."""
        found = testbed.examples(self.subject, language, "test", limit or DEFAULT_SAMPLES)
        null = " ".join(word for word in testbed.PROMPTS[self.subject].split() if not word.startswith("{"))
        return [Example(e.source, e.target, e.label, e.language, e.key, null=null) for e in found]


TASKS = tuple(ConstructedTask(subject) for subject in ("inference", "news", "reviews"))
