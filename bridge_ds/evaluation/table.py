"""The accuracies as a plain table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["table"]

_COLUMNS = 110
"""Widest line, in characters."""
_NAMES = {"llm": "LLM alone"}
_MEASURES = {"likelihood": "most likely", "exact": "written out"}
_CELL = 7
_LAST = (8, 8)
"""Widths of the two last columns: the mean without English, and chance."""


def table(results: Mapping[str, Any]) -> str:
    """All systems, tasks and languages, in percent; lines of at most 110 characters.

    Args:
        results: the content of evaluation.json; the LLM alone comes first, then the others in their order.
    """
    systems = [name for name in ("llm", "bridge") if name in results]
    systems += [name for name in results if name not in (*systems, "chance")]
    lines = [
        "Accuracy in %. most likely: the right label has the highest likelihood of all labels;",
        "written out: greedy decoding writes exactly the right label. others: the mean without English.",
    ]
    for task in results[systems[0]]:
        lines += ["", *_task_lines(results, systems, task)]
    return "\n".join(lines)


def _task_lines(results: Mapping[str, Any], systems: Sequence[str], task: str) -> list[str]:
    languages = list(results[systems[0]][task])
    counts = [score["n"] for score in results[systems[0]][task].values()]
    # The widest a 95 % interval can be, at 50 %: a difference below it may be luck.
    margin = 100 * 1.96 * math.sqrt(0.25 / min(counts))
    samples = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    lines = [f"{task}: {samples} samples a language; 95 % interval at most +/- {margin:.1f}"]
    width = max(len(_NAMES.get(system, system)) for system in systems)
    first = 2 + width + 2 + max(len(named) for named in _MEASURES.values())
    room = max(1, (_COLUMNS - first - sum(_LAST)) // _CELL)
    parts = [languages[start : start + room] for start in range(0, len(languages), room)]
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        head = " " * first + "".join(f"{language:>{_CELL}}" for language in part)
        lines.append(head + (f"{'others':>{_LAST[0]}}{'chance':>{_LAST[1]}}" if is_last else ""))
        for measure, named in _MEASURES.items():
            for system in systems:
                scores = {code: score[measure] for code, score in results[system][task].items()}
                row = f"  {_NAMES.get(system, system):<{width}}  {named}".ljust(first)
                row += "".join(f"{100 * scores[language]:>{_CELL}.1f}" for language in part)
                chance = results["chance"][task] if measure == "likelihood" else None
                lines.append(row + (_ending(scores, chance) if is_last else ""))
    return lines


def _ending(scores: Mapping[str, float], chance: float | None) -> str:
    others = [score for language, score in scores.items() if language != "en"]
    mean = f"{100 * sum(others) / len(others):.1f}" if others else "-"
    return f"{mean:>{_LAST[0]}}{'-' if chance is None else f'{100 * chance:.1f}':>{_LAST[1]}}"
