"""Transformer Softmax with the projections, norms and the MLP on one vector a token instead of L + 1: exact.

Only the first output of the layer is used, and its query is the same vector for every token. With q = W_q c + b_q and
u = W_k^T q / sqrt(E) (for each head, E = D / H) the scores are s_l = u . (h_l + p_l), s_0 = u . c: keys are never
projected (q . b_k is the same for every position and drops out of the softmax). The value projection is applied after
the weighted sum. Dropout applies to the same quantities as in torch's layer.

One autograd function from the states to their weighted sum. It reads the states twice in each direction, because a
matrix product comes between: scores and pooled vector, then the sum; the sum's gradient, then that of the pooled
vector. It keeps the states (not copied, unless they are small and on a CPU), the attention, the weights and three
vectors per token (and what the first chunk computed). It keeps parameters as the leaves themselves, never a view: under
ZeRO-3 a parameter's storage is released after its module's forward, and the leaf (not the view) holds the gathered one
again when backward comes.

Dimensions: B batch, S encoder tokens, N = B x S, M rows of tokens, m of one chunk, L layers, P = L + 1 positions of the
attention (0 is the query's own vector c), D width, H heads, F hidden width of the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from bridge_ds.fusion.kernels import post_attention
from bridge_ds.fusion.kernels.dropout import Masks
from bridge_ds.fusion.kernels.primitives import KernelPlan, Primitives, make_plan, state_gradients
from bridge_ds.fusion.kernels.rows import Rows, empty_result, flat, gradients_of, shaped

__all__ = ["NAMES", "fuse"]

NAMES = (
    "cls", "layer_positions", "self_attn_in_proj_weight", "self_attn_in_proj_bias", "self_attn_out_proj_weight",
    "self_attn_out_proj_bias", "linear1_weight", "linear1_bias", "linear2_weight", "linear2_bias", "norm1_weight",
    "norm1_bias", "norm2_weight", "norm2_bias", "score_weight", "score_bias",
)  # fmt: skip
"""Parameters of the layer, in the order in which the autograd function takes them."""
MATRICES = ("self_attn_out_proj_weight", "linear1_weight", "linear2_weight")


def fuse(
    ops: Primitives, rows: Rows, states: Sequence[torch.Tensor], p: Mapping[str, torch.Tensor], *, heads: int,
    dropout: float, rms: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The fused states [B, S, D] and the layers' mean weights [L]; arguments as of :func:`.backends.fuse_by_token`."""
    # The seed comes from torch's global generator: seeding that (the engine does, by step and rank) determines dropout.
    seed = int(torch.randint(2**62, ())) if dropout else 0
    merged = heads == 1 and rows.count > states[0].shape[-1]
    plan = make_plan(ops, rows, states, rms=rms, heads=heads, dropout=dropout, seed=seed, merged=merged)
    return _FuseByToken.apply(plan, *(p[name] for name in NAMES), *states)


