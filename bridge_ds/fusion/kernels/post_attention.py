"""The layer after the pooling: value and output projection, two norms, the MLP, the layers' scores.

It works on one chunk of tokens. The pooled states and the inputs of the two norms are kept. Backward recomputes the
value and the hidden units (2 matrix products besides 12) unless they were kept too. So 3 D elements are kept per token
instead of about 6 D + 2 F.

Nothing stands between the projections of value and output but a bias. With one head and more tokens than D, their
matrices are multiplied first: 3 products of M x D x D and 3 of D x D x D then take the place of 6 of M x D x D.

Dimensions: m tokens of a chunk, L layers, D width, H heads, E = D / H, F hidden width of the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from bridge_ds.fusion.kernels.dropout import Masks
from bridge_ds.fusion.kernels.primitives import KernelPlan
from bridge_ds.products import add_product, linear, multiply

__all__ = ["COMPUTED", "Computed", "PostAttentionTotals", "backward", "forward", "merge", "unmerge"]

EPSILON = 1e-5
"""Of torch's nn.TransformerEncoderLayer."""

MERGED = "merged"
"""Value and output projection as one layer: `merged_weight` [D, D] and `merged_bias` (that of the output). What the
value's bias becomes, which the sum of the attention weighs, is `merged_value_bias`."""

Parameters = Mapping[str, torch.Tensor]
COMPUTED = 8
"""Tensors of :meth:`Computed.saved`."""


class Norm(NamedTuple):
    """Result of a norm [m, D], mean and 1 / deviation [m, 1]."""

    out_mD: torch.Tensor
    mean: torch.Tensor
    rstd: torch.Tensor


class Computed(NamedTuple):
    """What backward computes again for a chunk of which it was not kept, in the products' dtype."""

    value_mD: torch.Tensor | None
    """None where projections are merged."""
    hidden_mF: torch.Tensor
    """As they go into the MLP's second matrix, without dropout's scale."""
    norm1: Norm | None = None
    """Results of the norms; none where they are computed again."""
    norm2: Norm | None = None

    def saved(self, norms: bool) -> list[torch.Tensor | None]:
        """For :meth:`of`, COMPUTED of them, with the norms or without."""
        of_norms = [*self.norm1, *self.norm2] if norms and self.norm1 and self.norm2 else [None] * 6
        return [self.value_mD, self.hidden_mF, *of_norms]

    @classmethod
    def of(cls, saved: Sequence[torch.Tensor]) -> Computed:
        """From the first of the tensors, those of :meth:`saved`."""
        return cls(saved[0], saved[1], *(Norm(*saved[n : n + 3]) if saved[n] is not None else None for n in (2, 5)))


@dataclass
class PostAttentionTotals:
    """Gradients of the parameters, summed over chunks; the first chunk writes, so nothing is zeroed before."""

    slots: Parameters
    """Memory for some of them."""
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add a small tensor."""
        if name in self.sums:
            self.sums[name] += value
        else:
            self.sums[name] = value

    def add_product(self, name: str, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add a @ b (both 2-D, or both 3-D batches), in float32 or wider."""
        if name in self.sums and a.dtype == self.sums[name].dtype:
            add_product(self.sums[name], a, b)
            return
        product, into = multiply(a, b), self.slots.get(name)
        self.add(name, product.to(torch.promote_types(a.dtype, torch.float32)) if into is None else into.copy_(product))


def forward(
    p: Parameters, pooled_HmD: torch.Tensor, sums_mH: torch.Tensor, masks: Masks, plan: KernelPlan
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Computed]:
    """From pooled states to the layers' scores.

    Args:
        p: the fusion's parameters by name.
        pooled_HmD: sum over positions of attention x (state + position), in the products' dtype.
        sums_mH: sum of the attention over positions (1 without dropout), which weighs the value's bias.

    Returns:
        the inputs of the first and of the second norm [m, D], the scores [L, m], and the rest.
    """
    value_mD = None
    if plan.merged:
        output_mD = _linear(pooled_HmD[0], p["merged_weight"], p["merged_bias"], plan)
        output_mD.addcmul_(sums_mH, p["merged_value_bias"])
    else:
        value_mD = _value(p, pooled_HmD, sums_mH, plan)
        output_mD = _linear(value_mD, p["self_attn_out_proj_weight"], p["self_attn_out_proj_bias"], plan)
    first_mD = plan.ops.times(output_mD, masks.output, plus=p["cls"])
    norm1 = _norm(first_mD, p, "norm1")
    hidden_mF = _hidden(p, norm1.out_mD, masks, plan)
    # b / s before a factor that has s in it: the product's scale is no operator of its own.
    ffn_mD = _linear(hidden_mF, p["linear2_weight"], p["linear2_bias"] / masks.hidden_scale, plan)
    second_mD = plan.ops.times(ffn_mD, masks.ffn, plus=norm1.out_mD, scale=_ffn_scale(masks))
    norm2 = _norm(second_mD, p, "norm2")
    scores_Lm = torch.addmm(p["score_bias"][:, None], p["score_weight"], norm2.out_mD.T)
    return first_mD, second_mD, scores_Lm, Computed(value_mD, hidden_mF, norm1, norm2)


