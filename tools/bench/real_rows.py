"""Rows of the study on real models, and their table: accuracies in % by language."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from tools.bench.study import record_of
from tools.bench.testbed_rows import percent, spread

__all__ = ["row", "table"]

TASK = "sib200"
SHOWN = ("en", "si", "ta", "ml", "bn", "sw")
"""Languages of the table; `others` is the mean of all but English, these and the rest."""


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
    """Markdown: a line an LLM and system, the mean over seeds with the seeds' range."""
    shown = [name for name in (*SHOWN, "others") if name in rows[0]]
    lines = [f"| LLM | system | {' | '.join(shown)} |", "|---|---" + "|---" * len(shown) + "|"]
    for llm, system in dict.fromkeys((r["llm"], r["system"]) for r in rows):
        own = [r for r in rows if (r["llm"], r["system"]) == (llm, system)]
        lines.append(f"| {llm} | {system} | " + " | ".join(spread([r[name] for r in own]) for name in shown) + " |")
    return "\n".join(lines)
