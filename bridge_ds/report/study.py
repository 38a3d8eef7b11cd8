"""Several scored runs side by side: read, checked to have the same tasks and samples, brought into the same order.

Shapes: R runs of one system (its seeds), N samples of one task in one language.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import Prediction, Scored, ScoredTask, read_index, read_predictions

__all__ = ["Questions", "Study", "StudyAnswers", "StudyRun", "System", "read_study"]

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


@dataclass
class System:
    """One fusion, or the LLM alone, with all its runs, by rising seed."""

    name: str
    runs: list[StudyRun]
    answers: dict[Cell, StudyAnswers] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Of its runs."""
        return [run.index.seed for run in self.runs]


@dataclass(frozen=True)
class Study:
    """Everything that a report is made from."""

    systems: dict[str, System]
    """By name: the LLM alone first (where it was scored), then the baseline, then the others as given."""
    baseline: str
    tasks: dict[str, ScoredTask]
    questions: dict[Cell, Questions] = field(default_factory=dict)

    def languages(self, task: str) -> list[str]:
        """Of a task, in its own order."""
        return list(self.tasks[task].samples)

    @property
    def rivals(self) -> list[str]:
        """Systems that are compared with the baseline: all others that were trained."""
        trained = [name for name, system in self.systems.items() if system.runs[0].index.system == "bridge"]
        return [name for name in trained if name != self.baseline]


def read_study(runs: Sequence[str], baseline: str = "", tasks: Sequence[str] = ()) -> Study:
    """Read the predictions of several runs and check that they answer the same questions.

    Args:
        runs: run folders, or NAME=FOLDER to name a system (two runs of one fusion that differ in something else).
        baseline: name of the system that the others are compared with; empty = last_layer, or the first run's where
            none is of it.
        tasks: which to compare; empty = all that were scored.

    Raises:
        DataError: no predictions, or runs that cannot be compared (seeds, tasks, languages or samples differ).
    """
    bridges = [_with_tasks(_open_run(text), tasks) for text in runs]
    reference = bridges[0]
    groups: dict[str, list[StudyRun]] = {}
    llm = next((run.folder for run in bridges if (run.folder / "evaluation" / "llm" / "index.json").is_file()), None)
    if llm is not None:
        alone = read_index(llm / "evaluation" / "llm")
        groups[alone.name] = [_with_tasks(StudyRun(llm, alone, alone.name), tasks)]
    for run in bridges:
        if llm is not None and run.name == alone.name:
            raise DataError(
                f"{run.folder} is named {run.name!r}, as are the answers of the LLM alone; expected another name; "
                "choose one (NAME=RUN)."
            )
        groups.setdefault(run.name, []).append(run)
    baseline = baseline or ("last_layer" if "last_layer" in groups else reference.name)
    if baseline not in groups:
        raise DataError(
            f"none of the runs is of {baseline!r}, the baseline; found {', '.join(groups)}; add such runs or name "
            "another with --baseline."
        )
    # The sort is stable: the LLM alone and the baseline first.
    order = sorted(groups, key=lambda name: groups[name][0].index.system != "llm" and name != baseline)
    systems = {name: System(name, sorted(groups[name], key=lambda run: run.index.seed)) for name in order}
    _check_seeds([system for system in systems.values() if system.runs[0].index.system == "bridge"])
    _check_tasks(reference, [run for system in systems.values() for run in system.runs])
    study = Study(systems, baseline, reference.index.tasks)
    for task in study.tasks:
        for language in study.languages(task):
            _read_cell(study, (task, language), reference)
    return study


def _open_run(text: str) -> StudyRun:
    name, _, folder = text.partition("=") if not Path(text).exists() else ("", "", text)
    path = Path(folder or text)
    if not path.is_dir():
        raise DataError(f"there is no folder {path}; expected a run folder (run.output of a training run); fix RUN.")
    if not (path / "evaluation" / "bridge" / "index.json").is_file():
        raise DataError(
            f"{path} holds no predictions; expected {path}/evaluation/bridge/index.json; score the run with "
            f"bridge-ds evaluate --run {path}."
        )
    index = read_index(path / "evaluation" / "bridge")
    return StudyRun(path, index, name or index.name)


