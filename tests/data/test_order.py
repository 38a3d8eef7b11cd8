"""The order of samples is a permutation each epoch, and dealing loses and doubles nothing."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_ds.data.order import batch_positions, deal, global_batch, ids_hash, permute, uniform


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_an_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, seed, epoch)), np.arange(n))


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 2**62), seed=st.integers(0, 2**32), picks=st.lists(st.integers(0, 2**62), max_size=20, unique=True)
)
def test_places_of_a_huge_set_are_found_without_listing_it(n: int, seed: int, picks: list[int]) -> None:
    positions = np.unique(np.array(picks, dtype=np.int64) % n)
    found = permute(positions, n, seed, 0)
    assert ((found >= 0) & (found < n)).all()
    assert len(np.unique(found)) == len(positions)
    assert [int(permute(np.array([p]), n, seed, 0)[0]) for p in positions] == found.tolist()


def test_epochs_and_seeds_differ_and_each_order_is_about_uniform() -> None:
    orders = permute(np.tile(np.arange(10), 4000), 10, 0, np.repeat(np.arange(4000), 10)).reshape(4000, 10)
    assert np.array_equal(orders[7], permute(np.arange(10), 10, 0, 7))
    counts = np.stack([np.bincount(orders[:, place], minlength=10) for place in range(10)])
    # 400 expected, standard deviation 19: five of them on either side.
    assert counts.min() > 300
    assert counts.max() < 500
    assert not np.array_equal(permute(np.arange(50), 50, 1, 0), permute(np.arange(50), 50, 2, 0))


def test_no_drift_between_neighbours() -> None:
    order = permute(np.arange(10_000), 10_000, 3, 0)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_pinned_values() -> None:
    """A change here would change the samples of every run that is resumed."""
    assert permute(np.arange(10), 10, 0, 0).tolist() == [8, 4, 6, 3, 9, 1, 0, 2, 5, 7]
    assert permute(np.arange(10), 10, 0, 1).tolist() == [3, 7, 1, 2, 8, 5, 4, 9, 0, 6]
    assert uniform(0, 0, 0) == pytest.approx(0.6436823271556098, abs=0)
    assert ids_hash(np.array([0, 1, 2])) == "ab25350e3e65efeb"


@pytest.mark.parametrize("bad", [[-1], [5]])
def test_positions_outside_are_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match=r"positions must lie"):
        permute(np.array(bad), 5, 0, 0)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 100), size=st.integers(1, 150), seed=st.integers(0, 100))
def test_batches_cut_the_endless_sequence_without_gap(n: int, size: int, seed: int) -> None:
    got = np.concatenate([global_batch(step, size, n, seed) for step in (1, 2, 3)])
    whole = [permute(np.arange(n), n, seed, epoch) for epoch in range(min(8, 3 * size // n + 1))]
    expected = np.concatenate(whole)[: 3 * size]
    assert np.array_equal(got[: len(expected)], expected)
    assert batch_positions(2, size).tolist() == list(range(size, 2 * size))


@settings(max_examples=100, deadline=None)
@given(
    world=st.integers(1, 8), rounds=st.integers(1, 5), micro=st.integers(1, 5), data=st.data(),
)  # fmt: skip
def test_deal_gives_every_row_once_with_like_lengths(world: int, rounds: int, micro: int, data: st.DataObject) -> None:
    size = world * rounds * micro
    lengths = np.array(data.draw(st.lists(st.integers(0, 500), min_size=size, max_size=size)))
    dealt = deal(lengths, micro, world)
    assert dealt.shape == (world, rounds, micro)
    assert sorted(dealt.ravel().tolist()) == list(range(size))

    # Sorted cuts are the least padding there is: no micro-batch overlaps another in length.
    spans = sorted((int(lengths[rows].min()), int(lengths[rows].max())) for rows in dealt.reshape(-1, micro))
    assert all(high <= low for (_, high), (low, _) in pairwise(spans))

    tokens = lengths[dealt].sum(axis=-1)
    spread = (tokens.max(axis=0) - tokens.min(axis=0)).max()
    totals = tokens.sum(axis=1)
    assert totals.max() - totals.min() <= spread


def test_deal_ties_go_by_row_so_that_nothing_depends_on_the_machine() -> None:
    assert deal(np.zeros(8), 2, 2).tolist() == [[[6, 7], [2, 3]], [[4, 5], [0, 1]]]


def test_deal_balances_long_tailed_lengths() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1, 1024).astype(np.int64)
    dealt = deal(lengths, 8, 8)
    totals = lengths[dealt].sum(axis=(1, 2))
    assert totals.max() / totals.min() < 1.25
    padded = (lengths[dealt].max(axis=-1) * 8).sum()
    assert padded < 1.1 * lengths.sum()


def test_deal_refuses_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"10 rows"):
        deal(np.zeros(10), 2, 2)


def test_uniform_is_uniform_and_pure() -> None:
    draws = np.array([uniform(1, 0, sample) for sample in range(2000)])
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.03
    assert uniform(1, 1, 0) != uniform(1, 0, 0) != uniform(2, 0, 0)


def test_order_and_index_import_no_framework() -> None:
    code = (
        "import sys, bridge_ds.data.order, bridge_ds.data.index, bridge_ds.data.pack, bridge_ds.data.reader; "
        "print([m for m in ('torch', 'transformers', 'deepspeed', 'webdataset', 'datasets') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=root
    )
    assert result.stdout.strip() == "[]"
