"""Whole runs with `data.states_cache`: resumed they write the same bytes, and after `bridge-ds encode` they need no
encoder."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from bridge_ds.commands.encode import main
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.entry import exit_status
from tests import launch, tiny
from tests.conftest import WORDS
from tests.engine.test_bad_input import settings
from tests.engine.test_runs import lines

SAMPLES, BATCH, STEPS = 60, 8, 9
TEXTS = [" ".join([f"{number}", *random.Random(number).choices(WORDS, k=number % 17)]) for number in range(SAMPLES)]


@pytest.mark.slow
def test_runs_resume_in_every_bit_and_need_no_encoder_once_all_is_encoded(
    zygote: launch.Zygote, small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "shards"
    pack_rows([{"source": text, "target": WORDS[len(text) % 7]} for text in TEXTS], shards, samples_per_shard=25)
    common = [*small_run, *settings(
        data__shards=shards, data__validation_percent=20, train__steps=STEPS, train__global_batch=BATCH,
        train__micro_batch=4, train__validate_every=3, checkpoint__every=2, checkpoint__keep_last=0,
        train__packing=True, fusion__dropout=0, data__workers=0,
    )]  # fmt: skip

    def run(name: str, states: str, ranks: int, ds: str) -> tuple[Path, str]:
        values = settings(run__output=tmp_path / name, data__states_cache=tmp_path / states)
        job = zygote.start(["--ds_config", ds, *common, *values], ranks, tmp_path / f"{name}-logs")
        return tmp_path / name, launch.succeed(job.wait()).text

    first, said = run("first", "states", 1, "zero2.json")
    assert "encoder states in" in said and "0 GiB are there" in said and "not loaded" not in said
    checkpoints = first / "checkpoints"
    end = (checkpoints / f"step-{STEPS:08d}" / "bridge.safetensors").read_bytes()
    before = lines(first)
    # Killed in the second epoch, and back to a step of the first: steps that computed now read.
    for step in range(4, STEPS + 1):
        shutil.rmtree(checkpoints / f"step-{step:08d}", ignore_errors=True)
    (checkpoints / "best").unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in tmp_path.glob("states/*/*.states"))
    run("first", "states", 1, "zero2.json")
    after = lines(first)
    assert (checkpoints / f"step-{STEPS:08d}" / "bridge.safetensors").read_bytes() == end
    for key in ("loss", "grad_norm", "validation_loss"):
        assert [line.get(key) for line in after] == [line.get(key) for line in before]
    assert size == sum(path.stat().st_size for path in tmp_path.glob("states/*/*.states"))
    # The same at another world size and stage, from the same step: the same samples, and losses but for rounding.
    shutil.copytree(first, tmp_path / "wide")
    for step in range(4, STEPS + 1):
        shutil.rmtree(tmp_path / "wide" / "checkpoints" / f"step-{step:08d}", ignore_errors=True)
    (tmp_path / "wide" / "checkpoints" / "best").unlink(missing_ok=True)
    wide, _ = run("wide", "states", 2, "zero3.json")
    assert len(lines(wide)) == len(before)
    for one, two in zip(before, lines(wide), strict=True):
        assert (two["ids_hash"], two["consumed"]) == (one["ids_hash"], one["consumed"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)

    encode = [*common, *settings(data__states_cache=tmp_path / "ahead")]
    assert main([*encode, "--dry-run"]) == 0 and not list(tmp_path.glob("ahead/*/*.states"))
    assert main([*encode, "--tokens", "200"]) == 0
    files = sorted(tmp_path.glob("ahead/*/*.states"))
    # All texts, and the token of padding that stands for a bad sample.
    assert sum(path.stat().st_size for path in files) == size + tiny.LAYERS * tiny.D * 4
    assert main(encode) == 0 and sorted(tmp_path.glob("ahead/*/*.states")) == files
    other, said = run("other", "ahead", 2, "zero3.json")
    assert "the encoder is not loaded: bridge-ds encode has written the states of all texts" in said
    assert "encoder, frozen" in said
    for one, two in zip(before, lines(other), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two.keys() == one.keys()
        assert two.get("validation_loss", 0) == pytest.approx(one.get("validation_loss", 0), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__states_cache": ""}, "data.states_cache is empty; expected a folder"),
        ({"encoder__trainable": "true"}, "no encoder states can be kept, as encoder.trainable is true"),
        ({"data__objective": "prefix_lm"}, "as data.objective prefix_lm splits a text anew in each epoch"),
        ({"data__shards": "testbed/english"}, "data.shards is testbed/english, which the first start of a run writes"),
    ],
)
def test_what_cannot_be_encoded_is_refused(
    small_run: list[str], capsys: pytest.CaptureFixture[str], changes: dict[str, str], words: str
) -> None:
    values = settings(**{"data__states_cache": "states", **changes})
    assert exit_status(lambda: main([*small_run, *values])) == 2
    assert words in capsys.readouterr().err
