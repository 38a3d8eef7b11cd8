"""Numbers as the reader sees them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from bridge_ds.report.blocks import Cell, Chart, Mark

__all__ = [
    "axis",
    "count",
    "language_cell",
    "mark",
    "p_value",
    "percent",
    "points",
    "scale_of",
    "signed",
    "verdict_cell",
]

_VERDICTS = {"better": "good", "worse": "bad", "undecided": ""}


def percent(estimate: Mapping[str, Any] | float | None) -> Cell:
    """An accuracy in % with its interval, where it has one."""
    if estimate is None:
        return Cell("–")
    if isinstance(estimate, int | float):
        return Cell(f"{100 * estimate:.1f}")
    return Cell(f"{100 * estimate['value']:.1f}", f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}")


def points(estimate: Mapping[str, Any]) -> Cell:
    """A difference in percentage points with its interval."""
    return Cell(f"{signed(estimate['value'])}", f"{signed(estimate['low'])} to {signed(estimate['high'])}")


def signed(share: float) -> str:
    """A difference of shares in points, with its sign."""
    text = f"{100 * share:+.1f}".replace("-", "\u2212")
    return text[1:] if text[1:] == "0.0" else text


def p_value(p: float) -> str:
    """Three decimals; smaller ones as a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict_cell(test: Mapping[str, Any], alpha: float) -> Cell:
    """What a test says, with its corrected p-value; with several seeds also in how many McNemar's test finds what."""
    deciding = test["method"] or test["seeds"][0]
    small = f"p {p_value(deciding['holm'])}"
    if test["method"]:
        found = [seed["better"] - seed["worse"] for seed in test["seeds"] if seed["holm"] < alpha]
        better, worse = sum(gap > 0 for gap in found), sum(gap < 0 for gap in found)
        small += f"; seeds +{better} \u2212{worse}"
    return Cell(test["verdict"], small, tone=_VERDICTS[test["verdict"]])


def count(number: int, singular: str, plural: str = "") -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def language_cell(code: str, known: Mapping[str, Any]) -> Cell:
    """Name and code of a language."""
    return Cell(known["name"], code) if known["name"] != code else Cell(code)


def mark(system: int, name: str, estimate: Mapping[str, Any]) -> Mark:
    """For a chart in %."""
    return Mark(system, name, 100 * estimate["value"], 100 * estimate["low"], 100 * estimate["high"])


def axis(scale: tuple[float, float], title: str) -> Cell:
    """Head of a chart's column."""
    low, high = scale
    return Cell(title, chart=Chart((), scale, ticks=(low, (low + high) / 2, high)))


def scale_of(estimates: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """A scale around no difference that holds all differences and, where these are not too wide, their intervals."""
    estimates = list(estimates)
    widest = max((abs(100 * e["value"]) for e in estimates), default=0.0)
    ends = max((abs(100 * e[end]) for e in estimates for end in ("low", "high")), default=0.0)
    reach = max(min(ends, 2 * widest), widest, 1.0)
    reach = next(step for step in (2, 4, 6, 10, 20, 30, 40, 50, 60, 80, 100) if math.ceil(reach) <= step or step == 100)
    return -float(reach), float(reach)
