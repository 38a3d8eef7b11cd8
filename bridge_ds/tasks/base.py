"""What a benchmark is: prompts in many languages, and the label texts to choose among."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["Example", "Task"]


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled prompt in one language."""

    source: str
    """The whole prompt, for the encoder; no blank at its end."""
    target: str
    """The label text that is right."""
    label: int
    """Its place in the task's labels."""
    language: str
    """Language code, as the benchmark writes it."""
    key: str
    """Name of the sample; the same in every language where the benchmark is parallel."""


@runtime_checkable
class Task(Protocol):
    """One benchmark. Making one loads nothing; :meth:`examples` may read files or the network."""

    @property
    def name(self) -> str:
        """Name in ``TASKS`` and in evaluation.json."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The label texts, in the order of the label numbers."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Language codes, English first where it has English."""

    @property
    def chance(self) -> float:
        """Accuracy of guessing (0 to 1)."""

    def examples(self, language: str, limit: int) -> list[Example]:
        """The first `limit` test samples of a language (0 = all).

        Raises:
            ConfigError: the benchmark lacks the language.
            DataError: the data cannot be had or is not as expected.
        """
