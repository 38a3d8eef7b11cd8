"""The loader: the same samples in the same steps for every number of ranks and workers, and after a restart."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch

from bridge_ds.config.schema import Config
from bridge_ds.data.loading.batch import StepBatches
from bridge_ds.data.loading.loader import make_loader
from bridge_ds.data.packing.index_folder import index_folder
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.sampling.order import ids_hash
from bridge_ds.data.shards.index import load_index
from bridge_ds.errors import DataError, LaunchError
from bridge_ds.world import World
from tests.data.conftest import make_config, step_numbers, task_rows
from tests.samples import locate


def _names(step: StepBatches, tokenizers) -> list[int]:
    """The row numbers that the sources of a step begin with (see `task_rows`)."""
    firsts = torch.cat([batch.source_ids[:, 0] for batch in step.micro])
    return [int(name[1:]) for name in tokenizers.encoder.convert_ids_to_tokens(firsts.tolist())]


def _equal(one: StepBatches, two: StepBatches) -> bool:
    same = dataclasses.replace(one, micro=[], example="") == dataclasses.replace(two, micro=[], example="")
    return same and all(
        torch.equal(a, b)
        for x, y in zip(one.micro, two.micro, strict=True)
        for a, b in zip(x.tensors().values(), y.tensors().values(), strict=True)
    )


def _run(config: Config, tokenizers, world: World | None = None, start: int = 0) -> list[StepBatches]:
    return list(make_loader(config, world or World(), tokenizers, start))


@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_samples_of_a_step_do_not_depend_on_ranks_or_micro_batch(
    shards: Path, tokenizers, size: int, micro_batch: int
) -> None:
    config = make_config(shards, micro_batch=micro_batch)
    ranks = [_run(config, tokenizers, World(rank=rank, size=size)) for rank in range(size)]
    for number, parts in enumerate(zip(*ranks, strict=True), start=1):
        expected = step_numbers(config, number)
        assert sorted(chain.from_iterable(_names(part, tokenizers) for part in parts)) == sorted(expected.tolist())
        assert {len(part.micro) for part in parts} == {16 // size // micro_batch}
        assert {part.ids_hash for part in parts} == {ids_hash(expected)}
        assert {(part.step, part.consumed) for part in parts} == {(number, 16 * number)}


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(shards: Path, tokenizers, workers: int) -> None:
    config = make_config(shards)
    alone = _run(config, tokenizers)
    forked = _run(make_config(shards, workers=workers), tokenizers)
    assert len(forked) == len(make_loader(config, World(), tokenizers)) == 6
    assert all(_equal(a, b) for a, b in zip(alone, forked, strict=True))
    assert forked[0].example == alone[0].example


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(shards: Path, tokenizers, workers: int) -> None:
    config = make_config(shards, workers=workers)
    whole = _run(config, tokenizers)
    rest = _run(config, tokenizers, start=whole[2].consumed // config.train.global_batch)
    assert [step.step for step in rest] == [4, 5, 6]
    assert all(_equal(a, b) for a, b in zip(whole[3:], rest, strict=True))
    assert _run(config, tokenizers, start=6) == []


def test_every_sample_once_an_epoch_and_tiny_sets_wrap(shards: Path, tokenizers) -> None:
    steps = _run(make_config(shards, steps=5, global_batch=10), tokenizers)
    assert sorted(chain.from_iterable(_names(step, tokenizers) for step in steps)) == list(range(50))
    big = _run(make_config(shards, steps=1, global_batch=200, micro_batch=10), tokenizers)[0]
    assert sorted(_names(big, tokenizers)) == sorted([*range(50)] * 4)


def test_iterating_leaves_the_global_random_state_alone(shards: Path, tokenizers) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    _run(make_config(shards, steps=2), tokenizers)
    assert torch.equal(before, torch.get_rng_state())


def test_first_step_shows_a_sample_and_cuts_are_counted(shards: Path, tokenizers) -> None:
    config = make_config(shards, max_source_tokens=8, max_target_tokens=2, augment_prompt=True)
    steps = _run(config, tokenizers)
    assert steps[1].example == ""
    assert "source (8 tokens): n" in steps[0].example
    assert "prompt (" in steps[0].example
    assert "target (2 tokens): " in steps[0].example
    assert "of shard shard-" in steps[0].example
    assert "(key '0000000" in steps[0].example
    for step in steps:
        full = sum(int(batch.source_mask[:, -1].sum()) for batch in step.micro if batch.source_ids.shape[1] == 8)
        assert 0 < step.truncated["source"] <= full
        assert step.truncated["target"] > 0
        assert step.truncated["prompt"] == 0


@pytest.mark.parametrize("world", [World(), World(rank=1, size=2)])
def test_first_rows_are_the_same_on_every_rank_and_after_a_restart(shards: Path, tokenizers, world: World) -> None:
    config = make_config(shards)
    rows = make_loader(config, world, tokenizers, 3 * world.rank).first_rows(5)
    step = StepBatches(step=1, micro=[rows], ids_hash="", consumed=0)
    assert _names(step, tokenizers) == step_numbers(config, 1)[:5].tolist()


def test_prefix_lm_splits_anew_each_epoch(tmp_path: Path, tokenizers) -> None:
    from bridge_ds.data.packing.write import pack_rows

    pack_rows([{"text": " ".join(f"n{i}" for i in range(60))}] * 4, tmp_path / "text")
    config = make_config(tmp_path / "text", steps=3, global_batch=4, micro_batch=4, objective="prefix_lm")
    lengths = [tuple(sorted(step.micro[0].source_mask.sum(1).tolist())) for step in _run(config, tokenizers)]
    assert len(set(lengths)) == 3
    again = _run(dataclasses.replace(config, data=dataclasses.replace(config.data, workers=2)), tokenizers)
    assert [tuple(sorted(step.micro[0].source_mask.sum(1).tolist())) for step in again] == lengths


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_arrives_as_one_sentence(own_shards: Path, tokenizers, workers: int) -> None:
    config = make_config(own_shards, workers=workers)
    index = load_index(own_shards)
    shard, row = locate(index, int(step_numbers(config, 3)[0]))
    name = index.shards[shard].name
    with (own_shards / name).open("r+b") as file:
        file.seek(int(index.table(shard)["offset"][row]) + 3)
        file.write(b"#")
    # The third step is the first that needs the broken sample; an earlier epoch's step cannot hold it twice.
    seen: list[StepBatches] = []
    with pytest.raises(DataError, match=rf"sample {row} of shard {name} in .* has another checksum") as caught:
        seen.extend(make_loader(config, World(), tokenizers))
    assert [step.step for step in seen] == [1, 2]
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_shards_are_found_before_any_step(own_shards: Path, tokenizers) -> None:
    (own_shards / "shard-000000.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000000.tar is missing"):
        make_loader(make_config(own_shards), World(), tokenizers)


def test_batch_sizes_that_do_not_fit_the_world_are_refused(shards: Path, tokenizers) -> None:
    with pytest.raises(LaunchError, match="3 ranks"):
        make_loader(make_config(shards), World(size=3), tokenizers)


def test_prefetching_many_micro_batches_needs_few_open_files(shards: Path, tokenizers) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 60
    config = make_config(shards, steps=12, global_batch=64, micro_batch=1, workers=1, prefetch=8)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 60, hard))
        kept = list(make_loader(config, World(), tokenizers))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(kept) == 12
    assert len(kept[0].micro) == 64


def test_workers_outlive_signals_and_end_with_the_iterator(shards: Path, tokenizers) -> None:
    import multiprocessing

    before = set(multiprocessing.active_children())
    items = iter(make_loader(make_config(shards, steps=40, workers=2), World(), tokenizers))
    first = next(items)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    assert len(workers) == 2
    # From another process, as Slurm's are: a worker obeys SIGTERM of its parent only.
    for name in ("INT", "TERM", "USR1", "USR2"):
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    assert [first.step, *(step.step for step in items)] == list(range(1, 41))
    del items
    deadline = time.monotonic() + 10
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.slow
def test_a_process_that_stops_in_the_middle_does_not_hang(shards: Path, encoder_folder: Path, llm_folder: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from tests.data.conftest import make_config, step_numbers, task_rows
from bridge_ds.config.schema import ModelConfig
from bridge_ds.data.loading.loader import make_loader
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.world import World
tokenizers = load_tokenizers(ModelConfig(encoder={str(encoder_folder)!r}, llm={str(llm_folder)!r}))
loader = make_loader(make_config(Path({str(shards)!r}), steps=500, workers=1), World(), tokenizers)
unstarted, items = iter(loader), iter(loader)
print(next(items).step)
try:
    for step in loader:
        raise ValueError
except ValueError as error:
    sys.exit(3)
"""
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=root)
    assert (result.returncode, result.stdout.strip(), result.stderr.strip()) == (3, "1", "")


