"""Base of the fusions: L layers of encoder states in, one out. The layer weights are kept for logs.

Dimensions: B batch, L encoder layers, S encoder tokens, D encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from bridge_ds.fusion.kernels.rows import Rows

__all__ = ["Fusion", "load_renamed", "zero_padding"]


class Fusion(nn.Module):
    """Base of the fusions. Parameters are read only inside `forward`, as ZeRO-3 requires."""

    def __init__(self, num_layers: int, width: int, *, backend: str = "auto", state_norm: str = "none") -> None:
        """Args:
        num_layers: L.
        width: D.
        backend: a name in :data:`bridge_ds.fusion.BACKENDS`, or `auto`.
        state_norm: `rms` divides each state of each token by its root mean square first; `none` does not.
        """
        super().__init__()
        self.backend = backend
        self.rms = state_norm == "rms"
        self.num_layers = num_layers
        self.width = width
        self._mean_weights_L = torch.full((num_layers,), float("nan"))

    def forward(self, states: Sequence[torch.Tensor], mask: torch.Tensor, rows: Rows | None = None) -> torch.Tensor:
        """Fuse.

        Args:
            states: L tensors [B, S, D], the outputs of the encoder's blocks, the last after the final norm.
            mask: [B, S], 1 on tokens, 0 on padding.
            rows: which of the B x S rows hold tokens, from :func:`.kernels.rows.real_rows`; None = computed from the
                mask, which makes the host wait for the GPU.

        Returns:
            [B, S, D] in the dtype of the states; rows of padding are zero.

        Raises:
            ValueError: the number of states or their width is not that of the module.
        """
        raise NotImplementedError

    def weights(self, states: Sequence[torch.Tensor] | None = None, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Mean weight of each layer over the real tokens, [L], float32, for logs and plots.

        Of `states` and `mask` if given, else of the last forward pass (which works under ZeRO-3 too, where parameters
        are sharded).
        """
        if states is not None:
            assert mask is not None, "weights(states) needs the mask too"
            with torch.no_grad():
                self(states, mask)
        return self._mean_weights_L

    def paper_names(self) -> dict[str, str]:
        """Parameter name here -> its name in the paper's public code (arXiv 2508.09091)."""
        return {}

    def load_paper_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load the state dict of the paper's module, with the names of :meth:`paper_names`.

        Raises:
            ValueError: a key is missing or unknown, or a tensor has another number of elements.
        """
        load_renamed(self, state, self.paper_names())

    def _check(self, states: Sequence[torch.Tensor]) -> None:
        if len(states) != self.num_layers or states[-1].shape[-1] != self.width:
            raise ValueError(
                f"got {len(states)} states of width {states[-1].shape[-1]}; "
                f"this fusion was built for {self.num_layers} of width {self.width}"
            )


def zero_padding(fused_BSD: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    """Set rows of padding to zero (also if they held inf or nan)."""
    return fused_BSD.masked_fill(mask_BS[..., None] == 0, 0)


def load_renamed(module: nn.Module, state: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> None:
    """Copy parameters under other names; shapes may differ by axes of length one.

    Args:
        module: receives the values.
        state: tensors under the other names.
        names: name here -> other name, for every parameter.

    Raises:
        ValueError: a key is missing or unknown, or a tensor has another number of elements.
    """
    parameters = dict(module.named_parameters())
    missing, unknown = set(names.values()) - set(state), set(state) - set(names.values())
    if missing or unknown:
        raise ValueError(f"state dict lacks {sorted(missing)} and has unknown {sorted(unknown)}; expected the paper's")
    for ours, theirs in names.items():
        target, value = parameters[ours], state[theirs]
        if [n for n in value.shape if n > 1] != [n for n in target.shape if n > 1]:
            raise ValueError(f"{theirs} has shape {tuple(value.shape)}; this fusion's {ours} is {tuple(target.shape)}")
    with torch.no_grad():
        for ours, theirs in names.items():
            parameters[ours].copy_(state[theirs].reshape(parameters[ours].shape))
