"""Which rows of a micro-batch are computed together, so that little of what is computed is padding: a pure function of
their lengths.

The LLM's rows are joined end to end to a few sequences, each row attending to itself alone. Attention then reads the
keys of the other rows too, only to mask them, so that the best number of sequences depends on what a key costs. The
encoder's rows stay apart (T5 has relative positions, BERT learned ones): those of similar length run together.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Packing", "groups", "sequences"]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What is packed, and the costs by which it is arranged; they change speed and rounding alone."""

    llm_keys: float = 0.0
    """So many keys of a query cost as much as all matrices of the LLM for a position; 0 = its rows are not packed."""
    llm_scores: bool = False
    """The LLM keeps its attention's scores for backward (eager attention): never more of them than padded rows have."""
    encoder_keys: float = 0.0
    """The same of the encoder; 0 = all of its rows run together."""
    encoder_call: float = 0.0
    """So many positions cost as much as one more call of an encoder layer."""


_LONGEST = 4096
"""Longest sequence of several rows: the mask has its square."""


def sequences(lengths: Sequence[int], keys: float, scores: bool = False) -> list[list[int]]:
    """Rows -> sequences of about the same length, each a list of rows in order.

    Args:
        lengths: positions of each row.
        keys: :attr:`Packing.llm_keys`.
        scores: :attr:`Packing.llm_scores`.
    """
    by_length = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    best = [[row] for row in range(len(lengths))]
    longest, count = max(lengths), len(lengths)
    cost, squares = count * longest * (keys + longest), count * longest**2
    while count > 1:
        count = max(1, min(count - 1, count * 4 // 5))
        load = [(0, number) for number in range(count)]
        found: list[list[int]] = [[] for _ in load]
        for row in by_length:  # the longest first, each to the shortest sequence so far
            total, number = load[0]
            found[number].append(row)
            heapq.heapreplace(load, (total + lengths[row], number))
        width = max(load)[0]
        new, fits = count * width * (keys + width), not scores or count * width**2 <= squares
        if new < cost and fits and width <= max(longest, _LONGEST):
            best, cost = [sorted(rows) for rows in found], new
    return best


def groups(lengths: Sequence[int], keys: float, call: float) -> list[list[int]]:
    """Rows -> groups of similar length, each a list of rows; the partition of least cost.

    Args:
        lengths: tokens of each row.
        keys: :attr:`Packing.encoder_keys`.
        call: :attr:`Packing.encoder_call`.
    """
    by_length = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    width = np.asarray([lengths[row] for row in by_length], dtype=np.float64)
    each = width * (keys + width)  # of one row in a group whose longest row is this one
    cost, begins = np.zeros(len(width) + 1), [0] * (len(width) + 1)
    for end in range(1, len(width) + 1):
        costs = cost[:end] + (end - np.arange(end)) * each[:end] + call * keys
        begins[end] = int(costs.argmin())
        cost[end] = costs[begins[end]]
    found, end = [], len(width)
    while end:
        found.append(by_length[begins[end] : end])
        end = begins[end]
    return found[::-1]
