"""Several scored runs side by side: opened, and checked to have the same seeds, tasks, languages and settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import ScoredTask, read_index
from bridge_ds.report.alone import llm_alone
from bridge_ds.report.cells import Cell, Questions, StudyAnswers, StudyRun, read_cell

__all__ = ["Study", "System", "read_study"]


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
    alone: dict[str, str]
    """Name of a bridge -> that of the LLM alone which it is compared with; empty if that was not scored."""
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
    for run in bridges:
        groups.setdefault(run.name, []).append(run)
    bridge_runs = {name: sorted(own, key=lambda run: run.index.seed) for name, own in groups.items()}
    alone, alone_of = llm_alone(bridge_runs, reference.index.tasks)
    for name in alone.keys() & groups.keys():
        raise DataError(
            f"{groups[name][0].folder} is named {name!r}, as are the answers of the LLM alone; expected another name; "
            "choose one (NAME=RUN)."
        )
    both = alone | bridge_runs
    baseline = baseline or ("last_layer" if "last_layer" in groups else reference.name)
    if baseline not in both:
        raise DataError(
            f"none of the runs is of {baseline!r}, the baseline; found {', '.join(both)}; add such runs or name "
            "another with --baseline."
        )
    # The sort is stable: the LLM alone and the baseline first.
    order = sorted(both, key=lambda name: name not in alone and name != baseline)
    systems = {name: System(name, both[name]) for name in order}
    _check_seeds([systems[name] for name in order if name not in alone])
    _check_tasks(reference, [run for system in systems.values() for run in system.runs])
    study = Study(systems, baseline, reference.index.tasks, alone_of)
    for task in study.tasks:
        for language in study.languages(task):
            cell = (task, language)
            study.questions[cell], answers = read_cell(both, cell, reference)
            for name, own in answers.items():
                systems[name].answers[cell] = own
    return study


def _open_run(text: str) -> StudyRun:
    name, _, folder = text.partition("=") if not Path(text).exists() else ("", "", text)
    path = Path(folder or text)
    if not path.is_dir():
        raise DataError(f"there is no folder {path}; expected a run folder (run.output of a training run); fix RUN.")
    if (path / "evaluation" / "finetuned" / "index.json").is_file():
        raise DataError(
            f"{path} is of an LLM that was trained without a bridge; expected runs with one; name those, whose "
            "predictions hold the answers of their LLM alone."
        )
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
        alone = run.index.system == "llm"
        return DataError(
            f"{run.predictions} {lack}, {other.predictions} was; expected the same of every run; score it with "
            f"bridge-ds evaluate --run {run.folder} and the same --tasks, --languages and --limit"
            + (" (first the run of evaluation.llm_from, where the answers are from there)" * alone)
            + ", or choose what all have with --tasks"
            + f", or remove {run.predictions} from each run to compare the bridges alone" * alone
            + "."
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
            _check_settings(run, task, list(scored.samples))
        for task, scored in run.index.tasks.items() if run.index.system == "bridge" else ():
            for code in scored.samples:
                if task not in tasks or code not in tasks[task].samples:
                    raise error(reference, f"was not scored on {task} in {code}", run)


def _check_settings(run: StudyRun, task: str, languages: Sequence[str]) -> None:
    """Raise a DataError where languages of a task were scored with other settings or another checkpoint than most."""
    identities = run.index.tasks[task].identities  # (older predictions have none)
    made = [identities[code] for code in languages if code in identities]
    odd = [code for code in languages if identities.get(code) not in (None, max(made, key=made.count))] if made else []
    if odd:
        raise DataError(
            f"{run.predictions} was scored on {task} in {_listed(odd)} with other settings or another checkpoint than "
            f"in the rest; expected the same in all; score all again with bridge-ds evaluate --run {run.folder} "
            f"--tasks {task}."
        )


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
