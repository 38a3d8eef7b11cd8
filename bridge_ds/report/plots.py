"""Plots of a report: accuracies, differences, layer weights, tokens, lengths. PNG, 1200 px wide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge_ds.track.plots import _COLORS, _figure, _save, _styled

__all__ = ["draw_study"]

_MARKERS = "soD^vPX"
_ALL_COLORS = (*_COLORS, "#a0256b", "#6d5a00")


def draw_study(results: Mapping[str, Any], folder: Path) -> None:
    """Draw all plots that report.md links.

    Args:
        results: the content of report.json.
        folder: of the report.
    """
    for task, found in results["tasks"].items():
        accuracy = {system: found["accuracy"][system] for system in results["systems"]}
        name = f"{results['slugs'][task]}.png"
        _draw_intervals((results, found, accuracy, task, 100 * found["chance"]), folder / f"accuracy-{name}")
        if results["rivals"]:
            differences = {system: found["differences"][system] for system in results["rivals"]}
            _draw_intervals((results, found, differences, task, 0.0), folder / f"differences-{name}")
    for system, found in results["layers"].items():
        if not found["constant"]:
            _draw_layers((system, found["languages"]), folder / f"layers-{results['slugs'][system]}.png")
    _draw_tokens(results, folder / "tokens.png")
    _draw_lengths(results, folder / "lengths.png")


@_styled
def _draw_intervals(data: Any, path: Path) -> None:
    # One row per language, in it one point with its interval per system.
    results, found, estimates, task, guide = data
    codes, systems = list(found["languages"]), list(estimates)
    figure, (axis,) = _figure(1.3 + len(codes) * max(0.3, 0.14 * len(systems)), 1)
    for number, system in enumerate(systems):
        index = results["systems"].index(system)
        shift = (number - (len(systems) - 1) / 2) * 0.7 / len(systems)
        rows = [estimates[system][code] for code in codes]
        values = [100 * row["value"] for row in rows]
        arms = [[100 * abs(row["value"] - row[end]) for row in rows] for end in ("low", "high")]
        style = {"fmt": _MARKERS[index % 7], "color": _ALL_COLORS[index % 7], "markersize": 5, "elinewidth": 1.6}
        axis.errorbar(values, [row + shift for row in range(len(codes))], xerr=arms, label=system, **style)
    axis.axvline(guide, color="#b3262a", linestyle="--", linewidth=1.2)
    axis.set_yticks(range(len(codes)), [_named(code, found["languages"][code]) for code in codes])
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    is_accuracy = estimates.keys() == set(results["systems"])
    against = "accuracy (%)" if is_accuracy else f"accuracy minus that of {results['baseline']} (points)"
    dashed = "chance" if is_accuracy else "no difference"
    axis.set(title=f"{task}: 95 % intervals; dashed: {dashed}", xlabel=against)
    if is_accuracy:
        axis.set_xlim(0, 101)
    figure.legend(loc="outside upper center", ncols=_columns(systems))
    _save(figure, path)


@_styled
def _draw_layers(data: Any, path: Path) -> None:
    import numpy as np

    system, languages = data
    weights_CL = np.array(list(languages.values()))
    figure, (axis,) = _figure(1.4 + 0.32 * len(weights_CL), 1)
    mesh = axis.imshow(100 * weights_CL, aspect="auto", cmap="viridis", vmin=0)
    axis.set_yticks(range(len(languages)), list(languages))
    every = math.ceil(weights_CL.shape[1] / 24)
    axis.set_xticks(range(0, weights_CL.shape[1], every), range(1, weights_CL.shape[1] + 1, every))
    axis.set(title=f"{system}: weight of each encoder layer", xlabel="encoder layer (1 = first)")
    axis.grid(False)
    bar = figure.colorbar(mesh, ax=axis, pad=0.02)
    bar.set_label("weight (%)")
    bar.outline.set_visible(False)
    _save(figure, path)


@_styled
def _draw_tokens(results: Any, path: Path) -> None:
    tasks = results["tasks"]
    counts = [len(found["languages"]) for found in tasks.values()]
    figure, axes = _figure(0.6 + 0.8 * len(tasks) + 0.25 * sum(counts), len(tasks), [2 + count for count in counts])
    for axis, (task, found) in zip(axes, tasks.items(), strict=True):
        codes = list(found["languages"])
        values = [found["languages"][code]["per_word"] or math.nan for code in codes]
        bars = axis.barh(range(len(codes)), values, 0.7, color=_COLORS[1])
        axis.bar_label(bars, [f"{value:.1f}" if value == value else "unknown" for value in values], padding=3)
        axis.set_yticks(range(len(codes)), codes)
        axis.invert_yaxis()
        axis.grid(False, axis="y")
        axis.set(
            title=f"{task}: encoder tokens per word", xlim=(0, 1.15 * max((v for v in values if v == v), default=1))
        )
    _save(figure, path)


@_styled
def _draw_lengths(results: Any, path: Path) -> None:
    tasks = {task: found for task, found in results["tasks"].items() if found["lengths"]["bins"][0]["samples"]}
    figure, axes = _figure(0.8 + 2.4 * max(1, len(tasks)), max(1, len(tasks)))
    for axis, (task, found) in zip(axes, tasks.items(), strict=False):
        bins = found["lengths"]["bins"]
        for index, (system, shares) in enumerate(found["lengths"]["accuracy"].items()):
            style = {"marker": _MARKERS[index % 7], "color": _ALL_COLORS[index % 7]}
            axis.plot([100 * share for share in shares], label=system, **style)
        axis.set_xticks(range(len(bins)), [f"{part['from']} to {part['to']}" for part in bins])
        axis.set(
            title=task,
            ylabel="accuracy (%)",
            ylim=(0, 102),
            xlabel=f"length of the source ({found['lengths']['unit']})",
        )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=_columns(labels))
    _save(figure, path)


def _columns(names: Sequence[str]) -> int:
    """Columns of a legend as wide as a figure: about 90 letters, 8 of them for a marker and the space around it."""
    return max(1, min(4, len(names), 90 // (max(map(len, names), default=0) + 8)))


def _named(code: str, known: Mapping[str, Any]) -> str:
    return code if known["name"] == code or known["group"] == "constructed" else f"{known['name']} ({code})"
