"""A fixed number of vectors from any number of encoder tokens: LangBridge's alignment `latent` (arXiv 2401.10695).

A perceiver resampler (Flamingo, arXiv 2204.14198): learned vectors attend to the tokens and to themselves, layer by
layer. Norms and residuals are those of LangBridge's public code (langbridge/alignment_modules.py): a norm before the
attention, none before the MLP.

Dimensions: B batch, S encoder tokens, N latents, K = S + N keys, D encoder width, H LLM width, A attention heads, E
width of one.
"""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["Resampler"]


class Resampler(nn.Module):
    """[B, S, D] and its mask -> [B, N, H]. Each module uses its parameters in its own forward, as ZeRO-3 requires."""

    def __init__(
        self, width: int, llm_width: int, *, latents: int, depth: int, heads: int, head_width: int, feedforward: int,
        dropout: float,
    ) -> None:  # fmt: skip
        """Args:
        width: D.
        llm_width: H.
        latents: N.
        depth: layers.
        heads: A.
        head_width: E.
        feedforward: hidden width of each layer's MLP, as a multiple of D.
        dropout: probability, on the output of each layer.
        """
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.layers = nn.ModuleList(_Layer(width, heads, head_width, feedforward) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, llm_width, bias=False)

    def forward(self, states_BSD: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
        """Resample; tokens where the mask is 0 are not attended to."""
        latents_BND = self.latents.expand(len(states_BSD), -1, -1)
        own_BN = mask_BS.new_ones(latents_BND.shape[:2])
        seen_BK = torch.cat([mask_BS, own_BN], dim=1).bool()
        for layer in self.layers:
            latents_BND = self.dropout(layer(states_BSD, latents_BND, seen_BK))
        return self.out(latents_BND)  # type: ignore[no-any-return]


class _Layer(nn.Module):
    """Attention of the latents over tokens and latents, and an MLP."""

    def __init__(self, width: int, heads: int, head_width: int, feedforward: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.norm_states, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, width, bias=False)
        self.linear1, self.linear2 = nn.Linear(width, feedforward * width), nn.Linear(feedforward * width, width)

    def forward(self, states_BSD: torch.Tensor, latents_BND: torch.Tensor, seen_BK: torch.Tensor) -> torch.Tensor:
        normed_BND = self.norm_latents(latents_BND)
        keys_BKD = torch.cat([self.norm_states(states_BSD), normed_BND], dim=1)
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(normed_BND), self.key(keys_BKD), self.value(keys_BKD))
        )
        scores_BANK = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        attention_BANK = scores_BANK.masked_fill(~seen_BK[:, None, None], -math.inf).softmax(-1)
        latents_BND = latents_BND + self.out((attention_BANK @ value).transpose(1, 2).flatten(2))
        hidden = nn.functional.gelu(self.linear1(latents_BND))
        return latents_BND + self.linear2(hidden)  # type: ignore[no-any-return]
