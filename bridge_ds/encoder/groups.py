"""The states of a batch whose rows the encoder read in groups.

Dimensions: B batch, S encoder tokens, M positions of all groups, D encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bridge_ds.data.loading.batch import Batch
from bridge_ds.encoder.base import States

__all__ = ["joined"]


def joined(batch: Batch, parts: Sequence[States]) -> States:
    """The states [B, S, D] of a batch from those of its groups of rows; 0 on padding that no group has."""
    if len(parts) == 1:
        return parts[0]
    assert batch.layout is not None
    found, index = [], torch.cat([group.flatten() for group in batch.layout.groups])
    for layer in zip(*parts, strict=True):
        state_MD = torch.cat([state.flatten(0, 1) for state in layer])
        whole = state_MD.new_zeros(batch.source_ids.numel(), state_MD.shape[-1])
        found.append(whole.index_copy_(0, index, state_MD).unflatten(0, batch.source_ids.shape))
    return tuple(found)