class _FuseByToken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: KernelPlan, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaves, states = tensors[: len(NAMES)], tensors[len(NAMES) :]
        hs, p = flat(states), _prepare(leaves, plan)
        merged = post_attention.merge(p, plan.wide) if plan.merged else {}
        p |= merged
        read = plan.ops.prepare(hs, plan.rows, plan.wide)
        query = _query(p, plan.heads)
        position_scores_HP = query.u_HD @ query.positions_PD.T
        fused_ND = empty_result(plan.rows, hs[0])
        whole = _Joined(plan.rows.count)
        of_first: list[torch.Tensor | None] = []
        for lo, hi in plan.chunks(hs[0]) or [(0, 0)]:
            masks = plan.masks(lo, _sizes(plan, p))
            attention_mHP, kept_mHP, pooled_HmD, scale_mL = plan.ops.attend(
                read, plan.rows, lo, hi, query.u_HD, position_scores_HP, masks.attention, plan.rms
            )
            pooled_HmD.baddbmm_(kept_mHP.transpose(0, 1), query.positions_PD.expand(len(pooled_HmD), -1, -1))
            narrow_HmD = pooled_HmD.to(plan.dtype)
            sums_mH = kept_mHP.sum(-1)
            first_mD, second_mD, scores_Lm, computed = post_attention.forward(p, narrow_HmD, sums_mH, masks, plan)
            # Over the first dimension: over the last, of few elements, it takes ten times as long on a CPU.
            weights_mL = torch.softmax(scores_Lm, dim=0).T.contiguous()
            plan.ops.mix(read, plan.rows, lo, hi, weights_mL, fused_ND, scale_mL, False)
            whole.put(
                lo, hi, attention_mHP, kept_mHP, narrow_HmD.transpose(0, 1), first_mD, second_mD, weights_mL,
                *([] if scale_mL is None else [scale_mL]),
            )  # fmt: skip
            if lo == 0:
                # Not computed again in backward: no more memory than the temporaries that every chunk has for a while.
                of_first, ctx.first_masks = computed.saved(norms=plan.ops.kept(read) is not None), masks
        ctx.plan = plan
        products = (merged.get("merged_weight"), merged.get("merged_value_bias"))
        ctx.save_for_backward(*of_first, *query, *products, plan.ops.kept(read), *whole.parts, *tensors)
        weights_ML = whole.parts[5]
        seen_L = weights_ML.sum(0).div_(max(1, plan.rows.count))
        ctx.mark_non_differentiable(seen_L)
        return fused_ND.view_as(states[0]), seen_L

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_fused_BSD: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        plan: KernelPlan = ctx.plan
        saved = ctx.saved_tensors  # once: activation checkpointing gives them only once
        of_first, saved = post_attention.Computed.of(saved), saved[post_attention.COMPUTED :]
        query, (merged_weight, merged_value_bias, kept), saved = _Query(*saved[:3]), saved[3:6], saved[6:]
        parts, tensors = saved[: 6 + plan.rms], saved[6 + plan.rms :]
        leaves, states = tensors[: len(NAMES)], tensors[len(NAMES) :]
        hs, p = flat(states), _prepare(leaves, plan)
        read = plan.ops.prepare(hs, plan.rows, plan.wide, kept)
        (d_fused_ND,) = flat([d_fused_BSD])
        if plan.merged:
            p |= {"merged_weight": merged_weight, "merged_value_bias": merged_value_bias}
            p["merged_bias"] = p["self_attn_out_proj_bias"]
        d_in_weight = torch.empty_like(leaves[NAMES.index("self_attn_in_proj_weight")])
        value = d_in_weight.chunk(3)[2]  # the gradient of the value's projection is made where it is to be
        slots = {"value": value if plan.merged else value.view(plan.heads, -1, value.shape[1])}
        totals = post_attention.PostAttentionTotals(slots)
        d_states = gradients_of(ctx.needs_input_grad[1 + len(NAMES) :], states)
        for lo, hi in plan.chunks(hs[0]):
            attention_mHP, kept_mHP, pooled_mHD, first_mD, second_mD, weights_mL, *scales = _rows(parts, lo, hi)
            scale_mL = scales[0] if scales else None
            pooled_HmD = pooled_mHD.transpose(0, 1)
            masks: Masks = ctx.first_masks if lo == 0 else plan.masks(lo, _sizes(plan, p))
            d_weights_mL = plan.ops.dots(read, plan.rows, lo, hi, d_fused_ND, plan.wide)
            if scale_mL is not None:
                d_weights_mL *= scale_mL
            d_scores_mL = torch._softmax_backward_data(d_weights_mL.T, weights_mL.T, 0, plan.wide).T
            d_pooled_HmD, d_sums_mH = post_attention.backward(
                p, pooled_HmD, kept_mHP.sum(-1), masks, plan, of_first if lo == 0 else None, first_mD, second_mD,
                d_scores_mL, totals,
            )  # fmt: skip
            d_kept_mHP = torch.matmul(d_pooled_HmD, query.positions_PD.T).transpose(0, 1) + d_sums_mH[..., None]
            d_inner_mHP, d_u_HD = plan.ops.attend_backward(
                read, plan.rows, lo, hi, d_pooled_HmD, d_kept_mHP, attention_mHP, kept_mHP, scale_mL
            )
            d_position_scores_HP = d_inner_mHP.sum(0)
            width = d_pooled_HmD.shape[-1]
            d_positions_PD = kept_mHP.permute(2, 1, 0).reshape(kept_mHP.shape[2], -1) @ d_pooled_HmD.reshape(-1, width)
            totals.add("u", d_u_HD.addmm_(d_position_scores_HP, query.positions_PD))
            totals.add("positions", d_positions_PD.addmm_(d_position_scores_HP.T, query.u_HD))
            if d_states:
                direct_mD = plan.rows.take(d_fused_ND, lo, hi).to(plan.wide)
                vectors = _Vectors(direct_mD, weights_mL, kept_mHP, d_pooled_HmD, d_inner_mHP, query.u_HD)
                state_gradients(plan.rows, lo, hi, hs, d_states, vectors, scale_mL)
        return None, *_finish(totals, d_in_weight, p, query, leaves), *shaped(d_states, states)


