"""One vector for a sentence, by which sentences are compared: for `bridge-ds probe` and `adapt`.

Dimensions: B batch, S encoder tokens, D encoder width.
"""

from __future__ import annotations

import torch

__all__ = ["mean_state"]


def mean_state(state_BSD: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """[B, D] float32: the mean over the tokens of a sentence, special ones too."""
    kept_BS1 = mask_BS[..., None].float()
    summed_BD = state_BSD.float().masked_fill(kept_BS1 == 0, 0).sum(1)
    return summed_BD / kept_BS1.sum(1).clamp(min=1)
