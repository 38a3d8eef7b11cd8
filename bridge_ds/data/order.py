"""Which sample comes when, and which rank gets it: pure functions of whole numbers.

The run reads one endless sequence of positions 0, 1, 2, ...: position p is place `p % n` of epoch `p // n`, and every
epoch is a permutation of the n samples. Global batch k (from 1) is the slice [(k-1) * size, k * size). Nothing here
knows workers; ranks appear only in :func:`deal`, after the global batch is fixed, so the samples of a step are the same
for every number of ranks and one integer (samples consumed) is enough to resume.

Letters: G rows of a global batch, W ranks, A accumulation rounds (micro-batches per rank), B rows of a micro-batch.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["batch_positions", "deal", "global_batch", "ids_hash", "permute", "uniform"]

# Six rounds of a Feistel network with a good mixer leave no visible structure even on domains of a few bits.
_ROUNDS = 6
# Keeps the numbers of `uniform` apart from the round keys 0.._ROUNDS-1.
_UNIFORM_SALT = 1 << 32
_MASK64 = (1 << 64) - 1


def permute(positions: np.ndarray, n: int, seed: int, epoch: int | np.ndarray) -> np.ndarray:
    """Sample numbers at `positions` of an epoch: a bijection of [0, n) for each (seed, epoch), in constant memory.

    A Feistel network permutes the smallest domain of 4**k places that holds n; a result outside [0, n) is sent through
    it again (cycle walking), which must come back inside since the network is a bijection. On average that takes fewer
    than four passes.

    Args:
        positions: int64 [G], each in [0, n).
        n: samples, 1 or more.
        seed: seed of the order, 0 or more.
        epoch: epoch of all positions, or int64 [G], one for each.

    Returns:
        int64 [G].

    Raises:
        ValueError: n is below 1 or a position lies outside [0, n).
    """
    values = np.atleast_1d(np.asarray(positions, dtype=np.int64))
    if n < 1 or (values.size and (values.min() < 0 or values.max() >= n)):
        raise ValueError(f"positions must lie in [0, n) with n >= 1; n is {n}.")
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    epochs = np.broadcast_to(np.asarray(epoch, dtype=np.int64), values.shape)
    keys = np.stack([_key(seed, epochs, number) for number in range(_ROUNDS)])
    result = _feistel(values.astype(np.uint64), keys, half)
    while (outside := np.flatnonzero(result >= n)).size:
        result[outside] = _feistel(result[outside], keys[:, outside], half)
    return result.astype(np.int64)


def batch_positions(step: int, size: int) -> np.ndarray:
    """Positions in the endless sequence that step `step` (from 1) uses: int64 [size]."""
    return np.arange((step - 1) * size, step * size, dtype=np.int64)


def global_batch(step: int, size: int, n: int, seed: int) -> np.ndarray:
    """Sample numbers of one optimizer step over all ranks, in order.

    Args:
        step: optimizer step, counted from 1.
        size: samples per step (G). More than n is allowed: such a batch straddles epochs.
        n: samples in the data set.
        seed: seed of the order.

    Returns:
        int64 [G], each in [0, n).
    """
    positions = batch_positions(step, size)
    return permute(positions % n, n, seed, positions // n)


def deal(lengths: np.ndarray, micro_batch: int, world_size: int) -> np.ndarray:
    """Deal the rows of one global batch to ranks and micro-batches, like lengths together.

    Rows are sorted by length and cut into micro-batches (least padding); W neighbours form an accumulation round (ranks
    that wait for each other do like work); in a round the longest micro-batch goes to the rank with the least so far,
    so that the totals of two ranks never differ by more than the spread inside one round. Long rounds come first: the
    allocator's largest blocks then serve all later ones.

    Args:
        lengths: int64 [G], any measure of a row's cost.
        micro_batch: B.
        world_size: W.

    Returns:
        int64 [W, A, B]: row indices into `lengths`, each row once.

    Raises:
        ValueError: G is not a positive multiple of W * B (callers check with `config.zero.accumulation`).
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    rounds, rest = divmod(lengths.size, micro_batch * world_size)
    if rest or not rounds:
        raise ValueError(
            f"{lengths.size} rows cannot be dealt to {world_size} ranks in micro-batches of {micro_batch}."
        )
    rows_AWB = np.argsort(lengths, kind="stable").reshape(rounds, world_size, micro_batch)[::-1, ::-1]
    tokens_AW = lengths[rows_AWB].sum(axis=-1)
    dealt_WAB = np.empty((world_size, rounds, micro_batch), dtype=np.int64)
    load_W = np.zeros(world_size, dtype=np.int64)
    for number in range(rounds):
        least_first = np.argsort(load_W, kind="stable")
        dealt_WAB[least_first, number] = rows_AWB[number]
        load_W[least_first] += tokens_AW[number]
    return dealt_WAB


def uniform(seed: int, epoch: int, sample: int) -> float:
    """A number in [0, 1) that depends on (seed, epoch, sample) and on nothing else."""
    key = _key(seed, np.array([epoch], dtype=np.int64), _UNIFORM_SALT)
    bits = _mix(key ^ np.array([sample], dtype=np.int64).astype(np.uint64))
    return int(bits[0] >> np.uint64(11)) / 2.0**53


def ids_hash(sample_numbers: np.ndarray) -> str:
    """First 16 hex digits of the sha256 of the numbers as little-endian int64 bytes, in the order given."""
    return hashlib.sha256(np.asarray(sample_numbers).astype("<i8").tobytes()).hexdigest()[:16]


def _feistel(values: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _key(seed: int, epochs: np.ndarray, salt: int) -> np.ndarray:
    start = np.array([seed & _MASK64], dtype=np.uint64)
    return _mix(_mix(_mix(start) ^ epochs.astype(np.uint64)) ^ np.array([salt], dtype=np.uint64))


def _mix(values: np.ndarray) -> np.ndarray:
    # The finaliser of splitmix64 (Steele, Lea, Flood 2014); uint64 arrays wrap around, as it needs.
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
