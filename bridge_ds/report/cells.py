"""What several scored runs were asked and answered in one task and language: read, checked, in the same order.

Shapes: R runs of one system (its seeds), N samples of one task in one language.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import Prediction, Scored, read_predictions

__all__ = ["Cell", "Questions", "StudyAnswers", "StudyRun", "read_cell"]

Cell = tuple[str, str]
"""A task and a language."""


@dataclass(frozen=True)
class StudyRun:
    """One scored system of one run folder."""

    folder: Path
    """The run folder."""
    index: Scored
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
    """The sample's own, or the task's labels; empty for numbers."""
    labels_N: NDArray[np.int64]
    """Indices of the right choices; -1 for numbers."""
    tokens_N: NDArray[np.int64]
    """Encoder tokens of the sources; 0 where they were not counted."""
    unknown_N: NDArray[np.int64]
    """Number of unknown tokens among them."""


@dataclass(frozen=True)
class StudyAnswers:
    """The answers of one system, all seeds: one task in one language."""

    chosen: dict[str, NDArray[np.int16]]
    """Metric -> index of the choice that it picks [R, N]; -1 for none. Only the CHOICE_METRICS that the files allow."""
    right: dict[str, NDArray[np.bool_]]
    """Metric -> whether the answer is right [R, N]; those of `chosen`, and exact_match."""
    margins_RN: NDArray[np.float64]
    """Score of the right choice minus that of the best wrong one (nats); 0 for numbers."""
    texts: list[list[str]]
    """The generated texts [R][N]; empty where nothing was generated."""


def read_cell(
    systems: Mapping[str, Sequence[StudyRun]], cell: Cell, reference: StudyRun
) -> tuple[Questions, dict[str, StudyAnswers]]:
    """What all systems were asked, and the answers of each.

    Args:
        systems: runs of each system, checked to have the cell.
        cell: of them.
        reference: one of the runs, in whose order the samples come. A bridge: the LLM alone may not know how many
            tokens the encoder makes of a source.

    Raises:
        DataError: predictions that cannot be read, or of other samples than the reference's.
    """
    labels = reference.index.tasks[cell[0]].labels
    first = _read(reference, cell)
    asked = _questions(first, labels)
    answers = {}
    for name, runs in systems.items():
        rows = []
        for run in runs:
            found = first if run is reference else _read(run, cell)
            rows.append(_ordered(found, asked, labels, f"{run.predictions} and {reference.predictions}", cell))
        answers[name] = _answers(rows, asked)
    return asked, answers


def _read(run: StudyRun, cell: Cell) -> list[Prediction]:
    task, language = cell
    found = list(read_predictions(run.predictions, task, language))
    expected = run.index.tasks[task].samples[language]
    path = run.predictions / task / f"{language}.jsonl"
    if len(found) != expected or not found:
        raise DataError(f"{path} has {len(found)} predictions; expected {expected or 'some'}; score the run again.")
    if len({prediction.key for prediction in found}) != len(found):
        raise DataError(f"{path} has two predictions of one key; expected each sample once; score the run again.")
    labels = run.index.tasks[task].labels
    for number, prediction in enumerate(found, 1):
        count = len(prediction.choices or labels) if prediction.label >= 0 else len(prediction.scores)
        if len(prediction.scores) != count or prediction.label >= max(count, 0):
            raise DataError(
                f"{path} line {number} has {len(prediction.scores)} scores and label {prediction.label}; expected "
                f"a score for each of {count} choices and a label among them; score the run again."
            )
    return found


def _questions(found: Sequence[Prediction], labels: tuple[str, ...]) -> Questions:
    return Questions(
        keys=[p.key for p in found],
        sources=[p.source for p in found],
        answers=[_right_text(p, labels) for p in found],
        choices=[_choices(p, labels) for p in found],
        labels_N=np.array([p.label for p in found]),
        tokens_N=np.array([p.source_tokens for p in found]),
        unknown_N=np.array([p.unknown for p in found]),
    )


def _right_text(prediction: Prediction, labels: tuple[str, ...]) -> str:
    return prediction.answer or (labels[prediction.label] if 0 <= prediction.label < len(labels) else "")


def _choices(prediction: Prediction, labels: tuple[str, ...]) -> tuple[str, ...]:
    return prediction.choices or (labels if prediction.label >= 0 else ())


def _ordered(
    found: list[Prediction], asked: Questions, labels: tuple[str, ...], both: str, cell: Cell
) -> list[Prediction]:
    by_key = {prediction.key: prediction for prediction in found}
    if by_key.keys() != set(asked.keys):
        shared = len(by_key.keys() & set(asked.keys))
        raise DataError(
            f"{both} share {shared} of {len(by_key)} and {len(asked.keys)} samples of {cell[0]} in {cell[1]}; expected "
            "the same samples; score both with the same --limit and data."
        )
    ordered = [by_key[key] for key in asked.keys]
    expected = zip(asked.sources, asked.labels_N, asked.answers, asked.choices, strict=True)
    for prediction, (source, label, answer, choices) in zip(ordered, expected, strict=True):
        what = ""
        if prediction.source != source or prediction.label != label:
            what = "source or label"
        elif _right_text(prediction, labels) != answer or _choices(prediction, labels) != choices:
            what = "right answer or other choices"
        if what:
            raise DataError(
                f"{both} have another {what} for {prediction.key} of {cell[0]} in {cell[1]}; expected the same data; "
                "score both on the same version of it."
            )
    return ordered


def _answers(rows: Sequence[Sequence[Prediction]], asked: Questions) -> StudyAnswers:
    everything = [prediction for row in rows for prediction in row]
    holds = {
        "acc": True,
        "acc_norm_tokens": all(len(p.tokens) == len(p.scores) and all(p.tokens) for p in everything),
        "acc_mutual_info": all(len(p.null) == len(p.scores) and p.scores for p in everything),
    }
    exact_RN = np.array([[p.exact_match for p in row] for row in rows])
    chosen = {
        metric: np.array([[p.chosen(metric) for p in row] for row in rows], dtype=np.int16)
        for metric in holds
        if holds[metric]
    }
    right = {m: np.where(asked.labels_N >= 0, c_RN == asked.labels_N, exact_RN) for m, c_RN in chosen.items()}
    return StudyAnswers(
        chosen=chosen,
        right=right | {"exact_match": exact_RN},
        margins_RN=np.array([[_margin(p) for p in row] for row in rows]),
        texts=[[p.text for p in row] for row in rows],
    )


def _margin(prediction: Prediction) -> float:
    others = [score for index, score in enumerate(prediction.scores) if index != prediction.label]
    if prediction.label < 0 or not others:
        return 0.0
    margin = prediction.scores[prediction.label] - max(others)
    return margin if math.isfinite(margin) else 0.0
