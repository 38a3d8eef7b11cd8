"""Rows of a study's runs by group of languages: English, one language, and the mean of the others; and the paired tests
of its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bridge_ds.metrics import current_names
from bridge_ds.report.choose import chosen, scored_cells
from tools.bench.study import Arm, Runs
from tools.bench.testbed_rows import percent, spread, write

__all__ = ["ALONE", "by_language", "differences", "write_differences", "write_rows"]

ALONE = "LLM alone"
"""System of the first rows."""
BY_CHOICE = ", by language"
"""Ends the name of a system that is the better of an arm and the LLM alone."""
GROUPS = ("en", "known", "others")


def write_rows(output: Path, arms: Sequence[Arm], seeds: int, one: str, by_choice: Sequence[str] = ()) -> str:
    """Write OUTPUT/languages.csv, a row a task and run of the seeds that all arms have, and return its table.

    Args:
        output: folder of the runs.
        arms: of the study.
        seeds: how many, from 0.
        one: code of the language that stands alone, the column `known`.
        by_choice: names of arms that also have rows as chosen by language, see :func:`bridge_ds.report.choose.chosen`.
    """
    runs = Runs(output, arms, range(seeds))
    scored = [(arm.name, seed, runs.folder(arm, seed)) for arm in arms for seed in runs.whole_seeds()]
    if not scored:
        return ""
    found = rows_of(scored[0][2], ALONE, scored[0][1], one)
    for name, seed, folder in scored:
        found += rows_of(folder, name, seed, one)
        if name in by_choice:
            found += rows_of(folder, f"{name}{BY_CHOICE}", seed, one)
    write(output / "languages.csv", found)
    return by_language(found)


def rows_of(folder: Path, system: str, seed: int, one: str) -> list[dict[str, Any]]:
    """For each task accuracies in %: English, the one language, and the mean of the others.

    Args:
        folder: of a run that was scored.
        system: which of its answers: `LLM alone`, the name of the arm, or that with `, by language`.
        seed: run.seed.
        one: code.
    """
    results = current_names(json.loads((folder / "evaluation.json").read_text(encoding="utf-8")))
    found = []
    by_cell = chosen(scored_cells(folder, results)) if system.endswith(BY_CHOICE) else {}
    for task, scores in results["llm" if system == ALONE else "bridge"].items():
        right = {code: by_cell.get((task, code), score["acc"]) for code, score in scores.items()}
        others = [share for code, share in right.items() if code not in ("en", one)]
        of = {"en": right["en"], "known": right[one], "others": mean(others)}
        name = task.removeprefix("testbed_")
        found.append({"system": system, "seed": seed, "task": name} | {group: percent(of[group]) for group in of})
    return found


def by_language(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a system, its accuracies by group of languages and task."""
    tasks = dict.fromkeys(row["task"] for row in rows)
    heads = [f"{group}, {task}" for group in GROUPS for task in tasks]
    lines = ["| form | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for system in dict.fromkeys(row["system"] for row in rows):
        own = [row for row in rows if row["system"] == system]
        cells = [spread([row[group] for row in own if row["task"] == task]) for group in GROUPS for task in tasks]
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_differences(output: Path) -> str:
    """Write OUTPUT/differences.csv from OUTPUT/report, a row an arm and task, and return its table.

    A row holds the accuracy minus that of the baseline in points, averaged over all languages but English, its 95 %
    interval, and p of the paired test of methods after Holm's correction (:mod:`bridge_ds.report.statistics`).
    """
    path = output / "report" / "report.json"
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for system, tasks in found["averages"].items():
        for task, test in tasks.items():
            of = found["tasks"][task]["differences"][system][test["group"]]
            points = {name: round(100 * of[name], 3) for name in ("value", "low", "high")}
            rows.append(
                {"system": system, "task": task.removeprefix("testbed_"), **points, "p": round(test["holm"], 4)}
            )
    if not rows:  # the baseline alone
        return ""
    write(output / "differences.csv", rows)
    return differences(rows)


def differences(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line an arm, its differences by task."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = ["| arm | " + " | ".join(tasks) + " |", "|---" * (1 + len(tasks)) + "|"]
    for system in dict.fromkeys(row["system"] for row in rows):
        of = {row["task"]: row for row in rows if row["system"] == system}
        cells = [
            f"{r['value']:+.1f} ({r['low']:+.1f} to {r['high']:+.1f}), p {r['p']:.3f}" for r in map(of.get, tasks) if r
        ]
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
