"""Transformer Softmax on one vector a token in plain PyTorch, for bench_fusion.py to run under torch.compile.

The formula is that of bridge_ds/fusion/kernels/by_token.py. This is what one gets without the project's own backward:
autograd keeps every intermediate. Dropout is torch's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from bridge_ds.fusion.base import Fusion

__all__ = ["PlainCollapse"]


class PlainCollapse(nn.Module):
    """Wraps a TransformerSoftmax with one head and uses its parameters."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, states: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """L states [B, S, D] -> [B, S, D]."""
        p = dict(self.fusion.named_parameters())
        width = states[0].shape[-1]
        wide = torch.promote_types(states[0].dtype, torch.float32)
        w_q, w_k, w_v = p["self_attn_in_proj_weight"].chunk(3)
        b_q, _, b_v = p["self_attn_in_proj_bias"].chunk(3)
        positions_PD = torch.cat([p["cls"][None], p["layer_positions"]])
        u_D = w_k.T @ F.linear(p["cls"], w_q, b_q) / math.sqrt(width)
        scores = torch.stack([(state.to(wide) * u_D).sum(-1) for state in states], dim=-1)
        attention = torch.softmax(F.pad(scores, (1, 0)) + positions_PD @ u_D, dim=-1)
        attention = self.drop(attention)
        pooled = attention @ positions_PD
        for position, state in enumerate(states, start=1):
            pooled = pooled + attention[..., position, None] * state.to(wide)
        value = F.linear(pooled, w_v) + attention.sum(-1, keepdim=True) * b_v
        o = F.linear(value, p["self_attn_out_proj_weight"], p["self_attn_out_proj_bias"])
        x = F.layer_norm(p["cls"] + self.drop(o), (width,), p["norm1_weight"], p["norm1_bias"])
        hidden = self.drop(F.relu(F.linear(x, p["linear1_weight"], p["linear1_bias"])))
        y = x + self.drop(F.linear(hidden, p["linear2_weight"], p["linear2_bias"]))
        y = F.layer_norm(y, (width,), p["norm2_weight"], p["norm2_bias"])
        weights = torch.softmax(F.linear(y, p["score_weight"], p["score_bias"]), dim=-1)
        fused = sum(weights[..., n, None] * state.to(wide) for n, state in enumerate(states))
        assert isinstance(fused, torch.Tensor)
        return (fused * mask[..., None]).to(states[0].dtype)

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout of the fusion's probability, in training mode."""
        return F.dropout(x, self.fusion.dropout, self.training)  # type: ignore[arg-type]
