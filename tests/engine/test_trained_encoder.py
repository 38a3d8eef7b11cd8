"""Whole runs that train the encoder, on real processes: gradients, resume, stages, and what is read back."""

from __future__ import annotations

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
from bridge_ds.doctor.load import load_run
from bridge_ds.engine.setup import build_model
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.inference.load import load_trained
from bridge_ds.llm.frozen import load_llm
from bridge_ds.world import World
from tests import launch
from tests.engine.test_bad_input import settings
from tests.engine.test_runs import lines
from tests.made import make_run

pytestmark = pytest.mark.slow

STEPS = 4
SAME = {
    "encoder__trainable": "true", "encoder__lr_scale": 0.5, "fusion__dropout": 0,
    "mapping__match_embedding_rms": "false", "data__max_source_tokens": 200, "data__workers": 0,
    "train__steps": STEPS, "train__max_grad_norm": 0, "checkpoint__every": 1, "checkpoint__keep_last": 0,
}  # fmt: skip


class Runs:
    """Starts one run after the other from one process that has imported everything."""

    def __init__(self, zygote: launch.Zygote, small_run: list[str], root: Path) -> None:
        self.zygote, self.small_run, self.root = zygote, small_run, root

    def __call__(self, name: str, ranks: int, ds: str = "zero3.json", **more: Any) -> tuple[Path, str]:
        """The run's folder, and what its ranks said."""
        values = {"run__output": self.root / name} | SAME | more
        arguments = ["--ds_config", ds, *self.small_run, *settings(**values)]
        job = self.zygote.start(arguments, ranks, self.root / f"{name}-logs")
        return self.root / name, launch.succeed(job.wait(120)).text

    def copy(self, run: Path, name: str, steps: int) -> None:
        """`run` as it was after so many steps."""
        folder = self.root / name
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("heartbeat", "plots"))
        for step in range(steps + 1, STEPS + 1):
            shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}")


