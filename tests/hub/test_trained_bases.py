"""Runs that trained the encoder or updates of the LLM: what they learned goes wherever the bridge goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from bridge_ds import BridgeForCausalLM, BridgeProcessor
from bridge_ds.checkpoint.load import trained_tensors
from bridge_ds.config.load import load_run_config
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from bridge_ds.hub.export import export
from bridge_ds.inference.load import load_trained
from bridge_ds.serve.backends import ServedModel
from bridge_ds.serve.vllm import VllmBackend, VllmClient
from tests.llm.test_lora import with_adapter
from tests.made import make_run

TEXTS = ["the cat sat", "a dog and one river"]


@pytest.fixture(scope="module")
def run(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = [f"model.encoder={bases['mt5']}", f"model.llm={bases['llama']}", "data.max_target_tokens=8"]
    folder = tmp_path_factory.mktemp("trained") / "run"
    return make_run(folder, [*settings, "encoder.trainable=true", "encoder.train_embeddings=false", "lora.rank=2"])


def logits(model: BridgeForCausalLM, processor: BridgeProcessor) -> torch.Tensor:
    written = model.generate(**processor(TEXTS), max_new_tokens=4, return_dict_in_generate=True, output_logits=True)
    return torch.stack(written.logits)


def test_all_of_it_is_loaded_and_shared(run: Path, tmp_path: Path) -> None:
    model, processor = BridgeForCausalLM.from_pretrained(run), BridgeProcessor.from_pretrained(run)
    ours = trained_tensors(model.bridge)
    config = load_run_config(run)
    theirs = trained_tensors(load_trained(run, config, torch.device("cpu"))[0])
    assert {name.partition(".")[0] for name in ours} == {"encoder", "fusion", "mapping", "llm"}
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    expected = logits(model, processor)

    model.save_pretrained(tmp_path / "one")
    again = BridgeForCausalLM.from_pretrained(tmp_path / "one")
    assert torch.equal(logits(again, processor), expected)
    again.save_pretrained(tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"encoder.safetensors", "lora.safetensors", "bridge.safetensors"} < set(names)
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert "encoder.safetensors" in model.card and "low-rank" in model.card and "Both are frozen" not in model.card

    # The updates matter: without them it is another model.
    with model.bridge.llm.without_adapters():
        assert not torch.allclose(logits(model, processor), expected)
    (tmp_path / "two" / "lora.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no lora\.safetensors"):
        BridgeForCausalLM.from_pretrained(tmp_path / "two")


def test_export_takes_it_along_and_a_foreign_llm_does_not_get_it(run: Path, tmp_path: Path) -> None:
    model, processor = BridgeForCausalLM.from_pretrained(run), BridgeProcessor.from_pretrained(run)
    bases = load_run_config(run).model
    # As models that are published without safetensors.
    for part, name in (("encoder", bases.encoder), ("llm", bases.llm)):
        folder = shutil.copytree(name, tmp_path / part)
        if part == "llm":
            from safetensors.torch import load_file

            torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
    places = {"encoder": str(tmp_path / "encoder"), "llm": str(tmp_path / "llm")}
    export(str(run), tmp_path / "out", allow_base_mismatch=True, **places)
    shutil.rmtree(tmp_path / "llm")
    exported = BridgeForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(exported, processor), logits(model, processor))

    answerer = Pipeline.load(str(run), GenerateOptions())
    # Half a file of answers is not continued by other updates.
    before = answerer.identity()
    assert before == answerer.identity()
    with torch.no_grad():
        next(p for name, p in answerer.model.bridge.llm.named_parameters() if "lora_B" in name).add_(0.1)
    assert answerer.identity() != before
    with pytest.raises(ConfigError, match=r"updates of the LLM \(lora\.rank\)"):
        VllmBackend(ServedModel(answerer.model), VllmClient("http://127.0.0.1:9"), 1)


def test_an_adapter_of_a_base_model_is_never_left_out_of_an_export(bases: dict[str, Path], tmp_path: Path) -> None:
    whole = with_adapter(bases["llama"], tmp_path / "whole")
    alone = tmp_path / "alone"  # peft names the folder of its model in it
    alone.mkdir()
    for path in [*whole.glob("adapter_*"), *whole.glob("tokenizer*")]:
        shutil.copy(path, alone)
    for folder in (whole, alone):
        settings = [f"model.encoder={bases['mt5']}", f"model.llm={folder}"]
        run = make_run(tmp_path / f"run_{folder.name}", settings)
        with pytest.raises(ConfigError, match=f"the llm {folder} has an adapter of PEFT"):
            export(str(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()
