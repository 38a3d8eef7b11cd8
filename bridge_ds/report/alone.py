"""Which answers of the LLM alone each bridge of a report is compared with.

Runs on one LLM have the same answers of it. Where each run trained its LLM first (llm.finetune), or runs are on several
LLMs, every bridge is compared with its own, seed by seed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import ScoredTask, read_index
from bridge_ds.report.cells import StudyRun

__all__ = ["llm_alone"]

NAME = "LLM alone"
_OF_ENCODER = re.compile(rb', "(?:source_tokens|unknown)": \d+')
"""In a line of predictions: what the tokenizer of the run's encoder counts, of which the LLM's answers know nothing."""


def llm_alone(
    bridges: Mapping[str, Sequence[StudyRun]], tasks: Mapping[str, ScoredTask]
) -> tuple[dict[str, list[StudyRun]], dict[str, str]]:
    """The systems of the LLM alone, and the name of the one that belongs to each bridge; empty where none was scored.

    Args:
        bridges: runs by name of their system, by rising seed.
        tasks: what they were scored on.

    Returns:
        one system `LLM alone`, of one run where all answers are the same, else of one for each seed; or, where the
        bridges' own differ, a system for each of them, `LLM alone, NAME`. A run without any is taken to be on the same
        LLM as the others where these have the same.

    Raises:
        DataError: the answers differ, and a run has none, or not to all that was scored.
    """
    own = {name: [_own(run) for run in runs] for name, runs in bridges.items()}
    found = [run for runs in own.values() for run in runs if run is not None]
    if not found:
        return {}, {}
    cells = [(task, language) for task, scored in tasks.items() for language in scored.samples]
    answers = {run.folder: tuple(_answers(run, *cell) for cell in cells) for run in found}
    # One that lacks a language is of no use where another has all.
    whole = [run for run in found if all(answers[run.folder])] or found[:1]
    if all(_agree(answers[run.folder], answers[whole[0].folder]) for run in found):
        return {NAME: whole[:1]}, dict.fromkeys(bridges, NAME)
    systems: dict[str, list[StudyRun]] = {}
    for name, runs in own.items():
        for run, bridge in zip(runs, bridges[name], strict=True):
            if run is None or not all(answers[run.folder]):
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


def _agree(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether no answers differ where both have some."""
    return all(a == b for a, b in zip(one, other, strict=True) if a and b)


def _answers(run: StudyRun, task: str, language: str) -> str:
    """A hash of what was answered; empty where it was not."""
    path = run.predictions / task / f"{language}.jsonl"
    if language not in getattr(run.index.tasks.get(task), "samples", {}) or not path.is_file():
        return ""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        for line in file:
            hashed.update(_OF_ENCODER.sub(b"", line))
    return hashed.hexdigest()
