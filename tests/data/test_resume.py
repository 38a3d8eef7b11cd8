"""Elastic determinism: whatever ranks, workers, micro-batches, windows and kills, a run sees one order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_ds.config.schema import Config, DataConfig, RunConfig, TrainConfig
from bridge_ds.data.loading.corpus import Corpus, locations, open_corpus
from bridge_ds.data.loading.plan import StepPlan, TokenCost
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.shards.index import ShardIndex, load_index
from bridge_ds.data.shards.store import Folder
from bridge_ds.data.shards.table import BUCKETS, TABLE_DTYPE, ShardEntry, buckets
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.world import World
from tests.data.conftest import task_rows


class MemoryIndex(ShardIndex):
    """An index whose tables are made up: the plan needs lengths, and no tar."""

    def __init__(self, sizes: list[int], seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self.made = []
        entries = []
        for number, size in enumerate(sizes):
            table = np.zeros(size, dtype=TABLE_DTYPE)
            table["source"] = draw.lognormal(4, 0.8, size).astype(np.int64) + 1
            table["target"] = draw.integers(1, 30, size)
            table["id"] = draw.integers(0, 2**63, size)
            self.made.append(table)
            counts = tuple(np.bincount(buckets(table), minlength=BUCKETS).tolist())
            entries.append(ShardEntry(f"{number}.tar", size, 0, "", 0, "", "json", "", "", 0, 0, counts))
        super().__init__(Folder(Path("made-up")), tuple(entries), {}, "made-up")

    def table(self, shard: int) -> np.ndarray:
        return self.made[shard]


def corpus_of(config: Config, sizes: list[int]) -> Corpus:
    return Corpus([MemoryIndex(sizes)], [1.0], config.data, config.run.seed)


class Job:
    """A job as the launcher starts it: W ranks, each with its own plan, each rank's steps given to worker processes.

    torch's DataLoader hands step after step to its workers in turn and gives them back in order; so each worker sees
    every n-th step, with whatever it has kept from the one before.
    """

    def __init__(self, config: Config, sizes: list[int], world: int, workers: int) -> None:
        self.config, self.world = config, world
        self.plans = [
            [StepPlan(config, corpus_of(config, sizes), TokenCost(0.3, 0.25)) for _ in range(max(1, workers))]
            for _ in range(world)
        ]

    def run(self, first: int, last: int) -> list[list[np.ndarray]]:
        """Sample numbers of the steps first..last: [step][rank] -> all rows of the rank, by micro-batch."""
        steps = []
        for turn, step in enumerate(range(first, last + 1)):
            ranks, rounds = [], set()
            for rank, plans in enumerate(self.plans):
                plan = plans[turn % len(plans)]
                rows = plan.rows(step)
                buckets = plan.bucket(rows, World(rank=rank, size=self.world))
                rounds.add(len(buckets))
                ranks.append(rows.numbers[np.concatenate(buckets)])
            assert len(rounds) == 1, "ranks must have the same number of micro-batches"
            steps.append(ranks)
        return steps


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_world_workers_micro_batches_windows_and_kills_give_the_one_rank_order(data: st.DataObject) -> None:
    worlds = [data.draw(st.integers(1, 64), "world")]
    micro = data.draw(st.integers(1, 4), "micro-batch")
    global_batch = worlds[0] * micro * data.draw(st.integers(1, 3), "accumulation")
    fitting = [world for world in range(1, 65) if global_batch % (world * micro) == 0]
    worlds += data.draw(st.lists(st.sampled_from(fitting), max_size=3), "worlds after kills")
    sizes = data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any), "shard sizes")
    steps = data.draw(st.integers(1, 6), "steps")
    config = Config(
        run=RunConfig(seed=data.draw(st.integers(0, 2**31), "seed")),
        data=DataConfig(
            shuffle_shards=data.draw(st.integers(1, 13), "window of shards"),
            length_window=data.draw(st.integers(1, 4), "length window"),
            length_chunk=data.draw(st.sampled_from([1, micro, global_batch]), "chunk"),
            tokens_per_micro_batch=data.draw(st.sampled_from([0, 700, 2000]), "budget"),
        ),
        train=TrainConfig(steps=steps, global_batch=global_batch, micro_batch=micro),
    )
    alone = [ranks[0] for ranks in Job(config, sizes, 1, 0).run(1, steps)]
    ordered = [StepPlan(config, corpus_of(config, sizes)).rows(step).numbers for step in range(1, steps + 1)]

    trained: list[list[np.ndarray]] = []
    done = 0
    for attempt, world in enumerate(worlds):
        # Killed after some steps, of which the last few are lost with it: the checkpoint is older.
        job = Job(config, sizes, world, data.draw(st.integers(0, 8), "workers"))
        stop = steps if attempt == len(worlds) - 1 else data.draw(st.integers(done, steps), "kill")
        saved = stop if stop == steps else data.draw(st.integers(done, stop), "checkpoint")
        trained = trained[:done] + job.run(done + 1, stop)
        trained, done = trained[:saved], saved

    assert len(trained) == steps
    for step, ranks in enumerate(trained):
        together = np.concatenate(ranks)
        assert len({len(rank) for rank in ranks}) == 1 or config.data.tokens_per_micro_batch
        assert np.array_equal(np.sort(together), np.sort(alone[step])), "each sample of the step on exactly one rank"
        assert np.array_equal(np.sort(together), np.sort(ordered[step]))
    # A window of steps holds a slice of the order, and each whole epoch in it every sample once.
    n, window = sum(sizes), config.data.length_window
    whole = np.concatenate(ordered)[: steps // window * window * global_batch]
    slices = Corpus([MemoryIndex(sizes)], [1.0], config.data, config.run.seed).rows(np.arange(whole.size)).numbers
    for start in range(0, whole.size, window * global_batch):
        part = slice(start, start + window * global_batch)
        assert np.array_equal(np.sort(whole[part]), np.sort(slices[part]))
    for start in range(0, slices.size - n + 1, n):
        assert np.array_equal(np.sort(slices[start : start + n]), np.arange(n))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=8), percent=st.integers(1, 60), window=st.integers(1, 9),
)  # fmt: skip
def test_splits_are_disjoint_complete_and_decided_by_the_id_alone(sizes: list[int], percent: int, window: int) -> None:
    data = DataConfig(validation_percent=percent, shuffle_shards=window)
    index = MemoryIndex(sizes)
    found = {}
    for split in ("train", "validation"):
        try:
            corpus = Corpus([index], [1.0], data, 0, held_out=split == "validation")
        except DataError:  # the only one: no sample in the split
            found[split] = np.empty(0, dtype=np.int64)
            continue
        found[split] = corpus.rows(np.arange(corpus.samples)).numbers
        assert len(np.unique(found[split])) == corpus.samples
    together = np.sort(np.concatenate(list(found.values())))
    assert np.array_equal(together, np.arange(sum(sizes)))
    ids = np.concatenate(index.made)["id"]
    assert (ids[found["validation"]] % np.uint64(100) < percent).all()
    assert (ids[found["train"]] % np.uint64(100) >= percent).all()


def test_a_sample_keeps_its_split_when_shards_are_packed_anew(tmp_path: Path) -> None:
    pack_rows(task_rows(300), tmp_path / "a", samples_per_shard=7)
    pack_rows(task_rows(300), tmp_path / "b", samples_per_shard=100)
    held = []
    for name in "ab":
        data = DataConfig(shards=str(tmp_path / name), validation_percent=10)
        corpus = open_corpus(data, 0, World()).held_out()
        assert corpus is not None
        rows = corpus.rows(np.arange(corpus.samples))
        held.append(sorted(str(corpus.read(rows, number)["source"]) for number in range(corpus.samples)))
    assert held[0] == held[1]
    assert 10 < len(held[0]) < 60


def test_mixtures_draw_by_weight_and_number_samples_apart(tmp_path: Path) -> None:
    pack_rows([{"source": f"a{i}", "target": "x"} for i in range(30)], tmp_path / "a=1", samples_per_shard=8)
    pack_rows([{"source": f"b{i}", "target": "x"} for i in range(10)], tmp_path / "b")
    mixture = (f"{tmp_path / 'a=1'}=3", f"{tmp_path / 'b'}=1")
    corpus = open_corpus(DataConfig(mixture=mixture), 0, World())
    rows = corpus.rows(np.arange(10_000))
    texts = [corpus.read(rows, number)["source"] for number in range(400)]
    assert texts == [f"a{n}" if n < 30 else f"b{n - 30}" for n in rows.numbers[:400].tolist()]
    assert (rows.numbers < 30).sum() == 7500
    assert set(np.bincount(rows.numbers).tolist()) == {250}
    other = open_corpus(DataConfig(mixture=mixture[::-1]), 0, World())
    assert corpus.identity != other.identity


@pytest.mark.parametrize("entry", ["folder", "folder=", "=1", "folder=0", "folder=-1", "folder=inf", "folder=x"])
def test_a_mixture_that_cannot_be_used_is_named(entry: str) -> None:
    with pytest.raises(ConfigError, match=rf"data.mixture has '{entry}'; expected FOLDER=WEIGHT"):
        locations(DataConfig(mixture=(entry,)))


def test_a_weight_that_cannot_be_met_is_refused(shards: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pack_rows([{"source": "a", "target": "b"}], other)
    with pytest.raises(ConfigError, match=r"expected none below 1/20,000"):
        open_corpus(DataConfig(mixture=(f"{shards}=1", f"{other}=0.00001")), 0, World())


def test_the_order_moves_with_its_settings(shards: Path) -> None:
    index = load_index(shards)
    base = DataConfig()
    orders = {
        tuple(Corpus([index], [1.0], dataclasses.replace(base, **change), seed).rows(np.arange(40)).numbers.tolist())
        for change in ({}, {"shuffle_shards": 1}, {"validation_percent": 20}) for seed in (0, 1)
    }  # fmt: skip
    assert len(orders) == 6
