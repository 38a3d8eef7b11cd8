"""The position of everything in what the models read: index tensors that follow from lengths alone.

:func:`bridge_ds.data.loading.collate.collate` makes them in the data worker, so that nothing has to be asked of a GPU
during a micro-batch. The same functions work on masks that are on a device already; the host then waits for it.

Dimensions: B batch, S encoder tokens, M of them that are real, F soft tokens, P prompt tokens, T target tokens, K
positions of a row before closing the gaps, X spliced length, N predicting positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Layout", "Order", "close_up", "layout_of"]


@dataclass(frozen=True)
class Order:
    """Which of B x K positions goes to each of B x X positions, once gaps are closed and padding is at one end."""

    index_BX: torch.Tensor
    """[B, X] int64, flat positions (row x K + position), none twice. Those of padding point at padding."""
    length_B: torch.Tensor
    """[B] int64, real positions of each row."""
    side: str = "right"
    """The end at which padding is."""

    @property
    def mask_BX(self) -> torch.Tensor:
        """[B, X] bool, true on real positions."""
        positions_X = torch.arange(self.index_BX.shape[1], device=self.length_B.device)
        if self.side == "right":
            return positions_X < self.length_B[:, None]
        return positions_X >= self.index_BX.shape[1] - self.length_B[:, None]


@dataclass(frozen=True)
class Layout:
    """All of a micro-batch that follows from its lengths. The LLM reads [head | soft, end | prompt | target], where
    the head is BOS or the beginning of a chat template."""

    source_rows: torch.Tensor
    """[M] int64, flat positions among B x S that hold an encoder token, in order."""
    order: torch.Tensor
    """[B, X] int64, see :attr:`Order.index_BX`."""
    lengths: torch.Tensor
    """[B] int64, real positions of the LLM's input."""
    positions: torch.Tensor
    """[N] int64, flat positions among B x X whose output predicts a target token, in order."""
    labels: torch.Tensor
    """[N] int64, the ids of those target tokens."""

    def splice_order(self) -> Order:
        """For :func:`bridge_ds.llm.splice.splice`."""
        return Order(self.order, self.lengths)


def close_up(mask_BK: torch.Tensor, side: str = "right") -> Order:
    """The order that closes the gaps of each row; waits for the mask's device once, for X.

    Args:
        mask_BK: not 0 on real positions; zeros may be anywhere.
        side: where padding goes: `right` to train (a causal LLM then needs no mask), `left` to generate.
    """
    assert side in ("right", "left")
    real_BK = mask_BK.bool()
    rows, width = real_BK.shape
    # A stable sort of "is padding" keeps real positions in order and moves padding to one end.
    order_BK = torch.argsort(real_BK.to(torch.int8), dim=1, descending=side == "right", stable=True)
    length_B = real_BK.sum(1)
    length = int(length_B.max())
    order_BX = order_BK[:, :length] if side == "right" else order_BK[:, width - length :]
    return Order(order_BX + torch.arange(rows, device=mask_BK.device)[:, None] * width, length_B, side)


def layout_of(
    source_mask: torch.Tensor,
    prompt_mask: torch.Tensor,
    target_mask: torch.Tensor,
    target_ids: torch.Tensor,
    opening: bool,
    head_mask: torch.Tensor | None = None,
    fixed_length: int = 0,
) -> Layout:
    """The layout of a right-padded batch, see :class:`bridge_ds.data.loading.batch.Batch`.

    Args:
        source_mask: [B, 0] where the LLM alone is trained: there is no soft prompt then, and no end vector.
        opening: whether the LLM has a BOS, which comes first.
        head_mask: of what comes before the soft prompt, BOS included, where that is more than BOS.
        fixed_length: soft tokens of each row, the end vector aside; 0 = one for each of its encoder tokens.
    """
    one_B1 = source_mask.new_ones(len(source_mask), 1)
    head_BK = one_B1[:, : int(opening)] if head_mask is None else head_mask
    soft = [one_B1.expand(-1, fixed_length) if fixed_length else source_mask, one_B1] if source_mask.shape[1] else []
    order = close_up(torch.cat([head_BK, *soft, prompt_mask, target_mask], dim=1))
    wanted_BT = target_mask.bool()
    rows, targets = wanted_BT.shape
    starts_B = torch.arange(rows, device=target_mask.device) * order.index_BX.shape[1]
    before_B = starts_B + order.length_B - wanted_BT.sum(1) - 1  # the position before each row's first target
    positions_BT = before_B[:, None] + torch.arange(targets, device=target_mask.device)
    return Layout(
        source_rows=source_mask.flatten().nonzero().squeeze(1),
        order=order.index_BX,
        lengths=order.length_B,
        positions=positions_BT[wanted_BT],
        labels=target_ids[wanted_BT],
    )
