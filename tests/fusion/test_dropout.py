"""Dropout factors: the published generator's, the same on every path, of the right share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.fusion.kernels import primitives, torch_primitives
from bridge_ds.fusion.kernels.dropout import Masks, draw, make_masks
from tests.fusion.cases import Case, check, compute

CPU = torch.device("cpu")
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


@given(SEEDS, DROPPED, st.integers(0, 2**40), COUNTS)
def test_what_is_kept_is_the_generators(seed: int, dropped: int, first: int, count: int) -> None:
    expected = []
    for number in range(first, first + count):
        sixteen = splitmix64(seed, number // 4) >> 16 * (number % 4) & 0xFFFF
        signed = sixteen - 65536 if sixteen >= 32768 else sixteen
        expected.append(1.0 if signed >= dropped - 32768 else 0.0)
    assert draw(first, count, seed, dropped, torch.float64, CPU).tolist() == expected


@given(SEEDS, st.integers(1, 40), st.integers(0, 40))
def test_a_chunk_has_the_factors_that_the_whole_has_there(seed: int, size: int, lo: int) -> None:
    whole, part = (make_masks(0.3, seed, token, (7, size, 9)) for token in (0, lo))
    for of_all, of_part, width in zip(vars(whole).values(), vars(part).values(), (7, size, 9, size), strict=True):
        expected = of_all.kept(torch.empty(43, width))[lo : lo + 3]
        assert torch.equal(of_part.kept(torch.empty(3, width)), expected)
        assert of_part.first == of_all.first + lo * of_all.draws.size


def test_the_share_and_the_masks() -> None:
    masks = make_masks(0.3, 5, 0, (18, 64, 100))
    drawn = []
    for factors, width in zip(vars(masks).values(), (18, 64, 100, 64), strict=True):
        values = factors.kept(torch.empty(500, width, dtype=torch.float64)).mul_(factors.draws.kept_scale)
        assert values.shape == (500, width) and values.dtype == torch.float64
        assert set(values.unique().tolist()) == {0.0, factors.draws.kept_scale}
        assert abs(values.mean().item() - 1) < 0.02
        assert abs(factors.draws.kept_scale - 1 / 0.7) < 1e-4
        drawn.append(values)
    assert not torch.equal(drawn[1], drawn[3])  # each has its own
    assert make_masks(0.0, 5, 0, (1, 1, 1)) == Masks()


@pytest.mark.parametrize(
    "case",
    [
        Case(3, 5, 9, 16, heads=4, dropout=0.4),
        Case(2, 4, 300, 20, dropout=0.4),
        Case(2, 5, 40, 12, normalize="rms", fusion="layer_attention"),
    ],
)
def test_a_seed_means_the_same_in_every_dtype_and_chunk(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and every gradient. Where the states are not copied once for all, blocks of 8 rows are, or (as on a GPU)
    each state is read where it is."""
    expected = compute(case, "torch", torch.float64)
    check(case, "torch")

    def same() -> None:
        got = compute(case, "torch", torch.float64)
        assert torch.allclose(got.fused, expected.fused, atol=1e-12)
        for name, gradient in expected.gradients.items():
            assert torch.allclose(got.gradients[name], gradient, atol=1e-9), name

    monkeypatch.setattr(primitives, "chunk_rows", lambda _: 17)
    same()
    monkeypatch.setattr(torch_primitives, "KEPT_BYTES", 0)
    monkeypatch.setattr(torch_primitives, "CACHE_BYTES", 0)
    same()
    monkeypatch.setattr(torch_primitives, "on_cpu", lambda _: False)
    same()