@pytest.fixture(scope="module")
def runs(zygote: launch.Zygote, small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(zygote, small_run, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def stage3(runs: Runs) -> Path:
    """Two ranks, the encoder's layers computed again in backward."""
    run, said = runs("stage3", 2, encoder__activation_checkpointing="true")
    table = [line for line in said.splitlines() if line.startswith("encoder, trained, float32")]
    assert len(table) == 1 and int(table[0].split()[-1].replace(",", "")) > 10_000
    return run


def file(run: Path, step: int, name: str) -> Path:
    return run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors"


def alone(run: Path) -> dict[str, torch.Tensor]:
    """Gradients of the run's first step, without DeepSpeed, in one process: autograd over its whole global batch."""
    config = load_run_config(run, ["train.micro_batch=8", "encoder.activation_checkpointing=false"])
    tokenizers = load_tokenizers(config.model)
    corpus = open_corpus(config.data, config.run.seed, World())
    (batch,) = next(iter(make_loader(config, World(), tokenizers, 0, corpus=corpus))).micro
    model = build_model(config, tokenizers.bos_id).train()
    (model(batch) / batch.target_tokens).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_gradients_are_those_of_one_process_and_stages_agree(runs: Runs, stage3: Path) -> None:
    """After one unclipped step AdamW's first moment is (1 - beta1) times the gradient that the optimizer was given."""
    stage2, _ = runs("stage2", 2, "zero2.json")
    # The first layer's inputs want no gradient then; with whole layers gathered at once its own would be lost.
    table, _ = runs("table", 1, train__steps=1, encoder__train_embeddings="false")
    expected = alone(stage3)
    for run in (stage3, stage2, table):
        moments = load_file(file(run, 1, "optimizer"))
        left_out = {"encoder.model.shared.weight"} if run == table else set()
        assert {each.partition("/")[2] for each in moments} == set(expected) - left_out
        assert sum(name.startswith("encoder.") for name in expected) > 20
        for name in set(expected) - left_out:
            wanted = expected[name]
            gradient = moments[f"exp_avg/{name}"] / (1 - 0.9)
            assert (gradient - wanted).norm() <= 1e-4 * max(float(wanted.norm()), 1e-3), (run.name, name)
    for one, other in zip(lines(stage3), lines(stage2), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    first, last = (load_file(file(stage3, step, "encoder")) for step in (1, STEPS))
    assert all(not torch.equal(first[name], last[name]) for name in first)
    assert set(load_file(file(stage3, 1, "bridge"))) == {n for n in expected if not n.startswith("encoder.")} | {
        "mapping.scale"
    }


def test_resumed_exactly_and_on_another_number_of_ranks(runs: Runs, stage3: Path) -> None:
    for name, ranks, ds in (("same", 2, "zero3.json"), ("one", 1, "zero2.json")):
        runs.copy(stage3, name, 2)
        run, said = runs(name, ranks, ds, encoder__activation_checkpointing="true")
        assert "(step 2, " in said
        for whole, line in zip(lines(stage3), lines(run), strict=True):
            assert line["ids_hash"] == whole["ids_hash"]
            assert line["loss"] == pytest.approx(whole["loss"], abs=1e-4)
            assert ranks == 1 or line["loss"] == whole["loss"]
        if ranks == 2:
            for part in ("bridge", "encoder", "optimizer"):
                assert file(run, STEPS, part).read_bytes() == file(stage3, STEPS, part).read_bytes(), part


def test_what_is_trained_is_read_back(stage3: Path) -> None:
    model, _, checkpoint = load_trained(stage3, load_run_config(stage3), torch.device("cpu"))
    held = load_file(file(stage3, STEPS, "encoder"))
    assert checkpoint.step == STEPS and set(held) == {f"encoder.{name}" for name in model.encoder.trained}
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], tensor) for name, tensor in held.items())
    # The doctor holds against the files only what is not trained.
    assert load_run(stage3, torch.device("cpu")).facts["differing_weights"] == ()
    with pytest.raises(CheckpointError, match=r"differ in encoder.model.*set encoder as in its config.yaml"):
        load_trained(stage3, load_run_config(stage3, ["encoder.trainable=false"]), torch.device("cpu"))


def test_lora_begins_with_another_runs_bridge(runs: Runs, small_run: list[str]) -> None:
    base = [value for value in small_run if value != "--set"]
    made = make_run(runs.root / "mapping", [*base, "model.dtype=bfloat16"], scale=0.25)
    run, said = runs(
        "lora", 2, run__start_from=made, model__dtype="bfloat16", encoder__trainable="false", lora__rank=2,
        train__lr=1e-4, lora__dropout=0.1,
    )  # fmt: skip
    assert f"beginning with the weights of {made}" in said
    before, after = (load_file(file(of, 1, "bridge")) for of in (made, run))
    assert after["mapping.scale"] == 0.25 and before.keys() == after.keys()
    assert all((after[name] - before[name]).abs().max() < 2e-4 for name in before)

    updates = load_file(file(run, STEPS, "lora"))
    assert {tensor.dtype for tensor in updates.values()} == {torch.float32}
    assert all(tensor.abs().sum() > 0 for name, tensor in updates.items() if "lora_B" in name)
    config = load_run_config(run)
    model, _, _ = load_trained(run, config, torch.device("cpu"))
    plain = load_llm(config.model)
    ids = torch.tensor([[5, 6, 7]])
    embeds, places = plain.embed(ids), torch.arange(3)
    with torch.no_grad():
        expected = plain.logits_at(embeds, places)[0]
        assert not torch.equal(model.llm.logits_at(embeds, places)[0], expected)
        with model.llm.without_adapters():
            assert torch.equal(model.llm.logits_at(embeds, places)[0], expected)
    assert model.llm.trained == {name.removeprefix("llm.") for name in updates}
    with pytest.raises(ConfigError, match=r"lora.targets \['nothing'\] do not fit the LLM"):
        load_trained(run, load_run_config(run, ["lora.targets=[nothing]"]), torch.device("cpu"))
