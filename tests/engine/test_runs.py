"""Whole runs of train.py on real processes: the same losses at every world size and stage, and after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.config.load import load_run_config, to_dict
from tests import launch

pytestmark = pytest.mark.slow


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def arguments(small_run: list[str], run: Path, *more: str, ds: str = "zero3.json") -> list[str]:
    settings = [part for setting in (f"run.output={run}", *more) for part in ("--set", setting)]
    return ["--ds_config", ds, *small_run, *settings]


@pytest.fixture(scope="module")
def two_ranks(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on two ranks, stage 3, dropout on."""
    run = tmp_path_factory.mktemp("runs") / "two"
    launch.succeed(launch.train(arguments(small_run, run), 2, run.parent / "logs"))
    return run


def test_losses_do_not_depend_on_ranks_stage_micro_batch_or_packing(small_run: list[str], tmp_path: Path) -> None:
    # The same lengths everywhere: they decide what is cut.
    same = ("fusion.dropout=0", "data.max_source_tokens=200", "data.max_target_tokens=60")
    variants = {
        "two": (2, "zero3.json", ()),
        "one": (1, "zero3.json", ("train.packing=false",)),
        "stage2": (2, "zero2.json", ()),
        "micro": (1, "zero3.json", ("train.micro_batch=8",)),
        # The number of micro-batches now differs by step.
        "budget": (2, "zero2.json", ("data.tokens_per_micro_batch=260",)),
        "budget3": (1, "zero3.json", ("data.tokens_per_micro_batch=260",)),
    }
    found = {}
    for name, (ranks, ds, more) in variants.items():
        run = tmp_path / name
        launch.succeed(launch.train(arguments(small_run, run, *same, *more, ds=ds), ranks, tmp_path / f"{name}-logs"))
        found[name] = lines(run)
        assert [line["step"] for line in found[name]] == list(range(1, 21))
    for name in ("one", "stage2", "micro", "budget", "budget3"):
        for expected, line in zip(found["two"], found[name], strict=True):
            assert line["ids_hash"] == expected["ids_hash"]
            assert line["target_tokens"] == expected["target_tokens"]
            assert line["loss"] == pytest.approx(expected["loss"], abs=1e-4)
            assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3, abs=1e-6)
    assert found["two"][-1]["loss"] < found["two"][0]["loss"]


@pytest.mark.parametrize(("before", "after", "ds"), [(2, 2, "zero3.json"), (2, 1, "zero3.json"), (1, 2, "zero2.json")])
def test_killed_and_resumed(
    small_run: list[str], two_ranks: Path, tmp_path: Path, before: int, after: int, ds: str
) -> None:
    run = tmp_path / "killed"
    command = arguments(small_run, run, ds=ds)
    stop_at = random.Random(f"{before}/{after}/{ds}").randint(6, 18)
    job = launch.begin(command, before, tmp_path / "first")
    wait_for_lines(run, stop_at, job)
    # The checkpoint of step 5 is written in the background, and on a busy machine not before step 6 is done.
    wait_until(lambda: any(run.glob("checkpoints/step-*/manifest.json")), job)
    job.kill()
    print(f"killed at step {len(lines(run))}, {stop_at} waited for")

    outcome = launch.succeed(launch.train(command, after, tmp_path / "second"))
    assert "continuing from" in outcome.text
    resumed, whole = lines(run), lines(two_ranks)
    assert [line["step"] for line in resumed] == list(range(1, 21))
    assert [line["ids_hash"] for line in resumed] == [line["ids_hash"] for line in whole]
    if (before, after) == (2, 2):
        for key in ("loss", "grad_norm", "layer_weights"):
            assert [line[key] for line in resumed] == [line[key] for line in whole], key
        last = "checkpoints/step-00000020/bridge.safetensors"
        assert (run / last).read_bytes() == (two_ranks / last).read_bytes()


