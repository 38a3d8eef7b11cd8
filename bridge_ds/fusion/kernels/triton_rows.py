"""The primitives as Triton kernels: a table of L pointers, states read in place, float32 accumulators.

One program handles one token (or one stretch of it): its L x D numbers are loaded as tiles [L, BLOCK] straight from
the L tensors, and the second look that pooling takes finds them in the device's cache. Same contract as
:mod:`.torch_rows`. Runs on a CPU under `TRITON_INTERPRET=1`.

Letters: N rows, M rows of tokens, m tokens of a call, L layers, P = L + 1 places, D width, H heads.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are pointers and scalars of the device, which have no Python type)

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from bridge_ds.fusion.kernels.dropout import draw
from bridge_ds.fusion.kernels.rows import Rows
from bridge_ds.fusion.kernels.torch_rows import score_gradient

__all__ = ["attend", "attend_backward", "dot_totals", "dots", "draw", "mean_squares", "mix"]

DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
BLOCK = 256
"""Columns of one tile."""
SPLITS = 512
"""Partial sums over tokens in :func:`attend_backward`; they are added in float32 (or float64) afterwards."""


@triton.jit
def _tile(table, row, columns, stride, width, layers: tl.constexpr, LP: tl.constexpr, TYPE: tl.constexpr):
    # [LP, BLOCK]: columns of one token in every layer, read through the pointer table.
    place = tl.arange(0, LP)
    base = tl.load(table + place, mask=place < layers, other=0).to(tl.pointer_type(TYPE))
    where = base[:, None] + (row * stride + columns)[None, :]
    return tl.load(where, mask=(place < layers)[:, None] & (columns < width)[None, :], other=0.0)


@triton.jit
def _attend(
    table, index, u, place_scores, keep, scale, attention, pooled, tokens, stride, width, heads,
    layers: tl.constexpr, LP: tl.constexpr, TYPE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
    INDEXED: tl.constexpr, KEEP: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(index + token) if INDEXED else token
    place = tl.arange(0, LP)
    real = place < layers
    scores = tl.zeros([LP], ACC)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        query = tl.load(u + head * width + columns, mask=columns < width, other=0.0)
        tile = _tile(table, row, columns, stride, width, layers, LP, TYPE).to(ACC)
        scores += tl.sum(tile * query[None, :], 1)
    factor = tl.load(scale + token * layers + place, mask=real, other=1.0) if SCALE else tl.full([LP], 1.0, ACC)
    first = tl.load(place_scores + head * (layers + 1))
    added = tl.load(place_scores + head * (layers + 1) + 1 + place, mask=real, other=0.0)
    scores = tl.where(real, scores * factor + added, float("-inf"))
    top = tl.maximum(tl.max(scores, 0), first)
    weights, weight_first = tl.exp(scores - top), tl.exp(first - top)
    total = tl.sum(weights, 0) + weight_first
    weights = weights / total
    out = (token * heads + head) * (layers + 1)
    tl.store(attention + out, weight_first / total)
    tl.store(attention + out + 1 + place, weights, mask=real)
    if KEEP:
        weights *= tl.load(keep + out + 1 + place, mask=real, other=0.0)
    weights *= factor
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        tile = _tile(table, row, columns, stride, width, layers, LP, TYPE).to(ACC)
        where = pooled + (head * tokens + token) * width + columns
        tl.store(where, tl.sum(tile * weights[:, None], 0), mask=columns < width)


@triton.jit
def _mix(
    table, index, weights, out, tokens, stride, width, heads, token_stride, layers: tl.constexpr, LP: tl.constexpr,
    TYPE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, INDEXED: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(2)
    row = tl.load(index + token) if INDEXED else token
    place = tl.arange(0, LP)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(weights + token * token_stride + head * layers + place, mask=place < layers, other=0.0)
    tile = _tile(table, row, columns, stride, width, layers, LP, TYPE).to(ACC)
    where = out + (head * tokens + token) * width + columns
    tl.store(where, tl.sum(tile * weight[:, None], 0), mask=columns < width)


@triton.jit
def _dots(
    table, index, vectors, out, stride, width, heads, head_stride, token_stride, layers: tl.constexpr,
    LP: tl.constexpr, TYPE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, INDEXED: tl.constexpr,
    SQUARE: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(index + token) if INDEXED else token
    place = tl.arange(0, LP)
    sums = tl.zeros([LP], ACC)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        tile = _tile(table, row, columns, stride, width, layers, LP, TYPE).to(ACC)
        if SQUARE:
            sums += tl.sum(tile * tile, 1)
        else:
            where = vectors + head * head_stride + token * token_stride + columns
            sums += tl.sum(tile * tl.load(where, mask=columns < width, other=0.0)[None, :], 1)
    tl.store(out + (token * heads + head) * layers + place, sums, mask=place < layers)


@triton.jit
def _total(
    table, index, factors, out, tokens, stride, width, heads, layers: tl.constexpr, LP: tl.constexpr,
    TYPE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, INDEXED: tl.constexpr,
):  # fmt: skip
    split, head = tl.program_id(0).to(tl.int64), tl.program_id(2)
    place = tl.arange(0, LP)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], ACC)
    for token in range(split, tokens, tl.num_programs(0)):
        row = tl.load(index + token) if INDEXED else token
        factor = tl.load(factors + (token * heads + head) * layers + place, mask=place < layers, other=0.0)
        tile = _tile(table, row, columns, stride, width, layers, LP, TYPE).to(ACC)
        sums += tl.sum(tile * factor[:, None], 0)
    tl.store(out + (split * heads + head) * width + columns, sums, mask=columns < width)


def attend(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, u_HD: torch.Tensor, place_scores_HP: torch.Tensor,
    keep_mHP: torch.Tensor | None, scale_mL: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """As :func:`.torch_rows.attend`, in one pass over the states."""
    heads, width = u_HD.shape
    call = _Call(states, rows, lo, hi, u_HD.dtype)
    attention_mHP = u_HD.new_empty(hi - lo, heads, len(states) + 1)
    pooled_HmD = u_HD.new_empty(heads, hi - lo, width)
    keep = attention_mHP if keep_mHP is None else keep_mHP.contiguous()
    scale = attention_mHP if scale_mL is None else scale_mL.contiguous()
    _attend[(hi - lo, heads)](
        call.table, call.index, u_HD.contiguous(), place_scores_HP.contiguous(), keep, scale, attention_mHP,
        pooled_HmD, hi - lo, call.stride, width, heads, **call.constants, KEEP=keep_mHP is not None,
        SCALE=scale_mL is not None,
    )  # fmt: skip
    return attention_mHP, pooled_HmD


def attend_backward(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, d_pooled_HmD: torch.Tensor, d_kept_mHP: torch.Tensor,
    attention_mHP: torch.Tensor, keep_mHP: torch.Tensor | None, scale_mL: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """As :func:`.torch_rows.attend_backward`: one pass for the dots, one for the sum over tokens."""
    heads, tokens, width = d_pooled_HmD.shape
    dots_mHL = dots(states, rows, lo, hi, d_pooled_HmD)
    d_scores_mHP = score_gradient(dots_mHL, d_kept_mHP, attention_mHP, keep_mHP, scale_mL)
    factors_mHL = d_scores_mHP[..., 1:] if scale_mL is None else d_scores_mHP[..., 1:] * scale_mL[:, None]
    call = _Call(states, rows, lo, hi, d_pooled_HmD.dtype)
    partial = d_pooled_HmD.new_empty(min(SPLITS, tokens), heads, width)
    _total[(len(partial), triton.cdiv(width, BLOCK), heads)](
        call.table, call.index, factors_mHL.contiguous(), partial, tokens, call.stride, width, heads, **call.constants
    )
    return d_scores_mHP, partial.sum(0)


def mix(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, weights_mHL: torch.Tensor,
    out_HmD: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As :func:`.torch_rows.mix`; weights that are the same for every token are read as the [L] they are."""
    tokens, heads, layers = weights_mHL.shape
    call = _Call(states, rows, lo, hi, weights_mHL.dtype)
    shared = weights_mHL.stride(0) == 0
    weights = weights_mHL[:1].contiguous() if shared else weights_mHL.contiguous()
    if out_HmD is None:
        out_HmD = weights_mHL.new_empty(heads, tokens, states[0].shape[1])
    _mix[(tokens, triton.cdiv(states[0].shape[1], BLOCK), heads)](
        call.table, call.index, weights, out_HmD, tokens, call.stride, states[0].shape[1], heads,
        0 if shared else heads * layers, **call.constants,
    )  # fmt: skip
    return out_HmD


