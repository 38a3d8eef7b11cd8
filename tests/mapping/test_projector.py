"""The mapping: shapes, the end vector, the dtype of the way in and out."""

from __future__ import annotations

import pytest
import torch

from bridge_ds.mapping import MAPPINGS, Projector


@pytest.mark.parametrize("kind", sorted(MAPPINGS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_end_vector_and_dtype(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mapping = Projector(kind, 8, 12)
    mapping.scale.fill_(0.5)
    fused = torch.randn(3, 5, 8, dtype=dtype)
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    soft, soft_mask = mapping(fused, mask)
    assert soft.shape == (3, 6, 12)
    assert soft.dtype == dtype
    assert soft_mask.tolist() == [[*row, 1] for row in mask.tolist()]
    assert torch.allclose(soft[:, -1], (0.5 * mapping.end).to(dtype).expand(3, -1))
    assert torch.allclose(soft[:, :-1].float(), 0.5 * mapping.project(fused.float()), atol=2e-2)


def test_every_parameter_gets_a_gradient() -> None:
    for kind in MAPPINGS:
        mapping = Projector(kind, 8, 12)
        mapping(torch.randn(2, 3, 8), torch.ones(2, 3))[0].square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mapping.parameters())
