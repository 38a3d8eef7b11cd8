"""Frozen models inside checkpoints: known again in every family, and written out so that they load as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds.config.schema import ModelConfig
from bridge_ds.convert.bases import match, write_tokenizer, write_weights
from bridge_ds.convert.layout import INPUT_EMBEDDINGS
from bridge_ds.convert.stored import Stored
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.llm.frozen import load_llm
from tests import tiny


def as_stored(state: dict[str, torch.Tensor]) -> dict[str, Stored]:
    return {key: Stored(Path("x"), tuple(t.shape), t.clone) for key, t in state.items()}


def peers_encoder(folder: Path) -> dict[str, torch.Tensor]:
    """As the paper's code holds it: AutoModel's encoder half of mT5 and NLLB, the whole of others, poolers included."""
    from transformers import AutoModel

    whole: Any = AutoModel.from_pretrained(folder)
    part = whole.encoder if whole.config.is_encoder_decoder else whole
    return {key: tensor.clone() for key, tensor in part.state_dict().items()}


@pytest.mark.parametrize("kind", tiny.ENCODERS)
def test_encoders(kind: str, tmp_path: Path) -> None:
    folder = tiny.make_encoder(kind, tmp_path / "base")
    config = ModelConfig(encoder=str(folder), dtype="float32")
    state = peers_encoder(folder)
    names = {key: key for key in state}
    model = load_encoder(config).model
    same = match("encoder", str(folder), model, names, as_stored(state))
    assert not same.differing
    assert all(key.startswith("pooler.") for key in same.unread)
    assert {tensor.data_ptr() for tensor in model.state_dict().values()} == {
        model.state_dict()[ours].data_ptr() for ours in same.pairs.values()
    }

    trained = {key: t + 0.1 if t.is_floating_point() else t for key, t in state.items()}
    moved = match("encoder", str(folder), model, names, as_stored(trained))
    assert set(moved.differing) == set(moved.pairs)
    write_weights(model, moved, as_stored(trained), tmp_path / "new")
    write_tokenizer(str(folder), None, (), tmp_path / "new", False)
    again = load_encoder(ModelConfig(encoder=str(tmp_path / "new"), dtype="float32")).model
    assert not match("encoder", "new", again, names, as_stored(trained)).differing


@pytest.mark.parametrize("kind", tiny.LLMS)
@pytest.mark.parametrize("headless", [True, False])
def test_llms(kind: str, headless: bool, tmp_path: Path) -> None:
    """Held without what is around it, as LangBridge does, or whole, as the paper's code does."""
    folder = tiny.make_llm(kind, tmp_path / "base")
    model = load_llm(ModelConfig(llm=str(folder), dtype="float32")).model
    inner = getattr(model, model.base_model_prefix).state_dict()
    state = {f"lm.{key}": t.clone() for key, t in (inner if headless else model.state_dict()).items()}
    names = {key: key.removeprefix("lm.") for key in state}
    if headless:
        state["head"], names["head"] = model.lm_head.weight.clone(), "lm_head.weight"
    state["embeddings"], names["embeddings"] = model.get_input_embeddings().weight.clone(), INPUT_EMBEDDINGS
    trained = {key: t + 0.1 for key, t in state.items()}
    assert not match("llm", "base", model, names, as_stored(state)).differing
    moved = match("llm", "base", model, names, as_stored(trained))
    write_weights(model, moved, as_stored(trained), tmp_path / "new")
    write_tokenizer(str(folder), None, (), tmp_path / "new", False)
    again = load_llm(ModelConfig(llm=str(tmp_path / "new"), dtype="float32")).model
    assert not match("llm", "new", again, names, as_stored(trained)).differing

    encoder = str(tiny.make_encoder("mt5", tmp_path / "encoder"))
    before, after = (load_tokenizers(ModelConfig(encoder=encoder, llm=str(tmp_path / at))) for at in ("base", "new"))
    for text in tiny.TEXTS:
        assert before.labels([text])[0] == after.labels([text])[0]
    assert (before.bos_id, before.eos_id, before.pad_id) == (after.bos_id, after.eos_id, after.pad_id)


@pytest.mark.parametrize("formats", [("float32", torch.bfloat16), ("bfloat16", torch.float32)])
def test_rounding_is_no_training(tmp_path: Path, formats: tuple[str, torch.dtype]) -> None:
    folder = tiny.make_encoder("mt5", tmp_path / "base")
    state = {key: t.to(formats[1]) for key, t in peers_encoder(folder).items()}
    model = load_encoder(ModelConfig(encoder=str(folder), dtype=formats[0])).model
    assert not match("encoder", "base", model, {key: key for key in state}, as_stored(state)).differing
    state["final_layer_norm.weight"] = state["final_layer_norm.weight"] * 1.01
    differing = match("encoder", "base", model, {key: key for key in state}, as_stored(state)).differing
    assert differing == ["final_layer_norm.weight"]


def test_a_trained_model_keeps_the_number_format_of_its_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tiny.make_encoder("mt5", tmp_path / "base")
    state = {key: t + 0.1 for key, t in peers_encoder(folder).items()}
    model = load_encoder(ModelConfig(encoder=str(folder), dtype="bfloat16")).model
    base = match("encoder", str(folder), model, {key: key for key in state}, as_stored(state))
    write_weights(model, base, as_stored(state), tmp_path / "new")
    written = load_file(tmp_path / "new" / "model.safetensors")
    assert {t.dtype for t in written.values()} == {torch.float32}
    assert torch.equal(written["encoder.final_layer_norm.weight"], state["final_layer_norm.weight"])
