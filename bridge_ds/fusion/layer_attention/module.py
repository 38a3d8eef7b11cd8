"""Layer Attention (arXiv 2508.09091): layer weights per token from one learned query, without a transformer layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bridge_ds.fusion.base import Fusion
from bridge_ds.fusion.kernels import fuse_by_query
from bridge_ds.fusion.kernels.rows import Rows

__all__ = ["LayerAttention"]


class LayerAttention(Fusion):
    """w = softmax over the layers of q . h_l / sqrt(D), for each token; f = sum_l w_l h_l.

    `LayerwiseTokenAggregator` of the paper's public code (its variant AT): keys and values are the states themselves.
    The scores grow with the states, so without `state_norm` the layer with the largest states may get all weight.
    """

    def __init__(self, num_layers: int, width: int, *, backend: str = "auto", state_norm: str = "none") -> None:
        """Arguments as of :class:`Fusion`."""
        super().__init__(num_layers, width, backend=backend, state_norm=state_norm)
        self.query = nn.Parameter(torch.randn(width))

    def forward(self, states: Sequence[torch.Tensor], mask: torch.Tensor, rows: Rows | None = None) -> torch.Tensor:
        self._check(states)
        fused_BSD, seen_L = fuse_by_query(self.backend, states, mask, self.query, rms=self.rms, rows=rows)
        self._mean_weights_L = seen_L.float()
        return fused_BSD

    def paper_names(self) -> dict[str, str]:
        """`query`, D numbers: the paper's `LayerwiseTokenAggregator`."""
        return {"query": "query"}
