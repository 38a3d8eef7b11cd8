"""Transformer Softmax with the projections, norms and the MLP on one vector a token instead of L + 1: exact.

Only the first output of the layer is used, and its query is the same vector for every token. With q = W_q c + b_q and
u = W_k^T q / sqrt(E) (for each head, E = D / H) the scores are s_l = u . (h_l + p_l), s_0 = u . c: keys are never
projected (q . b_k is the same for every place and drops out of the softmax). The value projection moves behind the
weighted sum. Dropout falls on the quantities on which torch's layer has it.

The autograd functions keep the states where the encoder left them, the attention, the weights and three vectors a token
(and what the first chunk computed, if that is small). They keep parameters as the leaves themselves, never a view:
under ZeRO-3 a parameter's storage is released after its module's forward, and the leaf (not the view) holds the
gathered one again when backward comes.

Letters: B batch, S encoder tokens, N = B x S, M rows of tokens, m of one chunk, L layers, P = L + 1 places, D width,
H heads, E = D / H.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from bridge_ds.fusion.kernels import tail
from bridge_ds.fusion.kernels.dropout import Masks, draw_masks, restore_masks
from bridge_ds.fusion.kernels.mixing import Plan, Primitives, empty_gradients, few_rows, make_plan, shaped
from bridge_ds.fusion.kernels.rows import Rows, flat

__all__ = ["NAMES", "layer_scores"]

NAMES = (
    "cls", "layer_positions", "self_attn_in_proj_weight", "self_attn_in_proj_bias", "self_attn_out_proj_weight",
    "self_attn_out_proj_bias", "linear1_weight", "linear1_bias", "linear2_weight", "linear2_bias", "norm1_weight",
    "norm1_bias", "norm2_weight", "norm2_bias", "score_weight", "score_bias",
)  # fmt: skip
"""Parameters of the layer, in the order in which the autograd function takes them."""
MATRICES = ("self_attn_out_proj_weight", "linear1_weight", "linear2_weight")


def layer_scores(
    path: Primitives, rows: Rows, states: Sequence[torch.Tensor], p: Mapping[str, torch.Tensor], heads: int,
    dropout: float, scale_ML: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Scores of the layers for each token, [M, L], float32 or wider; equal to :func:`.reference.layer_scores`."""
    # The seed comes from torch's global generator: whoever seeds that (the engine, by step and rank) governs dropout.
    seed = int(torch.randint(2**62, ())) if dropout else 0
    plan = make_plan(path, rows, states, heads=heads, dropout=dropout, seed=seed)
    return _LayerScores.apply(plan, scale_ML, *(p[name] for name in NAMES), *states)


