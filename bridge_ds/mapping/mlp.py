"""MLPs of hidden width 2D that map each token by itself."""

from __future__ import annotations

from torch import nn

__all__ = ["mlp", "mlp_gelu"]


def mlp(width: int, llm_width: int) -> nn.Module:
    """D -> 2D -> H with ReLU (MindMerger, arXiv 2405.17386)."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, llm_width))


def mlp_gelu(width: int, llm_width: int) -> nn.Module:
    """D -> 2D -> H with the exact GELU (LangBridge's `ffn`, arXiv 2401.10695)."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, llm_width))
