"""LayAlign's adapter (arXiv 2502.11405, section 3): one weighting of the encoder's layers for the keys of each layer of
the LLM, and one for its values.

Dimensions: L encoder layers, B rows, S encoder tokens, D encoder width, H LLM width, K layers of the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bridge_ds.fusion.kernels import fuse_by_matrix
from bridge_ds.fusion.kernels.rows import Rows
from bridge_ds.injection.base import Form, Injected, Pair
from bridge_ds.products import linear

__all__ = ["EveryLayer"]


class EveryLayer(Form):
    """x_i = W relu(sum_l a_il h_l + b_i) + c for i = 1 .. 2 K: what key and value of each layer are projected from."""

    def __init__(self, layers: int, width: int, llm_width: int, places: int, *, mlp: bool = False) -> None:
        """Args:
        layers: L.
        width: D.
        llm_width: H.
        places: K.
        mlp: a ReLU and a second matrix H -> H follow (LayAlign's structure `MLP`).
        """
        super().__init__(places)
        # Direct parameters: ZeRO-3 gathers those of the module whose forward runs.
        self.layers_weight, self.layers_bias = nn.Linear(layers, 2 * places).parameters()
        self.project_weight, self.project_bias = nn.Linear(width, llm_width).parameters()
        self.second_weight: nn.Parameter | None = None
        self.second_bias: nn.Parameter | None = None
        if mlp:
            self.second_weight, self.second_bias = nn.Linear(llm_width, llm_width).parameters()

    def forward(
        self, states: Sequence[torch.Tensor], mask_BS: torch.Tensor, rows: Rows | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gates [K] and x [2 K, B, S, H] in the states' dtype: of each layer its key's, then its value's."""
        mixed = fuse_by_matrix(self.backend, states, mask_BS, self.layers_weight, self.layers_bias, rows=rows)
        x = linear(mixed, self.project_weight.to(mixed.dtype), self.project_bias.to(mixed.dtype))
        if self.second_weight is not None and self.second_bias is not None:
            x = linear(x.relu(), self.second_weight.to(mixed.dtype), self.second_bias.to(mixed.dtype))
        return self.gates.to(mixed.dtype) * 1, x  # never the parameter itself, which ZeRO-3 releases

    def injected(
        self, states: Sequence[torch.Tensor], mask_BS: torch.Tensor, rows: Rows | None, prompt: Sequence[Pair]
    ) -> Injected:
        gates_K, x = self(states, mask_BS, rows)
        return Injected(gates_K, mask_BS, [(key, value) for key, value in x.unflatten(0, (-1, 2))], projected=False)
