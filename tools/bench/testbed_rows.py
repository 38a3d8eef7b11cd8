"""Rows of finished testbed runs, and their table: accuracies in %, and what share of English carries over."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

from bridge_ds.metrics import current_names
from tools.bench.study import record_of

__all__ = ["carried_over", "percent", "read", "row", "spread", "table", "write"]


def row(folder: Path, system: str, seed: int) -> dict[str, Any]:
    """Accuracies in %: English by the LLM alone and by the bridge, and the bridge's mean over the other languages.

    Args:
        folder: of a run of the testbed that was scored.
        system: name of the fusion with what was set besides.
        seed: run.seed.
    """
    results = current_names(json.loads((folder / "evaluation.json").read_text(encoding="utf-8")))
    found: dict[str, Any] = {"system": system, "seed": seed}
    for task, chance in results["chance"].items():
        name = task.removeprefix("testbed_")
        llm, bridge = results["llm"][task], results["bridge"][task]
        others = [language for language in bridge if language != "en"]
        unseen = mean(bridge[language]["acc"] for language in others)
        english = bridge["en"]["acc"]
        found[f"{name} English, LLM"] = percent(llm["en"]["acc"])
        found[f"{name} English"] = percent(english)
        found[f"{name} unseen"] = percent(unseen)
        found[f"{name} carried over"] = carried_over(english, unseen, chance)
        found[f"{name} LLM alone off chance"] = percent(max(abs(llm[x]["acc"] - chance) for x in others))
        found[f"{name} n"] = bridge["en"]["n"]
    return found | record_of(folder)


def carried_over(english: float, unseen: float, chance: float) -> float:
    """Percent of English's gain over chance that the unseen languages have; nan if English has none."""
    return percent((unseen - chance) / (english - chance)) if english > chance else math.nan


def percent(share: float) -> float:
    """Three decimals: means of rows are then right to the one that is shown."""
    return round(100 * share, 3)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV that :func:`write` wrote; what looks like a number is one."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: number(value) for name, value in each.items()} for each in csv.DictReader(file)]


def number(text: str) -> float | str:
    """The number that `text` is, or `text`."""
    try:
        return float(text)
    except ValueError:
        return text


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a system and task, the mean over seeds with the seeds' range."""
    lines = ["| fusion | task | LLM alone, English | bridge, English | bridge, unseen | carried over |"]
    lines.append("|---|---|---|---|---|---|")
    tasks = [key.removesuffix(" unseen") for key in rows[0] if key.endswith(" unseen")]
    for system in dict.fromkeys(r["system"] for r in rows):
        own = [r for r in rows if r["system"] == system]
        for task in tasks:
            columns = ("English, LLM", "English", "unseen", "carried over")
            cells = [spread([r[f"{task} {column}"] for r in own]) for column in columns]
            lines.append(f"| {system if task == tasks[0] else ''} | {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean of the seeds, with their range where they differ."""
    low, high = min(values), max(values)
    return f"{mean(values):.1f}" + (f" ({low:.1f} to {high:.1f})" if high > low else "")
