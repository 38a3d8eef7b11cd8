"""State dicts of the paper's public modules load, and the outputs agree."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bridge_ds.fusion.global_softmax.module import GlobalSoftmax
from bridge_ds.fusion.layer_attention.module import LayerAttention
from bridge_ds.fusion.transformer_softmax.module import TransformerSoftmax


class LayerWeights(nn.Module):
    """The paper's layout: one encoder layer over [cls; layers + positions], a linear head on its first output."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, nhead=1, dim_feedforward=2048, batch_first=True)
        self.transformerEncoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.layer_pos_emb = nn.Parameter(torch.randn(1, layers, width))
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.layer_weights = nn.Linear(width, layers)

    def forward(self, states: list[torch.Tensor]) -> torch.Tensor:
        """L tensors [N, D] -> [N, D]."""
        stacked = torch.stack(states, dim=1)
        places = torch.cat([self.cls.expand(len(stacked), 1, -1), stacked + self.layer_pos_emb], dim=1)
        weights = torch.softmax(self.layer_weights(self.transformerEncoder(places)[:, 0]), dim=-1)
        return torch.einsum("nl,nld->nd", weights, stacked)


def test_layer_weights() -> None:
    torch.manual_seed(0)
    paper = LayerWeights(3, 8).double().eval()
    fusion = TransformerSoftmax(3, 8).double().eval()
    fusion.load_paper_state_dict(paper.state_dict())
    states = [torch.randn(1, 5, 8, dtype=torch.float64) for _ in range(3)]
    assert torch.allclose(fusion(states, torch.ones(1, 5))[0], paper([s[0] for s in states]), atol=1e-10)


def test_global_gate() -> None:
    state = {"layer_weights_lb": torch.tensor([1e-3, 2e-3, 4e-3]), "temp": torch.tensor(2e-3)}
    fusion = GlobalSoftmax(3, 4)
    fusion.load_paper_state_dict(state)
    states = [torch.randn(1, 2, 4) for _ in range(3)]
    weights = torch.softmax((100 + 1e5 * state["temp"]) * state["layer_weights_lb"], 0)
    expected = sum(w * h for w, h in zip(weights, states, strict=True))
    assert torch.allclose(fusion(states, torch.ones(1, 2)), expected)


class Aggregator(nn.Module):
    """The paper's `LayerwiseTokenAggregator` (its variant AT): a learnt query, the states as keys and as values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(width))

    def forward(self, states: list[torch.Tensor]) -> torch.Tensor:
        """L tensors [B, S, D] -> [B, S, D]."""
        stacked = torch.stack(states, dim=2)
        weights = torch.softmax(torch.einsum("d,bsld->bsl", self.query, stacked) / stacked.shape[-1] ** 0.5, dim=-1)
        return torch.einsum("bsl,bsld->bsd", weights, stacked)


@pytest.mark.parametrize("path", ["reference", "torch"])
def test_attention_over_layers_without_the_transformer_is_the_papers_with_every_gradient(path: str) -> None:
    torch.manual_seed(0)
    paper, fusion = Aggregator(8).double(), LayerAttention(3, 8, backend=path).double()
    fusion.load_paper_state_dict(paper.state_dict())
    mine, theirs = (
        [x.clone().requires_grad_() for x in states] for states in [torch.randn(3, 2, 5, 8, dtype=torch.float64)] * 2
    )
    upstream = torch.randn(2, 5, 8, dtype=torch.float64)
    found, expected = fusion(mine, torch.ones(2, 5)), paper(theirs)
    assert torch.allclose(found, expected, atol=1e-12)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert torch.allclose(fusion.query.grad, paper.query.grad, atol=1e-12)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-12) for a, b in zip(mine, theirs, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    state = LayerWeights(3, 8).state_dict()
    with pytest.raises(ValueError, match=r"layer_pos_emb has shape \(1, 3, 8\)"):
        TransformerSoftmax(4, 8).load_paper_state_dict(state)
    state.pop("cls")
    with pytest.raises(ValueError, match=r"lacks \['cls'\]"):
        TransformerSoftmax(3, 8).load_paper_state_dict(state)
