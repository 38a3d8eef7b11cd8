"""K weighted sums of the states at once, with a matrix of weights that all tokens share, and their gradients.

y_k = relu(sum_l W_kl h_l + b_k) for each row k of the matrix (arXiv 2502.11405, LayAlign: the states that each layer of
the LLM gets). Each direction reads each state once for all K, a block of tokens at a time, or a token a program in
Triton's kernels (gradients of the states, where the encoder is trained, are torch's on every path).

Dimensions: B batch, S encoder tokens, N = B x S, m rows of tokens of a block, L layers, P = L + 1 (the bias is the
weight of one more layer, of ones), K results, D width.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bridge_ds.fusion.kernels.primitives import RMS_EPSILON
from bridge_ds.fusion.kernels.rows import Rows, flat, gradients_of, shaped
from bridge_ds.products import add_product, multiply

__all__ = ["fuse"]

BLOCK_BYTES = 4 << 20
"""Bytes of a block's states and results on a CPU: more are out of cache and of what the allocator keeps
(:mod:`bridge_ds.engine.cpu`), with fewer the operators' own time counts."""
DEVICE_BLOCK_BYTES = 64 << 20
"""The same on another device, where launches count."""
HUGE_FROM = 32 << 20
"""Bytes from which glibc makes an allocation a mapping of its own in any case."""


def fuse(
    triton: Any,
    rows: Rows,
    states: Sequence[torch.Tensor],
    weight_KL: torch.Tensor,
    bias_K: torch.Tensor,
    relu: bool,
    rms: bool,
) -> torch.Tensor:
    """[K, B, S, D] in the states' dtype, zero where no token stands; each h_l divided by its RMS first where `rms`."""
    triton = triton if triton and triton.takes_matrix(states[0]) else None
    wide = torch.promote_types(states[0].dtype, torch.float32)
    matrix_KP = torch.cat([weight_KL.to(wide), bias_K.to(wide)[:, None]], 1)
    return _FuseByMatrix.apply(_Plan(triton, rows, wide, relu, rms), matrix_KP, *states)


