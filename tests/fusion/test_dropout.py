"""Dropout factors: the published generator's, the same on every path, of the right share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.fusion.kernels import dropout, native_rows
from bridge_ds.fusion.kernels.native_build import why_not
from tests.fusion.cases import Case, make_fusion

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(bool(why_not()), reason=f"no native path: {why_not()}")
SEEDS, DROPPED, COUNTS = st.integers(0, 2**63 - 1), st.integers(0, 65535), st.integers(0, 300)


def splitmix64(seed: int, number: int) -> int:
    """In Python's own integers, as published."""
    modulo = 2**64
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) % modulo
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % modulo
    z = (z ^ z >> 27) * 0x94D049BB133111EB % modulo
    return z ^ z >> 31


def test_the_published_numbers() -> None:
    """The first outputs for seed 1234567 that implementations of SplitMix64 are checked by (Rosetta Code)."""
    assert [splitmix64(1234567, n) for n in range(2)] == [6457827717110365317, 3203168211198807973]


@given(SEEDS, DROPPED, COUNTS)
def test_factors_are_the_generators(seed: int, dropped: int, count: int) -> None:
    expected = []
    for number in range(count):
        sixteen = splitmix64(seed, number // 4) >> 16 * (number % 4) & 0xFFFF
        signed = sixteen - 65536 if sixteen >= 32768 else sixteen
        expected.append(1.25 if signed >= dropped - 32768 else 0.0)
    assert dropout.draw(count, seed, dropped, 1.25, torch.float32, CPU).tolist() == expected


@needs_compiler
@given(SEEDS, DROPPED, st.integers(0, 5000))
def test_native_draws_the_same(seed: int, dropped: int, count: int) -> None:
    given_ = (count, seed, dropped, 1.25, torch.float32, CPU)
    assert torch.equal(native_rows.draw(*given_), dropout.draw(*given_))


def test_the_share_and_the_masks() -> None:
    masks = dropout.draw_masks(
        dropout.draw, 0.3, 5, [(500, 2, 9), (500, 64), (500, 100), (500, 64)], torch.float64, CPU
    )
    for factors, shape in zip(masks.factors, [(500, 2, 9), (500, 64), (500, 100), (500, 64)], strict=True):
        assert factors is not None and factors.shape == shape and factors.dtype == torch.float64
        assert set(factors.unique().tolist()) == {0.0, masks.kept_scale}
        assert abs(factors.mean().item() - 1) < 0.02
    assert abs(masks.kept_scale - 1 / 0.7) < 1e-4
    assert dropout.draw_masks(dropout.draw, 0.0, 5, [(1,)] * 4, torch.float64, CPU) == dropout.Masks()


@needs_compiler
@pytest.mark.parametrize("case", [Case(3, 5, 9, 16, heads=4), Case(2, 4, 300, 20)])
def test_a_seed_means_the_same_on_every_path(case: Case) -> None:
    """Forward and every gradient, with dropout on; the second case has more tokens than one chunk."""
    found = []
    for path, dtype in (("torch", torch.float64), ("torch", torch.float32), ("native", torch.float32)):
        fusion = make_fusion(case, path).to(dtype)
        fusion.dropout = 0.4
        torch.manual_seed(3)
        states = [
            torch.randn(case.batch, case.length, case.width, dtype=torch.float64).to(dtype) for _ in range(case.layers)
        ]
        out = fusion(states, torch.ones(case.batch, case.length))
        out.square().sum().backward()
        found.append([out.detach().double(), *(p.grad.double() for p in fusion.parameters() if p.grad is not None)])
    for other in found[1:]:
        for expected, got in zip(found[0], other, strict=True):
            assert (got - expected).abs().max() <= 5e-4 * expected.abs().max() + 1e-6
