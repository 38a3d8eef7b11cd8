"""What a benchmark is: prompts in many languages with their right answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["KINDS", "Example", "Task"]

KINDS = ("labels", "choices", "number")
"""Kinds of tasks: the same labels for every sample, choices of each sample's own, a number to be generated."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt in one language with its right answer."""

    source: str
    """The whole prompt, for the encoder; no space at its end."""
    target: str
    """The right text: a label, a choice, or a number."""
    label: int
    """Its index in the task's labels or in `choices`; -1 where a number is asked for."""
    language: str
    """Language code, as the benchmark writes it."""
    key: str
    """Id of the sample, unique in its language; the same in every language where the benchmark is parallel."""
    choices: tuple[str, ...] = ()
    """The sample's own choices; empty where the task's labels are the choices, or a number is asked for."""
    null: str = ""
    """The prompt with its fields left empty, for `acc_mutual_info`."""


@runtime_checkable
class Task(Protocol):
    """One benchmark. Its constructor loads nothing; :meth:`examples` may read files or the network."""

    @property
    def name(self) -> str:
        """Name in ``TASKS`` and in evaluation.json."""

    @property
    def kind(self) -> str:
        """One of :data:`KINDS`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The label texts, in the order of the label numbers; empty unless `kind` is labels."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Language codes, English first where it has English."""

    @property
    def on_request(self) -> tuple[str, ...]:
        """More codes, of languages that are scored only where they are named."""

    @property
    def chance(self) -> float:
        """Accuracy of guessing (0 to 1)."""

    def code_of(self, language: str) -> str:
        """The code in `languages` of a language that may be given by another name; unknown names as they are."""

    def examples(self, language: str, limit: int) -> list[Example]:
        """The first `limit` test samples of a language (0 = all).

        Raises:
            ConfigError: the benchmark lacks the language.
            DataError: the data cannot be loaded or is not as expected.
        """
