"""The layout of a batch equals what masks and labels say, and travels as one block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from bridge_ds.data.loading.batch import Batch, StepBatches
from bridge_ds.data.loading.collate import collate, unwrap, wrap
from bridge_ds.data.loading.tokenize import TokenizedSample
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
