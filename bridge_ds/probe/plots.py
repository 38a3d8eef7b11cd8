"""Retrieval by layer as a heat map, a row for each language."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge_ds.probe.measure import LanguageProbe
from bridge_ds.probe.text import ranked
from bridge_ds.report.languages import find_language
from bridge_ds.track.plots import _figure, _save, _styled

__all__ = ["draw_probe"]


def draw_probe(title: str, found: Sequence[LanguageProbe], path: Path) -> None:
    """Write the PNG.

    Args:
        title: what was probed.
        found: English first, which is not drawn.
        path: of the PNG.
    """
    _draw((title, ranked(found)[1:]), path)


@_styled
def _draw(data: Any, path: Path) -> None:
    import numpy as np

    title, found = data
    places = list(found[0].retrieval)
    shares_CP = 100 * np.array([[of.retrieval[place].both for place in places] for of in found])
    figure, (axis,) = _figure(1.5 + 0.26 * len(found), 1)
    mesh = axis.imshow(shares_CP, aspect="auto", cmap="viridis", vmin=0, vmax=100)
    for row, column in np.ndindex(shares_CP.shape):
        value = shares_CP[row, column]
        style = {"color": "black" if value > 60 else "white", "fontsize": 7 if len(places) > 16 else 8}
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", **style)
    names = [f"{find_language(of.code).name} ({of.code}): {of.verdict}" for of in found]
    axis.set_yticks(range(len(found)), names, fontsize=9)
    axis.set_xticks(range(len(places)), places)
    axis.set(title=title, xlabel="encoder layer (1 = first); % of sentences that find their translation")
    axis.grid(False)
    bar = figure.colorbar(mesh, ax=axis, pad=0.02)
    bar.outline.set_visible(False)
    _save(figure, path)