def _with_tasks(run: StudyRun, tasks: Sequence[str]) -> StudyRun:
    """The run as if it had been scored on these tasks alone; none = as it was."""
    if not tasks:
        return run
    for task in tasks:
        if task not in run.index.tasks:
            raise DataError(
                f"--tasks has {task!r}, and {run.predictions} has {_listed(run.index.tasks)}; expected some that every "
                f"run was scored on; score it with bridge-ds evaluate --run {run.folder} --tasks {task}."
            )
    return replace(run, index=replace(run.index, tasks={task: run.index.tasks[task] for task in tasks}))


def _check_seeds(systems: Sequence[System]) -> None:
    for system in systems:
        for one, other in zip(system.runs, system.runs[1:], strict=False):
            if one.index.seed == other.index.seed:
                raise DataError(
                    f"{one.folder} and {other.folder} are both {system.name} with seed {one.index.seed}; expected one "
                    "run per seed; leave one out, or name them by NAME=FOLDER."
                )
        if system.seeds != systems[0].seeds:
            raise DataError(
                f"{system.name} has the seeds {_listed(system.seeds)}, {systems[0].name} has "
                f"{_listed(systems[0].seeds)}; expected the same seeds of each; leave runs out or train what is "
                "missing."
            )


def _check_tasks(reference: StudyRun, runs: Iterable[StudyRun]) -> None:
    def error(run: StudyRun, lack: str, other: StudyRun) -> DataError:
        return DataError(
            f"{run.predictions} {lack}, {other.predictions} was; expected the same of every run; score it with "
            f"bridge-ds evaluate --run {run.folder} and the same --tasks, --languages and --limit, or choose what all "
            "have with --tasks."
        )

    tasks = reference.index.tasks
    for run in runs:
        for task, scored in tasks.items():
            if task not in run.index.tasks:
                raise error(run, f"was not scored on {task}", reference)
            other = run.index.tasks[task]
            missing = [code for code in scored.samples if code not in other.samples]
            if missing:
                raise error(run, f"was not scored on {task} in {_listed(missing)}", reference)
            if (other.kind, other.labels) != (scored.kind, scored.labels):
                raise error(run, f"was scored on a {task} of other labels", reference)
        for task, scored in run.index.tasks.items():
            for code in scored.samples:
                if task not in tasks or code not in tasks[task].samples:
                    raise error(reference, f"was not scored on {task} in {code}", run)


def _read_cell(study: Study, cell: Cell, reference: StudyRun) -> None:
    # A bridge is the reference: the LLM alone may not know how many tokens the encoder makes of a source.
    first = _read(reference, cell)
    asked = study.questions[cell] = _questions(first, study.tasks[cell[0]])
    for system in study.systems.values():
        rows = []
        for run in system.runs:
            found = first if run is reference else _read(run, cell)
            rows.append(_ordered(found, asked, f"{run.predictions} and {reference.predictions}", cell))
        system.answers[cell] = _answers(rows, asked)


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


def _questions(found: Sequence[Prediction], task: ScoredTask) -> Questions:
    return Questions(
        keys=[p.key for p in found],
        sources=[p.source for p in found],
        answers=[p.answer or (task.labels[p.label] if 0 <= p.label < len(task.labels) else "") for p in found],
        choices=[p.choices or (task.labels if p.label >= 0 else ()) for p in found],
        labels_N=np.array([p.label for p in found]),
        tokens_N=np.array([p.source_tokens for p in found]),
        unknown_N=np.array([p.unknown for p in found]),
    )


def _ordered(found: list[Prediction], asked: Questions, both: str, cell: Cell) -> list[Prediction]:
    by_key = {prediction.key: prediction for prediction in found}
    if by_key.keys() != set(asked.keys):
        shared = len(by_key.keys() & set(asked.keys))
        raise DataError(
            f"{both} share {shared} of {len(by_key)} and {len(asked.keys)} samples of {cell[0]} in {cell[1]}; expected "
            "the same samples; score both with the same --limit and data."
        )
    ordered = [by_key[key] for key in asked.keys]
    for prediction, source, label in zip(ordered, asked.sources, asked.labels_N, strict=True):
        if prediction.source != source or prediction.label != label:
            raise DataError(
                f"{both} have another source or label for {prediction.key} of {cell[0]} in {cell[1]}; expected the "
                "same data; score both on the same version of it."
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


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
