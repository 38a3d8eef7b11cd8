"""Cases that every code path must pass, and the float64 reference they are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from bridge_ds.fusion import FUSIONS
from bridge_ds.fusion.base import Fusion

TOLERANCES = {torch.float32: (1e-5, 2e-4), torch.bfloat16: (3e-2, 1.5e-1)}
"""Largest relative error of the output and of a gradient. In float32 it is the largest element's; in bfloat16 (8 bits
in the matrix products) the error's norm, because single elements of a gradient through a sharp softmax are rounding
alone: there the reference itself, run in bfloat16, was off by 0.58 in one element and 0.16 in norm, this path by less.
"""


@dataclass(frozen=True)
class Case:
    """One computation."""

    batch: int
    layers: int
    length: int
    width: int
    heads: int = 1
    normalize: str = "none"
    dtype: torch.dtype = torch.float32
    fusion: str = "transformer_softmax"
    frozen: bool = False
    """Whether the states want no gradient."""
    dropout: float = 0.0
    """The reference draws other factors than the fast paths, so `torch` in float64 stands for it where there is any."""
    ragged: bool = True
    """Whether some positions are padding."""


@dataclass
class Result:
    """What is compared."""

    fused: torch.Tensor
    weights: torch.Tensor
    gradients: dict[str, torch.Tensor]


def make_fusion(case: Case, path: str) -> Fusion:
    """In float64; the paper's start (zeros, ones) would hide a wrong term, so parameters are moved."""
    options: dict[str, object] = {"backend": path, "state_norm": case.normalize}
    if case.fusion == "transformer_softmax":
        options |= {"heads": case.heads, "dropout": case.dropout, "feedforward": 24}
    torch.manual_seed(0)
    fusion = FUSIONS[case.fusion](num_layers=case.layers, width=case.width, **options).double()
    with torch.no_grad():
        for parameter in fusion.parameters():
            size = 1e-3 if case.fusion == "global_softmax" else 0.2
            parameter.add_(size * torch.randn_like(parameter))
    return fusion


def compute(case: Case, path: str, dtype: torch.dtype, device: str = "cpu") -> Result:
    """Forward and backward on states that `case.dtype` can hold exactly, parameters in float32 or float64."""
    fusion = make_fusion(case, path).to(device, torch.promote_types(dtype, torch.float32))
    torch.manual_seed(1)
    shape = (case.batch, case.length, case.width)
    values = [torch.randn(shape, dtype=torch.float64).to(case.dtype) for _ in range(case.layers)]
    states = [value.to(device, dtype).requires_grad_(not case.frozen) for value in values]
    upstream = torch.randn(shape, dtype=torch.float64).to(case.dtype).to(device, dtype)
    # Ragged: from no token at all in a row to all of them.
    mask = (torch.arange(case.length) < torch.randint(0, case.length + 1, (case.batch, 1))).long()
    mask = mask if case.ragged else torch.ones_like(mask)
    fused = fusion(states, mask.to(device))
    (fused * upstream).sum().backward()
    gradients = {name: p.grad.double().cpu() for name, p in fusion.named_parameters() if p.grad is not None}
    if not case.frozen:
        gradients |= {f"state {n}": s.grad.double().cpu() for n, s in enumerate(states) if s.grad is not None}
    assert fused.dtype == dtype
    return Result(fused.detach().double().cpu(), fusion.weights().double().cpu(), gradients)


def check(case: Case, path: str, device: str = "cpu") -> None:
    """The path equals the float64 reference in output, logged weights and every gradient."""
    expected = compute(case, "torch" if case.dropout else "reference", torch.float64)
    got = compute(case, path, case.dtype, device)
    output_tolerance, gradient_tolerance = TOLERANCES[case.dtype]
    assert _difference(got.fused, expected.fused, 0.0) < output_tolerance
    assert _difference(got.weights, expected.weights, 0.0) < output_tolerance
    assert got.gradients.keys() == expected.gradients.keys()
    # A gradient that is zero but for rounding is held against the largest of its kind.
    for is_state in (False, True):
        kind = {n: g for n, g in expected.gradients.items() if n.startswith("state") == is_state}
        size = _largest if case.dtype == torch.float32 else _norm
        floor = 1e-2 * max(map(size, kind.values()), default=0.0)
        for name, gradient in kind.items():
            assert _difference(got.gradients[name], gradient, floor, size) < gradient_tolerance, name


def in_bfloat16(case: Case) -> Case:
    return replace(case, dtype=torch.bfloat16)


def _largest(x: torch.Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def _norm(x: torch.Tensor) -> float:
    return x.norm().item()


def _difference(
    got: torch.Tensor, expected: torch.Tensor, floor: float, size: Callable[[torch.Tensor], float] = _largest
) -> float:
    return size(got - expected) / max(size(expected), floor, 1e-12)
