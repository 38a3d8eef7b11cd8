"""The full transformer layer over all L + 1 positions, as in the paper: slow and simple, the reference of the tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

__all__ = ["layer_scores", "matrix_mix", "mix", "normed", "query_scores"]


def layer_scores(
    states: Sequence[torch.Tensor], p: Mapping[str, torch.Tensor], dropout: float, heads: int = 1
) -> torch.Tensor:
    """Scores of the layers, [B, S, L], from L states [B, S, D] (arXiv 2508.09091, Transformer Softmax).

    The steps are torch's `nn.TransformerEncoderLayer` (post-norm, ReLU) with dropout where it has it.
    """
    width = states[0].shape[-1]
    dtype = states[0].dtype
    p = {name: value.to(dtype) for name, value in p.items()}
    layers_BSLD = torch.stack(tuple(states), dim=2) + p["layer_positions"]
    x = torch.cat([p["cls"].expand_as(layers_BSLD[:, :, :1]), layers_BSLD], dim=2)  # [B, S, L+1, D]

    qkv = F.linear(x, p["self_attn_in_proj_weight"], p["self_attn_in_proj_bias"])
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(2, 3) for part in qkv.chunk(3, dim=-1))  # [B, S, H, L+1, E]
    attention = F.dropout(torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(width / heads), dim=-1), dropout)
    value = (attention @ v).transpose(2, 3).flatten(-2)
    o = F.linear(value, p["self_attn_out_proj_weight"], p["self_attn_out_proj_bias"])
    x = F.layer_norm(x + F.dropout(o, dropout), (width,), p["norm1_weight"], p["norm1_bias"])
    hidden = F.dropout(F.relu(F.linear(x, p["linear1_weight"], p["linear1_bias"])), dropout)
    ffn = F.dropout(F.linear(hidden, p["linear2_weight"], p["linear2_bias"]), dropout)
    y = F.layer_norm(x + ffn, (width,), p["norm2_weight"], p["norm2_bias"])
    return F.linear(y[:, :, 0], p["score_weight"], p["score_bias"])


def query_scores(states: Sequence[torch.Tensor], query_D: torch.Tensor) -> torch.Tensor:
    """q . h_l / sqrt(D) of each token and layer, [B, S, L] (arXiv 2508.09091, its public code's variant AT)."""
    return torch.stack(tuple(states), dim=2) @ query_D.to(states[0].dtype) / math.sqrt(len(query_D))


def mix(states: Sequence[torch.Tensor], weights: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """f = sum_l w_l h_l in float32 (or float64) with weights [L] or [B, S, L]; zero on padding."""
    wide = torch.promote_types(states[0].dtype, torch.float32)
    weights = weights.to(wide)
    fused = sum(weights[..., layer, None] * state.to(wide) for layer, state in enumerate(states))
    assert isinstance(fused, torch.Tensor)
    return fused.to(states[0].dtype).masked_fill(mask_BS[..., None] == 0, 0)


def normed(states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each state of each token divided by its RMS (T5's norm without a gain)."""
    return [F.rms_norm(state, state.shape[-1:], eps=1e-6) for state in states]


def matrix_mix(
    states: Sequence[torch.Tensor], weight_KL: torch.Tensor, bias_K: torch.Tensor, mask_BS: torch.Tensor, relu: bool
) -> torch.Tensor:
    """relu(sum_l W_kl h_l + b_k) in float32 (or float64), [K, B, S, D]; zero on padding."""
    wide = torch.promote_types(states[0].dtype, torch.float32)
    sums_BSDK = F.linear(torch.stack(tuple(states), dim=-1).to(wide), weight_KL.to(wide), bias_K.to(wide))
    fused = (F.relu(sums_BSDK) if relu else sums_BSDK).movedim(-1, 0)
    return fused.to(states[0].dtype).masked_fill(mask_BS[..., None] == 0, 0)
