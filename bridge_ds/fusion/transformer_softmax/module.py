"""Transformer Softmax (arXiv 2508.09091): layer weights per token from one transformer layer over its states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bridge_ds.fusion.base import Fusion
from bridge_ds.fusion.kernels import fuse_by_token
from bridge_ds.fusion.kernels.rows import Rows

__all__ = ["TransformerSoftmax"]


class TransformerSoftmax(Fusion):
    """w = softmax(U y + b), y = the first output of a transformer layer over [c; h_1 + p_1; ...; h_L + p_L].

    The layer is torch's `nn.TransformerEncoderLayer(D, nhead=1, dim_feedforward=2048)`: ReLU, post-norm. Its parameters
    are direct parameters of this module, under torch's names with `_` for `.`: ZeRO-3 gathers a module's direct
    parameters when its forward begins, and torch's own layer reads those of its grandchildren.
    """

    def __init__(
        self,
        num_layers: int,
        width: int,
        *,
        dropout: float = 0.1,
        backend: str = "auto",
        heads: int = 1,
        state_norm: str = "none",
        feedforward: int = 2048,
    ) -> None:
        """Arguments that are not listed as of :class:`Fusion`.

        Args:
            dropout: probability, on attention, its output and the feed-forward part, as in torch's layer.
            heads: attention heads of the layer (1 in the paper).
            feedforward: hidden width of the layer's MLP (2048 in the paper).

        Raises:
            ValueError: `heads` does not divide D.
        """
        super().__init__(num_layers, width, backend=backend, state_norm=state_norm)
        if width % heads:
            raise ValueError(f"fusion.heads is {heads}, which does not divide the encoder's width {width}")
        self.dropout = dropout
        self.heads = heads
        self.cls = nn.Parameter(torch.zeros(width))
        self.layer_positions = nn.Parameter(torch.randn(num_layers, width))
        template = nn.TransformerEncoderLayer(width, nhead=1, dim_feedforward=feedforward, dropout=dropout)
        for name, parameter in template.named_parameters():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(parameter.detach().clone()))
        head = nn.Linear(width, num_layers)
        self.score_weight = nn.Parameter(head.weight.detach().clone())
        self.score_bias = nn.Parameter(head.bias.detach().clone())

    def forward(self, states: Sequence[torch.Tensor], mask: torch.Tensor, rows: Rows | None = None) -> torch.Tensor:
        self._check(states)
        fused_BSD, seen_L = fuse_by_token(
            self.backend,
            states,
            mask,
            dict(self.named_parameters()),
            heads=self.heads,
            dropout=self.dropout if self.training else 0.0,
            rms=self.rms,
            rows=rows,
        )
        self._mean_weights_L = seen_L.float()
        return fused_BSD

    def paper_names(self) -> dict[str, str]:
        """Of the paper's `LayerWeights`: `cls`, `layer_pos_emb` (of any shape that holds D and L x D numbers),
        `layer_weights.weight|bias` and `transformerEncoder.layers.0.*` as torch names them."""
        names = {name: f"transformerEncoder.layers.0.{_torch_name(name)}" for name, _ in self.named_parameters()}
        names |= {"cls": "cls", "layer_positions": "layer_pos_emb"}
        return names | {"score_weight": "layer_weights.weight", "score_bias": "layer_weights.bias"}


def _torch_name(name: str) -> str:
    """`self_attn_out_proj_weight` -> `self_attn.out_proj.weight`, the name in torch's layer."""
    module, _, kind = name.rpartition("_")  # kind: weight or bias
    if module == "self_attn_in_proj":  # a parameter of the attention itself, not of a linear layer inside it
        return f"self_attn.in_proj_{kind}"
    return f"{module.replace('self_attn_', 'self_attn.')}.{kind}"
