"""Segments of many lengths become one contiguous sequence a row: a pure function, both padding sides.

Dimensions: B batch, K positions of the segments, X spliced length, H LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bridge_ds.data.loading.layout import Order, close_up
from bridge_ds.injection.base import Injected

__all__ = ["IGNORE", "Segment", "Spliced", "splice"]

IGNORE = -100
"""Label of a position that is not predicted (torch's default ignore_index)."""


@dataclass(frozen=True)
class Segment:
    """One part of the LLM's input, for all rows of the batch."""

    embeds_BKH: torch.Tensor
    """[B, K, H]."""
    mask_BK: torch.Tensor
    """[B, K], 1 on real tokens; zeros may be anywhere."""
    labels_BK: torch.Tensor | None = None
    """[B, K] token ids at these positions, if they are to be predicted; None = they are not."""


@dataclass(frozen=True)
class Spliced:
    """What the LLM sees."""

    embeds_BXH: torch.Tensor
    """[B, X, H], padding is zero."""
    mask_BX: torch.Tensor
    """[B, X], 1 on real tokens: one run of ones in each row."""
    labels_BX: torch.Tensor
    """[B, X], the token id AT a position, IGNORE if it is not to be predicted or padding."""
    injected: Injected | None = None
    """What the LLM's layers attend to beside it."""

    def rows(self, numbers: Sequence[int]) -> Spliced:
        """Some rows, without positions that hold padding in all of them."""
        mask_BX = self.mask_BX[list(numbers)]
        used_X = mask_BX.any(0)
        embeds_BXH, labels_BX = (part[list(numbers)][:, used_X] for part in (self.embeds_BXH, self.labels_BX))
        injected = self.injected and self.injected.rows(numbers)
        return Spliced(embeds_BXH, mask_BX[:, used_X], labels_BX, injected)


def splice(segments: Sequence[Segment], side: str = "right", order: Order | None = None) -> Spliced:
    """Join segments in order, row by row, contiguous and without a gap.

    A gap would be seen by RoPE models as a distance that training never had (LangBridge and MindMerger leave one
    between a right-padded soft prompt and the text).

    Args:
        segments: parts in the order in which the LLM reads them.
        side: of the padding: `right` to train (a causal LLM then needs no mask), `left` to generate.
        order: of the segments' masks, if it is known already; else the host waits for the device.
    """
    order = order or close_up(torch.cat([s.mask_BK for s in segments], dim=1), side)
    assert order.side == side
    mask_BX = order.mask_BX
    # The backward of index_select adds each gradient row to zeros once (no position is in the order twice), so that it
    # gives the same on a GPU too, where it adds in any order.
    embeds_MH = torch.cat([s.embeds_BKH for s in segments], dim=1).flatten(0, 1)
    embeds_BXH = embeds_MH.index_select(0, order.index_BX.flatten()).unflatten(0, order.index_BX.shape)
    return Spliced(embeds_BXH.masked_fill(~mask_BX[..., None], 0), mask_BX.long(), _labels(segments, order, mask_BX))


def _labels(segments: Sequence[Segment], order: Order, mask_BX: torch.Tensor) -> torch.Tensor:
    if all(s.labels_BK is None for s in segments):
        return torch.full_like(order.index_BX, IGNORE)
    parts = [
        torch.full_like(s.mask_BK, IGNORE, dtype=torch.long) if s.labels_BK is None else s.labels_BK for s in segments
    ]
    labels_M = torch.cat(parts, dim=1).flatten()
    return labels_M.index_select(0, order.index_BX.flatten()).view_as(order.index_BX).masked_fill(~mask_BX, IGNORE)
