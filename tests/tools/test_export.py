"""tools/export.py: one folder that needs nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bridge_ds import BridgeForCausalLM, BridgeProcessor
from bridge_ds.entry import exit_status
from bridge_ds.errors import CheckpointError
from bridge_ds.hub.card import ELSEWHERE, INSIDE
from tests import tiny
from tests.made import make_run

ROOT = Path(__file__).parents[2]
TEXTS = ["the cat sat", "a dog", "猫 one river"]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export_tool", ROOT / "tools" / "export.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(run: Path) -> list[str]:
    model, processor = BridgeForCausalLM.from_pretrained(run), BridgeProcessor.from_pretrained(run)
    return processor.batch_decode(model.generate(**processor(TEXTS), max_new_tokens=8))


def test_the_folder_answers_where_nothing_else_is(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = tmp_path / "bases"
    encoder, llm = tiny.make_encoder("mt5", bases / "mt5"), tiny.make_llm("llama", bases / "llama")
    (llm / "LICENSE").write_text("Take it.")
    (encoder / "README.md").write_text("---\nlicense: mit\n---\n")
    (llm / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (llm / "pytorch_model.bin").write_bytes(b"a pickle")
    run = make_run(tmp_path / "run", [f"model.encoder={encoder}", f"model.llm={llm}"])
    expected = answers(run)
    folder = tmp_path / "out" / "mine"
    assert tool.main(["--run", str(run), "--to", "safetensors", "--output", str(folder)]) == 0
    assert "copied byte for byte" in capsys.readouterr().out
    assert (folder / "llm" / "LICENSE").read_text() == "Take it." and not list(folder.rglob("*.bin"))
    for name, base in (("encoder", encoder), ("llm", llm)):
        assert (folder / name / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert str(tmp_path) not in (folder / "config.json").read_text()
    # The card names the models that these are copies of, with their licences.
    card = (folder / "README.md").read_text()
    assert INSIDE in card and ELSEWHERE not in card and str(tmp_path) not in card
    assert "| encoder | `mt5` | mit |" in card and "| LLM | `llama` | apache-2.0 |" in card

    shutil.rmtree(bases)
    shutil.rmtree(run)
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    monkeypatch.chdir(tmp_path)
    assert answers(moved) == answers(Path("elsewhere")) == expected

    from transformers import AutoModelForCausalLM

    assert isinstance(AutoModelForCausalLM.from_pretrained(moved), BridgeForCausalLM)
    # A part of it that is not what was exported is refused.
    weights = moved / "llm" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 + 9] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"not what .* was trained with"):
        BridgeForCausalLM.from_pretrained(moved)


def test_a_model_that_is_no_safetensors_becomes_it(tool: ModuleType, tmp_path: Path) -> None:
    """As google/mt5-xl, which the hub has as pytorch_model.bin."""
    encoder, llm = tiny.make_encoder("mt5", tmp_path / "mt5"), tiny.make_llm("qwen2", tmp_path / "qwen2")
    from safetensors.torch import load_file

    torch.save(load_file(encoder / "model.safetensors"), encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()
    run = make_run(tmp_path / "run", [f"model.encoder={encoder}", f"model.llm={llm}"])
    expected = answers(run)
    assert tool.main(["--run", str(run), "--output", str(tmp_path / "out")]) == 0
    shutil.rmtree(encoder)
    shutil.rmtree(llm)
    assert answers(tmp_path / "out") == expected and not list((tmp_path / "out").rglob("*.bin"))


def test_a_config_cannot_point_out_of_its_folder(tool: ModuleType, tmp_path: Path) -> None:
    encoder, llm = tiny.make_encoder("mt5", tmp_path / "mt5"), tiny.make_llm("llama", tmp_path / "llama")
    run = make_run(tmp_path / "run", [f"model.encoder={encoder}", f"model.llm={llm}"])
    assert tool.main(["--run", str(run), "--output", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["encoder"], config["llm"]) == ("encoder", "llm")
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"llm": "../llama"}))
    from bridge_ds.hub.source import open_source

    assert open_source(str(tmp_path / "out")).config.llm == "../llama", "left as it is: not found from the folder"


def test_faults_are_one_sentence(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(told: str, *arguments: str) -> None:
        assert exit_status(lambda: tool.main(["--run", str(tmp_path / "none"), *arguments])) == 2
        assert told in capsys.readouterr().err

    fails("--output is missing")
    fails("is no option of --to safetensors", "--port", "3")
    fails("--output is given with --to prompt-embeds", "--to", "prompt-embeds", "--output", str(tmp_path / "new"))
    fails("--merge-lora is given with --to prompt-embeds", "--to", "prompt-embeds", "--merge-lora")
    fails("is there already", "--output", str(tmp_path))
    fails("give a run folder", "--output", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
