"""Cases that every code path must pass, and the float64 reference they are held against."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from bridge_ds.fusion import FUSIONS, Fusion

TOLERANCES = {torch.float32: (1e-5, 2e-4), torch.bfloat16: (3e-2, 1.5e-1)}
"""Largest difference of the output, as a share of its largest element, and norm of a gradient's difference as a share
of its norm. bfloat16's are those of its matrix products (8 bits) and of ReLUs that flip; sums over layers and tokens
are float32."""


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


@dataclass
class Result:
    """What is compared."""

    fused: torch.Tensor
    weights: torch.Tensor
    gradients: dict[str, torch.Tensor]


def make_fusion(case: Case, path: str) -> Fusion:
    """In float64, without dropout; the paper's start (zeros, ones) would hide a wrong term, so parameters are moved."""
    options: dict[str, object] = {"path": path, "normalize": case.normalize}
    if case.fusion == "transformer_softmax":
        options |= {"heads": case.heads, "dropout": 0.0, "feedforward": 24}
    torch.manual_seed(0)
    fusion = FUSIONS[case.fusion](num_layers=case.layers, width=case.width, **options).double()
    with torch.no_grad():
        for parameter in fusion.parameters():
            size = 0.2 if case.fusion == "transformer_softmax" else 1e-3
            parameter.add_(size * torch.randn_like(parameter))
    return fusion


def compute(case: Case, path: str, dtype: torch.dtype) -> Result:
    """Forward and backward on states that `case.dtype` can hold exactly, parameters in float32 or float64."""
    fusion = make_fusion(case, path).to(torch.promote_types(dtype, torch.float32))
    torch.manual_seed(1)
    shape = (case.batch, case.length, case.width)
    values = [torch.randn(shape, dtype=torch.float64).to(case.dtype) for _ in range(case.layers)]
    states = [value.to(dtype).requires_grad_(not case.frozen) for value in values]
    upstream = torch.randn(shape, dtype=torch.float64).to(case.dtype).to(dtype)
    # Ragged: from no token at all in a row to all of them.
    mask = (torch.arange(case.length) < torch.randint(0, case.length + 1, (case.batch, 1))).long()
    fused = fusion(states, mask)
    (fused * upstream).sum().backward()
    gradients = {name: p.grad.double() for name, p in fusion.named_parameters() if p.grad is not None}
    if not case.frozen:
        gradients |= {f"state {n}": s.grad.double() for n, s in enumerate(states) if s.grad is not None}
    assert fused.dtype == dtype
    return Result(fused.detach().double(), fusion.weights().double(), gradients)


def check(case: Case, path: str) -> None:
    """The path equals the float64 reference in output, logged weights and every gradient."""
    expected = compute(case, "reference", torch.float64)
    got = compute(case, path, case.dtype)
    output_tolerance, gradient_tolerance = TOLERANCES[case.dtype]
    assert _difference(got.fused, expected.fused, 0.0) < output_tolerance
    assert _difference(got.weights, expected.weights, 0.0) < output_tolerance
    assert got.gradients.keys() == expected.gradients.keys()
    # A gradient that is zero but for rounding is held against the largest of its kind.
    for kind, share in (("parameter", 1e-2), ("state", 0.2)):
        chosen = {n: g for n, g in expected.gradients.items() if n.startswith("state ") == (kind == "state")}
        floor = share * max((g.norm().item() for g in chosen.values()), default=0.0)
        for name, gradient in chosen.items():
            error = (got.gradients[name] - gradient).norm().item()
            assert error <= gradient_tolerance * max(gradient.norm().item(), floor, 1e-12), name


def in_bfloat16(case: Case) -> Case:
    return replace(case, dtype=torch.bfloat16)


def _largest(x: torch.Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def _difference(got: torch.Tensor, expected: torch.Tensor, floor: float) -> float:
    return _largest(got - expected) / max(_largest(expected), floor, 1e-12)
