"""Attention of one learnt query over a token's layers, keys and values both (Layer Attention), with its gradients.

The attention of Transformer Softmax (:mod:`.by_token`) without the query's own position (its score is minus
infinity here); the pooled states are the result. Forward and backward read the states once each.

Dimensions: B batch, S encoder tokens, N = B x S, M rows of tokens, m of one chunk, L layers, P = L + 1 positions of the
attention, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bridge_ds.fusion.kernels.primitives import KernelPlan, Primitives, make_plan, state_gradients
from bridge_ds.fusion.kernels.rows import Rows, empty_result, flat, gradients_of, shaped

__all__ = ["fuse"]


def fuse(
    ops: Primitives, rows: Rows, states: Sequence[torch.Tensor], query_D: torch.Tensor, rms: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The fused states [B, S, D] and the layers' mean weights [L]; arguments as of :func:`.backends.fuse_by_query`."""
    return _FuseByQuery.apply(make_plan(ops, rows, states, rms=rms), query_D, *states)


class _FuseByQuery(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: KernelPlan, query_D: torch.Tensor, *states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hs = flat(states)
        read = plan.ops.prepare(hs, plan.rows, plan.wide)
        u_1D = (query_D.to(plan.wide) / math.sqrt(len(query_D)))[None]
        position_scores_1P = u_1D.new_zeros(1, len(hs) + 1)
        position_scores_1P[:, 0] = -math.inf
        fused_ND = empty_result(plan.rows, hs[0])
        attentions, scales = [], []
        for lo, hi in plan.chunks(hs[0]):
            attention_m1P, _, pooled_1mD, scale_mL = plan.ops.attend(
                read, plan.rows, lo, hi, u_1D, position_scores_1P, None, plan.rms
            )
            plan.rows.put(fused_ND, lo, hi, pooled_1mD[0])
            attentions.append(attention_m1P)
            scales += [] if scale_mL is None else [scale_mL]
        ctx.plan = plan
        attention_M1P = torch.cat(attentions) if attentions else u_1D.new_zeros(0, 1, len(hs) + 1)
        ctx.save_for_backward(u_1D, attention_M1P, torch.cat(scales) if scales else None, plan.ops.kept(read), *states)
        seen_L = attention_M1P[:, 0, 1:].sum(0).div_(max(1, plan.rows.count))
        ctx.mark_non_differentiable(seen_L)
        return fused_ND.view_as(states[0]), seen_L

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_fused_BSD: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        plan: KernelPlan = ctx.plan
        u_1D, attention_M1P, scale_ML, kept, *states = ctx.saved_tensors
        hs = flat(states)
        read = plan.ops.prepare(hs, plan.rows, plan.wide, kept)
        (d_fused_ND,) = flat([d_fused_BSD])
        d_u_1D = torch.zeros_like(u_1D)
        d_states = gradients_of(ctx.needs_input_grad[2:], states)
        for lo, hi in plan.chunks(hs[0]):
            attention_m1P = attention_M1P[lo:hi]
            scale_mL = None if scale_ML is None else scale_ML[lo:hi]
            d_pooled_mD = plan.rows.take(d_fused_ND, lo, hi).to(plan.wide)
            nothing_m1P = torch.zeros_like(attention_m1P)
            d_scores_m1P, d_u = plan.ops.attend_backward(
                read, plan.rows, lo, hi, d_pooled_mD[None], nothing_m1P, attention_m1P, attention_m1P, scale_mL
            )
            d_u_1D += d_u
            if d_states:
                vectors = partial(_vector, d_pooled_mD, attention_m1P, d_scores_m1P, u_1D)
                state_gradients(plan.rows, lo, hi, hs, d_states, vectors, scale_mL)
        return None, d_u_1D[0] / math.sqrt(u_1D.shape[1]), *shaped(d_states, states)


def _vector(
    d_pooled_mD: torch.Tensor, attention_m1P: torch.Tensor, d_scores_m1P: torch.Tensor, u_1D: torch.Tensor, layer: int
) -> torch.Tensor:
    """[m, D]: gradient of a layer's normalized state, through the sum and through its score."""
    return torch.addmm(d_pooled_mD * attention_m1P[..., layer + 1], d_scores_m1P[..., layer + 1], u_1D)
