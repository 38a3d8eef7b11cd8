"""The loss on held-out samples: what it is, that training does not notice it, and that no kill loses or doubles it."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bridge_ds.checkpoint.best import find_folder, ranked
from bridge_ds.config.load import load_config, load_run_config
from bridge_ds.data.loading.corpus import Corpus, open_corpus
from bridge_ds.data.loading.loader import held_out
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.hub.source import open_source
from bridge_ds.inference.load import load_trained, open_run
from bridge_ds.world import World
from tests import launch
from tests.engine.test_bad_input import fails, settings, spoil_one, torn
from tests.engine.test_runs import lines
from tests.launch import ForkedJob

STEPS = 6
# Dropout draws random numbers in training and none in validation; 30 of 150 samples are held out, which neither ranks
# nor micro-batches divide.
SAME = {
    "data__validation_percent": 20, "train__steps": STEPS, "checkpoint__every": 2, "train__validate_every": 4,
    "checkpoint__keep_last": 0, "checkpoint__keep_best": 1, "train__micro_batch": 1, "fusion__dropout": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(models: dict[str, Path]) -> Tokenizers:
    config = load_config("testbed", [f"model.encoder={models['encoder']}", f"model.llm={models['llm']}"])
    return load_tokenizers(config.model)


def texts(part: object, of: Tokenizers) -> list[str]:
    return [
        of.llm.decode(ids[: int(mask.sum())], skip_special_tokens=True)
        for batch in part.micro  # type: ignore[attr-defined]
        for ids, mask in zip(batch.target_ids, batch.target_mask, strict=True)
        if mask.sum()
    ]


@pytest.mark.parametrize("budget", [0, 300])
def test_held_out_samples_come_once_over_all_ranks_and_are_the_same_for_every_seed(
    shards: Path, tokenizers: Tokenizers, budget: int
) -> None:
    base = [f"data.shards={shards}", "data.validation_percent=20", "train.micro_batch=4", "data.max_source_tokens=100",
            "data.max_target_tokens=60", f"data.tokens_per_micro_batch={budget}"]  # fmt: skip
    found = {}
    for ranks, seed, limit in ((1, 0, 0), (2, 0, 0), (3, 5, 0), (1, 0, 9), (2, 7, 9)):
        config = load_config("testbed", [*base, f"run.seed={seed}", f"train.validation_samples={limit}"])
        corpus = open_corpus(config.data, seed, World())
        parts = [held_out(config, World(rank=rank, size=ranks), tokenizers, corpus) for rank in range(ranks)]
        assert len({len(part.micro) for part in parts}) == 1  # all gather equally often
        assert len({part.ids_hash for part in parts}) == 1
        found[ranks, seed, limit] = sorted(text for part in parts for text in texts(part, tokenizers))
        assert {part.consumed for part in parts} == {len(found[ranks, seed, limit])}
        trained = corpus.rows(np.arange(corpus.samples)).numbers
        split = corpus.held_out().once()
        assert len(trained) + len(split.numbers) == 150 and not set(trained) & set(split.numbers)
    every, few = found[1, 0, 0], found[1, 0, 9]
    assert 20 < len(every) < 40 and len(few) == 9
    assert found[2, 0, 0] == found[3, 5, 0] == every and found[2, 7, 9] == few


def test_a_held_out_text_is_split_at_the_same_place_in_every_run(tmp_path: Path, tokenizers: Tokenizers) -> None:
    draw = random.Random(1)
    rows = [{"text": " ".join(draw.choices(["cat", "dog", "river"], k=30))} for _ in range(40)]
    pack_rows(rows, tmp_path, samples_per_shard=20)
    found = []
    for seed in (0, 1):
        config = load_config("testbed", [f"data.shards={tmp_path}", "data.validation_percent=50", f"run.seed={seed}",
                                         "data.objective=prefix_lm", "train.micro_batch=8"])  # fmt: skip
        part = held_out(config, World(), tokenizers, open_corpus(config.data, seed, World()))
        found.append(texts(part, tokenizers))
    assert found[0] == found[1] and len(found[0]) > 10


def test_a_mixture_is_held_out_by_its_weights_and_each_sample_once(tmp_path: Path) -> None:
    for name, count in (("large", 400), ("small", 60), ("tiny", 1)):
        pack_rows([{"source": f"{name} {n}", "target": "x"} for n in range(count)], tmp_path / name)
    places = ",".join(f"{tmp_path / name}={weight}" for name, weight in (("large", 0.5), ("small", 0.4), ("tiny", 0.1)))
    config = load_config("testbed", [f"data.mixture=[{places}]", "data.validation_percent=50"])
    sets = open_corpus(dataclasses.replace(config.data, validation_percent=0), 0, World()).sets
    # The one sample of the last set is in training or it is not: then a corpus has no training split of that set.
    sets = [part for part in sets if part.split_sizes(50, 100).sum()]
    corpus = Corpus(sets, [0.5, 0.4, 0.1][: len(sets)], config.data, 3)
    kept = corpus.held_out()
    everything, few = kept.once(), kept.once(40)
    for rows in (everything, few):
        assert len(set(zip(rows.sets, rows.shards, rows.shard_rows, strict=True))) == len(rows.sets)
        assert not rows.epochs.any()
    large, small = (int((few.sets == number).sum()) for number in (0, 1))
    assert large + small in range(36, 41) and large > small > 10
    assert Corpus(sets, [1.0] * len(sets), dataclasses.replace(config.data, validation_percent=0), 0).held_out() is None


def test_a_validation_that_has_nothing_to_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"validate_every is 5, but data.validation_percent is 0"):
        load_config("testbed", ["train.validate_every=5"])


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss_where_there_is_one(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"

    def put(step: int, **state: float | None) -> Path:
        folder = root / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": step, "consumed": step} | state))
        (folder / "manifest.json").write_text("{}")
        return folder

    with pytest.raises(CheckpointError, match=r"no checkpoint in .* has a loss"):
        find_folder(root / "best")
    one, two, three = put(1, loss=0.1), put(2, loss=0.5), put(3, loss=None)
    assert ranked([three, two, one]) == [one, two] and find_folder(root / "best") == one
    four, five = put(4, loss=0.6, validation_loss=0.9), put(5, loss=0.4, validation_loss=float("nan"))
    assert ranked([five, four, three, two, one]) == [four]
    six = put(6, loss=0.7, validation_loss=0.3)
    assert find_folder(root / "best") == six and find_folder(two) == two
    assert ranked([six, five, four]) == [six, four]
    # A loss on other samples says nothing about these: train.validation_samples was changed.
    seven, eight = (put(step, validation_loss=0.1 * step, validation_tokens=50) for step in (7, 8))
    assert ranked([eight, seven, six, five, four]) == [seven, eight]


def begin(zygote: launch.Zygote, small_run: list[str], run: Path, name: str, ds: str, **more: object) -> ForkedJob:
    values = settings(run__output=run, **(SAME | more))
    return zygote.start(["--ds_config", ds, *small_run, *values], 2, run.parent / f"{name}-logs")


@pytest.fixture(scope="module")
def runs(zygote: launch.Zygote, small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two ranks, stage 3, with and without validation, and one of another stage."""
    root = tmp_path_factory.mktemp("validated")
    wanted = {
        "with": ("zero3.json", {}),
        "without": ("zero3.json", {"train__validate_every": 0}),
        # Another stage and other micro-batches, more of them than stage 3's have samples.
        "other": (
            "zero2.json",
            {"train__micro_batch": 4, "train__lr": 0, "train__steps": 2, "train__validate_every": 1},
        ),
    }
    for name, (ds, more) in wanted.items():
        launch.succeed(begin(zygote, small_run, root / name, name, ds, **more).wait(150))
    return {name: root / name for name in wanted}


