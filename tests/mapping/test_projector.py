"""The mapping: shapes, the end vector, the dtype of the way in and out."""

from __future__ import annotations

import pytest
import torch

from bridge_ds.config.schema import MappingConfig
from bridge_ds.mapping import MAPPINGS
from bridge_ds.mapping.projector import Projector

SIZES = {key: getattr(MappingConfig(), key) for key in MAPPINGS["latent"].options} | {
    "latents": 4, "depth": 2, "heads": 2, "head_width": 6, "feedforward": 3, "dropout": 0.0,
}  # fmt: skip
BY_TOKEN = sorted(set(MAPPINGS) - {"latent"})


@pytest.mark.parametrize("kind", BY_TOKEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_end_vector_and_dtype(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mapping = Projector(kind, 8, 12)
    mapping.scale.fill_(0.5)
    fused = torch.randn(3, 5, 8, dtype=dtype)
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    soft, soft_mask = mapping(fused, mask)
    assert soft.shape == (3, 6, 12) and mapping.fixed_length == 0
    assert soft.dtype == dtype
    assert soft_mask.tolist() == [[*row, 1] for row in mask.tolist()]
    assert torch.allclose(soft[:, -1], (0.5 * mapping.end).to(dtype).expand(3, -1))
    assert torch.allclose(soft[:, :-1].float(), 0.5 * mapping.project(fused.float()), atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fixed_number_of_soft_tokens_whatever_the_length_and_the_padding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mapping = Projector("latent", 8, 12, **SIZES)
    mapping.scale.fill_(0.5)
    fused = torch.randn(2, 5, 8, dtype=dtype)
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
    soft, soft_mask = mapping(fused.masked_fill(mask[..., None] == 0, 9.0), mask)
    assert soft.shape == (2, 5, 12) and soft.dtype == dtype and mapping.fixed_length == 4
    assert soft_mask.tolist() == [[1] * 5] * 2
    # The norm is over the end vector too (LangBridge).
    assert torch.allclose(soft.float().mean(-1), torch.zeros(()), atol=1e-2)
    assert torch.allclose(soft.float().std(-1, correction=0), torch.tensor(0.5), atol=1e-2)
    alone, _ = mapping(fused[1:, :2], mask[1:, :2])
    assert torch.allclose(soft[1:].float(), alone.float(), atol=1e-6 if dtype == torch.float32 else 1e-2)
    assert not torch.allclose(soft[0, :4].float(), soft[1, :4].float(), atol=1e-2)


def test_dropout_of_the_resampler_is_of_training_alone() -> None:
    mapping = Projector("latent", 8, 12, **SIZES | {"dropout": 0.5})
    fused, mask = torch.randn(1, 3, 8), torch.ones(1, 3)
    assert not torch.equal(mapping(fused, mask)[0], mapping(fused, mask)[0])
    mapping.eval()
    assert torch.equal(mapping(fused, mask)[0], mapping(fused, mask)[0])


@pytest.mark.parametrize("kind", sorted(MAPPINGS))
@pytest.mark.parametrize("end_init", ["normal", "zeros"])
def test_every_parameter_gets_a_gradient_however_the_end_vector_starts(kind: str, end_init: str) -> None:
    torch.manual_seed(0)
    mapping = Projector(kind, 8, 12, end_init=end_init, **SIZES)
    assert bool(mapping.end.any()) == (end_init == "normal")
    soft = mapping(torch.randn(2, 3, 8), torch.ones(2, 3))[0]
    (soft * torch.randn_like(soft)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mapping.parameters())


@pytest.mark.parametrize("kind", BY_TOKEN)
def test_how_the_end_vector_starts_changes_nothing_else(kind: str) -> None:
    """A run of before that names no `end_init` starts as it did."""
    made = []
    for options in ({}, {"end_init": "normal"}, {"end_init": "zeros"}):
        torch.manual_seed(3)
        made.append(Projector(kind, 8, 12, **options).state_dict())
    for name, value in made[0].items():
        assert torch.equal(value, made[1][name])
        assert name == "end" or torch.equal(value, made[2][name])
