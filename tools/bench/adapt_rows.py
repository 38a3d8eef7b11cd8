"""Rows and table of the study of adapted encoders (study_adapt.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bridge_ds.probe.measure import read_probe
from tools.bench.study import record_of
from tools.bench.testbed_rows import percent, spread

__all__ = ["row", "table"]

Codes = Sequence[str]


def row(folder: Path, known: Codes, new: Codes, system: str, seed: int, key: str = "bridge") -> dict[str, Any]:
    """Accuracies (acc) of one scored run in %, by task and language, and what the probe says of the new languages."""
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))[key]
    right = {f"{task} {code}": percent(score["acc"]) for task, by in found.items() for code, score in by.items()}
    probe = folder.with_name(f"{system}-{seed if system != 'before' else 0}-encoder") / "probe" / "probe.json"
    said: dict[str, Any] = {}
    if key == "bridge":
        for of in read_probe(probe):
            said |= {f"retrieval {of.code}": percent(of.best), f"letters lost {of.code}": percent(of.lost_letters)}
    blank = {f"{what} {code}": "" for what in ("retrieval", "letters lost") for code in (*known, *new)}
    return {"system": system, "seed": seed} | right | blank | said | record_of(folder)


def table(rows: Sequence[dict[str, Any]], known: Codes, new: Codes) -> str:
    """Markdown: a line an arm and task, mean over seeds and their range: English, the other languages that the encoder
    knows (their mean), and each new one."""
    tasks = list(dict.fromkeys(name.rsplit(" ", 1)[0] for name in rows[0] if name.endswith(" en")))
    columns = ("en", "known", *new)
    lines = [f"| encoder | | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for system in dict.fromkeys(r["system"] for r in rows):
        own = [r for r in rows if r["system"] == system]
        for task in tasks:
            if own[0][f"{task} en"] == "":
                continue
            others = [mean(r[f"{task} {code}"] for code in known[1:]) for r in own]
            cells = [spread([r[f"{task} en"] for r in own]), spread(others)]
            cells += [spread([r[f"{task} {code}"] for r in own]) for code in new]
            lines.append(f"| {system} | {task.removeprefix('testbed_')} | {' | '.join(cells)} |")
    return "\n".join(lines)
