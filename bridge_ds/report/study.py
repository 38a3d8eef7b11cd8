"""Several scored runs side by side: who answered, what was asked, what was answered.

Shapes: R runs of one system (its seeds), N samples of one task in one language, K ways to read scores (NORMALIZATIONS).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bridge_ds.evaluation.predictions import Scored, ScoredTask

__all__ = ["Place", "Questions", "Study", "StudyAnswers", "StudyRun", "System"]

Place = tuple[str, str]
"""A task and a language."""


@dataclass(frozen=True)
class StudyRun:
    """One scored system of one run folder."""

    folder: Path
    """Of the run."""
    index: Scored
    """What was scored."""
    name: str
    """Of its system in the report."""

    @property
    def predictions(self) -> Path:
        """Folder of the system's predictions."""
        return self.folder / "evaluation" / self.index.system


@dataclass(frozen=True)
class Questions:
    """What every system was asked: one task in one language."""

    keys: list[str]
    sources: list[str]
    answers: list[str]
    """The right texts."""
    choices: list[tuple[str, ...]]
    """Of each sample: its own, or the task's labels; empty for numbers."""
    labels_N: NDArray[np.int64]
    """Places of the right choices; -1 for numbers."""
    tokens_N: NDArray[np.int64]
    """Encoder tokens of the sources; 0 where no bridge told."""
    unknown_N: NDArray[np.int64]
    """Unknown ones among them."""


@dataclass(frozen=True)
class StudyAnswers:
    """What one system answered there, with each seed."""

    chosen_KRN: NDArray[np.int16]
    """Place of the likeliest choice; -1 for none."""
    right_KRN: NDArray[np.bool_]
    exact_RN: NDArray[np.bool_]
    margins_RN: NDArray[np.float64]
    """Score of the right choice less that of the best wrong one (nats); 0 for numbers."""
    texts: list[list[str]]
    """What was written [R][N]; empty where nothing was."""
    readable: tuple[str, ...]
    """Those of NORMALIZATIONS that the files allow; the others' rows hold nothing."""


@dataclass
class System:
    """One fusion, or the LLM alone, with all its runs, by rising seed."""

    name: str
    runs: list[StudyRun]
    answers: dict[Place, StudyAnswers] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Of its runs."""
        return [run.index.seed for run in self.runs]


@dataclass(frozen=True)
class Study:
    """All that a report is made from."""

    systems: dict[str, System]
    """By name: the LLM alone first (where it was scored), then the baseline, then the others as given."""
    baseline: str
    tasks: dict[str, ScoredTask]
    questions: dict[Place, Questions]

    def languages(self, task: str) -> list[str]:
        """Of a task, in its own order."""
        return list(self.tasks[task].samples)

    @property
    def rivals(self) -> list[str]:
        """Systems that are compared with the baseline: all others that were trained."""
        trained = [name for name, system in self.systems.items() if system.runs[0].index.system == "bridge"]
        return [name for name in trained if name != self.baseline]