def state(run: Path, step: int) -> dict[str, object]:
    return json.loads((run / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())


def tensors(run: Path, step: int) -> list[bytes]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return [(folder / f"{name}.safetensors").read_bytes() for name in ("bridge", "optimizer")]


@pytest.mark.slow
def test_training_is_the_same_in_every_bit_with_and_without_validation(runs: dict[str, Path]) -> None:
    validated, plain = lines(runs["with"]), lines(runs["without"])
    for key in ("loss", "grad_norm", "layer_weights", "ids_hash"):
        assert [line[key] for line in validated] == [line[key] for line in plain], key
    for step in (2, 4, 6):
        assert tensors(runs["with"], step) == tensors(runs["without"], step)
    assert [line["step"] for line in validated if "validation_loss" in line] == [4, 6]
    assert not any("validation_loss" in line for line in plain)


@pytest.mark.slow
def test_the_validation_loss_is_that_of_one_process_over_all_held_out_samples(runs: dict[str, Path]) -> None:
    for name in ("with", "other"):
        run = runs[name]
        config = load_run_config(run)
        model, of, checkpoint = load_trained(run, config, torch.device("cpu"))
        part = held_out(config, World(), of, open_corpus(config.data, 0, World()))
        with torch.no_grad():
            nll, right = sum(model(batch, counted=True).double() for batch in part.micro)
        tokens = sum(batch.target_tokens for batch in part.micro)
        last = lines(run)[-1]
        assert last["validation_samples"] == part.consumed > 20 and last["validation_tokens"] == tokens
        assert last["validation_loss"] == pytest.approx(float(nll) / tokens, abs=1e-5)
        assert last["validation_accuracy"] == pytest.approx(float(right) / tokens, abs=1e-9)
        assert checkpoint.state["validation_loss"] == last["validation_loss"]
    # At learning rate 0 nothing moves, so it is the same number each time.
    assert len({line["validation_loss"] for line in lines(runs["other"]) if "validation_loss" in line}) == 1


@pytest.mark.slow
def test_the_best_checkpoint_by_validation_is_said_kept_and_used(runs: dict[str, Path]) -> None:
    run = runs["with"]
    losses = {line["step"]: line["validation_loss"] for line in lines(run) if "validation_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert all(state(run, step)["best_by"] == "validation_loss" for step in losses)
    assert state(run, 2)["best_by"] == "loss" and state(run, 2)["loss"] is not None  # kept out of the comparison
    assert state(runs["without"], 6)["best_by"] == "loss"
    folder = run / "checkpoints" / f"step-{best:08d}"
    assert find_folder(run / "checkpoints" / "best") == folder
    assert open_run(run, which="best")[1].folder == folder
    assert open_source(str(run / "checkpoints" / "best")).tensors() == [folder / "bridge.safetensors"]
    said = (run.parent / "with-logs" / "rank0.log").read_text()
    assert f"step 6: validation loss {losses[6]:.4f} on " in said
    assert f"lowest {losses[best]:.4f} at step {best}" in said


def wait_for_phase(run: Path, job: ForkedJob, phase: str, step: int) -> None:
    """Until rank 0 says that it is there, by its heartbeat's file."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        try:
            beat = json.loads((run / "heartbeat" / "rank-00000.json").read_text())
        except (OSError, ValueError):
            beat = {}
        if beat.get("phase") == phase and beat.get("step") == step:
            return
        assert job.running, job.wait(1).text[-4000:]
        time.sleep(0.02)
    raise AssertionError(f"{phase} of step {step} did not come")


@pytest.mark.slow
def test_a_validation_that_was_signalled_or_killed_is_neither_lost_nor_doubled(
    zygote: launch.Zygote, small_run: list[str], runs: dict[str, Path], tmp_path: Path
) -> None:
    """First a signal in its midst, then, as it is made up for, SIGKILL."""
    whole, run = runs["with"], tmp_path / "run"

    def slow(name: str) -> ForkedJob:
        # Each micro-batch of the validation waits, so that there is time for that, and the whole of it lasts longer
        # than a rank may stand still.
        values = settings(run__output=run, run__hang_seconds=5, **SAME)
        arguments = ["--ds_config", "zero3.json", *small_run, *values]
        job = zygote.start(arguments, 2, tmp_path / f"{name}-logs", {"SLOW_VALIDATION": "0.5"})
        wait_for_phase(run, job, "validate", 4)
        return job

    job = slow("signalled")
    time.sleep(5.5)
    assert job.running, job.wait(1).text[-4000:]
    os.kill(job.pids[1], signal.SIGUSR2)
    outcome = job.wait(60)
    assert outcome.codes == [75, 75], outcome.text[-4000:]
    assert "preempted after step 4 of 6, while validating" in outcome.outputs[0]
    # The step is in the checkpoint; its line comes once its validation is there.
    assert [line["step"] for line in lines(run)] == [1, 2, 3] and state(run, 4)["unvalidated"]
    assert tensors(run, 4) == tensors(whole, 4)
    shutil.rmtree(run / "heartbeat")
    job = slow("killed")
    job.kill()
    assert [line["step"] for line in lines(run)] == [1, 2, 3]
    launch.succeed(begin(zygote, small_run, run, "again", "zero3.json").wait(150))
    for key in ("step", "loss", "grad_norm", "ids_hash"):
        assert [line[key] for line in lines(run)] == [line[key] for line in lines(whole)], key
    for key in ("validation_loss", "validation_accuracy", "validation_samples"):
        assert [line.get(key) for line in lines(run)] == [line.get(key) for line in lines(whole)], key
    for step in (4, 6):
        assert tensors(run, step) == tensors(whole, step)
        for key in ("validation_loss", "loss"):
            assert state(run, step)[key] == state(whole, step)[key]
        assert "unvalidated" not in state(run, step)


@pytest.mark.slow
def test_held_out_samples_that_cannot_be_used_are_named_before_training_begins(
    zygote: launch.Zygote, small_run: list[str], shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    damaged = torn(shards, tmp_path / "damaged", spoil_one)  # one rank of the two meets it
    job = begin(zygote, small_run, run, "damaged", "zero3.json", data__shards=damaged, data__validation_percent=90)
    fails(job.wait(100), "sample 0", "shard-000000.tar", "another checksum")
    pack_rows([{"source": f"cat {n}", "target": "good"} for n in range(4)], tmp_path / "few")
    job = begin(zygote, small_run, run, "few", "zero3.json", data__shards=tmp_path / "few", data__validation_percent=1)
    fails(job.wait(100), "no sample is held out (data.validation_percent 1 of 4)", "set it to 0")
    assert not (run / "metrics.jsonl").exists()
