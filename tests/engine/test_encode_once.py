"""Whole runs with `train.encode_once`: the same losses, one gather of each of the encoder's parameters a step, or as
few as `train.encode_once_gib` allows, with compiled layers (`train.compile`) too; and the plan knows how many."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from bridge_ds.config.load import load_config
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.engine.step import read_together
from bridge_ds.plan.job import planned
from bridge_ds.plan.shapes import ENCODERS, find_shape
from tests import launch, tiny
from tests.engine.test_bad_input import settings
from tests.engine.test_runs import lines
from tests.made import on_bases

STEPS = 3
COMPILE = "off", "frozen"
VARIANTS = {
    # family, accumulation on each of two ranks, DeepSpeed file, micro-batches that the limit allows (none = all of
    # them; 0 = not encode_once)
    "each": ("mt5", 4, "zero3.json", 0),
    "once": ("mt5", 4, "zero3.json", None),
    "twice": ("mt5", 4, "zero3.json", 3),
    "compiled": ("mt5", 4, "zero3.json", None),  # and activation checkpointing
    "offload": ("mt5", 4, "zero3_offload.json", None),
    "xlm-r each": ("xlm-roberta", 2, "zero3.json", 1),
    "xlm-r once": ("xlm-roberta", 2, "zero3.json", None),
    "alone": ("mt5", 1, "zero3.json", None),
    "trained": ("mt5", 2, "zero3.json", 0),
    # With data.states_cache: all states are written; then all are read in the first step, and later one rank lacks its.
    "kept": ("mt5", 4, "zero3.json", None),
    "kept half": ("mt5", 4, "zero3.json", None),
}

KEPT = [name for name in VARIANTS if name.startswith("kept")]


def limit(encoder: Path, micro_batches: float) -> float:
    """train.encode_once_gib that has room for so many of 2 rows of 512 tokens in float32."""
    shape = find_shape(str(encoder), ENCODERS)
    return micro_batches * (shape.layers + 1) * 2 * 512 * shape.width * 4 / 2**30


def test_a_run_reads_as_many_together_as_its_plan_says(models: dict[str, Path]) -> None:
    base = on_bases(models, "train.micro_batch=2", "train.global_batch=256", "run.ds_config=zero3.json")
    encoder = load_encoder(load_config("testbed", base).model)
    of_one = limit(models["encoder"], 1)
    for gib, together in ((0, 1), (0.9, 1), (1, 1), (2, 2), (3.7, 3), (63.5, 63), (500, 500)):
        config = load_config("testbed", [*base, "data.max_source_tokens=512", f"train.encode_once_gib={gib * of_one}"])
        assert read_together(encoder, config) == together
        job = planned(config, 1, 2)
        assert (job.accumulation, job.together) == (64, min(64, together))
        assert job.readings == math.ceil(64 / together)
        half = load_config("testbed", [*base, "data.max_source_tokens=512", "model.dtype=bfloat16",
                                       f"train.encode_once_gib={gib * of_one}"])  # fmt: skip
        assert read_together(encoder, half) == max(1, int(2 * gib))
        # Under a budget of tokens no micro-batch has more of the encoder's.
        budget = load_config("testbed", [*base, f"train.encode_once_gib={gib * of_one}", "data.max_source_tokens=512",
                                         "data.max_target_tokens=64", "data.tokens_per_micro_batch=2048"])  # fmt: skip
        assert read_together(encoder, budget) == max(1, int(gib / 2))
        never = load_config("testbed", [*base, "train.encode_once=false"])
        assert read_together(encoder, never) == planned(never, 1, 2).together == 1


@pytest.mark.slow
def test_the_same_losses_and_one_gather_of_each_parameter_a_step(
    zygote: launch.Zygote, small_run: list[str], models: dict[str, Path], tmp_path: Path
) -> None:
    folders = {"mt5": models["encoder"], "xlm-roberta": tiny.make_encoder("xlm-roberta", tmp_path / "x", positions=520)}
    ends, losses = {}, {}
    for name, (family, accumulation, ds, room) in VARIANTS.items():
        # Half a micro-batch more, so that the last one does not fit by a hair.
        limits = {"train__encode_once_gib": limit(folders[family], room + 0.5)} if room else {}
        together = accumulation if room is None else max(1, room)
        run = tmp_path / name
        values = settings(
            run__output=run, model__encoder=folders[family], train__encode_once=room != 0, train__steps=STEPS,
            train__global_batch=4 * accumulation, data__workers=0, checkpoint__every=STEPS,
            encoder__trainable=name == "trained", data__max_source_tokens=512, **limits,
            model__activation_checkpointing=name == "compiled", train__compile=COMPILE[name == "compiled"],
            data__states_cache=tmp_path / "states" if name.startswith("kept") else "",
        )  # fmt: skip
        if name == "kept half":
            one, _ = sorted(tmp_path.glob("states/*/*.index"), key=lambda index: index.stat().st_size)
            one.write_bytes(b"".join(one.read_bytes().splitlines(keepends=True)[: 2 * accumulation]))
        counts = tmp_path / f"{name}-gathers"
        # Compiled to torch's own operators: in seconds, and with the same bits.
        env = {"ENCODER_GATHERS": str(counts), "COMPILE_BACKEND": "aot_eager"}
        job = zygote.start(["--ds_config", ds, *small_run, *values], 2, tmp_path / f"{name}-logs", env)
        said = launch.succeed(job.wait()).text
        graphs = [int(found) for found in re.findall(r"^graphs: (\d+)$", said, re.MULTILINE)]
        assert len(graphs) == 2 and (min(graphs) >= 3 if name == "compiled" else not any(graphs))
        assert "uncompiled" not in said
        for rank in range(2):
            gathers = [json.loads(line) for line in Path(f"{counts}.{rank}").read_text().splitlines()]
            assert len(gathers) == STEPS
            if name == "trained":  # by DeepSpeed: small ones stay gathered, layers come again in backward
                assert max(map(max, gathers)) > accumulation
            elif name == "kept half":
                assert [{*step} for step in gathers] == [{0}, {1}, {1}]
            else:
                assert {count for step in gathers for count in step} == {math.ceil(accumulation / together)}, name
        losses[name] = [line["loss"] for line in lines(run)]
        ends[name] = (run / "checkpoints" / f"step-{STEPS:08d}" / "bridge.safetensors").read_bytes()
    same = [("each", other) for other in ("once", "twice", "offload", "compiled", *KEPT)]
    same += [("xlm-r each", "xlm-r once")]
    for one, other in same:
        assert losses[one] == losses[other] and ends[one] == ends[other], other
    assert ends["each"] != ends["xlm-r each"]
