"""All numbers of a report as one JSON value: the only thing that pages and plots are made from."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from bridge_ds import __version__
from bridge_ds.errors import DataError
from bridge_ds.report import analysis, significance
from bridge_ds.report.languages import find_language
from bridge_ds.report.statistics import LEVEL
from bridge_ds.report.study import Study

__all__ = ["FORMAT", "REPORTED", "study_results"]

FORMAT = 1
"""Of report.json."""
REPORTED: tuple[dict[str, Any], ...] = (
    {
        "task": "xnli",
        "group": "all",
        "what": "XNLI, average of its languages",
        "values": {"last_layer": 0.7036, "transformer_softmax": 0.7150},
    },
    {
        "task": "sinhala",
        "group": "si",
        "what": "Sinhala news",
        "values": {"last_layer": 0.7166, "transformer_softmax": 0.7586},
    },
)
"""What arXiv 2508.09091 reports, with models of its own; `task` is a part of our task's name."""


def study_results(study: Study, scores: str = "sum") -> dict[str, Any]:
    """The content of report.json.

    Args:
        scores: how the scores of choices count, one of NORMALIZATIONS.

    Raises:
        DataError: a file lacks what `scores` needs.
    """
    for name, system in study.systems.items():
        for (task, code), answers in system.answers.items():
            if scores not in answers.readable:
                raise DataError(
                    f"the predictions of {name} for {task} in {code} do not hold what {scores} scores need; found "
                    f"{', '.join(answers.readable)}; choose one of these with --scores, or score the runs again."
                )
    compared = [
        {
            "system": system.name,
            "seed": run.index.seed if run.index.system == "bridge" else None,
            "checkpoint": run.index.checkpoint,
            "run": run.folder.name,
        }
        for system in study.systems.values()
        for run in system.runs
    ]
    tasks = {task: _task(study, task, scores) for task in study.tasks}
    return {
        "format": FORMAT,
        "version": __version__,
        "scores": scores,
        "level": LEVEL,
        "draws": significance.DRAWS,
        "alpha": significance.ALPHA,
        "baseline": study.baseline,
        "systems": list(study.systems),
        "rivals": study.rivals,
        "seeds": study.systems[(study.rivals or [study.baseline])[0]].seeds,
        "compared": compared,
        "slugs": _slugs([*study.systems, *study.tasks]),
        "tasks": tasks,
        **significance.compare_all(study, scores),
        "averages": significance.compare_averages(tasks),
        "layers": analysis.layers(study),
        "reported": list(REPORTED),
    }


def _slugs(names: Sequence[str]) -> dict[str, str]:
    # For file names and anchors: letters, digits and a few signs, each name its own.
    found: dict[str, str] = {}
    for name in names:
        slug = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "system"
        taken = set(found.values())
        numbered = (f"{slug}-{number}" for number in itertools.count(2))
        found[name] = next(s for s in itertools.chain([slug], numbered) if s not in taken)
    return found


def _task(study: Study, task: str, scores: str) -> dict[str, Any]:
    scored = study.tasks[task]
    languages = {}
    for code, counted in analysis.tokens(study, task).items():
        known = find_language(code)
        languages[code] = {"name": known.name, "group": known.group, "class": known.resource_class} | counted
    return {
        "kind": scored.kind,
        "labels": list(scored.labels),
        "chance": scored.chance,
        "languages": languages,
        **significance.accuracies(study, task, scores),
        "lengths": analysis.lengths(study, task, scores),
        "confusion": analysis.confusion(study, task, scores),
        "agreement": analysis.agreement(study, task),
        "examples": {name: analysis.examples(study, task, name, scores) for name in study.rivals},
    }
