"""Weights in memory against their files: equal for every family, and a difference is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bridge_ds.config.schema import ModelConfig
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.identity import model_identity
from bridge_ds.frozen.verify import verify_weights, weight_files
from bridge_ds.llm.frozen import load_llm
from tests import tiny

ALL = 10_000


@pytest.mark.parametrize("kind", tiny.ENCODERS)
def test_encoders_equal_their_files(kind: str, tmp_path: Path) -> None:
    folder = tiny.make_encoder(kind, tmp_path)
    model = load_encoder(ModelConfig(encoder=str(folder), dtype="bfloat16")).model
    compared = verify_weights("encoder", model, weight_files(str(folder)), True, samples=ALL)
    assert compared >= len(list(model.parameters())) - 1  # a tied embedding may stand under its other name only


@pytest.mark.parametrize("kind", tiny.LLMS)
def test_llms_equal_their_files_and_a_change_is_found(kind: str, tmp_path: Path) -> None:
    folder = tiny.make_llm(kind, tmp_path)
    model = load_llm(ModelConfig(llm=str(folder), dtype="float32")).model
    assert (
        verify_weights("LLM", model, weight_files(str(folder)), True, samples=ALL) >= len(list(model.parameters())) - 1
    )
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "norm" in name or "ln_1" in name).add_(1e-3)
    with pytest.raises(ConfigError, match="differs in memory"):
        verify_weights("LLM", model, weight_files(str(folder)), True, samples=ALL)


def test_identity_changes_with_the_weights(tmp_path: Path) -> None:
    folder = tiny.make_llm("llama", tmp_path)
    before = model_identity("{}", str(folder))
    assert before == model_identity("{}", str(folder))
    assert before != model_identity('{"a": 1}', str(folder))
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 5] ^= 255
    path.write_bytes(data)
    assert before != model_identity("{}", str(folder))
