"""splice: contiguous rows on both sides, labels that follow their places, gradients that return to their segment."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_ds.llm.loss import nll_sum, predicting
from bridge_ds.llm.splice import IGNORE, Segment, splice

rows = st.integers(1, 4)
masks = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(batch=rows, first=masks, second=masks, side=st.sampled_from(["left", "right"]))
def test_rows_are_what_a_loop_over_them_gives(
    batch: int, first: list[list[bool]], second: list[list[bool]], side: str
) -> None:
    masks_BK = [torch.tensor([[True, *row] for row in part[:batch]]).long() for part in (first, second)]
    embeds = [torch.randn(batch, 5, 3) for _ in masks_BK]
    labels = torch.randint(0, 9, (batch, 5))
    out = splice([Segment(embeds[0], masks_BK[0]), Segment(embeds[1], masks_BK[1], labels)], side)
    for row in range(batch):
        kept = torch.cat([e[row][m[row].bool()] for e, m in zip(embeds, masks_BK, strict=True)])
        wanted = [IGNORE] * int(masks_BK[0][row].sum()) + labels[row][masks_BK[1][row].bool()].tolist()
        pad = out.mask_BX.shape[1] - len(kept)
        place = slice(pad, None) if side == "left" else slice(0, len(kept))
        assert out.mask_BX[row].tolist() == (
            [0] * pad + [1] * len(kept) if side == "left" else [1] * len(kept) + [0] * pad
        )
        assert torch.equal(out.embeds_BXH[row, place], kept)
        assert out.labels_BX[row, place].tolist() == wanted
        assert out.embeds_BXH[row][out.mask_BX[row] == 0].abs().sum() == 0
    assert out.mask_BX.shape[1] == max(int(sum(m[row].sum() for m in masks_BK)) for row in range(batch))


def test_gradients_return_to_real_places_only() -> None:
    embeds = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    out = splice([Segment(embeds, mask)], "left")
    out.embeds_BXH.sum().backward()
    assert torch.equal(embeds.grad, mask[..., None].expand(-1, -1, 4).float())


def test_loss_is_the_sum_over_targets() -> None:
    labels = torch.tensor([[IGNORE, IGNORE, 4, 2], [IGNORE, 1, IGNORE, IGNORE]])
    places, wanted = predicting(labels)
    assert places.tolist() == [1, 2, 4]
    assert wanted.tolist() == [4, 2, 1]
    logits = torch.randn(2, 4, 6)
    expected = -sum(
        torch.log_softmax(logits[b, x - 1], -1)[labels[b, x]]
        for b in range(2)
        for x in range(1, 4)
        if labels[b, x] >= 0
    )
    assert torch.allclose(nll_sum(logits.flatten(0, 1)[places], wanted), expected)
