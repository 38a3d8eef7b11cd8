"""The encoder where it is trained: the states of a frozen one, gradients everywhere, nothing dropped unasked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bridge_ds.config.schema import EncoderConfig, ModelConfig
from bridge_ds.encoder.base import Encoder
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.fusion import FUSIONS
from tests import tiny

IDS = torch.randint(3, 200, (2, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
PATHS = ["reference", "torch"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: tiny.make_encoder(kind, root / kind) for kind in tiny.ENCODERS}


def load(folder: Path, dtype: str = "float32", **options: bool) -> Encoder:
    training = EncoderConfig(trainable=True, **options)
    return load_encoder(ModelConfig(encoder=str(folder), dtype=dtype), training).train()


def gradients(encoder: Encoder) -> dict[str, torch.Tensor]:
    """Of a sum that weighs every state of every token differently."""
    encoder.zero_grad()
    draw = torch.Generator().manual_seed(1)
    states = [state[MASK.bool()].float() for state in encoder(IDS, MASK)]
    sum((state * torch.randn(state.shape, generator=draw)).sum() for state in states).backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", tiny.ENCODERS)
def test_a_trained_encoder_computes_what_a_frozen_one_does(folders: dict[str, Path], kind: str) -> None:
    frozen = load_encoder(ModelConfig(encoder=str(folders[kind]), dtype="float32"), EncoderConfig())
    encoder = load(folders[kind])
    assert not frozen.trained
    for expected, state in zip(frozen(IDS, MASK), encoder(IDS, MASK), strict=True):
        assert torch.allclose(state, expected, atol=1e-5) and state.requires_grad  # other attention kernels: a rounding
    found = gradients(encoder)
    assert set(found) == encoder.trained == {name for name, _ in encoder.named_parameters()}
    assert all(p.dtype == torch.float32 for p in encoder.parameters())

    # Computed again in backward, with the dropouts of the layers' own forward (M2M-100) still off.
    saving = load(folders[kind], activation_checkpointing=True)
    assert any(module.training for module in saving.modules())
    for expected, state in zip(frozen(IDS, MASK), saving(IDS, MASK), strict=True):
        assert torch.allclose(state, expected, atol=1e-5)
    for name, gradient in gradients(saving).items():
        assert torch.allclose(gradient, found[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("kind", ["mt5", "m2m_100"])
def test_options(folders: dict[str, Path], kind: str) -> None:
    without = load(folders[kind], train_embeddings=False)
    table = without.model.get_input_embeddings().weight
    left_out = {name for name, p in without.named_parameters() if p is table}
    assert len(left_out) == 1
    assert set(gradients(without)) == without.trained == {name for name, _ in without.named_parameters()} - left_out

    for options in ({}, {"activation_checkpointing": True}):
        dropping = load(folders[kind], dropout=True, **options)
        for _ in range(20):  # with M2M-100's layerdrop a state would be missing in one of three passes
            states = dropping(IDS, MASK)
        assert not torch.equal(states[-1], dropping(IDS, MASK)[-1])
        dropping.eval()
        assert torch.equal(dropping(IDS, MASK)[-1], without(IDS, MASK)[-1])


def test_bfloat16_is_for_products_only(folders: dict[str, Path]) -> None:
    encoder, exact = load(folders["mt5"], "bfloat16"), load(folders["mt5"])
    assert all(state.dtype == torch.bfloat16 for state in encoder(IDS, MASK))
    expected = gradients(exact)
    for name, gradient in gradients(encoder).items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.05 * expected[name].norm(), name


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_reach_the_encoder_through_every_fusion_and_path(folders: dict[str, Path], fusion: str) -> None:
    encoder = load(folders["mt5"])
    found = {}
    for path in PATHS if "backend" in FUSIONS[fusion].options else [""]:
        torch.manual_seed(2)
        options = {"backend": path} if path else {}
        options |= {"dropout": 0.0, "feedforward": 16} if fusion == "transformer_softmax" else {}
        module = FUSIONS[fusion](encoder.num_layers, encoder.width, **options)
        encoder.zero_grad()
        (module(encoder(IDS, MASK), MASK) * torch.linspace(-1, 1, encoder.width)).sum().backward()
        found[path] = {name: p.grad.clone() for name, p in encoder.named_parameters()}
    first = next(iter(found.values()))
    assert set(first) == encoder.trained and all(gradient.abs().sum() > 0 for gradient in first.values())
    for path, of in found.items():
        for name, gradient in of.items():
            assert torch.allclose(gradient, first[name], rtol=1e-3, atol=1e-5), (path, name)
