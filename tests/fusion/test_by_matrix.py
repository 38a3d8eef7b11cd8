"""K weighted sums in one read: against the float64 reference at many sizes, exact gradients, memory, padding."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds.fusion.kernels import fuse_by_matrix
from tests.fusion.measure import Allocations
from tests.fusion.test_paths import INTERPRETED

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest error of output and gradients, relative to the norm."""


def drawn(count: int) -> list[dict[str, Any]]:
    """Cases at random, the same in every run."""
    draw = random.Random(0)
    return [
        {
            "sizes": (draw.randint(1, 80), draw.randint(1, 24), draw.randint(1, 4), draw.randint(0, 20)),
            "width": draw.choice([7, 16, 33, 64]),  # (of one number, the RMS leaves its sign and no gradient)
            "dtype": draw.choice(list(TOLERANCES)),
            "relu": draw.random() < 0.7,
            "rms": draw.random() < 0.4,
            "ragged": draw.random() < 0.6,
            "frozen": draw.random() < 0.4,
        }
        for _ in range(count)
    ]


def compute(backend: str, case: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    (results, layers, batch, length), width = case["sizes"], case["width"]
    kind = {"dtype": torch.float64}
    values = [torch.randn(batch, length, width, **kind).to(case["dtype"]) for _ in range(layers)]
    states = [value.to(dtype).requires_grad_(not case["frozen"]) for value in values]
    wide = torch.promote_types(dtype, torch.float32)
    weight = torch.randn(results, layers, **kind).float().to(wide).requires_grad_()
    bias = torch.randn(results, **kind).float().to(wide).requires_grad_()
    upstream = torch.randn(results, batch, length, width, **kind).to(case["dtype"]).to(dtype)
    lengths = torch.randint(0, length + 1, (batch, 1)) if case["ragged"] else torch.full((batch, 1), length)
    mask = (torch.arange(length) < lengths).long()
    fused = fuse_by_matrix(backend, states, mask, weight, bias, relu=case["relu"], rms=case["rms"])
    assert fused.dtype == dtype and fused.shape == upstream.shape
    assert not fused[:, mask == 0].any()
    fused.backward(upstream)
    found = {"fused": fused.detach(), "weight": weight.grad, "bias": bias.grad}
    return {name: x.double() for name, x in found.items()} | {
        f"state {n}": s.grad.double() for n, s in enumerate(states) if s.grad is not None
    }


@pytest.mark.parametrize("case", drawn(40), ids=str)
def test_equals_the_reference_anywhere(case: dict[str, Any]) -> None:
    expected, got = compute("reference", case, torch.float64), compute("torch", case, case["dtype"])
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert (got[name] - value).norm() <= TOLERANCES[case["dtype"]] * value.norm() + 1e-12, name


@pytest.mark.skipif(not INTERPRETED, reason="run by test_triton_in_the_interpreter, with TRITON_INTERPRET=1")
@pytest.mark.parametrize("case", [case for case in drawn(40) if math.prod(case["sizes"]) <= 6000], ids=str)
def test_triton_equals_the_reference(case: dict[str, Any]) -> None:
    expected, got = compute("reference", case, torch.float64), compute("triton", case, case["dtype"])
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert (got[name] - value).norm() <= TOLERANCES[case["dtype"]] * value.norm() + 1e-12, name


@pytest.mark.parametrize(("relu", "rms"), [(True, False), (True, True), (False, False), (False, True)])
def test_gradcheck(relu: bool, rms: bool) -> None:
    torch.manual_seed(3)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    shapes = [(4, 3), (4,), *[(2, 3, 5)] * 3]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda w, b, *h: fuse_by_matrix("torch", h, mask, w, b, relu=relu, rms=rms), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ragged", [False, True])
def test_memory_beside_the_result(ragged: bool, dtype: torch.dtype) -> None:
    """Less than 3 N D elements, forward and backward each."""
    results, layers, rows, width = 32, 24, 512, 256
    states = [torch.randn(1, rows, width).to(dtype) for _ in range(layers)]
    mask, upstream = torch.ones(1, rows), torch.randn(results, 1, rows, width).to(dtype)
    mask[:, rows - ragged * 100 :] = 0
    weight, bias = torch.randn(results, layers, requires_grad=True), torch.zeros(results, requires_grad=True)
    with Allocations([*states, mask, upstream, weight, bias]) as forward:
        fused = fuse_by_matrix("torch", states, mask, weight, bias)
    with Allocations([*states, mask, upstream, weight, bias, fused]) as backward:
        fused.backward(upstream)
    unit = rows * width * 4
    assert forward.peak - fused.numel() * fused.element_size() < 3 * unit
    assert backward.peak < 3 * unit


def test_padding_is_not_read() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    states = [torch.randn(2, 5, 8) for _ in range(4)]
    for state in states:
        state[mask == 0] = float("nan")
        state.requires_grad_()
    weight, bias = torch.randn(6, 4, requires_grad=True), torch.randn(6, requires_grad=True)
    fuse_by_matrix("torch", states, mask, weight, bias).sum().backward()
    for tensor in [weight, bias, *states]:
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()


@pytest.mark.skipif(not HUGE_PAGES.is_file(), reason="this system has no huge pages")
@pytest.mark.parametrize("ragged", [False, True])
def test_a_large_result_is_in_huge_pages(ragged: bool) -> None:
    mask = torch.ones(1, 200)
    mask[0, 100:] = not ragged
    states = [torch.randn(1, 200, 1024) for _ in range(2)]
    fused = fuse_by_matrix("torch", states, mask, torch.randn(64, 2), torch.randn(64))
    # Kernel's documentation of /proc/PID/smaps: `hg` is advised to be in huge pages.
    assert "hg" in mapping_of(fused.data_ptr() + fused.nbytes // 2)
    assert not fused[:, mask == 0].any()


def mapping_of(address: int) -> list[str]:
    """VmFlags of the mapping in this process that holds the address."""
    here = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(found[1], 16) <= address < int(found[2], 16)
        elif here and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no mapping holds {address:#x}")
