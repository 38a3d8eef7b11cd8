"""What a benchmark is: prompts in many languages, and what is to be answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["Example", "Task"]


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt in one language with its right answer."""

    source: str
    """The whole prompt, for the encoder; no blank at its end."""
    target: str
    """The right text: a label, a choice, or a number."""
    label: int
    """Its place in the task's labels or in `choices`; -1 where a number is asked for."""
    language: str
    """Language code, as the benchmark writes it."""
    key: str
    """Name of the sample, one of a kind in its language; the same in every language where the benchmark is parallel."""
    choices: tuple[str, ...] = ()
    """The sample's own choices; empty where the task's labels are the choices, or a number is asked for."""
    null: str = ""
    """The prompt with nothing in it: what a calibration takes off is the likelihood of a choice after this."""


@runtime_checkable
class Task(Protocol):
    """One benchmark. Making one loads nothing; :meth:`examples` may read files or the network."""

    @property
    def name(self) -> str:
        """Name in ``TASKS`` and in evaluation.json."""

    @property
    def kind(self) -> str:
        """One of `bridge_ds.evaluation.predictions.KINDS`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The label texts, in the order of the label numbers; empty unless `kind` is labels."""

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
