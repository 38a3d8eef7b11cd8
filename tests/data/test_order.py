"""The order of samples is a permutation each epoch, and no sample is lost or doubled."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_ds.data.sampling.order import (
    MIX_BLOCK,
    BlockShuffle,
    batch_positions,
    ids_hash,
    mix,
    permute,
    quotas,
    uniform,
)


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_an_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, seed, epoch)), np.arange(n))


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 2**62), seed=st.integers(0, 2**32), picks=st.lists(st.integers(0, 2**62), max_size=20, unique=True)
)
def test_found_of_a_huge_set_are_found_without_listing_it(n: int, seed: int, picks: list[int]) -> None:
    positions = np.unique(np.array(picks, dtype=np.int64) % n)
    found = permute(positions, n, seed, 0)
    assert ((found >= 0) & (found < n)).all()
    assert len(np.unique(found)) == len(positions)
    assert [int(permute(np.array([p]), n, seed, 0)[0]) for p in positions] == found.tolist()


def test_epochs_and_seeds_differ_and_each_order_is_about_uniform() -> None:
    orders = permute(np.tile(np.arange(10), 4000), 10, 0, np.repeat(np.arange(4000), 10)).reshape(4000, 10)
    assert np.array_equal(orders[7], permute(np.arange(10), 10, 0, 7))
    counts = np.stack([np.bincount(orders[:, at], minlength=10) for at in range(10)])
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
    assert uniform(0, 0, 0) == pytest.approx(0.6436823271556098, abs=0)
    assert ids_hash(np.array([0, 1, 2])) == "ab25350e3e65efeb"
    found = BlockShuffle(np.array([3, 2, 4, 1]), 2, 0).locate(np.arange(8, 14))
    assert np.stack(found).tolist() == [[0, 1, 0, 0, 0, 3], [2, 0, 0, 1, 2, 0], [0, 0, 1, 1, 1, 1]]
    assert mix(np.arange(5), quotas(np.array([3.0, 1.0])), 0)[1].tolist() == [7278, 1567, 4262, 414, 2269]


@pytest.mark.parametrize("bad", [[-1], [5]])
def test_positions_outside_are_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match=r"positions must lie"):
        permute(np.array(bad), 5, 0, 0)


def _numbers(shuffle: BlockShuffle, sizes: np.ndarray, positions: np.ndarray) -> np.ndarray:
    found = shuffle.locate(positions)
    assert (found.rows < sizes[found.shards]).all()
    assert (found.epochs == positions // sizes.sum()).all()
    return (np.cumsum(sizes) - sizes)[found.shards] + found.rows


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any),
    window=st.integers(1, 40), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6),
)  # fmt: skip
def test_an_epoch_of_a_block_shuffle_has_each_sample_once_and_reads_one_window_at_a_time(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    counts = np.array(sizes)
    n = int(counts.sum())
    shuffle = BlockShuffle(counts, window, seed)
    positions = epoch * n + np.arange(n)
    found = _numbers(shuffle, counts, positions)
    assert np.array_equal(np.sort(found), np.arange(n))
    # In any order and by any instance, the same.
    assert np.array_equal(_numbers(BlockShuffle(counts, window, seed), counts, positions[::-1]), found[::-1])

    shards = shuffle.locate(positions).shards
    met = [shards[np.sort(np.unique(shards, return_index=True)[1])]][0]
    first = {int(shard): int(np.flatnonzero(shards == shard)[0]) for shard in met}
    last = {int(shard): int(np.flatnonzero(shards == shard)[-1]) for shard in met}
    open_at_once = max(sum(first[s] <= at <= last[s] for s in first) for at in first.values())
    assert open_at_once <= window


def test_epochs_seeds_and_windows_differ_and_shards_are_shuffled_too() -> None:
    sizes = np.full(20, 10)
    orders = {
        tuple(BlockShuffle(sizes, window, seed).locate(np.arange(200) + 200 * epoch).shards.tolist())
        for window in (1, 4) for seed in (0, 1) for epoch in (0, 1)
    }  # fmt: skip
    assert len(orders) == 8
    firsts = [int(BlockShuffle(sizes, 4, seed).locate(np.array([0])).shards[0]) for seed in range(400)]
    assert len(set(firsts)) == 20


def test_no_samples_and_no_window_are_refused() -> None:
    for sizes, window in ((np.array([0, 0]), 1), (np.array([3]), 0)):
        with pytest.raises(ValueError, match=r"needs samples and a window"):
            BlockShuffle(sizes, window, 0)


def test_a_billion_samples_in_constant_memory() -> None:
    sizes = np.full(10_000, 100_000)
    tracemalloc.start()
    shuffle = BlockShuffle(sizes, 16, 0)
    began = time.perf_counter()
    seen = [shuffle.locate(start + np.arange(1024)) for start in range(0, 10**9, 10**8)]
    seconds = time.perf_counter() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{seconds / 10240 * 1e6:.2f} microseconds a sample, {peak / 2**20:.1f} MiB")
    assert peak < 4 * 2**20
    numbers = np.concatenate([found.shards * 100_000 + found.rows for found in seen])
    assert len(np.unique(numbers)) == 10_240


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), seed=st.integers(0, 2**32),
    begin=st.integers(0, 10**9),
)  # fmt: skip
def test_a_mixture_meets_its_weights_and_uses_up_each_sequence(weights: list[float], seed: int, begin: int) -> None:
    quota = quotas(np.array(weights))
    assert quota.sum() == MIX_BLOCK
    assert np.abs(quota - np.array(weights) / sum(weights) * MIX_BLOCK).max() < 1
    first = begin // MIX_BLOCK * MIX_BLOCK
    sets, own = mix(first + np.arange(2 * MIX_BLOCK), quota, seed)
    for number, share in enumerate(quota.tolist()):
        block = first // MIX_BLOCK
        assert np.array_equal(np.sort(own[sets == number]), np.arange(block * share, (block + 2) * share))
    one = begin - first
    assert [int(column[0]) for column in mix(np.array([begin]), quota, seed)] == [int(sets[one]), int(own[one])]


def test_batches_cut_the_endless_sequence_without_gap() -> None:
    assert np.concatenate([batch_positions(step, 7) for step in (1, 2, 3)]).tolist() == list(range(21))


def test_uniform_is_uniform_and_pure() -> None:
    draws = np.array([uniform(1, 0, sample) for sample in range(2000)])
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.03
    assert uniform(1, 1, 0) != uniform(1, 0, 0) != uniform(2, 0, 0)


def test_order_and_index_import_no_framework() -> None:
    code = (
        "import sys, bridge_ds.data.sampling.order, bridge_ds.data.shards.index\n"
        "import bridge_ds.data.packing.job, bridge_ds.data.loading.corpus\n"
        "print([m for m in ('torch', 'transformers', 'deepspeed', 'webdataset', 'datasets') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=root
    )
    assert result.stdout.strip() == "[]"
