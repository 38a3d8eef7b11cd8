"""Whole runs that train the LLM, on real processes: gradients, resume, stages, and what is read back. Its embeddings
and its head are one weight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bridge_ds import BridgeForCausalLM, BridgeProcessor
from bridge_ds.checkpoint.load import trained_tensors
from bridge_ds.config.load import load_run_config
from bridge_ds.data.loading.corpus import open_corpus
from bridge_ds.data.loading.loader import make_loader
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.doctor.load import load_run
from bridge_ds.engine.setup import build_model
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.inference.bases import Placing, load_bases
from bridge_ds.inference.load import load_trained
from bridge_ds.world import World
from tests import tiny
from tests.engine.test_runs import lines
from tests.engine.test_trained_encoder import STEPS, Runs, alone, file
from tests.engine.test_trained_encoder import runs as runs

pytestmark = pytest.mark.slow

LLM = {"encoder__trainable": "false", "llm__trainable": "true", "llm__weight_decay": 0.1, "train__lr": 1e-3}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tiny.make_llm("llama", tmp_path_factory.mktemp("tied") / "llm", tie_word_embeddings=True)
    return LLM | {"model__llm": folder}


@pytest.fixture(scope="module")
def stage3(runs: Runs, tied: dict[str, object]) -> Path:
    """Two ranks, its layers computed again in backward; scored at the end."""
    more = {"model__activation_checkpointing": "true", "evaluation__tasks": "[testbed_news]", "evaluation__limit": 2,
            "evaluation__languages": "[en]"}  # fmt: skip
    run, said = runs("llm3", 2, **tied, **more)
    table = [line for line in said.splitlines() if line.startswith("LLM, trained, float32")]
    assert len(table) == 1 and int(table[0].split()[-1].replace(",", "")) > 10_000
    assert "the LLM alone is not scored, for this run trained it" in said
    return run


def test_gradients_are_those_of_one_process_and_a_shared_weight_has_both_its_parts(
    runs: Runs, tied: dict[str, object], stage3: Path
) -> None:
    stage2, _ = runs("llm2", 2, "zero2.json", **tied, train__steps=2)
    expected = alone(stage3)
    assert "llm.model.model.embed_tokens.weight" in expected and not any("lm_head" in name for name in expected)
    for run in (stage3, stage2):
        moments = load_file(file(run, 1, "optimizer"))
        assert {each.partition("/")[2] for each in moments} == set(expected)
        for name, wanted in expected.items():
            gradient = moments[f"exp_avg/{name}"] / (1 - 0.9)
            assert (gradient - wanted).norm() <= 1e-4 * max(float(wanted.norm()), 1e-3), (run.name, name)
    for one, other in zip(lines(stage3)[:2], lines(stage2), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
    first, last = (load_file(file(stage3, step, "llm")) for step in (1, STEPS))
    assert set(first) == {name for name in expected if name.startswith("llm.")}
    assert all(not torch.equal(first[name], last[name]) for name in first)
    assert {path.name for path in file(stage3, 1, "llm").parent.iterdir()} == {
        "bridge.safetensors", "llm.safetensors", "manifest.json", "optimizer.safetensors", "state.json"
    }  # fmt: skip
    results = json.loads((stage3 / "evaluation.json").read_text())
    assert set(results) == {"bridge", "chance", "checkpoint"} and (stage3 / "plots" / "accuracy.png").is_file()


def test_resumed_exactly_and_begun_with_by_another_run(runs: Runs, tied: dict[str, object], stage3: Path) -> None:
    runs.copy(stage3, "llm3-again", 2)
    run, said = runs("llm3-again", 2, **tied, model__activation_checkpointing="true")
    assert "(step 2, " in said
    for key in ("loss", "grad_norm", "ids_hash"):
        assert [line[key] for line in lines(run)] == [line[key] for line in lines(stage3)], key
    for part in ("bridge", "llm", "optimizer"):
        assert file(run, STEPS, part).read_bytes() == file(stage3, STEPS, part).read_bytes(), part
    # At learning rate 0, one rank, stage 2: what is saved after a step is what it began with.
    begun, _ = runs("llm-begun", 1, "zero2.json", **(tied | {"train__lr": 0}), run__start_from=stage3, train__steps=1)
    for part in ("bridge", "llm"):
        ours, theirs = load_file(file(begun, 1, part)), load_file(file(stage3, STEPS, part))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), part


def test_what_is_trained_is_read_back_everywhere(stage3: Path, tmp_path: Path) -> None:
    config = load_run_config(stage3)
    model, _, _ = load_trained(stage3, config, torch.device("cpu"))
    held = load_file(file(stage3, STEPS, "llm"))
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], tensor) for name, tensor in held.items())
    assert model.llm.model.get_output_embeddings().weight is model.llm.model.get_input_embeddings().weight
    assert load_run(stage3, torch.device("cpu")).facts["differing_weights"] == ()
    with pytest.raises(CheckpointError, match=r"llm.safetensors .*differ in llm.model.*set llm as in its config.yaml"):
        load_trained(stage3, load_run_config(stage3, ["llm.trainable=false"]), torch.device("cpu"))

    shared = BridgeForCausalLM.from_pretrained(stage3)
    processor = BridgeProcessor.from_pretrained(stage3)
    expected = shared.generate(**processor(["the cat sat"]), max_new_tokens=4)
    shared.save_pretrained(tmp_path / "shared")
    assert "llm.safetensors" in shared.card and "Both are frozen" not in shared.card
    again = BridgeForCausalLM.from_pretrained(tmp_path / "shared")
    assert torch.equal(again.generate(**processor(["the cat sat"]), max_new_tokens=4), expected)
    ours, theirs = trained_tensors(again.bridge), trained_tensors(model)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    half = BridgeForCausalLM.from_pretrained(stage3, dtype="bfloat16")
    assert half.generate(**processor(["the cat sat"]), max_new_tokens=4).shape == expected.shape
    with pytest.raises(ConfigError, match=r"is to be quantized, but this run trained it"):
        load_bases(config, None, Placing(quantization=object()))


def test_a_frozen_encoder_that_drops_resumes_exactly_however_many_are_read_together(runs: Runs) -> None:
    same = {"encoder__trainable": "false", "encoder__dropout": "true"}
    whole, _ = runs("drops", 2, **same)
    runs.copy(whole, "drops-again", 2)
    run, said = runs("drops-again", 2, **same, train__encode_once="false")
    assert "(step 2, " in said
    assert [line["loss"] for line in lines(run)] == [line["loss"] for line in lines(whole)]
    for part in ("bridge", "optimizer"):
        assert file(run, STEPS, part).read_bytes() == file(whole, STEPS, part).read_bytes(), part
    assert not file(run, STEPS, "encoder").exists()
    config = load_run_config(whole, ["train.micro_batch=8"])
    tokenizers = load_tokenizers(config.model)
    corpus = open_corpus(config.data, config.run.seed, World())
    (batch,) = next(iter(make_loader(config, World(), tokenizers, 0, corpus=corpus))).micro
    model = build_model(config, tokenizers.bos_id).eval()
    with torch.no_grad():
        calm = float(model(batch)) / batch.target_tokens
    assert abs(lines(whole)[0]["loss"] - calm) > 1e-4
