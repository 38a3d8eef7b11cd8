"""The weighted sum of the states with weights that all tokens share (Global Softmax), with its gradients.

Dimensions: B batch, S encoder tokens, N = B x S, M rows of tokens, m of one chunk, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bridge_ds.fusion.kernels.primitives import KernelPlan, Primitives, make_plan, state_gradients
from bridge_ds.fusion.kernels.rows import Rows, empty_result, flat, gradients_of, shaped

__all__ = ["fuse"]


def fuse(
    ops: Primitives, rows: Rows, states: Sequence[torch.Tensor], weights_L: torch.Tensor, rms: bool
) -> torch.Tensor:
    """sum_l w_l h_l, [B, S, D] in the states' dtype, zero where no token stands; each h_l divided by its RMS first
    where `rms`. `weights_L` are float32, or float64 for float64 states."""
    return _FuseByLayer.apply(make_plan(ops, rows, states, rms=rms), weights_L, *states)


class _FuseByLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: KernelPlan, weights_L: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        hs = flat(states)
        read = plan.ops.prepare(hs)
        fused_ND = empty_result(plan.rows, hs[0])
        scales = [
            plan.ops.mix(read, plan.rows, lo, hi, weights_L, fused_ND, None, plan.rms) for lo, hi in _chunks(plan, hs)
        ]
        ctx.plan = plan
        # One for all: nothing is kept where nothing was normalized.
        scale_ML = torch.cat([s for s in scales if s is not None]) if plan.rms and plan.rows.count else None
        ctx.save_for_backward(weights_L, scale_ML, *states)
        return fused_ND.view_as(states[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_fused_BSD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weights_L, scale_ML, *states = ctx.saved_tensors
        plan, hs = ctx.plan, flat(states)
        read = plan.ops.prepare(hs)
        (d_fused_ND,) = flat([d_fused_BSD])
        d_weights_L = torch.zeros_like(weights_L)
        d_states = gradients_of(ctx.needs_input_grad[2:], states)
        for lo, hi in _chunks(plan, hs):
            scale_mL = None if scale_ML is None else scale_ML[lo:hi]
            d_weights_L += plan.ops.dot_totals(read, plan.rows, lo, hi, d_fused_ND, scale_mL, plan.wide)
            if d_states:
                vectors_mD = plan.rows.take(d_fused_ND, lo, hi).to(plan.wide)
                state_gradients(
                    plan.rows, lo, hi, hs, d_states, lambda layer, v=vectors_mD: v * weights_L[layer], scale_mL
                )
        return None, d_weights_L, *shaped(d_states, states)


def _chunks(plan: KernelPlan, hs: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """One, where nothing of the size of a chunk is made on the way."""
    if not plan.rms and plan.rows.index is None and plan.dtype == plan.wide:
        return list(plan.rows.chunks(plan.rows.count or 1))
    return plan.chunks(hs[0])
