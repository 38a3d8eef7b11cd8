"""A bridge as a folder and on a hub: the same bytes again, the right base models, a card with what was measured."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from bridge_ds import BridgeConfig, BridgeForCausalLM, BridgeProcessor
from bridge_ds.checkpoint import layout
from bridge_ds.config.load import load_run_config
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.frozen.identity import as_first_recorded, weak_model_identity
from bridge_ds.hub.licence import licence
from bridge_ds.inference.load import load_trained
from tests.hub.server import local_hub

ROOT = Path(__file__).parents[2]


def same_bytes(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == ["README.md", "bridge.safetensors", "config.json", "generation_config.json"]
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def answers(model: Any, processor: Any) -> list[str]:
    return processor.batch_decode(model.generate(**processor(["the cat sat", "a dog"]), max_new_tokens=6))


@pytest.fixture(scope="module")
def shared(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "bridge"
    BridgeForCausalLM.from_pretrained(runs["llama"]).save_pretrained(folder)
    return folder


def test_saved_loaded_and_saved_again_the_bytes_are_the_same(
    runs: dict[str, Path], shared: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

    assert isinstance(AutoConfig.from_pretrained(shared), BridgeConfig)
    model = AutoModelForCausalLM.from_pretrained(shared, dtype=torch.float32, attn_implementation="eager")
    processor = AutoProcessor.from_pretrained(shared)
    assert isinstance(model, BridgeForCausalLM) and isinstance(processor, BridgeProcessor)
    assert model.bridge.llm.model.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    same_bytes(shared, tmp_path / "again")
    # Neither the dtype in which it was loaded nor a device changes what is shared.
    other = BridgeForCausalLM.from_pretrained(shared, torch_dtype="bfloat16", device_map="auto")
    assert {p.dtype for p in other.bridge.llm.parameters()} == {torch.bfloat16}
    other.save_pretrained(tmp_path / "other")
    same_bytes(shared, tmp_path / "other")

    (step,) = (runs["llama"] / "checkpoints").iterdir()
    expected = answers(BridgeForCausalLM.from_pretrained(runs["llama"]), BridgeProcessor.from_pretrained(runs["llama"]))
    assert answers(model, processor) == expected
    assert answers(BridgeForCausalLM.from_pretrained(step), BridgeProcessor.from_pretrained(str(step))) == expected
    processor.save_pretrained(tmp_path / "alone")
    assert BridgeProcessor.from_pretrained(tmp_path / "alone")("a dog").keys() == processor("a dog").keys()


def test_the_auto_classes_know_it_and_the_import_costs_nothing(shared: Path) -> None:
    code = f"""
import sys
import bridge_ds
assert not {{"torch", "transformers"}} & set(sys.modules)
before = list(sys.meta_path)
import bridge_ds.hub
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
assert sys.meta_path[:len(before)] == before
config = AutoConfig.from_pretrained({str(shared)!r})
assert type(config) is bridge_ds.BridgeConfig
assert type(AutoProcessor.from_pretrained({str(shared)!r})) is bridge_ds.BridgeProcessor
assert MODEL_FOR_CAUSAL_LM_MAPPING[type(config)] is bridge_ds.BridgeForCausalLM
print(config.model_type)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.strip().endswith("bridge_ds"), done.stderr[-2000:]


