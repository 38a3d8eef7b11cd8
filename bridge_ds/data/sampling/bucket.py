"""Bucketing by length: the rows of a global batch go to ranks and micro-batches, similar lengths together. Pure.

Dimensions: G rows of a global batch, W ranks, A accumulation rounds (micro-batches per rank), B rows of a micro-batch,
K global batches of a window.
"""

from __future__ import annotations

import heapq

import numpy as np

from bridge_ds.data.sampling.order import permute

__all__ = ["bucket", "bucket_by_tokens", "bucket_once", "spread"]


def bucket(lengths: np.ndarray, micro_batch: int, world_size: int) -> np.ndarray:
    """Bucket the rows of one global batch by length into ranks and micro-batches.

    Rows are sorted by length and divided into micro-batches (least padding). W consecutive ones form an accumulation
    round, so that ranks that wait for each other have equal work. In a round the longest micro-batch goes to the rank
    with the fewest tokens so far, so that the totals of two ranks never differ by more than the spread inside one
    round. Long rounds come first: the allocator's largest blocks then serve all later ones.

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
            f"{lengths.size} rows cannot be divided among {world_size} ranks in micro-batches of {micro_batch}."
        )
    rows_AWB = np.argsort(lengths, kind="stable").reshape(rounds, world_size, micro_batch)[::-1, ::-1]
    tokens_AW = lengths[rows_AWB].sum(axis=-1)
    bucketed_WAB = np.empty((world_size, rounds, micro_batch), dtype=np.int64)
    load_W = np.zeros(world_size, dtype=np.int64)
    for number in range(rounds):
        least_first = np.argsort(load_W, kind="stable")
        bucketed_WAB[least_first, number] = rows_AWB[number]
        load_W[least_first] += tokens_AW[number]
    return bucketed_WAB


def bucket_by_tokens(costs: np.ndarray, budget: int, world_size: int) -> list[list[np.ndarray]]:
    """As :func:`bucket`, but a micro-batch ends where its rows times its longest row would exceed a budget.

    The number of micro-batches is the smallest multiple of W that keeps the budget; then the budget is lowered as far
    as that number allows, so that micro-batches cost about the same.

    Args:
        costs: int64 [G], tokens of a row, 1 or more.
        budget: padded tokens of a micro-batch. A longer row becomes a micro-batch by itself.
        world_size: W.

    Returns:
        [W][A] arrays of row indices; every rank has the same A, and each row comes once.

    Raises:
        ValueError: W does not divide G.
    """
    costs = np.asarray(costs, dtype=np.int64)
    if costs.size % world_size or not costs.size:
        raise ValueError(f"{costs.size} rows cannot be divided among {world_size} ranks.")
    order = np.argsort(costs, kind="stable")[::-1]
    falling = costs[order]
    count = -(-len(_groups(falling, budget)) // world_size) * world_size
    low, high = 1, budget
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_groups(falling, middle)) <= count else (middle + 1, high)
    # (minus cost, first row, last row + 1): the most expensive first.
    heap = [(-int(falling[a]) * (b - a), a, b) for a, b in _groups(falling, low)]
    heapq.heapify(heap)
    single: list[tuple[int, int, int]] = []
    while len(heap) + len(single) < count:
        group = heapq.heappop(heap)
        _, a, b = group
        if b - a == 1:
            single.append(group)
            continue
        for start, stop in ((a, (a + b) // 2), ((a + b) // 2, b)):
            heapq.heappush(heap, (-int(falling[start]) * (stop - start), start, stop))
    groups = sorted([*heap, *single])
    buckets: list[list[np.ndarray]] = [[] for _ in range(world_size)]
    load_W = np.zeros(world_size, dtype=np.int64)
    for number in range(0, count, world_size):
        least_first = np.argsort(load_W, kind="stable").tolist()
        for rank, (cost, a, b) in zip(least_first, groups[number : number + world_size], strict=True):
            buckets[rank].append(order[a:b])
            load_W[rank] -= cost
    return buckets


def bucket_once(costs: np.ndarray, micro_batch: int, budget: int, world_size: int) -> list[list[np.ndarray]]:
    """Bucket any number of rows by cost; every rank gets the same number of micro-batches.

    Args:
        costs: int64 [G], any G.
        micro_batch: most rows of a micro-batch.
        budget: padded tokens of a micro-batch, instead of `micro_batch`; 0 = none.
        world_size: W.

    Returns:
        [W][A] arrays of row indices, each row once. At the end some are empty.
    """
    order = np.argsort(costs, kind="stable")[::-1]
    if budget:
        bounds = _groups(costs[order], budget)
    else:
        bounds = [(start, start + micro_batch) for start in range(0, len(order), micro_batch)]
    groups = [order[a:b] for a, b in bounds]
    groups += [order[:0]] * (-len(groups) % world_size)
    return [groups[rank::world_size] for rank in range(world_size)]


def spread(lengths: np.ndarray, steps: int, chunk: int, seed: int, window: int) -> np.ndarray:
    """Distribute the rows of a window of K global batches over its K steps, in chunks of like length.

    Rows are sorted by length and divided into chunks; each step gets one of every K consecutive chunks, so that steps
    hold the same spread of lengths while the rows of a micro-batch are nearly equal in length. Depends on nothing
    but its arguments: ranks and micro-batches do not change which rows a step has.

    Args:
        lengths: int64 [K * G].
        steps: K.
        chunk: rows that stay together; divides G.
        seed: seed of the order.
        window: number of the window, which decides the step of each chunk.

    Returns:
        int64 [K, G]: row indices into `lengths`, each once.

    Raises:
        ValueError: K * chunk does not divide the rows.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    groups, rest = divmod(lengths.size, steps * chunk)
    if rest or not groups:
        raise ValueError(f"{lengths.size} rows cannot be divided into chunks of {chunk} for {steps} steps.")
    chunks_NKC = np.argsort(lengths, kind="stable").reshape(groups, steps, chunk)
    order = permute(
        np.tile(np.arange(steps), groups), steps, seed, np.repeat(np.arange(groups) + window * groups, steps)
    )
    return np.take_along_axis(chunks_NKC, order.reshape(groups, steps, 1), axis=1).transpose(1, 0, 2).reshape(steps, -1)


def _groups(falling: np.ndarray, budget: int) -> list[tuple[int, int]]:
    # Costs fall: a micro-batch that begins at row a is as wide as that row.
    bounds, a = [], 0
    while a < falling.size:
        b = min(falling.size, a + max(1, budget // max(1, int(falling[a]))))
        bounds.append((a, b))
        a = b
    return bounds
