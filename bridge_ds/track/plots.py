"""The pictures of a run: loss, the weight of each encoder layer, accuracy by language. PNG, 1200 px wide."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge_ds.disk import atomic_write, real
from bridge_ds.engine.hooks import Hook, StepRecord
from bridge_ds.metrics import systems_of
from bridge_ds.track.metrics_file import read_metrics

__all__ = ["PlotHook", "plot_accuracy", "plot_layer_weights", "plot_loss"]

_log = logging.getLogger(__name__)

_WIDTH, _DPI = 8.0, 150
"""Inches and dots an inch: 1200 pixels."""
_COLUMNS = 400
"""Most columns of the heat map and points of the median; longer runs are thinned evenly."""
_COLORS = ("#9aa5b1", "#0b6e8f", "#d9822b", "#6b4c9a", "#3f7d3a")
"""One a system; grey is the first, the LLM alone."""
_STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}


def _styled(plot: Callable[[Any, Path], None]) -> Callable[[Any, Path], None]:
    """Run a plot function under the style; matplotlib is imported only then (a second)."""

    @functools.wraps(plot)
    def styled(data: Any, path: Path) -> None:
        from matplotlib import rc_context

        with rc_context(_STYLE):
            plot(data, path)

    return styled


class PlotHook(Hook):
    """Writes `<run>/plots/{loss,layer_weights,accuracy}.png`. One that fails costs a line, not the run."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the run folder."""
        self._folder = Path(folder)

    def on_evaluation(self, results: dict[str, Any]) -> None:
        """Draw the accuracies."""
        self._draw(plot_accuracy, results, "accuracy.png")

    def on_end(self, status: str) -> None:
        """Draw loss and layer weights; not when the job is being taken away, as the grace time is short."""
        path = self._folder / "metrics.jsonl"
        if status == "killed" or not path.is_file():
            return
        try:
            records = read_metrics(path)
        except Exception as error:
            _log.warning(f"no plots, metrics.jsonl cannot be read ({error})")
            return
        if records:
            self._draw(plot_loss, records, "loss.png")
        if any(record.get("layer_weights") for record in records):
            self._draw(plot_layer_weights, records, "layer_weights.png")

    def _draw(self, plot: Callable[[Any, Path], None], data: Any, name: str) -> None:
        try:
            plot(data, self._folder / "plots" / name)
        except Exception as error:
            _log.warning(f"plots/{name} was not drawn ({type(error).__name__}: {error})")