def test_where_the_auto_classes_are_imported_first_import_bridge_ds_registers(shared: Path) -> None:
    code = f"""
from transformers import AutoConfig
import bridge_ds
assert type(AutoConfig.from_pretrained({str(shared)!r})) is bridge_ds.BridgeConfig
print("registered")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.strip() == "registered", done.stderr[-2000:]


def test_other_base_models_are_refused(
    runs: dict[str, Path], shared: Path, bases: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = shutil.copytree(bases["llama"], tmp_path / "moved")
    model = BridgeForCausalLM.from_pretrained(shared, llm=str(moved))
    assert model.config.llm == str(moved), "found elsewhere, it is the same model"
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 + 9] ^= 1
    weights.write_bytes(data)
    for source in (shared, runs["llama"]):
        with pytest.raises(CheckpointError, match=r"the LLM .* is not what .* was trained with"):
            BridgeForCausalLM.from_pretrained(source, llm=str(moved))
    with caplog.at_level("WARNING"):
        BridgeForCausalLM.from_pretrained(shared, llm=str(moved), allow_base_mismatch=True)
    assert "loaded anyway" in caplog.text

    tokenizer = json.loads((moved / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (moved / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match=r"the tokenizer of the LLM .* is not what .* was trained with"):
        BridgeProcessor.from_pretrained(shared, llm=str(moved))
    BridgeProcessor.from_pretrained(shared, llm=str(moved), allow_base_mismatch=True)


def test_the_version_of_transformers_and_the_number_format_are_no_part_of_an_identity(
    runs: dict[str, Path], bases: dict[str, Path], tmp_path: Path
) -> None:
    """A base model saved by another version is the same model; a checkpoint with the first kind of hash is taken."""
    run = shutil.copytree(runs["llama"], tmp_path / "run")
    moved = shutil.copytree(bases["llama"], tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"transformers_version": "5.99", "torch_dtype": "float16"}))
    BridgeForCausalLM.from_pretrained(run, llm=str(moved))
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    with pytest.raises(CheckpointError, match="the LLM"):
        BridgeForCausalLM.from_pretrained(run, llm=str(moved))

    model = BridgeForCausalLM.from_pretrained(run)
    (step,) = (run / "checkpoints").iterdir()
    manifest = json.loads((step / layout.MANIFEST).read_text())
    for part, kind in (("encoder", "mt5"), ("llm", "llama")):
        text = as_first_recorded(getattr(model.bridge, part).model.config, "float32")
        manifest["base"][part] = weak_model_identity(text, str(bases[kind]))
    del manifest["sha256"]  # as manifests were then
    (step / layout.MANIFEST).write_text(json.dumps(manifest))
    assert manifest["base"] != model.config.base
    BridgeForCausalLM.from_pretrained(run, dtype="bfloat16")
    load_trained(run, load_run_config(run), torch.device("cpu"))
    manifest["base"]["llm"] = "0" * 64
    (step / layout.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="the LLM"):
        BridgeForCausalLM.from_pretrained(run)


def test_loading_says_what_is_wrong(
    runs: dict[str, Path], shared: Path, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = BridgeForCausalLM.from_pretrained
    (tmp_path / "empty").mkdir()
    for name, told in (
        (tmp_path / "empty", "expected a run folder"),
        (bases["llama"], "of type 'llama'; expected a bridge"),
        ("nobody/nothing", "is no folder, and no config.json"),
        (runs["llama"].with_name("lama"), "runs in .*; did you mean 'llama'"),
    ):
        with pytest.raises(ConfigError, match=told):
            load(name)
    with pytest.raises(ConfigError, match="does not know 'devise_map'"):
        load(shared, devise_map="auto")
    with pytest.raises(ConfigError, match=r"dtype is torch\.int8"):
        load(shared, dtype=torch.int8)
    with pytest.raises(ConfigError, match="more than one of"):
        load(shared, load_in_4bit=True, load_in_8bit=True)
    with pytest.raises(ConfigError, match="from its config alone"):
        BridgeForCausalLM(BridgeConfig())
    broken = shutil.copytree(shared, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    for change in ({"fusion": {"name": "last_layer"}}, {"bos": "never"}, {"base": {}}, {"lora": {"rank": 1}}):
        (broken / "config.json").write_text(json.dumps(config | change))
        for opened in (load, BridgeProcessor.from_pretrained):
            with pytest.raises(CheckpointError, match=r"take `settings_sha256` out of config\.json"):
                opened(broken)
    (broken / "config.json").write_text(json.dumps(config | {"llm": str(bases["llama"]), "transformers_version": "6"}))
    load(broken)  # neither is a setting
    del config["settings_sha256"]  # as in an older folder, or by somebody who changes it on purpose
    (broken / "config.json").write_text(json.dumps(config | {"fusion": {"name": "last_layer"}}))
    with pytest.raises(CheckpointError, match=r"differ in fusion\.cls \(the model has none"):
        load(broken)
    (broken / "config.json").write_text(json.dumps(config | {"fusion": {"nam": "last_layer"}}))
    with pytest.raises(ConfigError, match=r"unknown key 'fusion.nam'; did you mean 'fusion.name'"):
        load(broken)
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "bridge.safetensors").write_bytes((broken / "bridge.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="expected safetensors"):
        load(broken)
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(ConfigError, match=r"pip install 'bridge_ds\[quantized\]'"):
            load(shared, load_in_4bit=True)
    run = shutil.copytree(runs["llama"], tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="train the run first"):
        load(run)


def test_float16_leaves_the_encoder_in_float32(shared: Path) -> None:
    model = BridgeForCausalLM.from_pretrained(shared, dtype="float16", device_map={"": "cpu"})
    parts = (model.bridge.encoder, model.bridge.fusion, model.bridge.llm)
    assert [next(part.parameters()).dtype for part in parts] == [torch.float32, torch.float32, torch.float16]
    assert model.generate(**BridgeProcessor.from_pretrained(shared)("a dog"), max_new_tokens=3).shape == (1, 3)


@pytest.mark.parametrize("option", ["load_in_4bit", "load_in_8bit"])
def test_quantized(shared: Path, option: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = BridgeForCausalLM.from_pretrained(shared, **{option: True})
    kinds = {type(module).__name__ for module in model.bridge.llm.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}
    assert not {type(module).__name__ for module in model.bridge.encoder.modules()} & {"Linear4bit", "Linear8bitLt"}
    assert len(answers(model, BridgeProcessor.from_pretrained(shared))) == 2


def test_the_card_says_what_was_measured(runs: dict[str, Path], bases: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(runs["bert"], tmp_path / "mine")
    licensed = shutil.copytree(bases["gpt2"], tmp_path / "licensed")
    (licensed / "README.md").write_text("---\nlicense: other\nlicense_name: nice\nlicense_link: LICENSE\n---\n# It\n")
    score = {"acc": 0.5, "exact_match": 0.25, "n": 40}
    results = {"bridge": {"xnli": {"sw": score, "ur": score | {"acc": 0.725}}}, "chance": {"xnli": 1 / 3}}
    results["llm"] = {"xnli": {"sw": score | {"acc": 0.345}}}
    (run / "evaluation.json").write_text(json.dumps(results))
    lines = [{"step": 1, "layer_weights": [0.1, 0.2, 0.7]}, {"step": 9, "layer_weights": [1, 0, 0]}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 10, "lay')
    model = BridgeForCausalLM.from_pretrained(run, llm=str(licensed))
    head, _, body = model.card.removeprefix("---\n").partition("---\n")
    values = yaml.safe_load(head)
    assert values["language"] == ["sw", "ur"] and values["library_name"] == "bridge_ds"
    assert "base_model" not in values and str(tmp_path) not in model.card, (
        "a folder of this machine is nobody's business"
    )
    assert "| LLM | `licensed` | nice (LICENSE) |" in body and "see the model's own page" in body
    assert "| weight | 0.100 | 0.200 | 0.700 |" in body, "of the checkpoint's step and not of a later one"
    assert "### xnli (chance 33.3)" in body
    assert "| sw | 50.0 | 25.0 | 34.5 | 25.0 | 40 |" in body and "| ur | 72.5 | 25.0 | - | - | 40 |" in body
    assert "weights here are of step-00000001" in body, "what was scored is not recorded"
    (run / "evaluation.json").write_text(json.dumps(results | {"checkpoint": "step-00000001"}))
    assert "weights here are" not in BridgeForCausalLM.from_pretrained(run, llm=str(licensed)).card
    assert "| the LLM reads the text too | yes |" in body
    assert licence("testbed/llm").startswith("apache-2.0")
    blank = BridgeForCausalLM.from_pretrained(runs["llama"]).card
    assert "The run was not scored." in blank and "## Layer weights" not in blank


def test_pushed_to_a_hub_and_loaded_from_it(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own client against a small server that keeps what it is sent."""
    model = BridgeForCausalLM.from_pretrained(shared)
    with local_hub(monkeypatch) as files:
        with pytest.raises(ConfigError, match="named by a folder of this machine"):
            model.push_to_hub("me/bridge", token="hf_test")
        assert not files
        model.config.encoder, model.config.llm = "testbed/encoder", "testbed/llm"
        url = model.push_to_hub("me/bridge", token="hf_test")
        assert url.endswith("/me/bridge/commit/" + "1" * 40)
        assert sorted(files) == ["README.md", "bridge.safetensors", "config.json", "generation_config.json"]
        assert b'name = "me/bridge"' in files["README.md"]
        model.save_pretrained(tmp_path / "same")
        for name in ("bridge.safetensors", "config.json", "generation_config.json"):
            assert files[name] == (tmp_path / "same" / name).read_bytes()
        kept = json.loads(files["config.json"])
        files["config.json"] = (shared / "config.json").read_bytes()
        again = BridgeForCausalLM.from_pretrained("me/bridge", cache_dir=tmp_path / "cache", token="hf_test")
    assert kept["llm"] == "testbed/llm" and again.card == files["README.md"].decode()
    assert answers(again, BridgeProcessor.from_pretrained(shared)) == answers(
        model, BridgeProcessor.from_pretrained(shared)
    )


