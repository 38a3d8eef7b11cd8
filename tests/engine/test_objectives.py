"""Word mixing and self-teaching in whole runs: the same at every world size, resumed bit for bit, with its own
dictionary alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import launch
from tests.engine.test_runs import arguments, lines

pytestmark = pytest.mark.slow


def test_mixed_and_self_taught_runs_resume_bit_for_bit(small_run: list[str], tmp_path: Path) -> None:
    words = tmp_path / "words.tsv"
    words.write_text("cat\tmat\txx\ndog\train\txx\nbridge\tone two\tyy\nthe\tthree\tyy\n")
    # A weight at which this random LLM's small divergence counts as much as the task.
    same = ("data.objective=task_and_self_teaching", f"data.mix_words={words}", "train.teaching_weight=200",
            "train.teaching_temperature=2", "train.schedule=constant", "train.warmup_ratio=0", "fusion.dropout=0",
            "data.validation_percent=10", "train.validate_every=4", "checkpoint.every=2")  # fmt: skip

    def train(name: str, ranks: int, *more: str, ds: str = "zero3.json") -> launch.Outcome:
        return launch.train(arguments(small_run, tmp_path / name, *same, *more, ds=ds), ranks, tmp_path / "logs")

    said = launch.succeed(train("whole", 2, "train.steps=4")).text
    assert "text of the LLM that teaches (" in said and f"  kl {lines(tmp_path / 'whole')[-1]['kl']:.4f}  lr" in said
    launch.succeed(train("resumed", 2, "train.steps=2"))
    launch.succeed(train("resumed", 2, "train.steps=4"))
    whole, resumed = lines(tmp_path / "whole"), lines(tmp_path / "resumed")
    for key in ("loss", "kl", "grad_norm", "ids_hash", "layer_weights"):
        assert [line[key] for line in resumed] == [line[key] for line in whole], key
    last = "checkpoints/step-00000004/bridge.safetensors"
    assert (tmp_path / "resumed" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    assert whole[-1]["validation_loss"] > 4 * 200 * whole[-1]["validation_kl"] > 0.1

    # On one rank with whole models, in one micro-batch of padded rows.
    one = ("train.steps=2", "train.micro_batch=8", "train.packing=false")
    launch.succeed(train("one", 1, *one, ds="zero2.json"))
    for expected, line in zip(whole, lines(tmp_path / "one"), strict=False):
        assert line["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert line["kl"] == pytest.approx(expected["kl"], rel=1e-3) and 4 * 200 * line["kl"] > 0.1
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)

    words.write_text("cat\tmat\txx\n")
    outcome = train("one", 1, *one, ds="zero2.json")
    assert outcome.codes == [2]
    assert "was written with mix_words_sha256" in outcome.text and "Traceback" not in outcome.text


def test_replayed_samples_count_the_same_on_every_rank_and_after_a_resume(small_run: list[str], tmp_path: Path) -> None:
    """Micro-batches of two: with half of the samples replayed, in some all are, and none in others."""
    same = ("data.augment_prompt=true", "data.replay=0.5", "train.teaching_weight=400", "train.micro_batch=2",
            "train.schedule=constant", "train.warmup_ratio=0", "fusion.dropout=0", "checkpoint.every=2",
            "data.validation_percent=10", "train.validate_every=4")  # fmt: skip

    def train(name: str, ranks: int, *more: str, ds: str = "zero3.json") -> launch.Outcome:
        return launch.train(arguments(small_run, tmp_path / name, *same, *more, ds=ds), ranks, tmp_path / "logs")

    launch.succeed(train("whole", 2, "train.steps=4"))
    launch.succeed(train("resumed", 2, "train.steps=2"))
    launch.succeed(train("resumed", 2, "train.steps=4"))
    launch.succeed(train("one", 1, "train.steps=2", "train.micro_batch=8", "train.packing=false", ds="zero2.json"))
    whole, resumed = lines(tmp_path / "whole"), lines(tmp_path / "resumed")
    for key in ("loss", "kl", "grad_norm", "ids_hash", "layer_weights"):
        assert [line[key] for line in resumed] == [line[key] for line in whole], key
    for expected, line in zip(whole, lines(tmp_path / "one"), strict=False):
        assert "validation_kl" not in expected  # no held-out sample is replayed
        assert line["kl"] == pytest.approx(expected["kl"], rel=1e-3) and 400 * line["kl"] > 0.1
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
