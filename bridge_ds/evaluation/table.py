"""The accuracies as a plain table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bridge_ds.data.text.languages import code_parts
from bridge_ds.metrics import METRICS, systems_of

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
    systems, whole = systems_of(results)
    lines = ["Accuracy in %; others: the mean without English, of languages that each system was scored in."]
    lines += [f"{metric}: {METRICS[metric]}." for metric in _SHOWN]
    for task in results[whole]:
        lines += ["", *_task_lines(results, systems, whole, task)]
    return "\n".join(lines)


def _task_lines(results: Mapping[str, Any], systems: Sequence[str], whole: str, task: str) -> list[str]:
    languages = list(results[whole][task])
    counts = [score["n"] for score in results[whole][task].values()]
    here = [system for system in systems if task in results[system]]
    # Means are of the same languages in each row.
    shared = [code for code in languages if all(code in results[system][task] for system in here)]
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
            for system in here:
                scores = {code: score[metric] for code, score in results[system][task].items()}
                row = f"  {_NAMES.get(system, system):<{width}}  {metric}".ljust(first)
                row += "".join(_percent(scores.get(language), cell) for language in part)
                chance = results["chance"][task] if metric == "acc" else None
                others = [scores[code] for code in shared if code_parts(code)[0] != "en"]
                mean = sum(others) / len(others) if others else None
                lines.append(row + (_percent(mean, _LAST[0]) + _percent(chance, _LAST[1]) if is_last else ""))
    return lines


def _percent(share: float | None, width: int) -> str:
    return f"{'-' if share is None else f'{100 * share:.1f}':>{width}}"
