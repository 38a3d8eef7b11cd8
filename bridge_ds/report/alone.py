"""Which answers of the LLM alone each bridge of a report is compared with.

Runs on one LLM have the same answers of it. Where each run trained its LLM first (llm.finetune), or runs are on several
LLMs, every bridge is compared with its own, seed by seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import ScoredTask, read_index
from bridge_ds.report.cells import StudyRun

__all__ = ["llm_alone"]

NAME = "LLM alone"


def llm_alone(
    bridges: Mapping[str, Sequence[StudyRun]], tasks: Mapping[str, ScoredTask]
) -> tuple[dict[str, list[StudyRun]], dict[str, str]]:
    """The systems of the LLM alone, and the name of the one that belongs to each bridge; empty where none was scored.

    Args:
        bridges: runs by name of their system, by rising seed.
        tasks: what they were scored on.

    Returns:
        one system `LLM alone`, of one run where all answers are the same, else of one for each seed; or, where the
        bridges' own differ, a system for each of them, `LLM alone, NAME`.

    Raises:
        DataError: the answers differ, and a run has none.
    """
    own = {name: [_own(run) for run in runs] for name, runs in bridges.items()}
    found = [run for runs in own.values() for run in runs if run is not None]
    if not found:
        return {}, {}
    answers = {run.folder: _answers(run, tasks) for run in found}
    # One that lacks a language is of no use where another has all.
    whole = [run for run in found if answers[run.folder]] or found[:1]
    if len({answers[run.folder] for run in whole}) == 1:
        return {NAME: whole[:1]}, dict.fromkeys(bridges, NAME)
    systems: dict[str, list[StudyRun]] = {}
    for name, runs in own.items():
        for run, bridge in zip(runs, bridges[name], strict=True):
            if run is None or not answers[run.folder]:
                raise DataError(
                    f"{bridge.folder} has no answers of the LLM alone to all that was scored, and those of other runs "
                    f"differ ({whole[0].folder}, for one); expected each run's own, as the LLMs may differ; score it "
                    f"with bridge-ds evaluate --run {bridge.folder}."
                )
            systems.setdefault(name, []).append(run)
    if len({tuple(answers[run.folder] for run in runs) for runs in systems.values()}) == 1:
        return {NAME: next(iter(systems.values()))}, dict.fromkeys(bridges, NAME)
    names = {name: f"{NAME}, {name}" for name in bridges}
    return {names[name]: runs for name, runs in systems.items()}, names


def _own(run: StudyRun) -> StudyRun | None:
    """The LLM alone of a bridge's run."""
    folder = run.folder / "evaluation" / "llm"
    return StudyRun(run.folder, read_index(folder), NAME) if (folder / "index.json").is_file() else None


def _answers(run: StudyRun, tasks: Mapping[str, ScoredTask]) -> str:
    """A hash of all answers; empty where one is missing."""
    hashed = hashlib.sha256()
    for task, scored in tasks.items():
        for language in scored.samples:
            path = run.predictions / task / f"{language}.jsonl"
            if language not in getattr(run.index.tasks.get(task), "samples", {}) or not path.is_file():
                return ""
            hashed.update(path.read_bytes())
    return hashed.hexdigest()
