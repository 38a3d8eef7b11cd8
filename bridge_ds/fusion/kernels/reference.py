"""The whole transformer layer over all L+1 places, as the paper runs it: slow, plain, the oracle of the tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

__all__ = ["layer_scores"]


def layer_scores(states: Sequence[torch.Tensor], p: Mapping[str, torch.Tensor], dropout: float) -> torch.Tensor:
    """Scores of the layers, [B, S, L], from L states [B, S, D] (arXiv 2508.09091, Transformer Softmax).

    The steps are torch's `nn.TransformerEncoderLayer` (post-norm, ReLU, one head) with dropout where it has it.
    """
    width = states[0].shape[-1]
    dtype = states[0].dtype
    p = {name: value.to(dtype) for name, value in p.items()}
    layers_BSLD = torch.stack(tuple(states), dim=2) + p["layer_positions"]
    x = torch.cat([p["cls"].expand_as(layers_BSLD[:, :, :1]), layers_BSLD], dim=2)  # [B, S, L+1, D]

    q, k, v = F.linear(x, p["self_attn_in_proj_weight"], p["self_attn_in_proj_bias"]).chunk(3, dim=-1)
    attention = F.dropout(torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(width), dim=-1), dropout)
    o = F.linear(attention @ v, p["self_attn_out_proj_weight"], p["self_attn_out_proj_bias"])
    x = F.layer_norm(x + F.dropout(o, dropout), (width,), p["norm1_weight"], p["norm1_bias"])
    hidden = F.dropout(F.relu(F.linear(x, p["linear1_weight"], p["linear1_bias"])), dropout)
    ffn = F.dropout(F.linear(hidden, p["linear2_weight"], p["linear2_bias"]), dropout)
    y = F.layer_norm(x + ffn, (width,), p["norm2_weight"], p["norm2_bias"])
    return F.linear(y[:, :, 0], p["score_weight"], p["score_bias"])
