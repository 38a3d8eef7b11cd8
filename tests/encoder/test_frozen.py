"""The frozen encoder: which states it gives, and that it says so when a model gives others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bridge_ds.config.schema import EncoderConfig, ModelConfig
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.errors import ConfigError
from tests import tiny

IDS = torch.randint(3, 200, (2, 6))
MASK = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])


@pytest.mark.parametrize("kind", tiny.ENCODERS)
def test_states_are_the_outputs_of_the_blocks(kind: str, tmp_path: Path) -> None:
    encoder = load_encoder(ModelConfig(encoder=str(tiny.make_encoder(kind, tmp_path)), dtype="float32"))
    states = encoder(IDS, MASK)
    assert len(states) == encoder.num_layers == tiny.LAYERS
    assert all(state.shape == (2, 6, encoder.width) and not state.requires_grad for state in states)
    assert torch.equal(states[-1], encoder.model(input_ids=IDS, attention_mask=MASK).last_hidden_state)
    alone = encoder(IDS[1:, :3], MASK[1:, :3])
    for padded, short in zip(states, alone, strict=True):
        assert torch.allclose(padded[1:, :3], short, atol=1e-5)


def test_an_encoder_that_gives_other_states_is_refused(tmp_path: Path) -> None:
    encoder = load_encoder(ModelConfig(encoder=str(tiny.make_encoder("bert", tmp_path)), dtype="float32"))
    encoder.model.encoder.layer.append(encoder.model.encoder.layer[0])  # a block that its config does not know
    with pytest.raises(ConfigError, match="gives 5 states; expected 4"):
        encoder(IDS, MASK)


@pytest.mark.parametrize("kind", tiny.ENCODERS)
def test_a_frozen_encoder_drops_where_it_is_asked_to_and_in_training_only(kind: str, tmp_path: Path) -> None:
    config = ModelConfig(encoder=str(tiny.make_encoder(kind, tmp_path)), dtype="float32")
    calm, dropping = (load_encoder(config, EncoderConfig(dropout=dropout)) for dropout in (False, True))
    expected = calm.train()(IDS, MASK)[-1]
    assert torch.equal(dropping(IDS, MASK)[-1], expected)  # as it is loaded, to be used
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        for _ in range(8):  # with M2M-100's layerdrop a state would be missing in one of three passes
            states = dropping.train()(IDS, MASK)
        found.append(states[-1])
        assert not any(state.requires_grad for state in states)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(dropping.eval()(IDS, MASK)[-1], expected)
