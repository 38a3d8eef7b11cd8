"""Brings the predictions of several runs to the same samples in the same order, or says why it cannot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import NORMALIZATIONS, Prediction, ScoredTask, read_index, read_predictions
from bridge_ds.report.study import Place, Questions, Study, StudyAnswers, StudyRun, System

__all__ = ["read_study"]


def read_study(runs: Sequence[str], baseline: str) -> Study:
    """Read the predictions of several runs and check that they answer the same questions.

    Args:
        runs: run folders, or NAME=FOLDER for a system's name of your own (two runs of one fusion that differ in
            something else).
        baseline: name of the system that the others are compared with.

    Raises:
        DataError: no predictions, or runs that cannot be compared (seeds, tasks, languages or samples differ).
    """
    bridges = [_bridge_run(text) for text in runs]
    groups: dict[str, list[StudyRun]] = {}
    for run in bridges:
        groups.setdefault(run.name, []).append(run)
    llm = next((run.folder for run in bridges if (run.folder / "evaluation" / "llm" / "index.json").is_file()), None)
    if llm is not None:
        alone = read_index(llm / "evaluation" / "llm")
        groups = {alone.name: [StudyRun(llm, alone, alone.name)], **groups}
    if baseline not in groups:
        raise DataError(
            f"none of the runs is of {baseline!r}, the baseline; found {', '.join(groups)}; add such runs or name "
            "another with --baseline."
        )
    first = [name for name, group in groups.items() if group[0].index.system == "llm" or name == baseline]
    order = [*first, *(name for name in groups if name not in first)]
    systems = {name: System(name, sorted(groups[name], key=lambda run: run.index.seed)) for name in order}
    _check_seeds([system for system in systems.values() if system.runs[0].index.system == "bridge"])
    everyone = [run for system in systems.values() for run in system.runs]
    _check_tasks(bridges[0], everyone)
    study = Study(systems, baseline, bridges[0].index.tasks, {})
    for task in study.tasks:
        for language in study.languages(task):
            _read_place(study, (task, language), bridges[0])
    return study


def _bridge_run(text: str) -> StudyRun:
    name, _, folder = text.partition("=") if not Path(text).exists() else ("", "", text)
    path = Path(folder or text)
    if not path.is_dir():
        raise DataError(f"there is no folder {path}; expected a run folder (run.output of a training run); mend RUN.")
    if not (path / "evaluation" / "bridge" / "index.json").is_file():
        raise DataError(
            f"{path} holds no predictions; expected {path}/evaluation/bridge/index.json; score the run with "
            f"python -m bridge_ds.evaluation --run {path}."
        )
    index = read_index(path / "evaluation" / "bridge")
    return StudyRun(path, index, name or index.name)


def _check_seeds(systems: Sequence[System]) -> None:
    for system in systems:
        for one, other in zip(system.runs, system.runs[1:], strict=False):
            if one.index.seed == other.index.seed:
                raise DataError(
                    f"{one.folder} and {other.folder} are both {system.name} with seed {one.index.seed}; expected one "
                    "run a seed; leave one out, or name them apart by NAME=FOLDER."
                )
        if system.seeds != systems[0].seeds:
            raise DataError(
                f"{system.name} has the seeds {_listed(system.seeds)}, {systems[0].name} has "
                f"{_listed(systems[0].seeds)}; expected the same seeds of each; leave runs out or train what is "
                "missing."
            )


def _check_tasks(model: StudyRun, runs: Iterable[StudyRun]) -> None:
    for run in runs:
        for task, scored in model.index.tasks.items():
            if task not in run.index.tasks:
                raise DataError(_unlike(run, f"was not scored on {task}", model))
            other = run.index.tasks[task]
            missing = [code for code in scored.samples if code not in other.samples]
            if missing:
                raise DataError(_unlike(run, f"was not scored on {task} in {_listed(missing)}", model))
            if (other.kind, other.labels) != (scored.kind, scored.labels):
                raise DataError(_unlike(run, f"was scored on a {task} of other labels", model))
        extra = [
            f"{task} in {code}"
            for task, scored in run.index.tasks.items()
            for code in scored.samples
            if code not in (model.index.tasks[task].samples if task in model.index.tasks else ())
        ]
        if extra:
            raise DataError(_unlike(model, f"was not scored on {extra[0]}", run))


def _unlike(run: StudyRun, lack: str, model: StudyRun) -> str:
    return (
        f"{run.predictions} {lack}, {model.predictions} was; expected the same of every run; score it with "
        f"python -m bridge_ds.evaluation --run {run.folder} and the same --tasks, --languages and --limit."
    )


def _read_place(study: Study, place: Place, model: StudyRun) -> None:
    # The first run says what was asked; the LLM alone may not know how many tokens the encoder made of it.
    kept: Questions | None = None
    read = {model.folder: _read(model, place)}
    kept = _questions(read[model.folder], study.tasks[place[0]])
    for system in study.systems.values():
        rows = []
        for run in system.runs:
            is_model = run.index.system == "bridge" and run.folder == model.folder and run.name == model.name
            found = read[model.folder] if is_model else _read(run, place)
            rows.append(_ordered(found, kept, run, model, place))
        system.answers[place] = _answers(rows, kept)
    study.questions[place] = kept


def _read(run: StudyRun, place: Place) -> list[Prediction]:
    task, language = place
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


def _ordered(
    found: list[Prediction], asked: Questions, run: StudyRun, model: StudyRun, place: Place
) -> list[Prediction]:
    by_key = {prediction.key: prediction for prediction in found}
    if by_key.keys() != set(asked.keys):
        both = len(by_key.keys() & set(asked.keys))
        raise DataError(
            f"{run.predictions} and {model.predictions} share {both} of {len(by_key)} and {len(asked.keys)} samples of "
            f"{place[0]} in {place[1]}; expected the same samples; score both with the same --limit and data."
        )
    ordered = [by_key[key] for key in asked.keys]
    for prediction, source, label in zip(ordered, asked.sources, asked.labels_N, strict=True):
        if prediction.source != source or prediction.label != label:
            raise DataError(
                f"{run.predictions} and {model.predictions} have another source or label for {prediction.key} of "
                f"{place[0]} in {place[1]}; expected the same data; score both on the same version of it."
            )
    return ordered


def _answers(rows: Sequence[Sequence[Prediction]], asked: Questions) -> StudyAnswers:
    everything = [prediction for row in rows for prediction in row]
    readable = ["sum"]
    if all(len(p.tokens) == len(p.scores) and all(p.tokens) for p in everything):
        readable.append("mean")
    if all(len(p.null) == len(p.scores) and p.scores for p in everything):
        readable.append("calibrated")
    shape = (len(NORMALIZATIONS), len(rows), len(asked.keys))
    chosen, right = np.full(shape, -1, dtype=np.int16), np.zeros(shape, dtype=bool)
    for place, normalization in enumerate(NORMALIZATIONS):
        if normalization in readable:
            chosen[place] = [[p.chosen(normalization) for p in row] for row in rows]
            is_choice_N = asked.labels_N >= 0
            exact_RN = np.array([[p.exact for p in row] for row in rows])
            right[place] = np.where(is_choice_N, chosen[place] == asked.labels_N, exact_RN)
    return StudyAnswers(
        chosen_KRN=chosen,
        right_KRN=right,
        exact_RN=np.array([[p.exact for p in row] for row in rows]),
        margins_RN=np.array([[_margin(p) for p in row] for row in rows]),
        texts=[[p.text for p in row] for row in rows],
        readable=tuple(name for name in NORMALIZATIONS if name in readable),
    )


def _margin(prediction: Prediction) -> float:
    others = [score for place, score in enumerate(prediction.scores) if place != prediction.label]
    if prediction.label < 0 or not others:
        return 0.0
    margin = prediction.scores[prediction.label] - max(others)
    return margin if math.isfinite(margin) else 0.0


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