def test_no_micro_batch_waits_and_determinism_changes_nothing_on_a_cpu(
    small_run: list[str], two_ranks: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "tests/programs/watch_waits.py", str(tmp_path / "seen.json")]
    command += arguments(small_run, run, "run.deterministic=true")
    launch.succeed(launch.Job(command, 2, tmp_path / "logs").wait())
    for rank in range(2):
        seen = json.loads((tmp_path / f"seen.json.{rank}").read_text())
        assert seen.pop("heard") == "the last rank has a fault"  # over the group that ranks have beside NCCL's
        operators = seen.pop("encoder_operators")
        assert len(operators) == 40 and min(operators) > 100  # in each thread the mode is open
        assert {seen.pop(name) for name in ("forward", "backward", "encoder", "threads")} == {40}
        assert seen == {"deterministic": True, "deepspeed_clock": False}
    for key in ("loss", "grad_norm", "layer_weights"):
        assert [line[key] for line in lines(run)] == [line[key] for line in lines(two_ranks)], key
    last = "checkpoints/step-00000020/bridge.safetensors"
    assert (run / last).read_bytes() == (two_ranks / last).read_bytes()


def test_one_rank_is_signalled_and_all_save(small_run: list[str], two_ranks: Path, tmp_path: Path) -> None:
    """Between two multiples of checkpoint.every; then the same run is started twice, and the first start leaves."""
    run = tmp_path / "run"
    job = launch.begin(arguments(small_run, run), 2, tmp_path / "first")
    wait_for_lines(run, 7, job)
    os.kill(job.pids[1], signal.SIGUSR2)
    outcome = job.wait()
    assert outcome.codes == [75, 75], outcome.text[-4000:]
    saved = len(lines(run))
    assert (run / "checkpoints" / f"step-{saved:08d}" / "manifest.json").is_file()
    assert f"preempted after step {saved} of 20; the same command continues." in outcome.outputs[0]
    outcome = launch.succeed(launch.train(arguments(small_run, run), 2, tmp_path / "second"))
    assert f"(step {saved}, " in outcome.text
    assert [line["loss"] for line in lines(run)] == [line["loss"] for line in lines(two_ranks)]
    # The loss in the state is the mean over the steps since the last multiple of checkpoint.every.
    for name in ("bridge.safetensors", "optimizer.safetensors", "state.json"):
        last = f"checkpoints/step-00000020/{name}"
        assert (run / last).read_bytes() == (two_ranks / last).read_bytes(), name


def test_a_write_that_takes_longer_than_a_hang_is_waited_for(small_run: list[str], tmp_path: Path) -> None:
    """Of the last checkpoint, and of one in training that the next save waits for."""
    more = ("train.steps=4", "checkpoint.every=2", "run.hang_seconds=5")
    job = launch.begin(arguments(small_run, tmp_path / "run", *more), 2, tmp_path / "logs", env={"SLOW_SAVE": "12"})
    outcome = launch.succeed(job.wait())
    assert outcome.text.count(" written") == 2 and "no progress" not in outcome.text


def test_a_write_that_does_not_proceed_is_a_hang(small_run: list[str], tmp_path: Path) -> None:
    more = ("train.steps=2", "run.hang_seconds=5")
    job = launch.begin(arguments(small_run, tmp_path / "run", *more), 2, tmp_path / "logs", env={"STUCK_SAVE": "60"})
    outcome = job.wait()
    assert 70 in outcome.codes and "no progress for 5 s" in outcome.text, outcome.text[-4000:]


