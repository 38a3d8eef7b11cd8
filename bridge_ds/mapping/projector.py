"""From the encoder's width D into the LLM's embedding space of width H, with the learned end vector.

Dimensions: B batch, S encoder tokens, N soft tokens, D encoder width, H LLM width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from bridge_ds.mapping import MAPPINGS
from bridge_ds.products import swap_linear_layers

__all__ = ["Projector"]

_END_INITS = {"normal": torch.randn, "zeros": torch.zeros}


class Projector(nn.Module):
    """Maps every fused token, or resamples them, and appends one learned vector that marks the end of the soft prompt
    (LangBridge)."""

    scale: torch.Tensor

    def __init__(self, kind: str, width: int, llm_width: int, *, end_init: str = "normal", **options: Any) -> None:
        """Args:
        kind: a name in :data:`MAPPINGS`.
        width: D.
        llm_width: H.
        end_init: a name in :data:`bridge_ds.mapping.END_INITS`.
        options: of the recipe's `mapping:` part; those that the kind does not take are ignored.
        """
        super().__init__()
        spec = MAPPINGS[kind]
        self.project = spec(width, llm_width, **{key: options[key] for key in spec.options})
        self.end = nn.Parameter(_END_INITS[end_init](llm_width))
        self.norm = nn.LayerNorm(llm_width) if spec.resamples else None
        self.fixed_length: int = options["latents"] if spec.resamples else 0
        """Soft tokens of a row whatever its source's length, the end vector aside; 0 = one for each encoder token."""
        # A buffer and not a parameter: set once from the first batch, then part of the bridge's definition.
        self.register_buffer("scale", torch.ones(()))
        swap_linear_layers(self)

    @property
    def last(self) -> nn.Linear:
        """The linear layer that gives the soft tokens. Not of a resampler."""
        return cast(nn.Linear, self._layers[-1])

    def before_last(self, fused_BSD: torch.Tensor) -> torch.Tensor:
        """What :attr:`last` gets, in float32. Not of a resampler."""
        x = fused_BSD.to(self.end.dtype)
        for layer in self._layers[:-1]:
            x = layer(x)
        return x

    @property
    def _layers(self) -> list[nn.Module]:
        return list(self.project) if isinstance(self.project, nn.Sequential) else [self.project]

    def forward(self, fused_BSD: torch.Tensor, mask_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map.

        Returns:
            soft [B, N+1, H] in the dtype of the input, the end vector last, and its mask [B, N+1]; N is S, or
            `fixed_length`. A row may have padding before the end vector; :func:`bridge_ds.llm.splice.splice`
            removes it.
        """
        fused = fused_BSD.to(self.end.dtype)
        if self.norm is None:
            soft_BNH = self.project(fused)
        else:
            soft_BNH, mask_BS = self.project(fused, mask_BS), mask_BS.new_ones(len(mask_BS), self.fixed_length)
        soft_BNH = torch.cat([soft_BNH, self.end.expand(len(soft_BNH), 1, -1)], dim=1)
        if self.norm is not None:
            soft_BNH = self.norm(soft_BNH)  # the end vector too, as in LangBridge
        mask_BN = torch.cat([mask_BS, torch.ones_like(mask_BS[:, :1])], dim=1)
        return (soft_BNH * self.scale).to(fused_BSD.dtype), mask_BN
