"""The encoder's last layer alone (LangBridge, arXiv 2401.10695)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bridge_ds.fusion.base import Fusion, zero_padding
from bridge_ds.fusion.kernels.rows import Rows

__all__ = ["LastLayer"]


class LastLayer(Fusion):
    """f = h_L. No parameters."""

    def __init__(self, num_layers: int, width: int) -> None:
        super().__init__(num_layers, width)
        self._mean_weights_L = torch.zeros(num_layers)
        self._mean_weights_L[-1] = 1.0

    def forward(self, states: Sequence[torch.Tensor], mask: torch.Tensor, rows: Rows | None = None) -> torch.Tensor:
        self._check(states)
        return zero_padding(states[-1], mask)
