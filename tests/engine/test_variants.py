"""Whole runs with the peers' other variants together, on real processes: resampler, layer attention, biases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bridge_ds.config.load import load_run_config
from bridge_ds.data.loading.corpus import open_corpus
from bridge_ds.data.loading.loader import make_loader
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.engine.setup import build_model
from bridge_ds.inference.load import load_trained
from bridge_ds.llm.frozen import load_llm
from bridge_ds.world import World
from tests import launch, tiny
from tests.engine.test_bad_input import settings
from tests.engine.test_runs import lines

pytestmark = pytest.mark.slow

STEPS = 3
SAME = {
    "mapping__kind": "latent", "mapping__latents": 5, "mapping__depth": 2, "mapping__heads": 2,
    "mapping__head_width": 6, "mapping__end_init": "zeros", "mapping__dropout": 0,
    "fusion__name": "layer_attention", "fusion__state_norm": "rms", "lora__rank": 2, "lora__bias": "all",
    "data__max_source_tokens": 60, "data__max_target_tokens": 20, "data__workers": 0, "train__steps": STEPS,
    "train__max_grad_norm": 0, "train__lr": 1e-3, "checkpoint__every": 1, "checkpoint__keep_last": 0,
}  # fmt: skip


class Runs:
    def __init__(self, zygote: launch.Zygote, small_run: list[str], root: Path) -> None:
        self.zygote, self.root = zygote, root
        self.common = [*small_run, *settings(model__llm=tiny.make_llm("qwen2", root / "llm"))]

    def __call__(self, name: str, ranks: int, ds: str | Path, **more: Any) -> Path:
        values = {"run__output": self.root / name} | SAME | more
        arguments = ["--ds_config", str(ds), *self.common, *settings(**values)]
        job = self.zygote.start(arguments, ranks, self.root / f"{name}-logs")
        said = launch.succeed(job.wait(120)).text
        assert "LoRA on the LLM, float32" in said
        return self.root / name


@pytest.fixture(scope="module")
def runs(zygote: launch.Zygote, small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(zygote, small_run, tmp_path_factory.mktemp("variants"))


@pytest.fixture(scope="module")
def stage3(runs: Runs) -> Path:
    """Two ranks; no parameter is so small that it would stay gathered."""
    values = json.loads(Path("ds_configs/zero3.json").read_text())
    values["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    ds = runs.root / "gather_all.json"
    ds.write_text(json.dumps(values))
    return runs("stage3", 2, ds)


def file(run: Path, step: int, name: str) -> Path:
    return run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors"


def test_gradients_of_all_of_it_are_those_of_one_process_in_every_stage(runs: Runs, stage3: Path) -> None:
    """After one unclipped step AdamW's first moment is (1 - beta1) times the gradient that the optimizer was given."""
    stage2 = runs("stage2", 2, "zero2.json")
    config = load_run_config(stage3, ["train.micro_batch=8"])
    tokenizers = load_tokenizers(config.model)
    corpus = open_corpus(config.data, config.run.seed, World())
    (batch,) = next(iter(make_loader(config, World(), tokenizers, 0, corpus=corpus))).micro
    model = build_model(config, tokenizers.bos_id).train()
    model.mapping.scale.copy_(load_file(file(stage3, 1, "bridge"))["mapping.scale"])
    # Soft tokens leave the norm with an RMS of 1; the end vector, which starts from zeros, says nothing of their scale.
    usual = model.llm.model.get_input_embeddings().weight.pow(2).mean(-1).sqrt().median()
    assert float(model.mapping.scale) == pytest.approx(float(usual), rel=2e-3)
    assert not model.mapping.end.any()
    (model(batch) / batch.target_tokens).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert sum(name.endswith("trained_bias") for name in expected) == 6
    for run in (stage3, stage2):
        moments = load_file(file(run, 1, "optimizer"))
        assert {each.partition("/")[2] for each in moments} == set(expected)
        for name, wanted in expected.items():
            gradient = moments[f"exp_avg/{name}"] / (1 - 0.9)
            assert (gradient - wanted).norm() <= 2e-4 * max(float(wanted.norm()), 1e-3), (run.name, name)
    for one, other in zip(lines(stage3), lines(stage2), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert len(one["layer_weights"]) == tiny.LAYERS
    for part in ("lora", "bridge"):
        first, last = (load_file(file(stage3, step, part)) for step in (1, STEPS))
        assert all(name == "mapping.scale" or not torch.equal(first[name], last[name]) for name in first)


def test_resumed_exactly_and_in_another_stage(runs: Runs, stage3: Path) -> None:
    for name, ranks, ds in (("same", 2, runs.root / "gather_all.json"), ("one", 1, "zero2.json")):
        shutil.copytree(stage3, runs.root / name, ignore=shutil.ignore_patterns("heartbeat", "plots"))
        for step in range(2, STEPS + 1):
            shutil.rmtree(file(runs.root / name, step, "x").parent)
        run = runs(name, ranks, ds)
        for whole, line in zip(lines(stage3), lines(run), strict=True):
            assert line["loss"] == pytest.approx(whole["loss"], abs=1e-4)
        for part in ("bridge", "lora", "optimizer") if ranks == 2 else ():
            assert file(run, STEPS, part).read_bytes() == file(stage3, STEPS, part).read_bytes(), part


def test_biases_beside_bfloat16_are_trained_in_float32_and_read_back(runs: Runs) -> None:
    run = runs("bfloat16", 2, "zero3.json", model__dtype="bfloat16", lora__bias="lora_only", lora__targets="[q_proj]")
    held = load_file(file(run, STEPS, "lora"))
    biases = {name: tensor for name, tensor in held.items() if name.endswith("trained_bias")}
    assert len(biases) == 2 and {tensor.dtype for tensor in held.values()} == {torch.float32}
    assert any(not torch.equal(tensor.bfloat16().float(), tensor) for tensor in biases.values())
    config = load_run_config(run)
    model, _, _ = load_trained(run, config, torch.device("cpu"))
    parameters, plain = dict(model.named_parameters()), load_llm(config.model)
    assert all(torch.equal(parameters[name], tensor) for name, tensor in held.items())
    embeds, places = plain.embed(torch.tensor([[5, 6, 7]])), torch.arange(3)
    with torch.no_grad():
        expected = plain.logits_at(embeds, places)[0]
        assert not torch.equal(model.llm.logits_at(embeds, places)[0], expected)
        with model.llm.without_adapters():
            assert torch.equal(model.llm.logits_at(embeds, places)[0], expected)
