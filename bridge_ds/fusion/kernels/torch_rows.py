"""The primitives in plain torch, for CPU threads and any device.

Work goes in chunks of rows whose L states fit in cache together: they come from memory once for the scores and are
still near for the weighted sum. A chunk is widened to float32 on its own; no block of L x N x D is ever formed.

Letters: M rows of tokens, L layers, D width, H heads; m rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from bridge_ds.fusion.kernels.dropout import draw
from bridge_ds.fusion.kernels.rows import Rows

__all__ = ["attend", "attend_backward", "dot_totals", "dots", "draw", "mean_squares", "mix"]

CACHE_BYTES = 16 << 20
"""Bytes of states read together; about half of a usual last-level cache."""
SLAB_BYTES = 2 << 20
"""Bytes of one state read together where each is read once only: the sum stays in cache, operators stay few."""


def attend(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, u_HD: torch.Tensor, place_scores_HP: torch.Tensor,
    keep_mHP: torch.Tensor | None, scale_mL: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Attention of one query vector a head over the layers, and the states pooled by it.

    Args:
        states: L tensors [N, D].
        rows: which rows hold tokens; `lo`, `hi` choose the tokens of this call.
        u_HD: score of a state h in head H is u . h; float32 (or float64), as all that follow.
        place_scores_HP: [H, L + 1] added scores; place 0 is the query's own and has no state.
        keep_mHP: [m, H, L + 1] factors on the attention (dropout), or none.
        scale_mL: [m, L] factor on each state (its inverse RMS), or none.

    Returns:
        attention [m, H, L + 1] before `keep`, and pooled [H, m, D] = sum_l attention_l keep_l scale_l h_l.
    """
    layers, heads = len(states), len(u_HD)
    attention_mHP = u_HD.new_empty(hi - lo, heads, layers + 1)
    pooled_HmD = u_HD.new_empty(heads, hi - lo, u_HD.shape[1])
    for part, block in _blocks(states, rows, lo, hi, u_HD.dtype):
        raw_LmH = u_HD.new_empty(layers, part.stop - part.start, heads)
        for state, out in zip(block, raw_LmH, strict=True):
            if heads == 1:  # a matrix times a vector is faster than a product with one column
                torch.mv(state, u_HD[0], out=out[:, 0])
            else:
                torch.mm(state, u_HD.T, out=out)
        scores_mHP = attention_mHP[part]
        scores_mHP[..., 0] = 0
        scores_mHP[..., 1:] = raw_LmH.permute(1, 2, 0)
        if scale_mL is not None:
            scores_mHP[..., 1:] *= scale_mL[part, None]
        attention_mHP[part] = torch.softmax(scores_mHP + place_scores_HP, dim=-1)
        _accumulate(block, _weights(attention_mHP, keep_mHP, scale_mL, part), pooled_HmD[:, part])
    return attention_mHP, pooled_HmD


