"""What every fusion is: L layers of encoder states in, one out, and a record of the layer weights for logs.

Letters: B batch, L encoder layers, S encoder tokens, D encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["Fusion", "mix", "zero_padding"]


class Fusion(nn.Module):
    """Base of the fusions. Parameters are used only inside `forward`, as ZeRO-3 demands."""

    OPTIONS: tuple[str, ...] = ()
    """Keys of the recipe's `fusion:` part that the constructor takes."""

    def __init__(self, num_layers: int, width: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.width = width
        self._seen_L = torch.full((num_layers,), float("nan"))

    def forward(self, states: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Fuse.

        Args:
            states: L tensors [B, S, D], the outputs of the encoder's blocks, the last after the final norm.
            mask: [B, S], 1 on tokens, 0 on padding.

        Returns:
            [B, S, D] in the dtype of the states; rows of padding are zero.

        Raises:
            ValueError: the number of states or their width is not what the module was built for.
        """
        raise NotImplementedError

    def weights(self, states: Sequence[torch.Tensor] | None = None, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Mean weight of each layer over the real tokens, [L], float32, for logs and plots.

        With `states` and `mask` they are computed for those; without, they are the ones of the last forward pass
        (which can be read under ZeRO-3, where the parameters cannot).
        """
        if states is not None:
            assert mask is not None, "weights(states) needs the mask too"
            with torch.no_grad():
                self(states, mask)
        return self._seen_L

    def _check(self, states: Sequence[torch.Tensor]) -> None:
        if len(states) != self.num_layers or states[-1].shape[-1] != self.width:
            raise ValueError(
                f"got {len(states)} states of width {states[-1].shape[-1]}; "
                f"this fusion was built for {self.num_layers} of width {self.width}"
            )


def mix(states: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """f = sum_l w_l h_l, accumulated in float32 (or float64).

    Args:
        states: L tensors [B, S, D].
        weights: [L], or [B, S, L] for weights of each token.

    Returns:
        [B, S, D] in the dtype of the states.
    """
    wide = torch.promote_types(states[0].dtype, torch.float32)
    fused = torch.zeros_like(states[0], dtype=wide)
    for state, weight in zip(states, weights.to(wide).unbind(-1), strict=True):
        fused = torch.addcmul(fused, state.to(wide), weight[..., None])
    return fused.to(states[0].dtype)


def zero_padding(fused_BSD: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """Rows of padding become exact zeros (also where they held inf or nan)."""
    return fused_BSD.masked_fill(mask_BS[..., None] == 0, 0)