@dataclass(frozen=True)
class _Plan:
    """Settings that forward and backward of one call share."""

    triton: Any
    """Module of Triton's primitives; None = torch's operators."""
    rows: Rows
    wide: torch.dtype
    """Of the sums: float32, or float64 for float64 states."""
    relu: bool
    rms: bool

    def blocks(self, hs: Sequence[torch.Tensor], results: int) -> Iterator[tuple[int, int]]:
        """Ranges of tokens; the temporaries of one stay below the size of a few states."""
        size = BLOCK_BYTES if hs[0].device.type == "cpu" else DEVICE_BLOCK_BYTES
        of_row = (len(hs) + 1 + results) * max(1, hs[0].shape[1]) * self.wide.itemsize
        # Below 3 N D in all: where rows of the result and its gradient are not views, they are copied.
        views = self.rows.index is None and hs[0].dtype == self.wide
        few = (2 if views else 1) * self.rows.count // (len(hs) + 1 + results)
        return self.rows.chunks(max(1, min(size // of_row, few)))


class _FuseByMatrix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, matrix_KP: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        hs, rows = flat(states), plan.rows
        fused_KND = _in_huge_pages(hs[0].new_empty(len(matrix_KP), *hs[0].shape))
        if rows.index is not None:
            fused_KND.zero_()
        ctx.plan, ctx.scale_mL = plan, None
        if plan.triton:
            ctx.scale_mL = plan.triton.mix_matrix(
                plan.triton.prepare(hs), rows, matrix_KP, fused_KND, plan.relu, plan.rms
            )
        else:
            _mix(plan, hs, matrix_KP, fused_KND)
        fused_KBSD = fused_KND.view(len(matrix_KP), *states[0].shape)
        ctx.save_for_backward(matrix_KP, fused_KBSD if plan.relu else None, *states)
        return fused_KBSD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_fused_KBSD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        plan: _Plan = ctx.plan
        matrix_KP, fused_KBSD, *states = ctx.saved_tensors
        hs, rows = flat(states), plan.rows
        shape_KND = (len(matrix_KP), *hs[0].shape)
        d_fused_KND = d_fused_KBSD.reshape(shape_KND)
        fused_KND = None if fused_KBSD is None else fused_KBSD.view(shape_KND)
        if plan.triton and not any(ctx.needs_input_grad[2:]):
            table = plan.triton.prepare(hs)
            d_matrix_KP = plan.triton.matrix_totals(table, rows, d_fused_KND, fused_KND, ctx.scale_mL, plan.wide)
            return None, d_matrix_KP, *[None] * len(states)
        d_matrix_PK = torch.zeros_like(matrix_KP.T)
        d_states = gradients_of(ctx.needs_input_grad[2:], states)
        buffer_PmD = None
        for lo, hi in plan.blocks(hs, len(matrix_KP)):
            buffer_PmD, scale_Lm = _gather(plan, hs, lo, hi, buffer_PmD)
            d_sums_KmD = _take(rows, d_fused_KND, lo, hi)
            if fused_KND is not None:
                d_sums_KmD = torch.ops.aten.threshold_backward(d_sums_KmD, _take(rows, fused_KND, lo, hi), 0)
            d_sums_KC = d_sums_KmD.to(plan.wide).flatten(1)
            # Transposed: oneDNN takes three quarters of the time.
            add_product(d_matrix_PK, buffer_PmD.flatten(1), d_sums_KC.T)
            for layer, target_ND in d_states.items():
                vector_mD = torch.mv(d_sums_KC.T, matrix_KP[:, layer]).view(hi - lo, -1)
                if scale_Lm is not None:
                    # d_h = f (v - mean(v n) n) with n = f h.
                    along_m1 = (vector_mD * buffer_PmD[layer]).mean(-1, keepdim=True)
                    vector_mD = vector_mD.addcmul_(along_m1, buffer_PmD[layer], value=-1).mul_(scale_Lm[layer][:, None])
                rows.put(target_ND, lo, hi, vector_mD)
            del d_sums_KmD, d_sums_KC  # before the next block's are made
        return None, d_matrix_PK.T, *shaped(d_states, states)


def _in_huge_pages(x: torch.Tensor) -> torch.Tensor:
    """The tensor, whose memory nobody has touched yet, for Linux to map in huge pages if it does so when asked
    (madvise(2)): clearing 4 KiB at a time takes as long as reading the states and writing the result."""
    if x.device.type == "cpu" and x.nbytes >= HUGE_FROM and sys.platform == "linux":
        first = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        # A system without huge pages refuses, and nothing changes.
        size = ctypes.c_size_t(x.data_ptr() + x.nbytes - first)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), size, mmap.MADV_HUGEPAGE)
    return x


def _mix(plan: _Plan, hs: Sequence[torch.Tensor], matrix_KP: torch.Tensor, fused_KND: torch.Tensor) -> None:
    buffer_PmD = None
    for lo, hi in plan.blocks(hs, len(matrix_KP)):
        buffer_PmD = _gather(plan, hs, lo, hi, buffer_PmD)[0]
        sums_KmD = multiply(matrix_KP, buffer_PmD.flatten(1)).view(len(matrix_KP), *buffer_PmD.shape[1:])
        if plan.relu:
            sums_KmD.relu_()
        _put(plan.rows, fused_KND, lo, hi, sums_KmD)
        del sums_KmD  # before the next block's are made


def _gather(
    plan: _Plan, hs: Sequence[torch.Tensor], lo: int, hi: int, buffer_PmD: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokens lo..hi of all states and a layer of ones, [P, m, D], in the buffer of the block before where it fits; and
    the inverse RMS [L, m] that they are multiplied by, where they are."""
    if buffer_PmD is None or buffer_PmD.shape[1] != hi - lo:
        buffer_PmD = hs[0].new_empty(len(hs) + 1, hi - lo, hs[0].shape[1], dtype=plan.wide)
        buffer_PmD[-1] = 1
    states_LmD = buffer_PmD[:-1]
    if plan.rows.index is None and hs[0].dtype == plan.wide:
        torch.stack([h[lo:hi] for h in hs], out=states_LmD)
    else:
        for h, out_mD in zip(hs, states_LmD.unbind(), strict=True):
            out_mD.copy_(plan.rows.take(h, lo, hi))
    if not plan.rms:
        return buffer_PmD, None
    norms_Lm = torch.linalg.vector_norm(states_LmD, dim=-1)
    scale_Lm = norms_Lm.square_().div_(states_LmD.shape[-1]).add_(RMS_EPSILON).rsqrt_()
    states_LmD *= scale_Lm[..., None]
    return buffer_PmD, scale_Lm


def _take(rows: Rows, x_KND: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
    return x_KND[:, lo:hi] if rows.index is None else x_KND.index_select(1, rows.index[lo:hi])


def _put(rows: Rows, target_KND: torch.Tensor, lo: int, hi: int, values_KmD: torch.Tensor) -> None:
    if rows.index is None:
        target_KND[:, lo:hi] = values_KmD
    else:
        target_KND.index_copy_(1, rows.index[lo:hi], values_KmD.to(target_KND.dtype))
