"""The position of everything in what the models read: index tensors that follow from lengths alone.

:func:`bridge_ds.data.loading.collate.collate` makes them in the data worker, so that nothing has to be asked of a GPU
during a micro-batch. The same functions work on masks that are on a device already; the host then waits for it.

Dimensions: B batch, S encoder tokens, M of them that are real, F soft tokens, P prompt tokens, T target tokens, K
positions of a row before closing the gaps, X spliced length, N predicting positions, Q of them in a sequence at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from bridge_ds.data.loading.bins import Packing, groups, sequences

__all__ = ["Layout", "Order", "PackedRows", "close_up", "layout_of"]

_GROUP = "group_"


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
class PackedRows:
    """What the LLM is told of sequences that are several rows, end to end. B counts the sequences here."""

    position_ids_BX: torch.Tensor
    """[B, X] int64, from 0 in each row; 0 on padding."""
    asked_BQ: torch.Tensor
    """[B, Q] int64, positions of a sequence whose output is wanted; some more than once where it has fewer than Q."""
    asked_N: torch.Tensor
    """[N] int64, flat indices into B x Q: each wanted position once, in the order of :attr:`Layout.positions`."""


@dataclass(frozen=True)
class Layout:
    """All of a micro-batch that follows from its lengths. The LLM reads [head | soft, end | prompt | target], where
    the head is BOS or the beginning of a chat template. With :attr:`packed` B counts sequences, each several rows."""

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
    packed: PackedRows | None = None
    """None = each row is a sequence."""
    groups: tuple[torch.Tensor, ...] = ()
    """Of rows that the encoder reads together: [rows, tokens] int64, flat positions among B x S; none = it reads all
    rows together."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        own |= {f"{_GROUP}{number}": group for number, group in enumerate(self.groups)}
        return own | (vars(self.packed) if self.packed else {})

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Layout | None:
        """The layout among these tensors, which may be those of a batch; None = it has none."""
        if "order" not in tensors:
            return None
        inner = [tensors[name] for name in PackedRows.__annotations__ if name in tensors]
        found = tuple(tensor for name, tensor in tensors.items() if name.startswith(_GROUP))
        own = {name: tensors[name] for name in ("source_rows", "order", "lengths", "positions", "labels")}
        return cls(**own, packed=PackedRows(*inner) if inner else None, groups=found)

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
    packing: Packing | None = None,
    soft_prompt: bool = True,
) -> Layout:
    """The layout of a right-padded batch, see :class:`bridge_ds.data.loading.batch.Batch`.

    Args:
        source_mask: [B, 0] where the LLM alone is trained: there is no soft prompt then, and no end vector.
        opening: whether the LLM has a BOS, which comes first.
        head_mask: of what comes before the soft prompt, BOS included, where that is more than BOS.
        fixed_length: soft tokens of each row, the end vector aside; 0 = one for each of its encoder tokens.
        packing: what is packed (then the masks must be on the host).
        soft_prompt: whether it stands in the LLM's input (`injection`).
    """
    one_B1 = source_mask.new_ones(len(source_mask), 1)
    head_BK = one_B1[:, : int(opening)] if head_mask is None else head_mask
    soft_BF = one_B1.expand(-1, fixed_length) if fixed_length else source_mask
    soft = [soft_BF, one_B1] if source_mask.shape[1] and soft_prompt else []
    real_BK = torch.cat([head_BK, *soft, prompt_mask, target_mask], dim=1)
    order = close_up(real_BK)
    wanted_BT = target_mask.bool()
    rows, targets = wanted_BT.shape
    starts_B = torch.arange(rows, device=target_mask.device) * order.index_BX.shape[1]
    before_B = starts_B + order.length_B - wanted_BT.sum(1) - 1  # the position before each row's first target
    positions_BT = before_B[:, None] + torch.arange(targets, device=target_mask.device)
    layout = Layout(
        source_rows=source_mask.flatten().nonzero().squeeze(1),
        order=order.index_BX,
        lengths=order.length_B,
        positions=positions_BT[wanted_BT],
        labels=target_ids[wanted_BT],
    )
    if packing and packing.llm_keys:
        layout = _packed(layout, real_BK, sequences(order.length_B.tolist(), packing.llm_keys, packing.llm_scores))
    if packing and packing.encoder_keys:
        lengths = source_mask.sum(1).tolist()
        found = groups(lengths, packing.encoder_keys, packing.encoder_call)
        index_BS = torch.arange(source_mask.numel()).view_as(source_mask)
        parts = tuple(index_BS[rows, : max(lengths[row] for row in rows)].contiguous() for rows in found)
        layout = replace(layout, groups=parts if len(parts) > 1 else ())
    return layout


def _packed(layout: Layout, real_BK: torch.Tensor, found: Sequence[Sequence[int]]) -> Layout:
    """The same layout with its rows joined to sequences.

    Args:
        layout: each row a sequence, on the host.
        real_BK: not 0 on real positions before closing the gaps.
        found: the rows of each sequence.
    """
    rows, width = layout.order.shape
    lengths = torch.stack([layout.lengths[list(each)].sum() for each in found])
    longest = int(lengths.max())
    begins = torch.zeros(rows, dtype=torch.int64)
    for number, each in enumerate(found):
        begins[each[0]] = number * longest
        for before, row in pairwise(each):
            begins[row] = begins[before] + layout.lengths[before]
    # Where each position of a row goes, among all positions of the sequences.
    to_BX = begins[:, None] + torch.arange(width)
    real_BX = layout.splice_order().mask_BX
    order, position_ids = torch.full((2, len(found) * longest), -1)
    order[to_BX[real_BX]] = layout.order[real_BX]
    position_ids[to_BX[real_BX]] = torch.arange(width).expand(rows, -1)[real_BX]
    padding = order < 0
    # There is always enough of it: sequences are joined only where fewer positions are left.
    order[padding] = (real_BK == 0).flatten().nonzero().squeeze(1)[: int(padding.sum())]
    positions = to_BX.flatten()[layout.positions]
    sequence_N, place_N = positions // longest, positions % longest
    counts = torch.bincount(sequence_N, minlength=len(found))
    most = max(1, int(counts.max()))
    # How many wanted ones of the same sequence are before each: the order by row need not be that of sequences.
    by_sequence = torch.argsort(sequence_N, stable=True)
    rank_N = torch.empty_like(by_sequence)
    rank_N[by_sequence] = torch.arange(len(positions)) - (counts.cumsum(0) - counts)[sequence_N[by_sequence]]
    asked_N = sequence_N * most + rank_N
    asked = torch.zeros(len(found) * most, dtype=torch.int64)
    asked[asked_N] = place_N
    shape = len(found), longest
    packed = PackedRows(position_ids.clamp(min=0).view(shape), asked.view(len(found), most), asked_N)
    return replace(layout, order=order.view(shape), lengths=lengths, positions=positions, packed=packed)
