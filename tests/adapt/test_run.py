"""The encoder alone is trained on real processes, resumed exactly, and becomes a folder that a bridge's run names."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bridge_ds.checkpoint.layout import trained_files
from bridge_ds.checkpoint.load import put_trained
from bridge_ds.config.load import load_config, load_run_config
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.engine.setup import build_model
from bridge_ds.errors import ConfigError
from bridge_ds.hub.source import open_source
from tests import launch
from tests.adapt.made import PAIRS, TEXTS, encoder
from tests.engine.test_runs import lines

STEPS = 8
LAST = f"step-{STEPS:08d}"


def twice(root: Path, folder: Path, ranks: int, ds: str, *more: str) -> tuple[Path, Path, str]:
    """A run to its end, and one that SIGKILL ends after its first checkpoint and that the same command continues."""
    pack_rows([{"text": f"{text} {n}"} for n in range(8) for text in TEXTS], root / "text")
    pack_rows(
        [{"source": f"{one} {n}", "target": f"{two} {n}"} for n in range(8) for one, two in PAIRS], root / "pairs"
    )
    settings = [
        f"model.encoder={folder}", "model.dtype=float32", "data.objective=denoise_and_align",
        f"data.mixture=[{root / 'text'}=1, {root / 'pairs'}=1]", "data.max_source_tokens=40", "data.workers=0",
        f"train.steps={STEPS}", "train.global_batch=16", "train.micro_batch=4", "train.lr=5e-3", "checkpoint.every=2",
        "checkpoint.keep_last=0", "track.uri=none", *more,
    ]  # fmt: skip
    run, again, said = root / "run", root / "again", ""
    for output in (run, again):
        words = ["--recipe", "adapt", "--ds_config", ds]
        words += [part for setting in (f"run.output={output}", *settings) for part in ("--set", setting)]
        if output == again:
            job = launch.begin(words, ranks, root / "killed-logs")
            while not any((again / "checkpoints").glob("step-*")):
                assert job.running, job.wait(1).text[-4000:]
                time.sleep(0.005)
            job.kill()
            assert not (again / "encoder").exists()
        said = launch.succeed(launch.train(words, ranks, root / f"{output.name}-logs", timeout=900)).text
    assert "(step " in said and [line["loss"] for line in lines(again)] == [line["loss"] for line in lines(run)]
    for path in [*(run / "checkpoints" / LAST).glob("*.safetensors"), *(run / "encoder").glob("*.safetensors")]:
        assert path.read_bytes() == (again / path.relative_to(run)).read_bytes(), path.name
    return run, again, said


@pytest.mark.slow
def test_updates_on_text_and_translations_become_a_folder(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    base = encoder("bert", tmp_path / "bert")
    run, _, said = twice(tmp_path, base, 1, "zero2.json")
    assert "LoRA on the encoder" in said and "English, 32 sentences, before -> after" in said
    found = json.loads((run / "encoder" / "english.json").read_text())
    assert len(found["cosine"]) == 3 and found["loss"]["after"] < found["loss"]["before"]
    card = (run / "encoder" / "README.md").read_text()
    assert "LoRA of rank 16, merged" in card and "nats" in card and "denoise_and_align" in card

    model = AutoModel.from_pretrained(run / "encoder", add_pooling_layer=False).eval()
    ids = AutoTokenizer.from_pretrained(run / "encoder")(TEXTS[0], return_tensors="pt")["input_ids"]
    adapted = build_model(load_run_config(run), None)
    put_trained(trained_files(run / "checkpoints" / LAST), adapted, "")
    with torch.no_grad():
        updated = adapted.encoder(ids, torch.ones_like(ids))
        merged = model(input_ids=ids, output_hidden_states=True).hidden_states[1:]
        original = load_encoder(load_config("adapt", [f"model.encoder={base}", "model.dtype=float32"]).model)(ids, None)
    for one, two, before in zip(updated, merged, original, strict=True):
        assert torch.allclose(one, two, atol=1e-5) and not torch.allclose(two, before, atol=1e-3)
    held = load_file(run / "checkpoints" / LAST / "bridge.safetensors")
    assert held and all(name.startswith("predictor.") for name in held)
    with pytest.raises(ConfigError, match=r"trained the encoder alone.*--set model.encoder=.*run/encoder"):
        open_source(str(run))
    bridge = load_config("testbed", [f"model.encoder={run / 'encoder'}", "model.dtype=float32"])
    assert build_model(bridge, None).encoder.num_layers == 3


@pytest.mark.slow
def test_all_weights_and_the_decoder_under_stage_3(tmp_path: Path) -> None:
    from transformers import AutoModel

    base = encoder("mt5", tmp_path / "mt5")
    more = ("lora.rank=0", "encoder.trainable=true", "data.validation_percent=20")
    run, _, _ = twice(tmp_path, base, 2, "zero3.json", *more)
    assert lines(run)[-1]["validation_loss"] < lines(run)[1]["validation_loss"]
    held = load_file(run / "checkpoints" / LAST / "encoder.safetensors")
    model = AutoModel.from_pretrained(run / "encoder")
    weights = dict(model.named_parameters())
    assert not any("decoder" in name for name in load_file(run / "encoder" / "model.safetensors"))
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert torch.equal(weights[name], held[f"encoder.model.{name}"])
    written = load_file(run / "checkpoints" / LAST / "bridge.safetensors")
    assert any(".decoder.block.0." in name for name in written) and not any("embed_tokens" in name for name in written)
