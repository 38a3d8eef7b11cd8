"""The accuracies as a plain table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bridge_ds.data.text.languages import code_parts
from bridge_ds.metrics import METRICS

__all__ = ["table"]

_WIDTH = 110
"""Longest line, in characters."""
_NAMES = {"llm": "LLM alone"}
_SHOWN = ("acc", "exact_match")
_CELL = 7
"""Least width of a language's column."""
_LAST = (8, 8)
"""Widths of the last two columns: the mean without English, and chance."""


def table(results: Mapping[str, Any]) -> str:
    """All systems, tasks and languages, in percent; lines of at most 110 characters.

    Args:
        results: the content of evaluation.json; the LLM alone comes first, then the others in their order.
    """
    systems = [name for name in ("llm", "bridge") if name in results]
    systems += [name for name in results if name not in (*systems, "chance")]
    lines = ["Accuracy in %; others: the mean without English."]
    lines += [f"{metric}: {METRICS[metric]}." for metric in _SHOWN]
    for task in results[systems[0]]:
        lines += ["", *_task_lines(results, systems, task)]
    return "\n".join(lines)


def _task_lines(results: Mapping[str, Any], systems: Sequence[str], task: str) -> list[str]:
    languages = list(results[systems[0]][task])
    counts = [score["n"] for score in results[systems[0]][task].values()]
    # The widest a 95 % interval can be, at 50 %: a difference below it may be chance.
    margin = 100 * 1.96 * math.sqrt(0.25 / min(counts))
    samples = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    lines = [f"{task}: {samples} samples per language; 95 % interval at most +/- {margin:.1f}"]
    width = max(len(_NAMES.get(system, system)) for system in systems)
    first = 2 + width + 2 + max(map(len, _SHOWN))
    cell = max(_CELL, *(len(language) + 2 for language in languages))
    per_line = max(1, (_WIDTH - first - sum(_LAST)) // cell)
    parts = [languages[start : start + per_line] for start in range(0, len(languages), per_line)]
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        head = " " * first + "".join(f"{language:>{cell}}" for language in part)
        lines.append(head + (f"{'others':>{_LAST[0]}}{'chance':>{_LAST[1]}}" if is_last else ""))
        for metric in _SHOWN:
            for system in systems:
                scores = {code: score[metric] for code, score in results[system][task].items()}
                row = f"  {_NAMES.get(system, system):<{width}}  {metric}".ljust(first)
                row += "".join(f"{100 * scores[language]:>{cell}.1f}" for language in part)
                chance = results["chance"][task] if metric == "acc" else None
                lines.append(row + (_last_columns(scores, chance) if is_last else ""))
    return lines


def _last_columns(scores: Mapping[str, float], chance: float | None) -> str:
    others = [score for language, score in scores.items() if code_parts(language)[0] != "en"]
    mean = f"{100 * sum(others) / len(others):.1f}" if others else "-"
    return f"{mean:>{_LAST[0]}}{'-' if chance is None else f'{100 * chance:.1f}':>{_LAST[1]}}"