def dots(states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, vectors_HmD: torch.Tensor) -> torch.Tensor:
    """As :func:`.torch_rows.dots`."""
    heads, tokens, width = vectors_HmD.shape
    call = _Call(states, rows, lo, hi, vectors_HmD.dtype)
    vectors = vectors_HmD if vectors_HmD.stride(-1) == 1 else vectors_HmD.contiguous()
    found_mHL = vectors_HmD.new_empty(tokens, heads, len(states))
    _dots[(tokens, heads)](
        call.table, call.index, vectors, found_mHL, call.stride, width, heads, vectors.stride(0), vectors.stride(1),
        **call.constants, SQUARE=False,
    )  # fmt: skip
    return found_mHL


def dot_totals(states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, vectors_mD: torch.Tensor) -> torch.Tensor:
    """As :func:`.torch_rows.dot_totals`."""
    return dots(states, rows, lo, hi, vectors_mD[None])[:, 0].sum(0)


def mean_squares(states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, dtype: torch.dtype) -> torch.Tensor:
    """As :func:`.torch_rows.mean_squares`."""
    width = states[0].shape[1]
    call = _Call(states, rows, lo, hi, dtype)
    found_mL = states[0].new_empty(hi - lo, len(states), dtype=dtype)
    _dots[(hi - lo, 1)](
        call.table, call.index, found_mL, found_mL, call.stride, width, 1, 0, 0, **call.constants, SQUARE=True
    )
    return found_mL / width


class _Call:
    """What every launch needs: the pointer table, the row numbers, strides and compile-time constants."""

    def __init__(self, states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, wide: torch.dtype) -> None:
        first = states[0]
        # One stride for all: the encoder's states are alike; one that is not is copied, that one alone.
        even = [s if s.stride() == (s.shape[1], 1) else s.contiguous() for s in states]
        self.states = even  # holds a copy until the launch is queued
        self.stride = first.shape[1]
        indexed = rows.index is not None
        offset = 0 if indexed else lo * self.stride * first.element_size()
        self.table = torch.tensor([s.data_ptr() + offset for s in even], dtype=torch.int64, device=first.device)
        self.index = self.table if rows.index is None else rows.index[lo:hi]
        self.constants = {
            "layers": len(states), "LP": triton.next_power_of_2(len(states)), "TYPE": DTYPES[first.dtype],
            "ACC": DTYPES[wide], "BLOCK": BLOCK, "INDEXED": indexed,
        }  # fmt: skip
