"""Segments of many lengths become one contiguous sequence a row: a pure function, both padding sides.

Letters: B batch, K places before closing up, X spliced length, H LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["IGNORE", "Segment", "Spliced", "splice"]

IGNORE = -100
"""Label of a position that is not predicted (torch's default ignore_index)."""


@dataclass(frozen=True)
class Segment:
    """One part of the LLM's input, for all rows of the batch."""

    embeds_BKH: torch.Tensor
    """[B, K, H]."""
    mask_BK: torch.Tensor
    """[B, K], 1 on real places; zeros may stand anywhere."""
    labels_BK: torch.Tensor | None = None
    """[B, K] token ids that these places are, where they are to be predicted; none = not predicted."""


@dataclass(frozen=True)
class Spliced:
    """What the LLM sees."""

    embeds_BXH: torch.Tensor
    """[B, X, H], padding is zero."""
    mask_BX: torch.Tensor
    """[B, X], 1 on real places: one run of ones in each row."""
    labels_BX: torch.Tensor
    """[B, X], the token id that stands AT a place, IGNORE where nothing is predicted or padding."""


def splice(segments: Sequence[Segment], side: str = "right") -> Spliced:
    """Join segments in order, row by row, contiguous and without a hole.

    A hole would be seen by RoPE models as a distance that training never had (LangBridge and MindMerger leave one
    between a right-padded soft prompt and the text).

    Args:
        segments: parts in the order in which the LLM reads them.
        side: where padding goes: `right` to train (a causal LLM then needs no mask), `left` to generate.
    """
    assert side in ("right", "left")
    embeds_BKH = torch.cat([s.embeds_BKH for s in segments], dim=1)
    mask_BK = torch.cat([s.mask_BK for s in segments], dim=1).bool()
    labels_BK = torch.cat([_labels(s) for s in segments], dim=1)

    # A stable sort of "is padding" keeps real places in order and moves padding to one end.
    order_BK = torch.argsort(mask_BK.to(torch.int8), dim=1, descending=side == "right", stable=True)
    length = int(mask_BK.sum(1).max())
    order_BX = order_BK[:, :length] if side == "right" else order_BK[:, order_BK.shape[1] - length :]
    mask_BX = mask_BK.gather(1, order_BX)
    # index_select on the flattened rows: its backward adds each gradient row once and is deterministic.
    rows = torch.arange(order_BX.shape[0], device=order_BX.device)[:, None] * order_BK.shape[1] + order_BX
    embeds_BXH = embeds_BKH.flatten(0, 1)[rows]
    return Spliced(
        embeds_BXH.masked_fill(~mask_BX[..., None], 0),
        mask_BX.long(),
        labels_BK.gather(1, order_BX).masked_fill(~mask_BX, IGNORE),
    )


def _labels(segment: Segment) -> torch.Tensor:
    if segment.labels_BK is None:
        return torch.full_like(segment.mask_BK, IGNORE, dtype=torch.long)
    return segment.labels_BK.masked_fill(segment.mask_BK == 0, IGNORE)