def test_an_exported_folder_with_other_bytes_is_refused_and_with_numbers_that_are_none(
    shared: Path, tmp_path: Path
) -> None:
    """NaN, infinities, integers under the name of floats and floats under that of integers; with and without hashes."""
    config = json.loads((shared / "config.json").read_text())
    assert (
        list(config["files"]) == ["bridge.safetensors"] and len(config["files"]["bridge.safetensors"]["sha256"]) == 64
    )
    verified, unproven = (shutil.copytree(shared, tmp_path / name) for name in ("verified", "unproven"))
    # As a folder of before, and as one that somebody has edited on purpose.
    (unproven / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "files"}))
    expected = BridgeForCausalLM.from_pretrained(shared).bridge.mapping.end.detach()
    assert torch.equal(BridgeForCausalLM.from_pretrained(unproven).bridge.mapping.end, expected)

    whole = (shared / "bridge.safetensors").read_bytes()
    tensors = load_file(shared / "bridge.safetensors")
    size = len(tensors["mapping.end"])
    nan, infinite = (tensors["mapping.end"].clone().fill_(value) for value in (torch.nan, -torch.inf))
    integers = torch.arange(size, dtype=torch.int32)
    for name, change, told in (
        ("NaN", {"mapping.end": nan}, "mapping.end holds NaN"),
        ("infinite", {"mapping.scale": infinite[0]}, "mapping.scale holds NaN or infinite"),
        ("integers", {"mapping.end": integers}, "dtype I32 in the file"),
        ("halves", {"mapping.end": expected.half()}, "dtype F16 in the file"),
        ("integers as floats", {"mapping.end": integers.view(torch.float32)}, ""),
    ):
        save_file(tensors | change, verified / "bridge.safetensors", metadata={"format": "pt"})
        shutil.copy(verified / "bridge.safetensors", unproven)
        with pytest.raises(CheckpointError, match="is not what was exported"):
            BridgeForCausalLM.from_pretrained(verified)
        if told:
            with pytest.raises(CheckpointError, match=told):
                BridgeForCausalLM.from_pretrained(unproven)
        else:
            assert BridgeForCausalLM.from_pretrained(unproven), f"{name}: nothing but the hash tells them"
    (verified / "bridge.safetensors").write_bytes(whole)
    for files in ({}, {"bridge.safetensors": 1}, config["files"] | {"lora.safetensors": {}}):
        (verified / "config.json").write_text(json.dumps(config | {"files": files}))
        with pytest.raises(CheckpointError, match=r"take `files` out of config\.json"):
            BridgeForCausalLM.from_pretrained(verified)

    model = BridgeForCausalLM.from_pretrained(shared)
    with torch.no_grad():
        model.bridge.mapping.end[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"mapping\.end holds NaN"):
        model.save_pretrained(tmp_path / "nan")
    assert not (tmp_path / "nan").exists()
