"""The layout of a batch equals what masks and labels say, and travels as one block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from bridge_ds.data.loading.batch import Batch, StepBatches
from bridge_ds.data.loading.bins import Packing, groups, sequences
from bridge_ds.data.loading.collate import collate, unwrap, wrap
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.llm.loss import predicting
from bridge_ds.llm.splice import Segment, splice

ids = st.lists(st.integers(3, 40), max_size=4)
samples = st.lists(st.tuples(st.lists(st.integers(3, 40), min_size=1, max_size=5), ids, ids), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    rows=samples,
    opening=st.booleans(),
    heads=st.lists(st.lists(st.integers(3, 40), max_size=3), min_size=4),
    fixed=st.sampled_from([0, 1, 6]),
)
def test_a_layout_is_what_the_masks_say(
    rows: list[tuple[list[int], list[int], list[int]]], opening: bool, heads: list[list[int]], fixed: int
) -> None:
    made = [TokenizedSample(*row, (), head=tuple(head)) for row, head in zip(rows, heads, strict=False)]
    batch = collate(made, 0, 1, opening, fixed)
    layout = batch.layout
    assert layout is not None
    assert layout.source_rows.tolist() == batch.source_mask.flatten().nonzero().flatten().tolist()
    one = torch.ones(len(rows), 1, dtype=torch.long)
    first = one[:, : int(opening)] if batch.head_mask is None else batch.head_mask
    assert (batch.head_mask is None) == (not any(heads[: len(rows)]))
    soft = one.expand(-1, fixed) if fixed else batch.source_mask
    masks = [first, soft, one, batch.prompt_mask, batch.target_mask]
    embeds = torch.randn(len(rows), sum(mask.shape[1] for mask in masks), 2).split([m.shape[1] for m in masks], 1)
    labels = [None] * 4 + [batch.target_ids]
    segments = [Segment(e, m, y) for e, m, y in zip(embeds, masks, labels, strict=True)]
    found, expected = splice(segments, order=layout.splice_order()), splice(segments)
    for name in ("embeds_BXH", "mask_BX", "labels_BX"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    positions, wanted = predicting(expected.labels_BX)
    assert torch.equal(layout.positions, positions) and torch.equal(layout.labels, wanted)
    assert len(layout.order.unique()) == layout.order.numel()  # index_select's backward then adds to each once


def by_row(order: torch.Tensor, lengths: torch.Tensor) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(order, lengths.tolist(), strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    rows=samples,
    fixed=st.sampled_from([0, 2]),
    keys=st.sampled_from([1.0, 12.0, 1e6]),
    call=st.sampled_from([0.0, 2.0, 1e6]),
)
def test_packed_rows_are_the_same_rows_end_to_end(
    rows: list[tuple[list[int], list[int], list[int]]], fixed: int, keys: float, call: float
) -> None:
    made = [TokenizedSample(*row, ()) for row in rows]
    plain = collate(made, 0, 1, True, fixed)
    packing = Packing(llm_keys=keys, encoder_keys=keys, encoder_call=call)
    batch = unwrap(wrap(StepBatches(1, [collate(made, 0, 1, True, fixed, packing)], "", 0))).micro[0]
    before, layout = plain.layout, batch.layout
    assert before and layout and layout.packed and torch.equal(layout.labels, before.labels)
    packed, (count, longest) = layout.packed, layout.order.shape
    assert len(layout.order.unique()) == layout.order.numel() <= before.order.numel()
    found, restarts = [], packed.position_ids_BX == 0
    for sequence in range(count):
        begins = [at for at in range(int(layout.lengths[sequence])) if restarts[sequence, at]]
        for begin, end in zip(begins, [*begins[1:], int(layout.lengths[sequence])], strict=True):
            found.append(layout.order[sequence, begin:end].tolist())
            assert packed.position_ids_BX[sequence, begin:end].tolist() == list(range(end - begin))
        assert restarts[sequence, int(layout.lengths[sequence]) :].all()
    assert sorted(found) == sorted(by_row(before.order, before.lengths))
    # The same positions are asked for, in the same order, and the last layer finds them.
    assert torch.equal(layout.order.flatten()[layout.positions], before.order.flatten()[before.positions])
    flat = (packed.asked_BQ + torch.arange(count)[:, None] * longest).flatten()
    assert torch.equal(flat[packed.asked_N], layout.positions)
    # Each token of the encoder is in one group, among rows that are as long as the longest.
    parts = layout.groups or (torch.arange(batch.source_ids.numel()).view_as(batch.source_ids),)
    read = torch.cat([group.flatten() for group in parts])
    assert len(read.unique()) == len(read)
    assert set(layout.source_rows.tolist()) <= set(read.tolist())
    assert all(bool(batch.source_mask.flatten()[group].any(0).all()) for group in parts)
    real = batch.source_tokens + int(layout.lengths.sum())
    assert batch.positions - batch.source_tokens - batch.prompt_tokens - batch.target_tokens == (
        len(read) + layout.order.numel() - real
    )


def test_rows_are_joined_where_it_costs_less() -> None:
    # Keys cost nothing: all in one. Keys are all that costs: none. Between them, by hand: 4 x 9 x (9 + 9) = 648 apart,
    # 3 x 9 x (9 + 9) = 486, 2 x 11 x (9 + 11) = 440, 1 x 22 x (9 + 22) = 682.
    lengths = [9, 4, 7, 2]
    assert sequences([9, 4, 7, 3], 1e6) == [[0, 1, 2, 3]]
    assert sequences([5, 5], 0.0) == [[0], [1]] == sequences([5, 5], 4.9)
    assert sequences(lengths, 9.0) == [[0, 3], [1, 2]]
    assert sequences([3], 1e6) == [[0]]
    # 4 x 9 x 9 = 324 scores apart, 2 x 11 x 11 = 242, 1 x 22 x 22 = 484.
    assert sequences(lengths, 1e9, scores=True) == [[0, 3], [1, 2]]
    assert sequences([8, 8, 7], 1e9, scores=True) == [[0], [1], [2]] != sequences([8, 8, 7], 1e9)
    assert sequences([300, 200, 250], 1e9) == [[0, 1, 2]]
    assert sequences([3000, 2000, 2500], 1e9) == [[0], [1], [2]]  # for a mask of 7500 x 7500
    # Of rows 9, 7, 4, 2: together 36, in two groups 18 + 8 and a call, alone 22 and three calls.
    assert groups(lengths, 1e6, 0.0) == [[0], [2], [1], [3]]
    assert groups(lengths, 1e6, 4.0) == [[0, 2], [1, 3]]
    assert groups(lengths, 1e6, 11.0) == [[0, 2, 1, 3]]
    assert groups([6, 6, 6], 1e6, 0.0) == [[0, 1, 2]]


def test_a_batch_moves_in_one_copy() -> None:
    rows = [TokenizedSample([5, 6, 7], [], [4, 5], ()), TokenizedSample([6], [9], [7, 8, 9], ())]
    made = [collate(rows, 0, 1, True), collate(rows[1:], 0, 1, True)]
    for batch in unwrap(wrap(StepBatches(1, made, "", 0))).micro:
        moved = batch.to("meta").tensors()
        assert len({tensor.untyped_storage()._cdata for tensor in moved.values()}) == 1
        assert {name: tensor.shape for name, tensor in moved.items()} == {
            n: t.shape for n, t in batch.tensors().items()
        }
    # One that was put together otherwise moves as well.
    loose = Batch(*(torch.ones(1, 2, dtype=torch.long) for _ in range(6)))
    assert all(tensor.is_meta for tensor in loose.to("meta").tensors().values())
    assert torch.equal(loose.to("cpu").source_ids, loose.source_ids)


class Moves(TorchFunctionMode):
    """Notes for each copy between devices whether it was to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to:
            self.ahead.append((kwargs or {}).get("non_blocking", False))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loose", [False, True])
def test_only_a_copy_to_the_cpu_is_waited_for(loose: bool) -> None:
    rows = [TokenizedSample([5, 6, 7], [], [4, 5], ())]
    (batch,) = unwrap(wrap(StepBatches(1, [collate(rows, 0, 1, True)], "", 0))).micro
    if loose:
        batch = Batch.of({name: tensor.clone() for name, tensor in batch.tensors().items()})
    with Moves() as moves:
        there = batch.to("meta")
    count = len(batch.tensors()) if loose else 1
    assert moves.ahead == [True] * count
    for device in ("cpu", torch.device("cpu")):
        # From the other device, whose tensors have no values: what is asked for is seen before torch refuses it.
        with Moves() as moves, pytest.raises(NotImplementedError):
            there.to(device)
        with moves:
            batch.to(device)
        assert len(moves.ahead) > 1 and not any(moves.ahead)
