"""The weighted sum of the states and their inverse RMS, with gradients: what both softmax fusions share.

Letters: B batch, S encoder tokens, N = B x S, M rows of tokens, m of one chunk, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from bridge_ds.fusion.kernels.dropout import Draw
from bridge_ds.fusion.kernels.rows import Rows, flat

__all__ = ["Plan", "Primitives", "empty_gradients", "few_rows", "inverse_rms", "make_plan", "mix", "shaped"]

RMS_EPSILON = 1e-6
"""Added to the mean square, as in T5's norm."""


Tensor = torch.Tensor
States = Sequence[torch.Tensor]


class Primitives(Protocol):
    """What a code path supplies: everything that reads the states, specified in :mod:`.torch_rows`, and dropout."""

    draw: Draw

    def attend(
        self, states: States, rows: Rows, lo: int, hi: int, u_HD: Tensor, place_scores_HP: Tensor,
        keep_mHP: Tensor | None, scale_mL: Tensor | None,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    def attend_backward(
        self, states: States, rows: Rows, lo: int, hi: int, d_pooled_HmD: Tensor, d_kept_mHP: Tensor,
        attention_mHP: Tensor, keep_mHP: Tensor | None, scale_mL: Tensor | None,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    def mix(
        self, states: States, rows: Rows, lo: int, hi: int, weights_mHL: Tensor, out_HmD: Tensor | None = None
    ) -> Tensor: ...

    def dots(self, states: States, rows: Rows, lo: int, hi: int, vectors_HmD: Tensor) -> Tensor: ...

    def dot_totals(self, states: States, rows: Rows, lo: int, hi: int, vectors_mD: Tensor) -> Tensor: ...

    def mean_squares(self, states: States, rows: Rows, lo: int, hi: int, dtype: torch.dtype) -> Tensor: ...


@dataclass(frozen=True)
class Plan:
    """What both directions of one call share."""

    path: Primitives
    rows: Rows
    dtype: torch.dtype
    wide: torch.dtype
    heads: int = 1
    dropout: float = 0.0
    seed: int = 0

    def chunks(self, like_ND: torch.Tensor, shared: bool = False) -> list[tuple[int, int]]:
        """Enough tokens for a good matrix product, few enough that a chunk's temporaries stay small. Where all tokens
        share the weights there are none, and so one chunk, unless rows have to be gathered or widened."""
        if shared and self.rows.index is None and self.dtype == self.wide:
            return list(self.rows.chunks(self.rows.count or 1))
        return list(self.rows.chunks(few_rows(like_ND.shape[1]) if like_ND.device.type == "cpu" else 8192))


def few_rows(width: int) -> int:
    """Tokens whose temporaries are small: 512 of a large model; more of a narrow one, where operators would be many."""
    return max(512, min(4096, (1 << 18) // max(1, width)))


def make_plan(path: Primitives, rows: Rows, states: Sequence[torch.Tensor], **more: Any) -> Plan:
    """A plan for these states; `more` are the settings of the transformer layer."""
    dtype = states[0].dtype
    return Plan(path, rows, dtype, torch.promote_types(dtype, torch.float32), **more)


def mix(path: Primitives, rows: Rows, states: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """f = sum_l w_l h_l where tokens stand, zero elsewhere: [B, S, D] in the states' dtype.

    Args:
        path: what reads the states.
        rows: where tokens stand.
        states: L tensors [B, S, D].
        weights: [M, L], or [L]: the same for every token.
    """
    return _Mix.apply(make_plan(path, rows, states), weights, *states)


def inverse_rms(path: Primitives, rows: Rows, states: Sequence[torch.Tensor]) -> torch.Tensor:
    """1 / RMS of each state of each token, [M, L]: the factor that stands for a normed copy."""
    return _InverseRms.apply(make_plan(path, rows, states), *states)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, weights: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        ctx.plan = plan
        ctx.save_for_backward(weights, *states)
        hs = flat(states)
        weights_ML = weights.expand(plan.rows.count, -1)
        in_place = plan.rows.index is None and plan.dtype == weights.dtype
        fused_ND = torch.empty_like(hs[0]) if plan.rows.index is None else torch.zeros_like(hs[0])
        for lo, hi in plan.chunks(hs[0], shared=weights.dim() == 1):
            out_HmD = fused_ND[None, lo:hi] if in_place else None
            mixed_HmD = plan.path.mix(hs, plan.rows, lo, hi, weights_ML[lo:hi, None], out_HmD)
            if not in_place:
                plan.rows.put(fused_ND, lo, hi, mixed_HmD[0])
        return fused_ND.view_as(states[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_fused_BSD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weights, *states = ctx.saved_tensors
        plan, hs = ctx.plan, flat(states)
        (d_fused_ND,) = flat([d_fused_BSD])
        shared = weights.dim() == 1
        weights_ML = weights.expand(plan.rows.count, -1)
        d_weights = torch.zeros_like(weights)
        d_states = empty_gradients(ctx.needs_input_grad[2:], states)
        for lo, hi in plan.chunks(hs[0], shared):
            vectors_mD = plan.rows.take(d_fused_ND, lo, hi).to(plan.wide)
            if shared:
                d_weights += plan.path.dot_totals(hs, plan.rows, lo, hi, vectors_mD)
            else:
                d_weights[lo:hi] = plan.path.dots(hs, plan.rows, lo, hi, vectors_mD[None])[:, 0]
            for place, d_state in d_states.items():
                plan.rows.put(d_state, lo, hi, vectors_mD * weights_ML[lo:hi, place, None])
        return None, d_weights, *shaped(d_states, states)


class _InverseRms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *states: torch.Tensor) -> torch.Tensor:
        hs = flat(states)
        scale_ML = hs[0].new_empty(plan.rows.count, len(hs), dtype=plan.wide)
        for lo, hi in plan.chunks(hs[0]):
            squares_mL = plan.path.mean_squares(hs, plan.rows, lo, hi, plan.wide)
            scale_ML[lo:hi] = torch.rsqrt(squares_mL + RMS_EPSILON)
        ctx.plan = plan
        ctx.save_for_backward(scale_ML, *states)
        return scale_ML

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_scale_ML: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale_ML, *states = ctx.saved_tensors
        plan, hs = ctx.plan, flat(states)
        factors_ML = d_scale_ML * scale_ML**3 / -hs[0].shape[1]
        d_states = empty_gradients(ctx.needs_input_grad[1:], states)
        for lo, hi in plan.chunks(hs[0]):
            for place, d_state in d_states.items():
                state_mD = plan.rows.take(hs[place], lo, hi).to(plan.wide)
                plan.rows.put(d_state, lo, hi, state_mD * factors_ML[lo:hi, place, None])
        return None, *shaped(d_states, states)


def empty_gradients(needed: Sequence[bool], states: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
    """Zeros [N, D] for each state that wants a gradient (none does when the encoder is frozen)."""
    return {n: torch.zeros_like(flat([state])[0]) for n, state in enumerate(states) if needed[n]}


def shaped(d_states: Mapping[int, torch.Tensor], states: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Gradients in the states' shapes, none where none is wanted."""
    return [d_states[n].view_as(state) if n in d_states else None for n, state in enumerate(states)]