def test_a_worker_that_is_killed_is_a_clear_error_and_no_hang(shards: Path, tokenizers) -> None:
    import multiprocessing
    import signal

    before = set(multiprocessing.active_children())
    items = iter(make_loader(make_config(shards, steps=4000, workers=2), World(), tokenizers))
    handler = signal.getsignal(signal.SIGCHLD)
    assert next(items).step == 1
    workers = [child for child in multiprocessing.active_children() if child not in before]
    os.kill(workers[0].pid, signal.SIGKILL)
    # Nothing is raised here, where the main process may be inside a collective; only where it asks for a batch.
    time.sleep(0.3)
    assert signal.getsignal(signal.SIGCHLD) == handler == signal.SIG_DFL
    with pytest.raises(LaunchError, match=r"a data worker process died .*lower data.workers or data.prefetch"):
        for _ in items:
            pass


def test_a_token_budget_keeps_the_samples_of_a_step_on_any_number_of_ranks(shards: Path, tokenizers) -> None:
    config = make_config(shards, tokens_per_micro_batch=60, max_source_tokens=50, max_target_tokens=10)
    for size in (1, 2, 4):
        ranks = [_run(config, tokenizers, World(rank=rank, size=size)) for rank in range(size)]
        for number, parts in enumerate(zip(*ranks, strict=True), start=1):
            expected = step_numbers(config, number)
            assert sorted(chain.from_iterable(_names(part, tokenizers) for part in parts)) == sorted(expected.tolist())
            assert len({len(part.micro) for part in parts}) == 1
            assert len(parts[0].micro) > 1
            for batch in (batch for part in parts for batch in part.micro):
                rows, tokens = batch.source_ids.shape[0], batch.source_ids.shape[1] + batch.target_ids.shape[1]
                # Tokens are estimated from characters.
                assert rows == 1 or rows * tokens < 2 * 60


