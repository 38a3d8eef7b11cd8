"""Which sample comes when: pure functions of integers, in constant memory.

The run reads one endless sequence of positions 0, 1, 2, ...: position p is index `p % n` of epoch `p // n`, and every
epoch is a permutation of the n samples. Global batch k (from 1) is the slice [(k-1) * size, k * size). Nothing here
depends on ranks or workers; the samples of a step are the same for every number of them, and one integer (samples
consumed) is enough to resume.

An epoch is a *block shuffle*: the shards are permuted, consecutive shards in that order form windows, and the samples
of each window are permuted together. So a run reads from one window of shards at a time. No
list of samples is ever made: memory grows with the number of shards alone (a few words each).

Dimensions: G rows of a global batch, N shards, D data sets of a mixture.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

__all__ = [
    "MIX_BLOCK",
    "BlockShuffle",
    "Locations",
    "batch_positions",
    "ids_hash",
    "mix",
    "permute",
    "quotas",
    "uniform",
    "uniforms",
]

MIX_BLOCK = 10_000
"""Positions after which a mixture has met its weights exactly."""

# Six rounds of a Feistel network with a good mixer leave no visible structure even on domains of a few bits.
_ROUNDS = 6
# Keep the numbers of `uniform(s)`, of windows and of mixtures apart from the round keys 0.._ROUNDS-1 and each other.
_UNIFORM_SALT = 1 << 32
_SEED_SALT = 1 << 33
_MIX_SALT = 1 << 34
_MANY_SALT = 1 << 35
# Epochs whose order of shards is kept: a batch may straddle two, and a mixture's sets are in different ones.
_KEPT_EPOCHS = 4
_MASK64 = (1 << 64) - 1


def permute(positions: np.ndarray, n: int, seed: int, epoch: int | np.ndarray) -> np.ndarray:
    """Sample numbers at `positions` of an epoch: a bijection of [0, n) for each (seed, epoch), in constant memory.

    A Feistel network permutes the smallest domain of 2**k values that covers n; a result outside [0, n) is sent through
    it again (cycle walking), which must come back inside since the network is a bijection. On average that takes fewer
    than two passes.

    Args:
        positions: int64 [G], each in [0, n).
        n: samples, 1 or more.
        seed: seed of the order, 0 or more.
        epoch: epoch of all positions, or int64 [G], one for each.

    Returns:
        int64 [G].

    Raises:
        ValueError: n is below 1 or a position is outside [0, n).
    """
    values = np.atleast_1d(np.asarray(positions, dtype=np.int64))
    if n < 1 or (values.size and (values.min() < 0 or values.max() >= n)):
        raise ValueError(f"positions must lie in [0, n) with n >= 1; n is {n}.")
    bits = max(2, (n - 1).bit_length())
    epochs = np.atleast_1d(np.asarray(epoch, dtype=np.int64))
    keys = _mix(_mix(_mix(_words(seed)) ^ epochs.astype(np.uint64)) ^ _words(*range(_ROUNDS))[:, None])
    result = _feistel(values.astype(np.uint64), keys, bits)
    while (outside := np.flatnonzero(result >= n)).size:
        result[outside] = _feistel(result[outside], keys if epochs.size == 1 else keys[:, outside], bits)
    return result.astype(np.int64)


def batch_positions(step: int, size: int) -> np.ndarray:
    """Positions in the endless sequence that step `step` (from 1) uses: int64 [size]."""
    return np.arange((step - 1) * size, step * size, dtype=np.int64)


class Locations(NamedTuple):
    """The location of the samples at some positions; int64 [G] each."""

    shards: np.ndarray
    """Number of the shard."""
    rows: np.ndarray
    """Row inside the shard."""
    epochs: np.ndarray
    """How often the data set has been read before."""


class BlockShuffle:
    """The order of one data set: position -> (shard, row), shards shuffled, and samples in windows of shards."""

    def __init__(self, sizes: np.ndarray, window: int, seed: int) -> None:
        """Args:
        sizes: int64 [N], samples of each shard; 0 is allowed, but not for all.
        window: shards whose samples are permuted together (1 or more; N or more = a shuffle of all samples).
        seed: seed of the order, 0 or more.

        Raises:
            ValueError: there is no sample, or the window is below 1.
        """
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._window = window
        self._seed = seed
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self.samples = int(self._sizes.sum())
        """Samples of an epoch (n)."""
        if self.samples < 1 or window < 1:
            raise ValueError(f"a shuffle needs samples and a window of 1 or more; got {self.samples} and {window}.")

    def locate(self, positions: np.ndarray) -> Locations:
        """The location of the samples at `positions` of the endless sequence.

        Args:
            positions: int64 [G], 0 or more, in any order.
        """
        positions = np.asarray(positions, dtype=np.int64)
        epochs, inside = np.divmod(positions, self.samples)
        shards, rows = np.empty_like(inside), np.empty_like(inside)
        for epoch in np.unique(epochs).tolist():
            order, ends = self._epoch(epoch)
            at = np.flatnonzero(epochs == epoch)
            windows = np.searchsorted(ends, inside[at], side="right")
            for number in np.unique(windows).tolist():
                here = at[windows == number]
                members = order[number * self._window : (number + 1) * self._window]
                stops = np.cumsum(self._sizes[members])
                begin = int(ends[number] - stops[-1])
                found = permute(inside[here] - begin, int(stops[-1]), _hash(self._seed, epoch, number, _SEED_SALT), 0)
                which = np.searchsorted(stops, found, side="right")
                shards[here] = members[which]
                rows[here] = found - (stops[which] - self._sizes[members[which]])
        return Locations(shards, rows, epochs)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        # Shards in the order of the epoch [N], and the position at which each window ends.
        if epoch not in self._epochs:
            count = len(self._sizes)
            order = permute(np.arange(count), count, _hash(self._seed, epoch, _SEED_SALT), 0)
            sizes = np.add.reduceat(self._sizes[order], np.arange(0, count, self._window))
            self._epochs[epoch] = order, np.cumsum(sizes)
            while len(self._epochs) > _KEPT_EPOCHS:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]


def quotas(weights: np.ndarray) -> np.ndarray:
    """Positions of each data set in a block of :data:`MIX_BLOCK`, by largest remainder.

    Args:
        weights: float [D], above 0; only their ratios count.

    Returns:
        int64 [D], summing to MIX_BLOCK. One data set alone has all of it. A weight may come out as 0 (callers check).
    """
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights) * MIX_BLOCK
    result = np.floor(shares).astype(np.int64)
    order = np.argsort(result - shares, kind="stable")
    result[order[: MIX_BLOCK - int(result.sum())]] += 1
    return result


def mix(positions: np.ndarray, quota: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which data set a position of a mixture is taken from, and at which position of its own endless sequence.

    In each block of MIX_BLOCK positions every data set has exactly its quota, in shuffled order, and its own
    sequence is read without a gap: no sample of it is lost or repeated by the mixing.

    Args:
        positions: int64 [G].
        quota: int64 [D] from :func:`quotas`.
        seed: seed of the order.

    Returns:
        data set int64 [G] and own position int64 [G].
    """
    blocks, slots = np.divmod(np.asarray(positions, dtype=np.int64), MIX_BLOCK)
    found = permute(slots, MIX_BLOCK, _hash(seed, _MIX_SALT), blocks)
    ends = np.cumsum(quota)
    sets = np.searchsorted(ends, found, side="right")
    return sets, blocks * quota[sets] + found - (ends[sets] - quota[sets])


