"""Every shipped DeepSpeed file trains; hpZ on two nodes equals plain ZeRO-3; gathers run ahead of backward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.plan.shapes import LLMS, find_shape
from tests import launch, tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.name for path in (ROOT / "ds_configs").glob("*.json"))


def run(small_run: list[str], ds: str, folder: Path, ranks: int, *more: str, **env: str) -> launch.Outcome:
    settings = [part for setting in (f"run.output={folder}", *more) for part in ("--set", setting)]
    return launch.succeed(launch.train(["--ds_config", ds, *small_run, *settings], ranks, folder / "logs", env))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_shipped_file_trains(small_run: list[str], models: dict[str, Path], tmp_path: Path) -> None:
    losses = {}
    layer = find_shape(str(models["llm"]), LLMS).layer  # what a dry run and the planner know
    for name in SHIPPED:
        outcome = run(small_run, name, tmp_path / name, 2, "train.steps=3", "fusion.dropout=0")
        losses[name] = [line["loss"] for line in lines(tmp_path / name / "metrics.jsonl")]
        assert len(losses[name]) == 3
        # Two ranks of one node.
        assert ("hpZ             off:" in outcome.outputs[0]) == (name == "zero3_hpz.json")
        said = f"ZeRO-3 gathers  {layer:,} elements ahead, up to {3 * layer:,}, kept over {layer:,}"
        assert (said in outcome.outputs[0]) == name.startswith("zero3"), outcome.outputs[0]
    assert {"zero2.json", "zero3.json", "zero3_hpz.json", "zero3_offload.json"} <= set(losses)
    for name in SHIPPED:
        assert losses[name] == pytest.approx(losses["zero3.json"], abs=1e-5), name
    assert losses["zero3_hpz.json"] == losses["zero3_offload.json"] == losses["zero3.json"]


def test_two_nodes_with_a_copy_each_equal_plain_zero3(small_run: list[str], tmp_path: Path) -> None:
    found = {}
    for name in ("zero3.json", "zero3_hpz.json"):
        folder = tmp_path / name
        env = {"LOCAL_WORLD_SIZE": "2", "GATHERS": str(tmp_path / f"{name}.gathers")}
        outcome = run(small_run, name, folder, 4, "train.steps=10", **env)
        found[name] = lines(folder / "metrics.jsonl")
        for rank in range(4):
            second = [line["second"] for line in lines(tmp_path / f"{name}.gathers.{rank}")]
            assert second == [[2] if name == "zero3_hpz.json" else []] * 10
    assert "a second copy of the shards in each 2 ranks" in outcome.outputs[0]
    plain, copied = found.values()
    assert [line["step"] for line in plain] == list(range(1, 11))
    for key in ("loss", "grad_norm", "layer_weights", "ids_hash"):
        assert [line[key] for line in copied] == [line[key] for line in plain], key
    saved = [tmp_path / name / "checkpoints/step-00000010/bridge.safetensors" for name in found]
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_ranks_of_a_node_that_do_not_follow_one_another_are_refused(small_run: list[str], tmp_path: Path) -> None:
    arguments = ["--ds_config", "zero3_hpz.json", *small_run, "--set", f"run.output={tmp_path / 'run'}"]
    env = {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    outcome = launch.train(arguments, 4, tmp_path / "logs", env)
    assert outcome.codes == [2] * 4, outcome.text
    assert "error: rank 1 is number 0 of the 2 on its node; expected" in outcome.outputs[0]
    assert "Traceback" not in outcome.text


# A layer, the embedding table beside it, and the encoder's embedding have the ratios of Llama 2 13B and Llama 3.1 70B
# (1 : 0.52 and 1 : 1.23); no matrix is so small that it would never be gathered (stage3_param_persistence_threshold).
SCALED = {
    "13b": {"hidden_size": 128, "intermediate_size": 346, "head_dim": 32, "vocab_size": 803, "num_attention_heads": 4,
            "num_key_value_heads": 4},
    "70b": {"hidden_size": 320, "intermediate_size": 1120, "head_dim": 40, "vocab_size": 5012, "num_attention_heads": 8,
            "num_key_value_heads": 1},
}  # fmt: skip
# What was shipped before, in layers of the real model: 50 M, 500 M, 500 M elements.
BEFORE = {"13b": (0.158, 1.58, 1.58), "70b": (0.058, 0.584, 0.584)}


@pytest.mark.parametrize(("name", "recompute"), [("13b", "false"), ("70b", "true")])
def test_what_backward_gathers_was_asked_for_ahead(
    name: str, recompute: str, small_run: list[str], tmp_path: Path
) -> None:
    shape = SCALED[name]
    llm = tiny.make_llm("llama", tmp_path / "llm", **shape, num_hidden_layers=6)
    width, ffn, kv = shape["hidden_size"], shape["intermediate_size"], shape["num_key_value_heads"] * shape["head_dim"]
    layer = 2 * width * (width + kv) + 3 * width * ffn + 2 * width
    largest = shape["vocab_size"] * width
    shares = {}
    for kind, layers in (("resolved", None), ("before", BEFORE[name])):
        values = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
        keys = ("stage3_prefetch_bucket_size", "stage3_max_live_parameters", "stage3_max_reuse_distance")
        if layers:
            values["zero_optimization"] |= {key: int(n * layer) for key, n in zip(keys, layers, strict=True)}
        (tmp_path / f"{kind}.json").write_text(json.dumps(values))
        more = [f"model.llm={llm}", f"model.activation_checkpointing={recompute}", "train.steps=2"]
        gathers = tmp_path / f"{kind}.gathers"
        run(small_run, str(tmp_path / f"{kind}.json"), tmp_path / kind, 2, *more, GATHERS=str(gathers))
        for rank in range(2):
            last = lines(Path(f"{gathers}.{rank}"))[-1]  # in the first step DeepSpeed only notes the order of modules
            shares[kind] = last["ahead"] / (last["ahead"] + last["late"])
            if not layers:
                assert last["sizes"] == [layer, 3 * layer, layer]
                assert last["held"] <= 3 * layer + largest
    assert shares["resolved"] >= 0.95
    assert shares["before"] < 0.6
