"""Global Softmax (arXiv 2508.09091): one weight per layer, the same for every token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bridge_ds.fusion.base import Fusion
from bridge_ds.fusion.kernels import fuse_by_layer
from bridge_ds.fusion.kernels.rows import Rows

__all__ = ["GlobalSoftmax"]


class GlobalSoftmax(Fusion):
    """w = softmax(tau a), tau = 100 + 1e5 t; f = sum_l w_l h_l.

    The constants are those of the paper's public code: `a` starts at 3e-5 and the learned scalar `t` at 1e-5, so
    that at the usual small learning rates the weights still move.
    """

    def __init__(self, num_layers: int, width: int, *, backend: str = "auto", state_norm: str = "none") -> None:
        """Arguments as of :class:`Fusion`."""
        super().__init__(num_layers, width, backend=backend, state_norm=state_norm)
        self.scores = nn.Parameter(torch.full((num_layers,), 3e-5))
        self.temperature = nn.Parameter(torch.full((1,), 1e-5))

    def forward(self, states: Sequence[torch.Tensor], mask: torch.Tensor, rows: Rows | None = None) -> torch.Tensor:
        self._check(states)
        weights_L = torch.softmax((100 + 1e5 * self.temperature) * self.scores, dim=0)
        self._mean_weights_L = weights_L.detach().float()
        return fuse_by_layer(self.backend, states, mask, weights_L, rms=self.rms, rows=rows)

    def paper_names(self) -> dict[str, str]:
        """`layer_weights_lb`, L numbers, and `temp`, one: the paper's global gate."""
        return {"scores": "layer_weights_lb", "temperature": "temp"}
