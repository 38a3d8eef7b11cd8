"""The primitives as launches of the Triton kernels; same contract as :mod:`.torch_primitives`.

Runs on a CPU under `TRITON_INTERPRET=1`. What is launched is compiled ahead of time for GPUs that need not be there by
tools/bench/audit_kernels.py.

Dimensions: N rows, M rows of tokens, m tokens of a call, L layers, P = L + 1 positions of the attention, D width, H
heads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from bridge_ds.fusion.kernels import triton_kernels as kernels
from bridge_ds.fusion.kernels.dropout import Draws, Factors
from bridge_ds.fusion.kernels.rows import Rows

__all__ = [
    "attend", "attend_backward", "dot_totals", "dots", "kept", "matrix_totals", "mix", "mix_matrix", "prepare",
    "takes_matrix", "times",
]  # fmt: skip

DTYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
SPLITS = 512
"""Partial sums of :func:`attend_backward`, added afterwards in a fixed order. Two waves of blocks on an H100."""
AT_ONCE = 8
"""Bytes of an element of the states times the rows of the matrix that a program of :func:`mix_matrix` has. A thread
holds 16 bytes of a state for each row: with more of them some kernels for float32 spill."""
WIDEST_ROW = 8192
"""Bytes of a state's row beyond which kernels of a matrix spill (mT5-XXL in float32): torch computes those."""
BLOCK = 1024
"""Elements a program of :func:`times`."""


@dataclass(frozen=True)
class RowTable:
    """States that kernels can read, and where they lie."""

    states: list[torch.Tensor]
    """[N, D], rows one after the other, at addresses that loads of 16 bytes take."""
    addresses_L: torch.Tensor
    """int64, on the device."""

    def __len__(self) -> int:
        return len(self.states)


def prepare(states: Sequence[torch.Tensor], *_: Any) -> RowTable:
    """As :func:`.torch_primitives.prepare`. A state that does not lie as it should is copied, that one alone."""
    width = states[0].shape[1]
    lined = [s if s.stride() == (width, 1) and s.data_ptr() % 16 == 0 else _copy(s) for s in states]
    table = RowTable(lined, torch.empty(len(lined), dtype=torch.int64, device=lined[0].device))
    with _device(lined[0]):
        kernels.addresses[(1,)](tuple(lined), table.addresses_L, num_warps=1, enable_fp_fusion=True)
    return table


def kept(_: RowTable) -> None:
    """As :func:`.torch_primitives.kept`: nothing, for a kernel reads the states where they are."""


