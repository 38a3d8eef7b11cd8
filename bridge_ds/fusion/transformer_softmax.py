"""Transformer Softmax (arXiv 2508.09091): layer weights for each token, from one transformer layer over its states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bridge_ds.fusion.base import Fusion, mix, zero_padding
from bridge_ds.fusion.kernels import LAYER_SCORES

__all__ = ["TransformerSoftmax"]


class TransformerSoftmax(Fusion):
    """w = softmax(U y + b), y = the first output of a transformer layer over [c; h_1 + p_1; ...; h_L + p_L].

    The layer is torch's `nn.TransformerEncoderLayer(D, nhead=1, dim_feedforward=2048)`: ReLU, post-norm. Its parameters
    stand here under torch's names with `_` for `.`, as direct children: ZeRO-3 gathers a module's direct parameters
    when its forward begins, and torch's own layer reads its grandchildren's.
    """

    OPTIONS = ("dropout", "path")

    def __init__(
        self, num_layers: int, width: int, *, dropout: float = 0.1, path: str = "auto", feedforward: int = 2048
    ) -> None:
        """Args:
        num_layers: L.
        width: D.
        dropout: probability, on attention, its output and the feed-forward part, as in torch's layer.
        path: a name in :data:`bridge_ds.fusion.kernels.LAYER_SCORES`, or `auto`.
        feedforward: hidden width of the layer's MLP (2048 in the paper).
        """
        super().__init__(num_layers, width)
        self.dropout = dropout
        self.path = "torch" if path == "auto" else path
        self.cls = nn.Parameter(torch.zeros(width))
        self.layer_positions = nn.Parameter(torch.randn(num_layers, width))
        template = nn.TransformerEncoderLayer(width, nhead=1, dim_feedforward=feedforward, dropout=dropout)
        for name, parameter in template.named_parameters():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(parameter.detach().clone()))
        head = nn.Linear(width, num_layers)
        self.score_weight = nn.Parameter(head.weight.detach().clone())
        self.score_bias = nn.Parameter(head.bias.detach().clone())

    def forward(self, states: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        self._check(states)
        dropout = self.dropout if self.training else 0.0
        scores_BSL = LAYER_SCORES[self.path](states, dict(self.named_parameters()), dropout)
        weights_BSL = torch.softmax(scores_BSL.to(torch.promote_types(scores_BSL.dtype, torch.float32)), dim=-1)
        with torch.no_grad():
            real_BS1 = mask[..., None].to(weights_BSL.dtype)
            self._seen_L = (weights_BSL * real_BS1).sum((0, 1)) / real_BS1.sum().clamp(min=1)
        return zero_padding(mix(states, weights_BSL), mask)
