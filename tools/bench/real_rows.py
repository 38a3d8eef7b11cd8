"""Rows of the study on real models, and their table: accuracies in % by language."""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Any

from tools.bench.study import record_of
from tools.bench.testbed_rows import percent, spread

__all__ = ["by_language", "by_system", "languages", "row", "table"]

TASK = "sib200"
FIVE = ("si", "ta", "ml", "bn", "sw")
"""Languages that have columns of their own; `others` is the mean of all but English, with these."""


def row(folder: Path, llm: str, system: str, seed: int | str, key: str = "bridge") -> dict[str, Any]:
    """Accuracies (acc) of one scored run in %.

    Args:
        folder: of the run.
        llm: which LLM it has.
        system: name of the fusion, or LLM alone.
        seed: run.seed; empty for the LLM alone, which has none.
        key: `bridge` or `llm`, of evaluation.json.
    """
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))[key][TASK]
    right = {code: percent(score["acc"]) for code, score in found.items()}
    others = [value for code, value in right.items() if code != "en"]
    head = {"llm": llm, "system": system, "seed": seed, "n": min(score["n"] for score in found.values())}
    means = {"others": round(mean(others), 3)} if others else {}
    return head | means | right | record_of(folder) | ({} if key == "bridge" else {"seconds": ""})


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line an LLM and system, the mean over seeds with the seeds' range; English and :data:`FIVE`."""
    shown = [name for name in ("en", *FIVE) if name in rows[0]]
    columns: dict[str, Callable[[dict[str, Any]], float]] = {code: itemgetter(code) for code in shown}
    if set(FIVE) <= set(shown):
        columns["mean of the five"] = lambda r: mean(r[code] for code in FIVE)
    if "others" in rows[0]:
        columns[f"{len(languages(rows)) - 1} languages"] = itemgetter("others")
    lines = [f"| LLM | system | {' | '.join(columns)} |", "|---|---" + "|---" * len(columns) + "|"]
    for (llm, system), own in by_system(rows).items():
        cells = [spread([value(r) for r in own]) for value in columns.values()]
        lines.append(f"| {llm} | {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_language(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a language, a column a system on one LLM, the mean over seeds with the seeds' range; English
    first, then by the mean of all systems but the LLM alone."""
    systems = {system: own for (_, system), own in by_system(rows).items()}
    bridges = [own for system, own in systems.items() if system != "LLM alone"]
    order = sorted(
        languages(rows), key=lambda code: (code != "en", -mean(mean(r[code] for r in own) for own in bridges))
    )
    lines = [f"| language | {' | '.join(systems)} |", "|---" + "|---" * len(systems) + "|"]
    for code in order:
        lines.append(f"| {code} | " + " | ".join(spread([r[code] for r in own]) for own in systems.values()) + " |")
    return "\n".join(lines)


def by_system(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of each LLM and system, in the order of their first."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in rows:
        found.setdefault((each["llm"], each["system"]), []).append(each)
    return found


def languages(rows: list[dict[str, Any]]) -> list[str]:
    """Codes of the languages: the columns between the means and what is recorded of a run."""
    names = list(rows[0])
    end = next(names.index(name) for name in ("seconds", "date") if name in names)
    return [name for name in names[names.index("n") + 1 : end] if name != "others"]
