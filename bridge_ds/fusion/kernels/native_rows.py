"""The primitives by `native_rows.c`, for CPUs with a C compiler: one pass over the states where torch needs several.

Same contract as :mod:`.torch_rows`, which also serves what the C code does not: float64 and float16 states.

Letters: M rows of tokens, m of one call, L layers, P = L + 1 places, D width, H heads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from bridge_ds.fusion.kernels import dropout, torch_rows
from bridge_ds.fusion.kernels.native_build import library
from bridge_ds.fusion.kernels.rows import Rows

__all__ = ["attend", "attend_backward", "dot_totals", "dots", "draw", "mean_squares", "mix"]

SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Types of states that the C code reads; sums are float32."""


def attend(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, u_HD: torch.Tensor, place_scores_HP: torch.Tensor,
    keep_mHP: torch.Tensor | None, scale_mL: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """As :func:`.torch_rows.attend`."""
    if not _can(states, u_HD.dtype):
        return torch_rows.attend(states, rows, lo, hi, u_HD, place_scores_HP, keep_mHP, scale_mL)
    heads, width = u_HD.shape
    attention_mHP = u_HD.new_empty(hi - lo, heads, len(states) + 1)
    pooled_HmD = u_HD.new_empty(heads, hi - lo, width)
    _call("attend", states, rows, lo, hi, heads, u_HD, place_scores_HP, keep_mHP, scale_mL, attention_mHP, pooled_HmD)
    return attention_mHP, pooled_HmD


def attend_backward(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, d_pooled_HmD: torch.Tensor, d_kept_mHP: torch.Tensor,
    attention_mHP: torch.Tensor, keep_mHP: torch.Tensor | None, scale_mL: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """As :func:`.torch_rows.attend_backward`."""
    given = (d_pooled_HmD, d_kept_mHP, attention_mHP, keep_mHP, scale_mL)
    if not _can(states, d_pooled_HmD.dtype):
        return torch_rows.attend_backward(states, rows, lo, hi, *given)
    heads, _, width = d_pooled_HmD.shape
    d_scores_mHP = torch.empty_like(attention_mHP, memory_format=torch.contiguous_format)
    sums_tHD = d_pooled_HmD.new_zeros(torch.get_num_threads(), heads, width)
    _call("attend_backward", states, rows, lo, hi, heads, *given, d_scores_mHP, sums_tHD)
    return d_scores_mHP, sums_tHD.sum(0)


def mix(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, weights_mHL: torch.Tensor,
    out_HmD: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As :func:`.torch_rows.mix`."""
    if not _can(states, weights_mHL.dtype):
        return torch_rows.mix(states, rows, lo, hi, weights_mHL, out_HmD)
    shared = weights_mHL.stride(0) == 0
    weights = weights_mHL[0].contiguous() if shared and len(weights_mHL) else weights_mHL.contiguous()
    heads = weights_mHL.shape[1]
    mixed_HmD = out_HmD
    if mixed_HmD is None or not mixed_HmD.is_contiguous():
        mixed_HmD = weights.new_empty(heads, hi - lo, states[0].shape[1])
    _call("mix", states, rows, lo, hi, heads, weights, 0 if shared else heads * len(states), mixed_HmD)
    return mixed_HmD if out_HmD is None or out_HmD is mixed_HmD else out_HmD.copy_(mixed_HmD)


def dots(states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, vectors_HmD: torch.Tensor) -> torch.Tensor:
    """As :func:`.torch_rows.dots`."""
    if not _can(states, vectors_HmD.dtype):
        return torch_rows.dots(states, rows, lo, hi, vectors_HmD)
    found_mHL = vectors_HmD.new_empty(hi - lo, len(vectors_HmD), len(states))
    _call("dots", states, rows, lo, hi, len(vectors_HmD), vectors_HmD, found_mHL)
    return found_mHL


def dot_totals(states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, vectors_mD: torch.Tensor) -> torch.Tensor:
    """As :func:`.torch_rows.dot_totals`."""
    if not _can(states, vectors_mD.dtype):
        return torch_rows.dot_totals(states, rows, lo, hi, vectors_mD)
    sums_tL = torch.zeros(torch.get_num_threads(), len(states), dtype=torch.float64)
    _call("dot_totals", states, rows, lo, hi, None, vectors_mD, sums_tL)
    return sums_tL.sum(0).to(vectors_mD.dtype)


def mean_squares(states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, dtype: torch.dtype) -> torch.Tensor:
    """As :func:`.torch_rows.mean_squares`."""
    if not _can(states, dtype):
        return torch_rows.mean_squares(states, rows, lo, hi, dtype)
    found_mL = torch.empty(hi - lo, len(states), dtype=dtype)
    _call("mean_squares", states, rows, lo, hi, None, found_mL)
    return found_mL


def draw(
    count: int, seed: int, dropped: int, kept_scale: float, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """As :func:`.dropout.draw`."""
    if dtype != torch.float32:
        return dropout.draw(count, seed, dropped, kept_scale, dtype, device)
    factors = torch.empty(count, dtype=dtype)
    library().draw(
        ctypes.c_long(count), ctypes.c_uint64(seed), ctypes.c_long(dropped), ctypes.c_float(kept_scale),
        ctypes.c_void_p(factors.data_ptr()), ctypes.c_int(torch.get_num_threads()),
    )  # fmt: skip
    return factors


def _can(states: Sequence[torch.Tensor], wide: torch.dtype) -> bool:
    kind = states[0].dtype
    return wide == torch.float32 and kind in SUFFIXES and all(state.dtype == kind for state in states)


def _call(
    name: str, states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, heads: int | None,
    *more: torch.Tensor | int | None,
) -> None:  # fmt: skip
    """One function of the library on tokens lo..hi. What it writes to must be contiguous."""
    layers, width = len(states), states[0].shape[1]
    # Held until the call returns: a contiguous copy has no other owner.
    lined = [state if state.stride(1) == 1 or width == 1 else state.contiguous() for state in states]
    held = [value.contiguous() if isinstance(value, torch.Tensor) else value for value in more]
    sizes: list[Any] = [lo, hi - lo, layers, width] + ([] if heads is None else [heads])
    function = getattr(library(), f"{name}_{SUFFIXES[states[0].dtype]}")
    function.restype = None
    function(
        (ctypes.c_void_p * layers)(*(state.data_ptr() for state in lined)),
        (ctypes.c_long * layers)(*(state.stride(0) for state in lined)),
        None if rows.index is None else ctypes.c_void_p(rows.index.data_ptr()),
        *(ctypes.c_long(size) for size in sizes),
        *(_argument(value) for value in held),
        ctypes.c_int(torch.get_num_threads()),
    )


def _argument(value: torch.Tensor | int | None) -> Any:
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return None if value is None else ctypes.c_long(value)
