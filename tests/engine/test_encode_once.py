"""Whole runs with `train.encode_once`: the same losses, one gather of each of the encoder's parameters a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import launch, tiny
from tests.engine.test_bad_input import settings
from tests.engine.test_runs import lines

STEPS = 3
VARIANTS = {
    # family, accumulation on each of two ranks, DeepSpeed file, encode_once
    "each": ("mt5", 4, "zero3.json", False),
    "once": ("mt5", 4, "zero3.json", True),
    "offload": ("mt5", 4, "zero3_offload.json", True),
    "xlm-r each": ("xlm-roberta", 2, "zero3.json", False),
    "xlm-r once": ("xlm-roberta", 2, "zero3.json", True),
    "alone": ("mt5", 1, "zero3.json", True),
    "trained": ("mt5", 2, "zero3.json", False),
}


@pytest.mark.slow
def test_the_same_losses_and_one_gather_of_each_parameter_a_step(
    zygote: launch.Zygote, small_run: list[str], models: dict[str, Path], tmp_path: Path
) -> None:
    folders = {"mt5": models["encoder"], "xlm-roberta": tiny.make_encoder("xlm-roberta", tmp_path / "xlm-r")}
    ends, losses = {}, {}
    for name, (family, accumulation, ds, once) in VARIANTS.items():
        run = tmp_path / name
        values = settings(
            run__output=run, model__encoder=folders[family], train__encode_once=once, train__steps=STEPS,
            train__global_batch=4 * accumulation, data__workers=0, checkpoint__every=STEPS,
            encoder__trainable=name == "trained",
        )  # fmt: skip
        counts = tmp_path / f"{name}-gathers"
        job = zygote.start(
            ["--ds_config", ds, *small_run, *values], 2, tmp_path / f"{name}-logs", {"ENCODER_GATHERS": str(counts)}
        )
        launch.succeed(job.wait())
        for rank in range(2):
            gathers = [json.loads(line) for line in Path(f"{counts}.{rank}").read_text().splitlines()]
            assert len(gathers) == STEPS
            if name == "trained":  # by DeepSpeed: small ones stay gathered, layers come again in backward
                assert max(map(max, gathers)) > accumulation
            else:
                assert {count for step in gathers for count in step} == {1 if once else accumulation}, name
        losses[name] = [line["loss"] for line in lines(run)]
        ends[name] = (run / "checkpoints" / f"step-{STEPS:08d}" / "bridge.safetensors").read_bytes()
    for one, other in (("each", "once"), ("each", "offload"), ("xlm-r each", "xlm-r once")):
        assert losses[one] == losses[other] and ends[one] == ends[other], other
    assert ends["each"] != ends["xlm-r each"]