def attend_backward(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, d_pooled_HmD: torch.Tensor, d_kept_mHP: torch.Tensor,
    attention_mHP: torch.Tensor, keep_mHP: torch.Tensor | None, scale_mL: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of :func:`attend` for the scores [m, H, L + 1] and for u [H, D].

    Args:
        d_pooled_HmD: gradient of pooled.
        d_kept_mHP: gradient that reaches attention x keep from elsewhere (the places' own vectors).
    """
    d_scores_mHP = torch.empty_like(attention_mHP)
    d_u_HD = d_pooled_HmD.new_zeros(len(d_pooled_HmD), d_pooled_HmD.shape[-1])
    for part, block in _blocks(states, rows, lo, hi, d_pooled_HmD.dtype):
        dots_mHL = _dots(block, d_pooled_HmD[:, part])
        scale = None if scale_mL is None else scale_mL[part]
        d_scores_mHP[part] = d_scores_mHL = score_gradient(
            dots_mHL, d_kept_mHP[part], attention_mHP[part], None if keep_mHP is None else keep_mHP[part], scale
        )
        factors_mHL = d_scores_mHL[..., 1:] if scale is None else d_scores_mHL[..., 1:] * scale[:, None]
        for place, state in enumerate(block):
            d_u_HD.addmm_(factors_mHL[..., place].T, state)
    return d_scores_mHP, d_u_HD


def score_gradient(
    dots_mHL: torch.Tensor, d_kept_mHP: torch.Tensor, attention_mHP: torch.Tensor,
    keep_mHP: torch.Tensor | None, scale_mL: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Gradient of the scores [m, H, L + 1] through softmax, dropout and the pooling, given d_pooled . h_l."""
    d_attention_mHP = d_kept_mHP.clone()
    d_attention_mHP[..., 1:] += dots_mHL if scale_mL is None else dots_mHL * scale_mL[:, None]
    if keep_mHP is not None:
        d_attention_mHP *= keep_mHP
    return attention_mHP * (d_attention_mHP - (attention_mHP * d_attention_mHP).sum(-1, keepdim=True))


def mix(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, weights_mHL: torch.Tensor,
    out_HmD: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """sum_l w_l h_l for tokens lo..hi with weights [m, H, L]: [H, m, D] in the weights' dtype, written to `out_HmD`."""
    mixed_HmD = out_HmD
    if mixed_HmD is None:
        mixed_HmD = weights_mHL.new_empty(weights_mHL.shape[1], hi - lo, states[0].shape[1])
    if weights_mHL.stride(0) == 0 and weights_mHL.device.type == "cpu":  # one weight a layer: no column to read
        for head, out_mD in enumerate(mixed_HmD):
            _mix_shared(states, rows, lo, hi, weights_mHL[0, head], out_mD)
        return mixed_HmD
    for part, block in _blocks(states, rows, lo, hi, weights_mHL.dtype):
        _accumulate(block, weights_mHL[part], mixed_HmD[:, part])
    return mixed_HmD


def dots(states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, vectors_HmD: torch.Tensor) -> torch.Tensor:
    """v . h_l for each token's own vectors [H, m, D]: [m, H, L] (the backward of :func:`mix` for its weights)."""
    found_mHL = vectors_HmD.new_empty(hi - lo, len(vectors_HmD), len(states))
    for part, block in _blocks(states, rows, lo, hi, vectors_HmD.dtype):
        found_mHL[part] = _dots(block, vectors_HmD[:, part])
    return found_mHL


def dot_totals(states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, vectors_mD: torch.Tensor) -> torch.Tensor:
    """v . h_l summed over tokens lo..hi: [L] (the backward of :func:`mix` for weights that all tokens share)."""
    found_L = vectors_mD.new_zeros(len(states))
    for first, last in _slabs(states, lo, hi, vectors_mD.dtype):
        vector = vectors_mD[first - lo : last - lo].reshape(-1)
        found_L += torch.stack(
            [torch.dot(_taken(state, rows, first, last, vector).reshape(-1), vector) for state in states]
        )
    return found_L


def mean_squares(states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, dtype: torch.dtype) -> torch.Tensor:
    """Mean square of each state of each token, [m, L]."""
    found_mL = states[0].new_empty(hi - lo, len(states), dtype=dtype)
    for part, block in _blocks(states, rows, lo, hi, dtype):
        for place, state in enumerate(block):
            found_mL[part, place] = state.square().mean(-1)
    return found_mL


def _blocks(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, dtype: torch.dtype
) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Chunks of tokens lo..hi: their place counted from lo, and their L states [rows, D] in `dtype`."""
    size = max(8, CACHE_BYTES // max(1, len(states) * states[0].shape[1] * dtype.itemsize))
    for first in range(lo, hi, size):
        last = min(hi, first + size)
        yield slice(first - lo, last - lo), [rows.take(state, first, last).to(dtype) for state in states]


def _slabs(states: Sequence[torch.Tensor], lo: int, hi: int, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    size = max(8, SLAB_BYTES // (states[0].shape[1] * dtype.itemsize))
    for first in range(lo, hi, size):
        yield first, min(hi, first + size)


def _taken(state: torch.Tensor, rows: Rows, lo: int, hi: int, like: torch.Tensor) -> torch.Tensor:
    piece = rows.take(state, lo, hi)
    return piece if piece.dtype == like.dtype else piece.to(like.dtype)


def _mix_shared(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, weights_L: torch.Tensor, out_mD: torch.Tensor
) -> None:
    # Where states are small the interpreter's own steps count: as few as can be for each state.
    factors = weights_L.tolist()
    for first, last in _slabs(states, lo, hi, out_mD.dtype):
        part_mD = out_mD if last - first == hi - lo else out_mD[first - lo : last - lo]
        torch.mul(_taken(states[0], rows, first, last, out_mD), factors[0], out=part_mD)
        for state, factor in zip(states[1:], factors[1:], strict=True):
            part_mD.add_(_taken(state, rows, first, last, out_mD), alpha=factor)


def _weights(
    attention_mHP: torch.Tensor, keep_mHP: torch.Tensor | None, scale_mL: torch.Tensor | None, part: slice
) -> torch.Tensor:
    weights_mHL = attention_mHP[part, :, 1:]
    if keep_mHP is not None:
        weights_mHL = weights_mHL * keep_mHP[part, :, 1:]
    return weights_mHL if scale_mL is None else weights_mHL * scale_mL[part, None]


def _accumulate(block: Sequence[torch.Tensor], weights_mHL: torch.Tensor, out_HmD: torch.Tensor) -> None:
    for head, out_mD in enumerate(out_HmD):
        torch.mul(block[0], weights_mHL[:, head, :1], out=out_mD)
        for place, state in enumerate(block[1:], start=1):
            out_mD.addcmul_(state, weights_mHL[:, head, place, None])


def _dots(block: Sequence[torch.Tensor], vectors_HmD: torch.Tensor) -> torch.Tensor:
    found_HLm = vectors_HmD.new_empty(len(vectors_HmD), len(block), vectors_HmD.shape[1])
    product_mD = torch.empty_like(block[0])  # one for all: fresh memory for each costs more than the product
    for vector_mD, found_Lm in zip(vectors_HmD, found_HLm, strict=True):
        for state, found_m in zip(block, found_Lm, strict=True):
            torch.sum(torch.mul(state, vector_mD, out=product_mD), dim=-1, out=found_m)
    return found_HLm.permute(2, 0, 1)
