"""Dealing loses and doubles nothing, keeps like lengths together and the ranks level."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_ds.data.sampling.bucket import bucket, bucket_by_tokens, spread


@settings(max_examples=100, deadline=None)
@given(
    world=st.integers(1, 8), rounds=st.integers(1, 5), micro=st.integers(1, 5), data=st.data(),
)  # fmt: skip
def test_deal_gives_every_row_once_with_like_lengths(world: int, rounds: int, micro: int, data: st.DataObject) -> None:
    size = world * rounds * micro
    lengths = np.array(data.draw(st.lists(st.integers(0, 500), min_size=size, max_size=size)))
    buckets = bucket(lengths, micro, world)
    assert buckets.shape == (world, rounds, micro)
    assert sorted(buckets.ravel().tolist()) == list(range(size))

    # Groups of sorted rows have the least padding: no micro-batch overlaps another in length.
    spans = sorted((int(lengths[rows].min()), int(lengths[rows].max())) for rows in buckets.reshape(-1, micro))
    assert all(high <= low for (_, high), (low, _) in pairwise(spans))

    tokens = lengths[buckets].sum(axis=-1)
    spread = (tokens.max(axis=0) - tokens.min(axis=0)).max()
    totals = tokens.sum(axis=1)
    assert totals.max() - totals.min() <= spread


def test_deal_ties_go_by_row_so_that_nothing_depends_on_the_machine() -> None:
    assert bucket(np.zeros(8), 2, 2).tolist() == [[[6, 7], [2, 3]], [[4, 5], [0, 1]]]


def test_deal_balances_long_tailed_lengths() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 1024).astype(np.int64)
    buckets = bucket(lengths, 8, 8)
    totals = lengths[buckets].sum(axis=(1, 2))
    assert totals.max() / totals.min() < 1.25
    padded = (lengths[buckets].max(axis=-1) * 8).sum()
    assert padded < 1.1 * lengths.sum()


def test_deal_refuses_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"10 rows"):
        bucket(np.zeros(10), 2, 2)


@settings(max_examples=100, deadline=None)
@given(
    world=st.integers(1, 64), each=st.integers(1, 12), budget=st.integers(1, 3000), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_a_budget_is_kept_with_the_same_number_of_micro_batches_on_every_rank(
    world: int, each: int, budget: int, seed: int
) -> None:
    costs = np.random.default_rng(seed).lognormal(4, 1, world * each).astype(np.int64) + 1
    buckets = bucket_by_tokens(costs, budget, world)
    assert len(buckets) == world
    assert len({len(rank) for rank in buckets}) == 1
    assert sorted(np.concatenate([rows for rank in buckets for rows in rank]).tolist()) == list(range(costs.size))
    for rows in (rows for rank in buckets for rows in rank):
        assert len(rows) == 1 or costs[rows].max() * len(rows) <= budget


def test_a_budget_makes_micro_batches_of_about_the_same_cost() -> None:
    costs = np.random.default_rng(0).lognormal(5, 0.7, 1024).astype(np.int64)
    buckets = bucket_by_tokens(costs, 4096, 8)
    totals = [sum(int(costs[rows].max()) * len(rows) for rows in rank) for rank in buckets]
    assert max(totals) / min(totals) < 1.1
    padded = sum(totals)
    assert padded < 1.15 * costs.sum()
    # No more micro-batches than the budget asks for, but for the rest that makes ranks equal.
    assert len(buckets[0]) <= -(-padded // (8 * 4096)) + 2


def test_a_budget_refuses_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"10 rows"):
        bucket_by_tokens(np.ones(10), 5, 4)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 8), chunks=st.integers(1, 6), chunk=st.integers(1, 8), window=st.integers(0, 10**6),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_spread_gives_every_row_once_in_chunks_of_like_length(
    steps: int, chunks: int, chunk: int, window: int, seed: int
) -> None:
    lengths = np.random.default_rng(seed).integers(0, 500, steps * chunks * chunk)
    buckets = spread(lengths, steps, chunk, seed, window)
    assert buckets.shape == (steps, chunks * chunk)
    assert sorted(buckets.ravel().tolist()) == list(range(lengths.size))
    spans = sorted((int(lengths[rows].min()), int(lengths[rows].max())) for rows in buckets.reshape(-1, chunk))
    assert all(high <= low for (_, high), (low, _) in pairwise(spans))


def test_spread_lowers_padding_and_keeps_steps_level() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.6, 64 * 8).astype(np.int64)

    def padded(rows_KG: np.ndarray) -> int:
        return sum(int((lengths[rows][bucket(lengths[rows], 8, 2)].max(axis=-1) * 8).sum()) for rows in rows_KG)

    buckets = spread(lengths, 8, 8, 0, 0)
    assert padded(buckets) - lengths.sum() < 0.5 * (padded(np.arange(512).reshape(8, 64)) - lengths.sum())
    totals = lengths[buckets].sum(axis=1)
    assert totals.max() / totals.min() < 1.5
    with pytest.raises(ValueError, match=r"512 rows cannot be divided into chunks of 3"):
        spread(lengths, 8, 3, 0, 0)
