"""A batch, once the encoder has read it.

Dimensions: B batch, S encoder tokens, M of them that are no padding, L layers, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from bridge_ds.data.loading.batch import Batch
from bridge_ds.encoder.base import States
from bridge_ds.fusion.kernels.rows import Rows

__all__ = ["Encoded", "source_rows"]


class Encoded(NamedTuple):
    """Of a batch, once the encoder has read it."""

    states: States
    mask_BS: torch.Tensor
    """Of what it read: a row without a source has one token of padding."""
    rows: Rows | None
    own_BS: torch.Tensor
    """Of the batch."""
    some_empty: bool
    """Some row may have no source."""
    device: torch.device
    """Of the LLM's input."""


def source_rows(batch: Batch) -> Rows | None:
    """Rows of the encoder's tokens that are no padding, if the batch has a layout."""
    if batch.layout is None:
        return None
    index_M, total = batch.layout.source_rows, batch.source_mask.numel()
    return Rows(total, len(index_M), index_M if len(index_M) < total else None)