def uniform(seed: int, epoch: int, sample: int) -> float:
    """A number in [0, 1) that depends on (seed, epoch, sample) and on nothing else."""
    return (_hash(seed, epoch, _UNIFORM_SALT, sample) >> 11) / 2.0**53


def uniforms(seed: int, epoch: int, sample: int, count: int) -> np.ndarray:
    """Numbers in [0, 1), float64 [count]: number i depends on (seed, epoch, sample, i) and on nothing else."""
    state = _words(_hash(seed, epoch, _MANY_SALT, sample))
    return (_mix(state ^ np.arange(count, dtype=np.uint64)) >> np.uint64(11)) / 2.0**53


def ids_hash(sample_numbers: np.ndarray) -> str:
    """First 16 hex digits of the sha256 of the numbers as little-endian int64 bytes, in the order given."""
    return hashlib.sha256(np.asarray(sample_numbers).astype("<i8").tobytes()).hexdigest()[:16]


def _feistel(values: np.ndarray, keys: np.ndarray, bits: int) -> np.ndarray:
    # The two halves need not be equal: each is in turn xored with a function of the other.
    low_bits = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
    high, low = values >> low_bits, values & low_mask
    for number in range(0, _ROUNDS, 2):
        high = high ^ (_mix(low ^ keys[number]) & high_mask)
        low = low ^ (_mix(high ^ keys[number + 1]) & low_mask)
    return (high << low_bits) | low


def _words(*numbers: int) -> np.ndarray:
    return np.array([number & _MASK64 for number in numbers], dtype=np.uint64)


def _hash(*numbers: int) -> int:
    """64 bits that depend on all numbers and their order."""
    state = _mix(_words(numbers[0]))
    for number in numbers[1:]:
        state = _mix(state ^ _words(number))
    return int(state[0])


def _mix(values: np.ndarray) -> np.ndarray:
    # The finalizer of splitmix64 (Steele, Lea, Flood 2014); uint64 arrays wrap around, as it needs.
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