class _LayerScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, scale_ML: torch.Tensor | None, *tensors: torch.Tensor) -> torch.Tensor:
        leaves, states = tensors[: len(NAMES)], tensors[len(NAMES) :]
        hs, p = flat(states), _prepare(leaves, plan)
        query = _query(p, plan.heads)
        whole = _Whole(plan.rows.count)
        kept: tuple[torch.Tensor | None, ...] = ()
        for lo, hi in plan.chunks(hs[0]) or [(0, 0)]:
            masks = _masks(plan, p, hs[0], lo, hi)
            scale_mL = None if scale_ML is None else scale_ML[lo:hi]
            attention_mHP, pooled_HmD = plan.path.attend(
                hs, plan.rows, lo, hi, query.u_HD, query.place_scores_HP, masks.attention, scale_mL
            )
            kept_mHP = _kept(attention_mHP, masks)
            _add_places(pooled_HmD, kept_mHP, query)
            *vectors, scores_mL, hidden_mF = tail.forward(p, pooled_HmD, kept_mHP.sum(-1), masks, plan.dtype)
            whole.put(lo, hi, attention_mHP, *vectors, scores_mL)
            if lo == 0 and hi <= few_rows(hs[0].shape[1]):
                # Not computed again in backward: no more memory than the temporaries that every chunk has for a while.
                kept = (pooled_HmD, hidden_mF, *masks.factors)
        ctx.plan, ctx.kept_count = plan, len(kept)
        small = (scale_ML, query.q_HE, query.u_HD)
        *parts, scores_ML = whole.parts
        ctx.save_for_backward(*kept, *small, *parts, *tensors)
        return scores_ML

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_scores_ML: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: activation checkpointing gives them only once
        kept = saved[: ctx.kept_count]
        scale_ML, q_HE, u_HD, attention_MHP, value_MD, first_MD, second_MD, *tensors = saved[len(kept) :]
        leaves, states = tensors[: len(NAMES)], tensors[len(NAMES) :]
        plan, hs, p = ctx.plan, flat(states), _prepare(leaves, ctx.plan)
        query = _with_places(p, q_HE, u_HD)
        d_in_weight, slots = _slots(leaves, plan.heads)
        totals = tail.Totals()
        d_scale_ML = torch.empty_like(scale_ML) if ctx.needs_input_grad[1] else None
        d_states = empty_gradients(ctx.needs_input_grad[2 + len(NAMES) :], states)
        for lo, hi in plan.chunks(hs[0]):
            scale_mL = None if scale_ML is None else scale_ML[lo:hi]
            attention_mHP = attention_MHP[lo:hi]
            here = kept if lo == 0 else ()
            masks = restore_masks(here[2:], plan.dropout) if here else _masks(plan, p, hs[0], lo, hi)
            kept_mHP = _kept(attention_mHP, masks)
            if here:
                pooled_HmD, hidden_mF = here[:2]
            else:
                hidden_mF = None
                kept_mHL = kept_mHP[..., 1:] if scale_mL is None else kept_mHP[..., 1:] * scale_mL[:, None]
                pooled_HmD = plan.path.mix(hs, plan.rows, lo, hi, kept_mHL)
                _add_places(pooled_HmD, kept_mHP, query)
            d_pooled_HmD, d_sums_mH = tail.backward(
                p, pooled_HmD, kept_mHP.sum(-1), masks, plan.dtype, value_MD[lo:hi], first_MD[lo:hi],
                second_MD[lo:hi], hidden_mF, d_scores_ML[lo:hi].to(plan.wide), totals, slots,
            )  # fmt: skip
            del pooled_HmD
            d_kept_mHP = torch.matmul(d_pooled_HmD, query.places_PD.T).transpose(0, 1) + d_sums_mH[..., None]
            d_places_PD = torch.einsum("mhp,hmd->pd", kept_mHP, d_pooled_HmD)
            d_inner_mHP, d_u_HD = plan.path.attend_backward(
                hs, plan.rows, lo, hi, d_pooled_HmD, d_kept_mHP, attention_mHP, masks.attention, scale_mL
            )
            d_place_scores_HP = d_inner_mHP.sum(0)
            totals.add("u", d_u_HD.addmm_(d_place_scores_HP, query.places_PD))
            totals.add("places", d_places_PD.addmm_(d_place_scores_HP.T, query.u_HD))
            if d_scale_ML is not None:
                u_HmD = query.u_HD[:, None].expand_as(d_pooled_HmD)
                from_pooled = plan.path.dots(hs, plan.rows, lo, hi, d_pooled_HmD) * kept_mHP[..., 1:]
                from_scores = plan.path.dots(hs, plan.rows, lo, hi, u_HmD) * d_inner_mHP[..., 1:]
                d_scale_ML[lo:hi] = (from_pooled + from_scores).sum(1)
            for place, d_state in d_states.items():
                d_state_mD = torch.einsum("mh,hmd->md", kept_mHP[..., place + 1], d_pooled_HmD)
                d_state_mD.addmm_(d_inner_mHP[..., place + 1], query.u_HD)
                if scale_mL is not None:
                    d_state_mD *= scale_mL[:, place, None]
                plan.rows.put(d_state, lo, hi, d_state_mD)
        gradients = _finish(totals, slots, d_in_weight, p, query, leaves)
        return None, d_scale_ML, *gradients, *shaped(d_states, states)


@dataclass(frozen=True)
class _Query:
    """What the layer's one query becomes."""

    q_HE: torch.Tensor
    u_HD: torch.Tensor
    places_PD: torch.Tensor
    """The query's vector c and the positions."""
    place_scores_HP: torch.Tensor


def _query(p: Mapping[str, torch.Tensor], heads: int) -> _Query:
    q_HE = torch.addmv(p["query_bias"], p["query_weight"], p["cls"]).view(heads, -1)
    key_HED = p["key_weight"].view(heads, q_HE.shape[1], -1)
    u_HD = torch.bmm(q_HE[:, None], key_HED)[:, 0] / math.sqrt(q_HE.shape[1])
    return _with_places(p, q_HE, u_HD)


