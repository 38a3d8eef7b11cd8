"""The testbed's three tasks in English and its constructed languages; made on the spot, no download."""

from __future__ import annotations

from dataclasses import dataclass

from bridge_ds import testbed
from bridge_ds.tasks.base import Example

__all__ = ["DEFAULT_SAMPLES", "ConstructedTask"]

DEFAULT_SAMPLES = 300
"""Test samples a language when no limit is given: the testbed has no natural end."""


@dataclass(frozen=True)
class ConstructedTask:
    """One of ``testbed.TASKS``; the same samples in every language, labels balanced."""

    kind: str
    """inference | news | reviews."""

    @property
    def name(self) -> str:
        """`testbed_` and the kind."""
        return f"testbed_{self.kind}"

    @property
    def labels(self) -> tuple[str, ...]:
        """The label texts."""
        return testbed.LABELS[self.kind]

    @property
    def languages(self) -> tuple[str, ...]:
        """English and the constructed languages."""
        return testbed.LANGUAGES

    @property
    def chance(self) -> float:
        """One among the labels, which are balanced."""
        return 1 / len(self.labels)

    def examples(self, language: str, limit: int) -> list[Example]:
        """The first `limit` test samples (0 = 300)."""
        found = testbed.examples(self.kind, language, "test", limit or DEFAULT_SAMPLES)
        return [Example(e.source, e.target, e.label, e.language, e.key) for e in found]