def test_a_signal_during_the_start_ends_it_on_all_ranks(small_run: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = launch.begin(arguments(small_run, run), 2, tmp_path / "logs")

    def listens() -> bool:
        status = Path(f"/proc/{job.pids[1]}/status").read_text()
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        return bool(caught >> (signal.SIGUSR2 - 1) & 1)

    wait_until(listens, job)
    os.kill(job.pids[1], signal.SIGUSR2)
    outcome = job.wait()
    assert outcome.codes == [75, 75], outcome.text[-4000:]
    assert outcome.outputs[0].endswith("preempted during the start; nothing was written; the same command continues.\n")
    assert not run.exists()


def test_a_start_that_was_superseded_leaves(small_run: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ("train.steps=3000", "checkpoint.every=3000", "run.hang_seconds=10")
    old = launch.Job(launch.train_command(arguments(small_run, run, *more)), 1, tmp_path / "old")
    wait_for_lines(run, 3, old)
    # One that is refused leaves it alone.
    kept = [run / "config.yaml", run / "heartbeat" / "owner.txt"]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept]
    refused = launch.train(arguments(small_run, run, *more, "evaluation.tasks=nothing"), 1, tmp_path / "refused")
    assert refused.codes == [2]
    time.sleep(2.5)  # two of its heartbeats
    assert old.running and before == [(path.read_bytes(), path.stat().st_mtime_ns) for path in kept]
    new = launch.begin(arguments(small_run, run, *more), 1, tmp_path / "new")
    assert old.wait(60).codes == [74]
    assert "this run was started again (" in old.logs[0].read_text()
    assert new.running
    new.kill()


def wait_for_lines(run: Path, count: int, job: launch.Job | launch.ForkedJob) -> None:
    record = run / "metrics.jsonl"
    wait_until(lambda: record.is_file() and record.read_text().count("\n") >= count, job)


def wait_until(there: Callable[[], bool], job: launch.Job | launch.ForkedJob) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline, job.wait(1).text
        assert job.running, job.wait(1).text[-4000:]
        time.sleep(0.01)


def test_run_folder(two_ranks: Path) -> None:
    # The newest two, and the best by training loss where that is another.
    kept = sorted(path.name for path in (two_ranks / "checkpoints").iterdir())
    losses = [sum(line["loss"] for line in lines(two_ranks)[step - 5 : step]) for step in (5, 10, 15, 20)]
    best = f"step-{5 * (losses.index(min(losses)) + 1):08d}"
    assert kept == sorted({"step-00000015", "step-00000020", best})
    assert (two_ranks / "plots" / "loss.png").is_file()
    assert (two_ranks / "plots" / "layer_weights.png").is_file()
    manifest = json.loads((two_ranks / "checkpoints" / "step-00000020" / "manifest.json").read_text())
    assert set(manifest["files"]) == {"bridge.safetensors", "optimizer.safetensors", "state.json"}
    # How text is written for the LLM is recorded as what `auto` has come to, in both places.
    recorded = load_run_config(two_ranks)
    assert (recorded.data.bos, recorded.data.target_space) == ("always", "space")
    assert to_dict(recorded) == manifest["config"]
    assert manifest["base"].keys() == {"encoder", "llm", "encoder_tokenizer", "llm_tokenizer", "llm_end_ids"}


def test_bfloat16_checkpointing_and_prompt(small_run: list[str], tmp_path: Path) -> None:
    run = tmp_path / "bf16"
    more = ("model.dtype=bfloat16", "model.activation_checkpointing=true", "data.augment_prompt=true")
    launch.succeed(launch.train(arguments(small_run, run, *more), 2, tmp_path / "logs"))
    losses = [line["loss"] for line in lines(run)]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_no_rank_holds_more_than_its_share_of_the_frozen_weights(small_run: list[str], tmp_path: Path) -> None:
    ds = tmp_path / "strict.json"
    # Nothing is kept gathered for later use, so that what is held at any moment is the share and the layer at work.
    keys = ("param_persistence_threshold", "prefetch_bucket_size", "max_live_parameters", "max_reuse_distance")
    ds.write_text(json.dumps({"zero_optimization": {"stage": 3} | {f"stage3_{key}": 0 for key in keys}}))
    command = [sys.executable, "tests/programs/watch_shards.py", str(tmp_path / "watch.json")]
    command += arguments(small_run, tmp_path / "run", "train.steps=2", ds=str(ds))
    launch.succeed(launch.Job(command, 2, tmp_path / "logs").wait())
    for rank in range(2):
        seen = json.loads((tmp_path / f"watch.json.{rank}").read_text())
        assert seen["moments"] > 100
        # A shard is padded to a whole number of elements per rank.
        assert seen["share"] <= seen["total"] / 2 + seen["parameters"]
        assert seen["most"] <= seen["share"] + seen["largest_layer"]
        assert seen["most"] < seen["total"]


def test_a_loss_that_is_not_finite_stops_the_run_on_all_ranks(small_run: list[str], tmp_path: Path) -> None:
    run = tmp_path / "nan"
    outcome = launch.train(arguments(small_run, run, "train.lr=1e30", "train.max_grad_norm=0"), 2, tmp_path / "logs")
    assert outcome.codes == [2, 2], outcome.text[-4000:]
    assert "expected finite numbers" in outcome.outputs[0]
    assert "Traceback" not in outcome.text