def attend(
    table: RowTable, rows: Rows, lo: int, hi: int, u_HD: torch.Tensor, position_scores_HP: torch.Tensor,
    keep: Factors | None, rms: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """As :func:`.torch_primitives.attend`, in one read of the states."""
    heads, width = u_HD.shape
    attention_mHP = u_HD.new_empty(hi - lo, heads, len(table) + 1)
    kept_mHP = attention_mHP if keep is None else torch.empty_like(attention_mHP)
    pooled_HmD = u_HD.new_empty(heads, hi - lo, width)
    scale_mL = u_HD.new_empty(hi - lo, len(table)) if rms else None
    draws = keep.draws if keep else Draws(0, 0, 0, 0)
    _launch(
        kernels.attend, (hi - lo) * heads, table, rows, u_HD.contiguous(), position_scores_HP.contiguous(),
        attention_mHP, kept_mHP, pooled_HmD, attention_mHP if scale_mL is None else scale_mL, lo, hi - lo,
        draws.seed, keep.first if keep else 0, draws.size, wide=u_HD.dtype, HEADS=heads, DROPPED=draws.dropped, RMS=rms,
    )  # fmt: skip
    return attention_mHP, kept_mHP, pooled_HmD, scale_mL


def attend_backward(
    table: RowTable, rows: Rows, lo: int, hi: int, d_pooled_HmD: torch.Tensor, d_kept_mHP: torch.Tensor,
    attention_mHP: torch.Tensor, kept_mHP: torch.Tensor, scale_mL: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """As :func:`.torch_primitives.attend_backward`, in one read of the states."""
    heads, tokens, width = d_pooled_HmD.shape
    d_scores_mHP = torch.empty_like(attention_mHP)
    partial_sHD = d_pooled_HmD.new_empty(max(1, min(SPLITS, tokens)), heads, width)
    _launch(
        kernels.attend_backward, partial_sHD.shape[0] * heads, table, rows, d_pooled_HmD.contiguous(),
        d_kept_mHP.contiguous(), attention_mHP, kept_mHP, attention_mHP if scale_mL is None else scale_mL, d_scores_mHP,
        partial_sHD, lo, tokens, wide=d_pooled_HmD.dtype, HEADS=heads, KEPT=kept_mHP is not attention_mHP,
        RMS=scale_mL is not None,
    )  # fmt: skip
    return d_scores_mHP, partial_sHD.sum(0)


def mix(
    table: RowTable, rows: Rows, lo: int, hi: int, weights: torch.Tensor, out_ND: torch.Tensor,
    scale_mL: torch.Tensor | None = None, rms: bool = False,
) -> torch.Tensor | None:  # fmt: skip
    """As :func:`.torch_primitives.mix`: straight into the rows of the result, in its dtype."""
    found_mL = weights.new_empty(hi - lo, len(table)) if rms else None
    scale = next((s for s in (scale_mL, found_mL) if s is not None), weights)
    _launch(
        kernels.mix, hi - lo, table, rows, weights.contiguous(), scale, out_ND, lo, wide=weights.dtype,
        SHARED=weights.dim() == 1, RMS="make" if rms else "no" if scale_mL is None else "given",
    )  # fmt: skip
    return found_mL


def dots(table: RowTable, rows: Rows, lo: int, hi: int, vectors_ND: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As :func:`.torch_primitives.dots`."""
    found_mL = vectors_ND.new_empty(hi - lo, len(table), dtype=dtype)
    _launch(kernels.dots, hi - lo, table, rows, vectors_ND.contiguous(), found_mL, lo, wide=dtype)
    return found_mL


def dot_totals(
    table: RowTable, rows: Rows, lo: int, hi: int, vectors_ND: torch.Tensor, scale_mL: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """As :func:`.torch_primitives.dot_totals`."""
    found_mL = dots(table, rows, lo, hi, vectors_ND, dtype)
    return (found_mL if scale_mL is None else found_mL.mul_(scale_mL)).sum(0)


def takes_matrix(state: torch.Tensor) -> bool:
    """Whether :func:`mix_matrix` is for states like this one."""
    return state.shape[-1] * state.dtype.itemsize <= WIDEST_ROW


def mix_matrix(
    table: RowTable, rows: Rows, matrix_KP: torch.Tensor, out_KND: torch.Tensor, relu: bool, rms: bool
) -> torch.Tensor | None:
    """relu(sum_l W_kl h_l + b_k) at the rows of tokens of `out_KND`, b the last column of W; each state is divided by
    its RMS first where `rms`, whose inverse [M, L] is returned. A token's states are read from memory once: the
    programs of its K results run together."""
    found_mL = matrix_KP.new_empty(rows.count, len(table)) if rms else None
    _launch_matrix(kernels.mix_matrix, table, rows, matrix_KP.contiguous(), matrix_KP if found_mL is None else found_mL,
                   out_KND, wide=matrix_KP.dtype, out_KND=out_KND, RELU=relu, RMS=rms)  # fmt: skip
    return found_mL


def matrix_totals(
    table: RowTable, rows: Rows, d_out_KND: torch.Tensor, out_KND: torch.Tensor | None, scale_mL: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Gradient [K, P] of the matrix of :func:`mix_matrix`; `out_KND` is its result if there was a ReLU, `scale_mL` what
    it returned."""
    d_out_KND = d_out_KND.contiguous()
    found_mKP = d_out_KND.new_empty(rows.count, len(d_out_KND), len(table) + 1, dtype=dtype)
    _launch_matrix(kernels.matrix_dots, table, rows, d_out_KND, d_out_KND if out_KND is None else out_KND,
                   found_mKP if scale_mL is None else scale_mL, found_mKP, wide=dtype, out_KND=d_out_KND,
                   RELU=out_KND is not None, RMS=scale_mL is not None)  # fmt: skip
    return found_mKP.sum(0)


def _launch_matrix(
    kernel: Any, table: RowTable, rows: Rows, *arguments: Any, out_KND: torch.Tensor, **more: Any
) -> None:
    at_once = max(1, AT_ONCE // out_KND.dtype.itemsize)
    programs = rows.count * triton.cdiv(len(out_KND), at_once)
    _launch(kernel, programs, table, rows, *arguments, 0, rows.total, ROWS=len(out_KND), AT_ONCE=at_once, **more)


def times(
    x: torch.Tensor, factors: Factors | None, in_place: bool = False, plus: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """As :func:`.torch_primitives.times`; the factors are drawn where they are used and never stored."""
    if plus is not None:
        return times(x, factors, in_place=True, scale=scale).add_(plus)
    if factors is None:
        return x
    x = x.contiguous()
    out = x if in_place else torch.empty_like(x)
    draws, programs = factors.draws, triton.cdiv(x.numel(), BLOCK)
    scale = draws.kept_scale if scale is None else scale
    if programs:
        with _device(x):
            kernels.times[(programs,)](
                x, out, x.numel(), draws.seed, factors.first, draws.size, WIDTH=factors.width, DROPPED=draws.dropped,
                SCALE=scale, BLOCK=BLOCK, ACC=DTYPES[torch.promote_types(x.dtype, torch.float32)], num_warps=4,
                enable_fp_fusion=True,
            )  # fmt: skip
    return out


def shape_of(width: int, dtype: torch.dtype, backend: str, lanes: int) -> dict[str, int]:
    """Columns of a tile (DP, a power of two), layers (GROUP), warps of `lanes` threads, and the bound on registers.

    A thread loads 16 bytes of each layer and holds 32 numbers. Beyond 16 warps it loads more of each layer, and holds
    half as many.
    """
    columns = triton.next_power_of_2(width)
    warps = max(1, min(16, columns * dtype.itemsize // (16 * lanes)))
    group = min(8, 32 * lanes * warps // columns)
    if columns * dtype.itemsize > 16 * lanes * warps:
        group //= 2
    shape = {"DP": columns, "GROUP": max(1, group), "num_warps": warps}
    # Without a bound ptxas spills a few bytes to fit one block more on a multiprocessor, which is worth less.
    return shape | ({"maxnreg": 128} if backend == "cuda" else {})


def _launch(
    kernel: Any, programs: int, table: RowTable, rows: Rows, *arguments: Any, wide: torch.dtype, **more: Any
) -> None:
    """One kernel over the tokens of a call; `arguments` follow the states and the row numbers."""
    if programs == 0:
        return
    like = table.states[0]
    with _device(like):
        kernel[(programs,)](
            table.addresses_L, table.addresses_L if rows.index is None else rows.index, *arguments, LAYERS=len(table),
            WIDTH=like.shape[1], TYPE=DTYPES[like.dtype], ACC=DTYPES[wide], INDEXED=rows.index is not None,
            enable_fp_fusion=True, **shape_of(like.shape[1], like.dtype, *_target()), **more,
        )  # fmt: skip


def _target() -> tuple[str, int]:
    """What kernels are compiled for, `cuda` or `hip`, and threads of a warp: 32, or 64 on AMD's data-centre GPUs."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreter", 32
    target = triton.runtime.driver.active.get_current_target()
    return target.backend, target.warp_size


def _copy(state: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(state, memory_format=torch.contiguous_format).copy_(state)


def _device(like: torch.Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the one that holds the states (device_map)."""
    return torch.cuda.device_of(like) if like.is_cuda else nullcontext()
