"""Ridge regression from sums: torch's own solution, however the tokens come."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_ds.mapping.least_squares import LeastSquares


def fitted(x: torch.Tensor, y: torch.Tensor, sizes: list[int]) -> LeastSquares:
    sums = LeastSquares(x.shape[1], y.shape[1])
    for xs, ys in zip(x.split(sizes), y.split(sizes), strict=True):
        sums.add(xs, ys)
    return sums


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(1, 5), st.integers(20, 60), st.floats(1e-4, 10), st.integers(0, 1000))
def test_it_is_the_minimum(width: int, outputs: int, tokens: int, ridge: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(tokens, width, dtype=torch.float64) * torch.rand(width) * 3 + 5 * torch.randn(width)
    y = x @ torch.randn(width, outputs, dtype=torch.float64) + torch.randn(tokens, outputs) + torch.randn(outputs)
    cut = seed % (tokens - 1) + 1
    found = fitted(x, y, [cut, tokens - cut]).solve(ridge)
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    penalty = ridge * centred_x.square().sum(0).mean()
    # As a plain least-squares problem with more rows.
    more_x = torch.cat([centred_x, penalty.sqrt() * torch.eye(width, dtype=torch.float64)])
    more_y = torch.cat([centred_y, torch.zeros(width, outputs, dtype=torch.float64)])
    expected = torch.linalg.lstsq(more_x, more_y).solution
    torch.testing.assert_close(found.weight_HD.T, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.bias_H, y.mean(0) - x.mean(0) @ expected, rtol=1e-6, atol=1e-7)
    error = (centred_y - centred_x @ expected).square().sum()
    assert found.explained == pytest.approx(float(1 - error / centred_y.square().sum()), abs=1e-6)


def test_few_tokens_constant_ones_and_none() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 8), torch.randn(3, 2)
    few = fitted(x, y, [1, 2]).solve(1e-6)  # fewer tokens than inputs: they are met all the same
    torch.testing.assert_close(x.double() @ few.weight_HD.T + few.bias_H, y.double(), rtol=1e-4, atol=1e-4)
    same = fitted(torch.ones(4, 3), torch.full((4, 2), 7.0), [4]).solve(1e-3)
    torch.testing.assert_close(torch.ones(3).double() @ same.weight_HD.T + same.bias_H, torch.full((2,), 7.0).double())
    assert same.explained == 1.0 and same.weight_HD.isfinite().all()
    with pytest.raises(ValueError, match="no token"):
        LeastSquares(3, 2).solve(1e-3)