def test_a_token_budget_reads_targets_of_the_objective_alone(tmp_path: Path, tokenizers) -> None:
    pack_rows(
        [{"text": row["source"] + " end", "class": number % 3} for number, row in enumerate(task_rows(20))], tmp_path
    )
    index_folder(tmp_path, fields={"target": "class"})  # beside text it is no target, and no text either
    config = make_config(tmp_path, objective="prefix_lm", steps=2, tokens_per_micro_batch=60, max_target_tokens=10)
    assert [step.bad for step in _run(config, tokenizers)] == [{}, {}]


def test_bad_samples_leave_empty_rows_and_are_counted(own_shards: Path, tokenizers) -> None:
    config = make_config(own_shards, steps=4, max_characters=150)
    bad = [number for number, row in enumerate(task_rows(50)) if len(row["source"]) > 150]
    steps = _run(config, tokenizers)
    expected = [sum(number in bad for number in step_numbers(config, step).tolist()) for step in range(1, 5)]
    assert [step.bad.get("too_long", 0) for step in steps] == expected
    assert sum(expected) > 0
    for step in steps:
        targets = torch.cat([batch.target_mask.sum(1) for batch in step.micro])
        assert int((targets == 0).sum()) == step.bad.get("too_long", 0)
        assert bool(step.bad) == bool(step.bad_reason)
    reason = next(step.bad_reason for step in steps if step.bad_reason)
    assert "of shard shard-" in reason
    assert "data.max_characters is 150" in reason


@pytest.mark.parametrize("workers", [0, 8])
def test_a_window_of_steps_is_the_same_for_any_workers_and_resumes_in_its_middle(
    shards: Path, tokenizers, workers: int
) -> None:
    config = make_config(shards, steps=9, length_window=3, length_chunk=4, workers=workers)
    whole = [step.ids_hash for step in _run(config, tokenizers)]
    assert whole == [ids_hash(step_numbers(config, step)) for step in range(1, 10)]
    assert [step.ids_hash for step in _run(config, tokenizers, start=4)] == whole[4:]
