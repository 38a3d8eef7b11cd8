"""The same function as the reference, with the norms and the MLP on one vector a token instead of L+1.

Only the first output of the layer is used, and its query is the same vector for every token. With q = W_q c + b_q and
u = W_k^T q / sqrt(D) the scores are s_l = u . (h_l + p_l), s_0 = u . c: keys are never projected (q . b_k is the same
for every place and drops out of the softmax). The value projection moves behind the weighted sum. Exact, not an
approximation; dropout falls on the same quantities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

__all__ = ["layer_scores"]


def layer_scores(states: Sequence[torch.Tensor], p: Mapping[str, torch.Tensor], dropout: float) -> torch.Tensor:
    """Scores of the layers, [B, S, L], from L states [B, S, D]; equal to :func:`.reference.layer_scores`."""
    width = states[0].shape[-1]
    dtype = states[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    w_q, w_k, w_v = p["self_attn_in_proj_weight"].chunk(3)
    b_q, _, b_v = p["self_attn_in_proj_bias"].chunk(3)
    positions_LD, cls_D = p["layer_positions"], p["cls"]

    u_D = w_k.T @ F.linear(cls_D, w_q, b_q) / math.sqrt(width)
    scores = [
        (state @ u_D.to(dtype)).to(wide) + position @ u_D for state, position in zip(states, positions_LD, strict=True)
    ]
    first = (cls_D @ u_D).expand_as(scores[0])
    attention = F.dropout(torch.softmax(torch.stack([first, *scores], dim=-1), dim=-1), dropout)  # [B, S, L+1]

    pooled = attention @ torch.cat([cls_D[None], positions_LD]).to(wide)
    for place, state in enumerate(states, start=1):
        pooled = torch.addcmul(pooled, state.to(wide), attention[..., place, None])
    value = _linear(pooled, w_v, None, dtype) + attention.sum(-1, keepdim=True) * b_v
    o = _linear(value, p["self_attn_out_proj_weight"], p["self_attn_out_proj_bias"], dtype)
    x = F.layer_norm(cls_D + F.dropout(o, dropout), (width,), p["norm1_weight"], p["norm1_bias"])
    hidden = F.dropout(F.relu(_linear(x, p["linear1_weight"], p["linear1_bias"], dtype)), dropout)
    ffn = F.dropout(_linear(hidden, p["linear2_weight"], p["linear2_bias"], dtype), dropout)
    y = F.layer_norm(x + ffn, (width,), p["norm2_weight"], p["norm2_bias"])
    return F.linear(y, p["score_weight"], p["score_bias"])


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    # Matrix products in the states' dtype (bfloat16 on a GPU), everything around them in the parameters' float32.
    product = F.linear(x.to(dtype), weight.to(dtype)).to(x.dtype)
    return product if bias is None else product + bias
