"""Loading of base models: what may be missing, what is refused, where a model is looked for. One sentence each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bridge_ds.config.load import load_config
from bridge_ds.config.names import found_beside, with_full_paths
from bridge_ds.config.schema import ModelConfig
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.identity import model_identity, weak_model_identity
from bridge_ds.llm.frozen import load_llm
from tests import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_llm("llama", tmp_path_factory.mktemp("bases") / "llama")


def test_a_pooler_that_nobody_reads_may_be_missing(tmp_path: Path) -> None:
    """Of a class that makes one, whatever it is called; a weight that is read may not, and one too many is ignored."""
    import transformers as tf

    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 40}  # fmt: skip
    tf.CamembertForMaskedLM(tf.CamembertConfig(**sizes)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert not any("pooler" in name for name in tensors) and any("lm_head" in name for name in tensors)
    encoder = load_encoder(ModelConfig(encoder=str(tmp_path), dtype="float32"))
    ids = torch.tensor([[3, 4, 5]])
    states = encoder(ids, torch.ones_like(ids))
    whole = tf.CamembertForMaskedLM.from_pretrained(tmp_path).roberta(ids, output_hidden_states=True).hidden_states
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(states, whole[1:], strict=True))
    used = next(name for name in tensors if name.endswith("1.output.dense.bias"))
    save_file({k: v for k, v in tensors.items() if k != used}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lacks 1 weights, such as encoder\.layer\.1\.output\.dense\.bias"):
        load_encoder(ModelConfig(encoder=str(tmp_path), dtype="float32"))


@pytest.mark.parametrize("name", ["MegatronBert", "Longformer"])
def test_a_class_that_looks_at_its_ids_may_lack_a_pooler_too(name: str, tmp_path: Path) -> None:
    """One looks for padding, which it does not without a pad token; the other cannot run without numbers at all."""
    import transformers as tf

    sizes = {"vocab_size": 99, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 40}  # fmt: skip
    getattr(tf, f"{name}ForMaskedLM")(getattr(tf, f"{name}Config")(**sizes)).save_pretrained(tmp_path)
    load_encoder(ModelConfig(encoder=str(tmp_path), dtype="float32"))
    tensors = load_file(tmp_path / "model.safetensors")
    used = next(name for name in tensors if name.endswith("1.output.dense.bias"))
    save_file({k: v for k, v in tensors.items() if k != used}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lacks 1 weights, such as encoder\.layer\.1\.output\.dense\.bias"):
        load_encoder(ModelConfig(encoder=str(tmp_path), dtype="float32"))


def edit(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def weights(content: bytes | None = None, cut: int = 0) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-cut] if content is None else content)

    return apply


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Path("x")}, folder / "pytorch_model.bin")


def index(content: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return apply


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pointer": (weights(b"version https://git-lfs.github.com/spec/v1\n"), "git-LFS pointer.*git lfs pull"),
    "page": (weights(b"<!DOCTYPE html>"), "model.safetensors is a web page"),
    "empty": (weights(b""), "model.safetensors is empty"),
    "cut": (weights(cut=100), "cannot be read .*it was cut or damaged"),
    "pickled": (pickled, "pickled objects, which are never run"),
    "index": (index({"weight_map": {"a": 1}}), "names the file 1; expected a file name"),
    "shard": (index({"weight_map": {"a": "b.safetensors"}}), "lacks b.safetensors, which its .*index.json names"),
    "shape": (edit(hidden_size=16), "with the shape .*; expected .*, by its config.json"),
    "absurd": (edit(num_hidden_layers=10**9), "num_hidden_layers 1000000000; expected a number up to 10,000"),
    "type": (edit(model_type="nothing"), "config.json cannot be used .*nothing"),
    "wrong type": (edit(hidden_size="wide"), "config.json cannot be used .*hidden_size"),
    "quantized": (edit(quantization_config={"quant_method": "gptq", "bits": 4}), "quantized weights .*'gptq'"),
    "unknown": (edit(quantization_config={"quant_method": "none such"}), "quantized weights .*'none such'"),
    "generation": (
        lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": "a"}') and None,
        "generation_config.json cannot be used .*eos_token_id",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_or_foreign_model_is_one_sentence(fault: str, llm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llm, tmp_path / "llm")
    damage, words = FAULTS[fault]
    damage(folder)
    with pytest.raises(ConfigError, match=words) as caught:
        load_llm(ModelConfig(llm=str(folder), dtype="float32"))
    assert "model.llm" in str(caught.value) and "\n" not in str(caught.value)


def test_layers_that_the_config_leaves_out_are_said(
    llm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever wants the first layers of a model edits its config.json."""
    folder = shutil.copytree(llm, tmp_path / "llm")
    edit(num_hidden_layers=1)(folder)
    with caplog.at_level("INFO", "bridge_ds"):
        loaded = load_llm(ModelConfig(llm=str(folder), dtype="float32"))
    assert len(loaded.model.model.layers) == 1
    words = "its files hold 2 layers model.layers, of which the first 1 are used, as its config.json says."
    assert [record.message for record in caplog.records if record.name == "bridge_ds.frozen.load"] == [
        f"note: model.llm {str(folder)!r}: {words}"
    ]


def test_pickled_weights_cannot_stay_on_the_disk(llm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llm, tmp_path / "llm")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    load_llm(ModelConfig(llm=str(folder), dtype="float32"), device_map="cpu")
    devices = {"model": "disk", "lm_head": "cpu"}
    with pytest.raises(ConfigError, match=r"part of model.llm .* on the disk, .* put cpu in place of disk"):
        load_llm(ModelConfig(llm=str(folder), dtype="float32"), device_map=devices)


def test_files_beside_the_shards_do_not_count(llm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llm, tmp_path / "llm")
    whole, weak = model_identity("{}", str(folder)), weak_model_identity("{}", str(folder))
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"):
        save_file({"a": torch.zeros(2)}, folder / name)
    both = weak_model_identity("{}", str(folder), everything=True)
    assert model_identity("{}", str(folder)) == whole and both != weak
    # A hash of an earlier version, over the plain file or over all that was there, is still known.
    assert model_identity("{}", str(folder), like=weak) == weak and model_identity("{}", str(folder), like=both) == both


def test_a_model_is_found_from_another_working_directory(
    llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(llm, tmp_path / "work" / "models" / "llm")
    (tmp_path / "work" / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    given = load_config("testbed", ["model.llm=models/llm", "model.encoder=google/mt5-xl"]).model
    full = with_full_paths(given)
    assert full.llm == str(tmp_path / "work" / "models" / "llm") and full.encoder == "google/mt5-xl"
    monkeypatch.chdir(tmp_path)
    run = Path("work/runs/mine")
    assert found_beside(given, run).llm == full.llm and found_beside(given, run).encoder == "google/mt5-xl"
    (tmp_path / "work").rename(tmp_path / "moved")
    moved = found_beside(full, Path("moved/runs/mine"))
    assert moved.llm == str(tmp_path / "moved" / "models" / "llm")
    for name in ("./models/llm", "a/b/c", "/nowhere/llm", "~/llm"):
        with pytest.raises(ConfigError, match=f"no folder '{name}' .looked for in .*no hub id either"):
            load_llm(ModelConfig(llm=name))


def test_without_network_every_door_says_so_at_once(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    env |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    call = [sys.executable, "-m", "bridge_ds", "generate", "--run", "some/bridge", "--prompt", "a"]
    done = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    # One line: the hub's client says each time that it tries again.
    assert "'some/bridge'" in done.stderr and "http://127.0.0.1:9 does not answer" in done.stderr, done.stderr