def _with_places(p: Mapping[str, torch.Tensor], q_HE: torch.Tensor, u_HD: torch.Tensor) -> _Query:
    places_PD = torch.cat([p["cls"][None], p["layer_positions"]])
    return _Query(q_HE, u_HD, places_PD, u_HD @ places_PD.T)


def _prepare(leaves: Sequence[torch.Tensor], plan: Plan) -> dict[str, torch.Tensor]:
    """Parameters by name, for the time of one direction: matrices in the products' dtype, the rest wide."""
    p = {n: x.to(plan.dtype if n in MATRICES else plan.wide) for n, x in zip(NAMES, leaves, strict=True)}
    p["query_weight"], p["key_weight"], value = p.pop("self_attn_in_proj_weight").chunk(3)
    p["query_bias"], _, p["value_bias"] = p.pop("self_attn_in_proj_bias").chunk(3)
    return p | {"value_weight": value.to(plan.dtype)}


def _slots(leaves: Sequence[torch.Tensor], heads: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Room for the gradients of the large matrices; that of the value is the last third of the input projection's."""
    by_name = dict(zip(NAMES, leaves, strict=True))
    slots = {name: torch.empty_like(by_name[name]) for name in MATRICES}
    d_in_weight = torch.empty_like(by_name["self_attn_in_proj_weight"])
    slots["value"] = d_in_weight.chunk(3)[2].view(heads, -1, d_in_weight.shape[1])
    return d_in_weight, slots


def _finish(
    totals: tail.Totals, slots: Mapping[str, torch.Tensor], d_in_weight: torch.Tensor, p: Mapping[str, torch.Tensor],
    query: _Query, leaves: Sequence[torch.Tensor],
) -> list[torch.Tensor]:  # fmt: skip
    """Gradients in the order of NAMES, with those of the query's projections."""
    if not totals.sums:  # a batch without tokens
        return [torch.zeros_like(leaf) for leaf in leaves]
    sums = totals.sums
    d_query, d_key, _ = d_in_weight.chunk(3)
    heads, inner = query.q_HE.shape
    d_u_HD = sums["u"] / math.sqrt(inner)
    d_q_D = torch.bmm(p["key_weight"].view(heads, inner, -1), d_u_HD[..., None]).flatten()
    # Written where they stay: a temporary of D x D would cost as much as reading the states.
    torch.mul(query.q_HE[..., None].to(d_key.dtype), d_u_HD[:, None].to(d_key.dtype), out=d_key.view(heads, inner, -1))
    torch.mul(d_q_D[:, None].to(d_query.dtype), p["cls"].to(d_query.dtype), out=d_query)
    sums["self_attn_in_proj_weight"] = d_in_weight
    sums["self_attn_in_proj_bias"] = torch.cat([d_q_D, torch.zeros_like(d_q_D), sums["value_bias"]])
    sums["cls"] = sums["cls"] + sums["places"][0] + p["query_weight"].T @ d_q_D
    sums["layer_positions"] = sums["places"][1:]
    return [sums[name].to(leaf.dtype) for name, leaf in zip(NAMES, leaves, strict=True)]


class _Whole:
    """Results of the chunks, by rows: a lone chunk's as they are, several written into tensors for all M tokens."""

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


def _masks(plan: Plan, p: Mapping[str, torch.Tensor], like_ND: torch.Tensor, lo: int, hi: int) -> Masks:
    places, width = p["layer_positions"].shape[0] + 1, like_ND.shape[1]
    shapes = ((hi - lo, plan.heads, places), (hi - lo, width), (hi - lo, len(p["linear1_bias"])), (hi - lo, width))
    return draw_masks(plan.path.draw, plan.dropout, plan.seed + lo, shapes, plan.wide, like_ND.device)


def _kept(attention_mHP: torch.Tensor, masks: Masks) -> torch.Tensor:
    return attention_mHP if masks.attention is None else attention_mHP * masks.attention


def _add_places(pooled_HmD: torch.Tensor, kept_mHP: torch.Tensor, query: _Query) -> None:
    pooled_HmD.baddbmm_(kept_mHP.transpose(0, 1), query.places_PD.expand(len(pooled_HmD), -1, -1))
