"""A base model or a tokenizer with one change is refused at every door; one that is a `.bin` like any other."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bridge_ds import BridgeForCausalLM, BridgeProcessor
from bridge_ds.checkpoint.layout import manifest_sha256
from bridge_ds.config.load import load_run_config, save_config
from bridge_ds.doctor.load import load_run
from bridge_ds.entry import exit_status
from bridge_ds.errors import BridgeError, CheckpointError
from bridge_ds.hub.export import export
from bridge_ds.inference.load import load_trained
from tests import launch, tiny
from tests.frozen.test_identity import CHANGES
from tests.made import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("other_bases")
    encoder, llm = tiny.make_encoder("mt5", root / "encoder"), tiny.make_llm("llama", root / "llm")
    return make_run(root / "run", [f"model.encoder={encoder}", f"model.llm={llm}"])


def tensor(folder: Path) -> None:
    """The last norm of the last layer that is loaded: far from the file's middle."""
    tensors = load_file(folder / "model.safetensors")
    name = [each for each in sorted(tensors) if "norm" in each and "decoder" not in each][-1]
    tensors[name][-1] += 0.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


ALL: dict[str, Callable[[Path], None]] = {"tensor": tensor, **CHANGES}


@pytest.mark.parametrize("part", ["encoder", "llm"])
@pytest.mark.parametrize("change", ["tensor", "merge or score", "normaliser", "chat template", "special token"])
def test_a_base_model_with_one_change_is_refused_by_evaluation_hub_export_and_settings_by_the_doctor(
    run: Path, part: str, change: str, tmp_path: Path
) -> None:
    folder = run.with_name(part)
    kept = shutil.copytree(folder, tmp_path / "kept")
    config = load_run_config(run)
    try:
        ALL[change](folder)
        with pytest.raises(CheckpointError, match=r"not what .* was trained with"):
            load_trained(run, config, torch.device("cpu"))  # evaluation, harness
        with pytest.raises(CheckpointError, match=r"not what .* was trained with"):
            BridgeForCausalLM.from_pretrained(run)  # generate, serve
        if change != "tensor":
            with pytest.raises(BridgeError, match=r"the tokenizer of the .* is not what .* was trained with"):
                BridgeProcessor.from_pretrained(run)
        elif part == "llm":
            with pytest.raises(CheckpointError, match=r"not what .* was trained with"):
                export(str(run), tmp_path / "out")
        key = part if change == "tensor" else f"{part}_tokenizer"
        assert load_run(run, torch.device("cpu")).facts["changed"] == (key,)
    finally:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    BridgeForCausalLM.from_pretrained(run)


def test_other_end_ids_are_refused_at_every_door_and_a_checkpoint_that_records_none_is_taken(
    run: Path, tmp_path: Path
) -> None:
    """Beside the tokenizer's end token those of generation_config.json end an answer, and it is no weight."""
    run = shutil.copytree(run, tmp_path / "run")
    llm = shutil.copytree(load_run_config(run).model.llm, tmp_path / "llm")
    config = load_run_config(run)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, llm=str(llm)))
    save_config(config, run / "config.yaml")
    path = next(run.glob("checkpoints/*/manifest.json"))
    manifest = json.loads(path.read_text())
    assert manifest["base"]["llm_end_ids"] == "1"
    settings = json.loads((llm / "generation_config.json").read_text())
    (llm / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [1, 262], "temperature": 0.3}))
    with pytest.raises(CheckpointError, match=r"end ids of the LLM .* \(1,262,.* not what .* were 1\)"):
        load_trained(run, config, torch.device("cpu"))
    with pytest.raises(CheckpointError, match="the set of end ids of"):
        BridgeForCausalLM.from_pretrained(run)
    assert load_run(run, torch.device("cpu")).facts["changed"] == ("llm_end_ids",)
    (llm / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.3, "do_sample": True}))
    BridgeForCausalLM.from_pretrained(run)  # what is not used may be another

    del manifest["base"]["llm_end_ids"]
    path.write_text(json.dumps(manifest | {"sha256": manifest_sha256(manifest)}))
    (llm / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [1, 262]}))
    assert BridgeForCausalLM.from_pretrained(run).generation_config.eos_token_id == [1, 262]
    assert load_run(run, torch.device("cpu")).facts["changed"] == ()


def test_a_model_as_pytorch_model_bin_is_taken_and_proven_by_preflight_training_and_use(
    small_run: list[str], models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util
    import sys

    script = Path(__file__).parents[2] / "tools" / "preflight.py"
    spec = importlib.util.spec_from_file_location("preflight_of_bin", script)
    assert spec and spec.loader
    preflight = sys.modules["preflight_of_bin"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(preflight)
    folder, run = shutil.copytree(models["encoder"], tmp_path / "encoder"), tmp_path / "run"
    file = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), file)
    (folder / "model.safetensors").unlink()
    settings = [*small_run, "--set", f"model.encoder={folder}", "--set", f"run.output={run}", "--set", "train.steps=2"]
    assert preflight.main(settings) == 0 and "encoder     0.00 GiB in 1 file" in capsys.readouterr().out
    launch.succeed(launch.train(settings, 1, tmp_path / "one"))
    (manifest,) = run.glob("checkpoints/*/manifest.json")
    recorded = json.loads(manifest.read_text())["base"]
    assert recorded.pop("llm_end_ids") == "1" and all(value.startswith("2:") for value in recorded.values())

    whole = file.read_bytes()
    tensors = torch.load(file, weights_only=True)
    tensors[max(name for name in tensors if name.startswith("encoder."))].mul_(0)
    torch.save(tensors, file)
    outcome = launch.train([*settings, "--set", "train.steps=4"], 1, tmp_path / "two")
    assert outcome.codes == [2] and f"the encoder {str(folder)!r} is not what " in outcome.text, outcome.text[-3000:]
    with pytest.raises(CheckpointError, match="was trained with"):
        BridgeForCausalLM.from_pretrained(run)
    file.write_bytes(whole[:-1000])
    assert exit_status(lambda: preflight.main(settings)) == 2
    assert "is no file of torch, or its end is missing" in capsys.readouterr().err
    with pytest.raises(BridgeError, match="cannot be read"):
        BridgeForCausalLM.from_pretrained(run)
    file.write_bytes(whole)
    BridgeForCausalLM.from_pretrained(run)