@dataclass(frozen=True)
class _Vectors:
    """Gradient of a layer's normalized state, for :func:`.primitives.state_gradients`."""

    direct_mD: torch.Tensor
    weights_mL: torch.Tensor
    kept_mHP: torch.Tensor
    d_pooled_HmD: torch.Tensor
    d_inner_mHP: torch.Tensor
    u_HD: torch.Tensor

    def __call__(self, layer: int) -> torch.Tensor:
        """[m, D]: through the sum, the pooled vector and the score."""
        found_mD = self.direct_mD * self.weights_mL[:, layer, None]
        for head, pooled_mD in enumerate(self.d_pooled_HmD):
            found_mD.addcmul_(pooled_mD, self.kept_mHP[:, head, layer + 1, None])
        return found_mD.addmm_(self.d_inner_mHP[..., layer + 1], self.u_HD)


class _Query(NamedTuple):
    """The layer's one query, projected."""

    q_HE: torch.Tensor
    u_HD: torch.Tensor
    positions_PD: torch.Tensor
    """The query's vector c and the layers' positions."""


def _query(p: Mapping[str, torch.Tensor], heads: int) -> _Query:
    q_HE = torch.addmv(p["query_bias"], p["query_weight"], p["cls"]).view(heads, -1)
    key_HED = p["key_weight"].view(heads, q_HE.shape[1], -1)
    u_HD = torch.bmm(q_HE[:, None], key_HED)[:, 0].div_(math.sqrt(q_HE.shape[1]))
    return _Query(q_HE, u_HD, torch.cat([p["cls"][None], p["layer_positions"]]))


def _prepare(leaves: Sequence[torch.Tensor], plan: KernelPlan) -> dict[str, torch.Tensor]:
    """Parameters by name, for one forward or backward: matrices in the products' dtype, the rest in `plan.wide`."""
    p = {n: x.to(plan.dtype if n in MATRICES else plan.wide) for n, x in zip(NAMES, leaves, strict=True)}
    p["query_weight"], p["key_weight"], value = p.pop("self_attn_in_proj_weight").chunk(3)
    p["query_bias"], _, p["value_bias"] = p.pop("self_attn_in_proj_bias").chunk(3)
    p["value_weight"] = value.to(plan.dtype)
    return p


def _sizes(plan: KernelPlan, p: Mapping[str, torch.Tensor]) -> tuple[int, int, int]:
    """Elements per token that dropout applies to: H x P, D and F."""
    layers, width = p["layer_positions"].shape
    return plan.heads * (layers + 1), width, len(p["linear1_bias"])


def _finish(
    totals: post_attention.PostAttentionTotals, d_in_weight: torch.Tensor, p: Mapping[str, torch.Tensor],
    query: _Query, leaves: Sequence[torch.Tensor],
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients in the order of NAMES, with those of the query's projections."""
    if not totals.sums:  # a batch without tokens
        return [torch.zeros_like(leaf) for leaf in leaves]
    sums = totals.sums
    if "merged_weight" in sums:
        post_attention.unmerge(p, totals)
    d_query, d_key, _ = d_in_weight.chunk(3)
    heads, inner = query.q_HE.shape
    d_u_HD = sums["u"] / math.sqrt(inner)
    d_q_D = torch.bmm(p["key_weight"].view(heads, inner, -1), d_u_HD[..., None]).flatten()
    # Written in place: a temporary of D x D would cost as much as reading the states.
    torch.mul(query.q_HE[..., None].to(d_key.dtype), d_u_HD[:, None].to(d_key.dtype), out=d_key.view(heads, inner, -1))
    torch.mul(d_q_D[:, None].to(d_query.dtype), p["cls"].to(d_query.dtype), out=d_query)
    sums["self_attn_in_proj_weight"] = d_in_weight
    sums["self_attn_in_proj_bias"] = torch.cat([d_q_D, torch.zeros_like(d_q_D), sums["value_bias"]])
    sums["cls"] = torch.addmv(sums["cls"].add_(sums["positions"][0]), p["query_weight"].T, d_q_D)
    sums["layer_positions"] = sums["positions"][1:]
    return [sums[name].to(leaf.dtype) for name, leaf in zip(NAMES, leaves, strict=True)]


class _Joined:
    """Results of the chunks, joined by rows; of a single chunk not copied."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.parts: list[torch.Tensor] = []

    def put(self, lo: int, hi: int, *parts: torch.Tensor) -> None:
        """Results of tokens lo..hi, each [hi - lo, ...], always in the same order."""
        if hi - lo == self.count:
            self.parts = list(parts)
            return
        self.parts = self.parts or [part.new_empty(self.count, *part.shape[1:]) for part in parts]
        for target, part in zip(self.parts, parts, strict=True):
            target[lo:hi] = part


def _rows(parts: Sequence[torch.Tensor], lo: int, hi: int) -> list[torch.Tensor]:
    """Rows lo..hi of each."""
    return list(parts) if hi - lo == len(parts[0]) else [part[lo:hi] for part in parts]
