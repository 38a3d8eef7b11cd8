"""What follows the pooling in the collapsed layer: value and output projection, two norms, the MLP, the layers' scores.

It works on one chunk of tokens. Forward keeps the value and the inputs of the two norms; backward computes the hidden
units again from them (1 matrix product beside 12), so that a token costs 3 D kept elements instead of about 6 D + 2 F.

Letters: m tokens of a chunk, L layers, D width, H heads, E = D / H, F hidden width of the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from bridge_ds.fusion.kernels.dropout import Masks

__all__ = ["Totals", "backward", "forward"]

EPSILON = 1e-5
"""Of torch's nn.TransformerEncoderLayer."""

Parameters = Mapping[str, torch.Tensor]


@dataclass
class Totals:
    """Gradients of the parameters, summed over chunks; the first chunk writes, so nothing is zeroed before."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, name: str, value: torch.Tensor) -> None:
        """Add a small tensor."""
        if name in self.sums:
            self.sums[name] += value
        else:
            self.sums[name] = value

    def add_product(self, name: str, a: torch.Tensor, b: torch.Tensor, into: torch.Tensor) -> None:
        """Add a @ b (both 2-D, or both 3-D batches); `into` is where the sum is kept."""
        first = name not in self.sums
        self.sums[name] = into
        if a.dtype != into.dtype:
            product = (a @ b).to(into.dtype)
            into.copy_(product) if first else into.add_(product)
        elif into.dim() == 3:
            torch.baddbmm(into, a, b, beta=0 if first else 1, out=into)
        else:
            torch.addmm(into, a, b, beta=0 if first else 1, out=into)


def forward(
    p: Parameters, pooled_HmD: torch.Tensor, sums_mH: torch.Tensor, masks: Masks, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """From pooled states to the layers' scores.

    Args:
        p: the fusion's parameters by name.
        pooled_HmD: sum over places of attention x (state + position).
        sums_mH: sum of the attention over places (1 without dropout), which weighs the value's bias.
        dtype: of the matrix products.

    Returns:
        the value, the inputs of the first and of the second norm, [m, D] each, the scores [m, L], and the hidden units
        [m, F] as they went into the MLP's second matrix.
    """
    value_mD = _value(p, pooled_HmD, sums_mH, dtype)
    output_mD = _linear(value_mD, p["self_attn_out_proj_weight"], p["self_attn_out_proj_bias"], dtype)
    first_mD = _times(output_mD, masks.output).add_(p["cls"])
    x_mD = _norm(first_mD, p, "norm1")[0]
    hidden_mF = _hidden(p, x_mD, masks, dtype)
    ffn_mD = _linear(hidden_mF, p["linear2_weight"], p["linear2_bias"], dtype)
    second_mD = _times(ffn_mD, masks.ffn).add_(x_mD)
    y_mD = _norm(second_mD, p, "norm2")[0]
    return value_mD, first_mD, second_mD, F.linear(y_mD, p["score_weight"], p["score_bias"]), hidden_mF


def backward(
    p: Parameters, pooled_HmD: torch.Tensor, sums_mH: torch.Tensor, masks: Masks, dtype: torch.dtype,
    value_mD: torch.Tensor, first_mD: torch.Tensor, second_mD: torch.Tensor, hidden_mF: torch.Tensor | None,
    d_scores_mL: torch.Tensor, totals: Totals, slots: Parameters,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of :func:`forward` for pooled [H, m, D] and sums [m, H]; those of the parameters go to `totals`.

    Args:
        hidden_mF: what :func:`forward` gave, or none where it was not kept.
        slots: tensors in which the gradients of the four large matrices are summed.
    """
    heads, _, width = pooled_HmD.shape
    y_mD, mean, rstd = _norm(second_mD, p, "norm2")
    totals.add("score_weight", d_scores_mL.T @ y_mD)
    totals.add("score_bias", d_scores_mL.sum(0))
    del y_mD
    d_second_mD = _norm_backward(d_scores_mL @ p["score_weight"], second_mD, mean, rstd, p, "norm2", totals)

    x_mD, mean1, rstd1 = _norm(first_mD, p, "norm1")
    if hidden_mF is None:
        hidden_mF = _hidden(p, x_mD, masks, dtype)
    d_ffn_mD = _times(d_second_mD, masks.ffn)
    d_hidden_mF = _linear_backward(d_ffn_mD, hidden_mF, "linear2", p, dtype, totals, slots)
    # A dropped unit is 0 after its mask, as one that ReLU closed: both let nothing through.
    d_hidden_mF = torch.ops.aten.threshold_backward(d_hidden_mF, hidden_mF, 0)
    if masks.hidden is not None:
        d_hidden_mF.mul_(masks.kept_scale)
    d_x_mD = _linear_backward(d_hidden_mF, x_mD, "linear1", p, dtype, totals, slots).add_(d_second_mD)
    del x_mD, hidden_mF, d_hidden_mF, d_ffn_mD, d_second_mD
    d_first_mD = _norm_backward(d_x_mD, first_mD, mean1, rstd1, p, "norm1", totals)
    totals.add("cls", d_first_mD.sum(0))

    d_output_mD = _times(d_first_mD, masks.output)
    d_value_mD = _linear_backward(d_output_mD, value_mD, "self_attn_out_proj", p, dtype, totals, slots)
    d_value_HmE = d_value_mD.view(-1, heads, width // heads).transpose(0, 1)
    narrow_HmE = d_value_HmE.to(dtype)
    totals.add_product("value", narrow_HmE.transpose(1, 2), pooled_HmD.to(dtype), slots["value"])
    totals.add("value_bias", torch.einsum("hme,mh->he", d_value_HmE, sums_mH).flatten())
    d_pooled_HmD = torch.bmm(narrow_HmE, p["value_weight"].view(heads, -1, width)).to(pooled_HmD.dtype)
    return d_pooled_HmD, torch.einsum("hme,he->mh", d_value_HmE, p["value_bias"].view(heads, -1))


def _value(p: Parameters, pooled_HmD: torch.Tensor, sums_mH: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    heads, tokens, width = pooled_HmD.shape
    weight_HDE = p["value_weight"].view(heads, -1, width).transpose(1, 2)
    value_HmE = torch.bmm(pooled_HmD.to(dtype), weight_HDE).to(pooled_HmD.dtype)
    value_HmE.addcmul_(sums_mH.T[..., None], p["value_bias"].view(heads, 1, -1))
    return value_HmE.transpose(0, 1).reshape(tokens, width)


def _hidden(p: Parameters, x_mD: torch.Tensor, masks: Masks, dtype: torch.dtype) -> torch.Tensor:
    hidden_mF = _linear(x_mD, p["linear1_weight"], p["linear1_bias"], dtype).relu_()
    return hidden_mF if masks.hidden is None else hidden_mF.mul_(masks.hidden)


def _norm(x_mD: torch.Tensor, p: Parameters, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.native_layer_norm(x_mD, x_mD.shape[-1:], p[f"{name}_weight"], p[f"{name}_bias"], EPSILON)


def _norm_backward(
    d_out_mD: torch.Tensor, x_mD: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, p: Parameters, name: str,
    totals: Totals,
) -> torch.Tensor:  # fmt: skip
    d_x_mD, d_weight_D, d_bias_D = torch.ops.aten.native_layer_norm_backward(
        d_out_mD, x_mD, x_mD.shape[-1:], mean, rstd, p[f"{name}_weight"], p[f"{name}_bias"], [True, True, True]
    )
    totals.add(f"{name}_weight", d_weight_D)
    totals.add(f"{name}_bias", d_bias_D)
    return d_x_mD


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Matrix products in the states' dtype (bfloat16 on a GPU), everything around them in float32.
    if x.dtype == dtype:
        return F.linear(x, weight, bias)
    return F.linear(x.to(dtype), weight).to(x.dtype).add_(bias)


def _linear_backward(
    d_out: torch.Tensor, x: torch.Tensor, name: str, p: Parameters, dtype: torch.dtype, totals: Totals,
    slots: Parameters,
) -> torch.Tensor:  # fmt: skip
    narrow = d_out.to(dtype)
    totals.add_product(f"{name}_weight", narrow.T, x.to(dtype), slots[f"{name}_weight"])
    totals.add(f"{name}_bias", d_out.sum(0))
    return (narrow @ p[f"{name}_weight"]).to(d_out.dtype)


def _times(x: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
    return x if factors is None else x * factors