def backward(
    p: Parameters, pooled_HmD: torch.Tensor, sums_mH: torch.Tensor, masks: Masks, plan: KernelPlan,
    computed: Computed | None, first_mD: torch.Tensor, second_mD: torch.Tensor,
    d_scores_mL: torch.Tensor, totals: PostAttentionTotals,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of :func:`forward` for pooled [H, m, D] and sums [m, H]; those of the parameters go to `totals`.

    Args:
        computed: what :func:`forward` gave, or none where it was not kept.
    """
    heads, _, width = pooled_HmD.shape
    dtype, times = plan.dtype, plan.ops.times
    y_mD, mean, rstd = (computed and computed.norm2) or _norm(second_mD, p, "norm2")
    totals.add("score_weight", d_scores_mL.T @ y_mD)
    totals.add("score_bias", d_scores_mL.sum(0))
    del y_mD
    d_second_mD = _norm_backward(d_scores_mL @ p["score_weight"], second_mD, mean, rstd, p, "norm2", totals)

    x_mD, mean, rstd = (computed and computed.norm1) or _norm(first_mD, p, "norm1")
    hidden_mF = computed.hidden_mF if computed else _hidden(p, x_mD, masks, plan)
    d_ffn_mD = times(d_second_mD, masks.ffn, scale=_ffn_scale(masks))
    d_hidden_mF = _linear_backward(d_ffn_mD, hidden_mF, "linear2", p, dtype, totals, bias_scale=1 / masks.hidden_scale)
    # A dropped unit is 0 after its mask, as one below 0 is after ReLU: neither has a gradient.
    torch.ops.aten.threshold_backward.grad_input(d_hidden_mF, hidden_mF, 0, grad_input=d_hidden_mF)
    d_x_mD = _linear_backward(d_hidden_mF, x_mD, "linear1", p, dtype, totals, plus=d_second_mD)
    del x_mD, hidden_mF, d_hidden_mF, d_ffn_mD, d_second_mD
    d_first_mD = _norm_backward(d_x_mD, first_mD, mean, rstd, p, "norm1", totals)
    totals.add("cls", d_first_mD.sum(0))

    d_output_mD = times(d_first_mD, masks.output)
    if plan.merged:
        totals.add("merged_value_bias", d_output_mD.T @ sums_mH[:, 0])
        d_pooled_mD = _linear_backward(d_output_mD, pooled_HmD[0], MERGED, p, dtype, totals, plan.wide)
        return d_pooled_mD[None], (d_output_mD @ p["merged_value_bias"])[:, None]
    value_mD = computed.value_mD if computed else None
    if value_mD is None:
        value_mD = _value(p, pooled_HmD, sums_mH, plan)
    narrow_mD = _linear_backward(d_output_mD, value_mD, "self_attn_out_proj", p, dtype, totals)
    narrow_HmE = narrow_mD.view(-1, heads, width // heads).transpose(0, 1)
    totals.add_product("value", narrow_HmE.transpose(1, 2), pooled_HmD)
    d_pooled_HmD = multiply(narrow_HmE, p["value_weight"].view(heads, -1, width)).to(plan.wide)
    wide_HmE = narrow_HmE.to(plan.wide)
    totals.add("value_bias", torch.bmm(sums_mH.T[:, None], wide_HmE).flatten())
    return d_pooled_HmD, torch.bmm(wide_HmE, p["value_bias"].view(heads, -1, 1))[..., 0].T


def merge(p: Parameters, wide: torch.dtype) -> dict[str, torch.Tensor]:
    """The merged layer's parameters."""
    output_DD = p["self_attn_out_proj_weight"]
    return {
        "merged_weight": multiply(output_DD, p["value_weight"]),
        "merged_bias": p["self_attn_out_proj_bias"],
        "merged_value_bias": output_DD.to(wide) @ p["value_bias"],
    }


def unmerge(p: Parameters, totals: PostAttentionTotals) -> None:
    """Replace the gradients of the merged layer by those of value and output projection."""
    sums = totals.sums
    d_weight_DD, output_DD = sums.pop("merged_weight"), p["self_attn_out_proj_weight"]
    d_bias_D = sums.pop("merged_value_bias")
    narrow_DD = d_weight_DD.to(output_DD.dtype)
    totals.add_product("self_attn_out_proj_weight", narrow_DD, p["value_weight"].T)
    d_output_DD = sums["self_attn_out_proj_weight"]
    d_output_DD.addr_(d_bias_D.to(d_output_DD.dtype), p["value_bias"].to(d_output_DD.dtype))
    totals.add_product("value", output_DD.T, narrow_DD)
    sums["value_bias"] = output_DD.T.to(d_bias_D.dtype) @ d_bias_D
    sums["self_attn_out_proj_bias"] = sums.pop("merged_bias")


def _value(p: Parameters, pooled_HmD: torch.Tensor, sums_mH: torch.Tensor, plan: KernelPlan) -> torch.Tensor:
    heads, tokens, width = pooled_HmD.shape
    weight_HDE = p["value_weight"].view(heads, -1, width).transpose(1, 2)
    value_HmE = multiply(pooled_HmD, weight_HDE)
    bias_H1E = p["value_bias"].view(heads, 1, -1)
    if plan.dtype == plan.wide:
        value_HmE.addcmul_(sums_mH.T[..., None], bias_H1E)
    else:  # summed in float32, rounded once
        value_HmE = torch.addcmul(value_HmE.to(plan.wide), sums_mH.T[..., None], bias_H1E).to(plan.dtype)
    return value_HmE.transpose(0, 1).reshape(tokens, width)


def _hidden(p: Parameters, x_mD: torch.Tensor, masks: Masks, plan: KernelPlan) -> torch.Tensor:
    # Rounded first: ReLU and a factor of 0 or 1 / (1 - p) need no more than the products' dtype.
    # oneDNN's own ReLU gains nothing measurable in a step.
    hidden_mF = linear(x_mD.to(plan.dtype), p["linear1_weight"], p["linear1_bias"].to(plan.dtype)).relu_()
    # Dropout's scale is that of the product that follows: of F elements a token it would be one operator more.
    return plan.ops.times(hidden_mF, masks.hidden, in_place=True, scale=1.0)


def _norm(x_mD: torch.Tensor, p: Parameters, name: str) -> Norm:
    return Norm(*torch.native_layer_norm(x_mD, x_mD.shape[-1:], p[f"{name}_weight"], p[f"{name}_bias"], EPSILON))


def _norm_backward(
    d_out_mD: torch.Tensor, x_mD: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, p: Parameters, name: str,
    totals: PostAttentionTotals,
) -> torch.Tensor:  # fmt: skip
    d_x_mD, d_weight_D, d_bias_D = torch.ops.aten.native_layer_norm_backward(
        d_out_mD, x_mD, x_mD.shape[-1:], mean, rstd, p[f"{name}_weight"], p[f"{name}_bias"], [True, True, True]
    )
    totals.add(f"{name}_weight", d_weight_D)
    totals.add(f"{name}_bias", d_bias_D)
    return d_x_mD


def _ffn_scale(masks: Masks) -> float | None:
    """Of what dropout keeps of the MLP's output, with the scale that its hidden units do not have yet."""
    return None if masks.ffn is None else masks.ffn.draws.kept_scale * masks.hidden_scale


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, plan: KernelPlan) -> torch.Tensor:
    """x W^T + b: the product in its own dtype, what follows in float32."""
    return linear(x, weight, bias) if plan.dtype == plan.wide else bias + linear(x, weight)


def _linear_backward(
    d_out: torch.Tensor, x: torch.Tensor, name: str, p: Parameters, dtype: torch.dtype, totals: PostAttentionTotals,
    wanted: torch.dtype | None = None, plus: torch.Tensor | None = None, bias_scale: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """Gradient of the input of x W^T + bias_scale b, in the products' dtype or the one that is wanted, or added to
    `plus` in place."""
    narrow = d_out.to(dtype)
    totals.add_product(f"{name}_weight", narrow.T, x.to(dtype))
    d_bias = d_out.sum(0, dtype=p[f"{name}_bias"].dtype)
    totals.add(f"{name}_bias", d_bias if bias_scale == 1 else d_bias.mul_(bias_scale))
    weight = p[f"{name}_weight"]
    if plus is not None:
        if plus.dtype != dtype:
            return plus.add_(narrow @ weight)
        add_product(plus, narrow, weight)
        return plus
    d_x = multiply(narrow, weight)
    return d_x if wanted is None else d_x.to(wanted)
