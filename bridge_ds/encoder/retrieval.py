"""Does a sentence find its translation? Pure.

Shapes: N sentences, D width; sentence i of one language is the translation of sentence i of the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bridge_ds.typed import Share

__all__ = ["Retrieval", "centered", "retrieval"]

Floats = NDArray[np.float64]
_DIGITS = 6
"""Digits of a similarity that count: what float32 states give. Equal sentences are then equal, and found by chance."""


@dataclass(frozen=True)
class Retrieval:
    """Shares of the sentences, 0 to 1."""

    both: Share
    """More similar to their translation than to any other English sentence, and their translation more similar to them
    than to any other of their language: the score of MEXA (arXiv 2410.05873). By chance 1 / (2N - 1)."""
    to_english: Share
    """More similar to their translation than to any other English sentence."""
    from_english: Share
    """The other direction."""


def retrieval(own_ND: Floats, english_ND: Floats) -> Retrieval:
    """Nearest neighbors by cosine. A tie is not found."""
    cosines_NN = np.round(_unit(own_ND) @ _unit(english_ND).T, _DIGITS)
    right_N = np.diagonal(cosines_NN).copy()
    np.fill_diagonal(cosines_NN, -np.inf)
    to_N, from_N = right_N > cosines_NN.max(axis=1), right_N > cosines_NN.max(axis=0)
    return Retrieval(float((to_N & from_N).mean()), float(to_N.mean()), float(from_N.mean()))


def centered(vectors_ND: Floats) -> Floats:
    """Without the language's own mean: what is left if each language may be moved as a whole (arXiv 2004.05160)."""
    return vectors_ND - vectors_ND.mean(axis=0)


def _unit(vectors_ND: Floats) -> Floats:
    sizes_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.where(sizes_N1 == 0, 1.0, sizes_N1)
