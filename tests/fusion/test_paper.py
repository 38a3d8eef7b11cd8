"""State dicts of the paper's public modules load, and the outputs agree."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bridge_ds.fusion.global_softmax import GlobalSoftmax
from bridge_ds.fusion.transformer_softmax import TransformerSoftmax


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


def test_what_does_not_fit_is_refused() -> None:
    state = LayerWeights(3, 8).state_dict()
    with pytest.raises(ValueError, match=r"layer_pos_emb has shape \(1, 3, 8\)"):
        TransformerSoftmax(4, 8).load_paper_state_dict(state)
    state.pop("cls")
    with pytest.raises(ValueError, match=r"lacks \['cls'\]"):
        TransformerSoftmax(3, 8).load_paper_state_dict(state)
