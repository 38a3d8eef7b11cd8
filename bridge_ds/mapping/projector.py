"""From the encoder's width D into the LLM's embedding space of width H, with the learnt end vector.

Letters: B batch, S encoder tokens, D encoder width, H LLM width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["MAPPINGS", "Projector"]

MAPPINGS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": lambda d, h: nn.Linear(d, h),
    "mlp": lambda d, h: nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, h)),
    "mlp_gelu": lambda d, h: nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, h)),
}
"""linear: arXiv 2508.09091, and LangBridge's `linear`. mlp: MindMerger (arXiv 2405.17386), hidden width 2D. mlp_gelu:
LangBridge's `ffn` (arXiv 2401.10695, its public code), hidden width 2D, the exact GELU."""


class Projector(nn.Module):
    """Maps every fused token and appends one learnt vector that marks the end of the soft prompt (LangBridge)."""

    scale: torch.Tensor

    def __init__(self, kind: str, width: int, llm_width: int) -> None:
        super().__init__()
        self.project = MAPPINGS[kind](width, llm_width)
        self.end = nn.Parameter(torch.randn(llm_width))
        # A buffer and not a parameter: set once from the first batch, then part of the bridge's definition.
        self.register_buffer("scale", torch.ones(()))

    def forward(self, fused_BSD: torch.Tensor, mask_BS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map.

        Returns:
            soft [B, S+1, H] in the dtype of the input, the end vector last, and its mask [B, S+1]. The row may have
            padding before the end vector; :func:`bridge_ds.llm.splice.splice` closes such holes.
        """
        dtype = self.end.dtype
        soft_BSH = self.project(fused_BSD.to(dtype))
        end_B1H = self.end.expand(soft_BSH.shape[0], 1, -1)
        soft_BSH = torch.cat([soft_BSH, end_B1H], dim=1) * self.scale
        mask_BS = torch.cat([mask_BS, torch.ones_like(mask_BS[:, :1])], dim=1)
        return soft_BSH.to(fused_BSD.dtype), mask_BS