@_styled
def plot_loss(records: Sequence[StepRecord], path: Path) -> None:
    """Loss (nats a target token) above, on held-out samples too where there is one, learning rate below, over optimizer
    steps."""
    figure, (upper, lower) = _figure(4.6, 2, height_ratios=(3, 1), sharex=True)
    steps = [record["step"] for record in records]
    loss = [_float(record.get("loss")) for record in records]
    window = min(100, max(1, len(loss) // 50))
    single = {"marker": "o"} if len(steps) == 1 else {}
    if window > 1:
        upper.plot(steps, loss, color=_COLORS[0], linewidth=0.8, alpha=0.7, label="each step")
        label = f"median of {window} steps"
        positions, medians = _running_median(loss, window)
        upper.plot([steps[at] for at in positions], medians, color=_COLORS[1], linewidth=2, label=label)
    else:
        upper.plot(steps, loss, color=_COLORS[1], linewidth=1.8, label="each step", **single)
    held_out = [(r["step"], _float(r["validation_loss"])) for r in records if "validation_loss" in r]
    if held_out:
        upper.plot(*zip(*held_out, strict=True), color=_COLORS[2], linewidth=1.8, marker="o", label="held-out samples")
    if window > 1 or held_out:
        upper.legend(loc="upper right")
    upper.set(title="Loss" if held_out else "Training loss", ylabel="loss\n(nats per target token)")
    finite = [value for value in loss if math.isfinite(value)]
    if finite and min(finite) >= 0:
        upper.set_ylim(bottom=0)
    rates = [_float(record.get("lr")) for record in records]
    lower.plot(steps, rates, color=_COLORS[2], linewidth=1.8, **single)
    lower.set(xlabel="optimizer step", ylabel="learning rate")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    lower.set_ylim(bottom=0)
    lower.locator_params(axis="y", nbins=4)
    _whole_steps(lower)
    figure.align_ylabels()
    _save(figure, path)


@_styled
def plot_layer_weights(records: Sequence[StepRecord], path: Path) -> None:
    """Heat map: x the step, y the encoder layer (1 at the bottom), color its weight in the fusion."""
    import numpy as np

    kept = [record for record in records if record.get("layer_weights")]
    kept = kept[:: max(1, math.ceil(len(kept) / _COLUMNS))]
    weights_LX = np.array([[_float(w) for w in record["layer_weights"]] for record in kept]).T
    layers, columns = weights_LX.shape
    steps = np.array([record["step"] for record in kept], dtype=float)
    half = (steps[1] - steps[0]) / 2 if columns > 1 else 0.5
    edges = np.concatenate([[steps[0] - half], (steps[1:] + steps[:-1]) / 2, [steps[-1] + half]])
    figure, (axis,) = _figure(min(8.0, 2.4 + 0.13 * max(layers, 12)), 1)
    top = max(float(np.nanmax(weights_LX)), 1.0 / layers)
    mesh = axis.pcolormesh(edges, np.arange(layers + 1) + 0.5, weights_LX, cmap="viridis", vmin=0, vmax=top)
    every = max(1, math.ceil(layers / 24))
    axis.set_yticks(range(1, layers + 1, every))
    axis.set(title="Weight of each encoder layer", xlabel="optimizer step", ylabel="encoder layer (last on top)")
    _whole_steps(axis)
    axis.grid(False)
    bar = figure.colorbar(mesh, ax=axis, pad=0.02)
    bar.set_label(f"weight (all {layers} sum to 1)")
    bar.outline.set_visible(False)
    # Where all layers weigh the same, so that one sees which side of it a color lies on.
    bar.ax.axhline(1.0 / layers, color="white", linewidth=2)
    bar.ax.text(-0.25, 1.0 / layers, "even", ha="right", va="center", fontsize=9)
    _save(figure, path)


@_styled
def plot_accuracy(results: Mapping[str, Any], path: Path) -> None:
    """A panel a task: accuracy (%) of the likeliest label in each language, a bar a system, chance dashed."""
    systems, name_of_whole = systems_of(results)
    whole = results[name_of_whole]
    tasks = list(whole)
    figure, axes = _figure(0.7 + 2.3 * len(tasks), len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        languages = list(whole[task])
        width = 0.8 / len(systems)
        for number, system in enumerate(systems):
            middle = [x + (number - (len(systems) - 1) / 2) * width for x in range(len(languages))]
            scores = results[system].get(task, {})
            heights = [100 * scores[code]["acc"] if code in scores else math.nan for code in languages]
            name = "LLM alone" if system == "llm" else system.replace("_", " ")
            bars = axis.bar(middle, heights, 0.94 * width, color=_COLORS[number % len(_COLORS)], label=name)
            if len(languages) * len(systems) <= 32:
                size = 9 if len(languages) * len(systems) <= 24 else 8
                # A white ground, so that neither a grid line nor the chance line runs through a number.
                ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                axis.bar_label(bars, fmt="%.0f", padding=3, fontsize=size, bbox=ground, zorder=3)
        chance = 100 * results["chance"][task]
        axis.axhline(chance, color="#b3262a", linestyle="--", linewidth=1.4, label="chance")
        counts = {score["n"] for score in whole[task].values()}
        samples = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        axis.set_title(f"{task} ({samples} samples a language)", loc="left")
        axis.set(ylim=(0, 114), ylabel="accuracy (%)", xticks=range(len(languages)), xticklabels=languages)
        axis.set_yticks(range(0, 101, 25))
        axis.grid(False, axis="x")
    axes[-1].set_xlabel("language")
    handles, labels = axes[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == "chance")  # chance last
    figure.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside upper center", ncols=len(labels)
    )
    _save(figure, path)


def _figure(height: float, rows: int, height_ratios: Sequence[float] | None = None, **options: Any) -> tuple[Any, Any]:
    # Figure objects instead of pyplot: no global state, no display, nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, squeeze=False, gridspec_kw={"height_ratios": height_ratios}, **options)
    return figure, axes[:, 0]


def _save(figure: Any, path: Path) -> None:
    real(path.parent).mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb", fsync=False) as file:
        figure.savefig(file, format="png")


def _whole_steps(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _running_median(values: Sequence[float], window: int) -> tuple[list[int], list[float]]:
    # Positions and the medians around them, a few hundred however long the run is.
    # A median, so that one bad step does not bend the curve.
    import numpy as np

    array = np.asarray(values)
    positions = sorted({*range(0, len(array), math.ceil(len(array) / _COLUMNS)), len(array) - 1})
    near = [array[max(0, at - window // 2) : at + window // 2 + 1] for at in positions]
    finite = [part[np.isfinite(part)] for part in near]
    return positions, [float(np.median(part)) if part.size else math.nan for part in finite]
