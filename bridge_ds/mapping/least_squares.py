"""A linear layer by ridge regression, from sums that are added up batch by batch.

min over W, b of sum_n |W x_n + b - y_n|^2 + ridge mean_d(sum_n (x_nd - mean x_d)^2) |W|^2; b is not in the penalty.

Dimensions: N tokens, D inputs, H outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["LeastSquares", "Solution"]


class Solution(NamedTuple):
    """A linear layer."""

    weight_HD: torch.Tensor
    """float64."""
    bias_H: torch.Tensor
    """float64."""
    explained: float
    """R^2 on the tokens that it was fitted to: 1 - squared error / squared distance from the mean."""


class LeastSquares:
    """Sums in float64. Two matrices [D, D] and [D, H] are all that it keeps."""

    def __init__(self, width: int, llm_width: int, device: torch.device | str = "cpu") -> None:
        """Args:
        width: D.
        llm_width: H.
        device: of the sums.
        """
        # The mean is a product with one more input, which is 1 throughout.
        self._xx = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=device)
        self._xy = torch.zeros(width + 1, llm_width, dtype=torch.float64, device=device)
        self._yy = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def tokens(self) -> int:
        """N so far."""
        return int(self._xx[-1, -1])

    def add(self, x_ND: torch.Tensor, y_NH: torch.Tensor) -> None:
        """More tokens, in any dtype."""
        x = torch.cat([x_ND.double(), x_ND.new_ones(len(x_ND), 1, dtype=torch.float64)], 1)
        y = y_NH.double()
        self._xx.addmm_(x.T, x)
        self._xy.addmm_(x.T, y)
        self._yy += y.square().sum()

    def solve(self, ridge: float) -> Solution:
        """The layer.

        Args:
            ridge: weight of the penalty, relative to the mean variance of an input; above 0, so that there is one
                solution however few tokens there are.

        Raises:
            ValueError: no token was added.
        """
        if not (count := self.tokens):
            raise ValueError("no token was added")
        mean_D, mean_H = self._xx[-1, :-1] / count, self._xy[-1] / count
        cov_DD = self._xx[:-1, :-1] - count * torch.outer(mean_D, mean_D)
        cov_DH = self._xy[:-1] - count * torch.outer(mean_D, mean_H)
        penalty = ridge * cov_DD.diagonal().mean().clamp_min(1e-12)
        damped_DD = cov_DD + penalty * torch.eye(len(cov_DD), dtype=cov_DD.dtype, device=cov_DD.device)
        w_DH = torch.linalg.solve(damped_DD, cov_DH)
        total = self._yy - count * mean_H.square().sum()
        # |Y - X W|^2 = |Y|^2 - 2 <W, X'Y> + <W, X'X W>, of what is left without the means.
        error = total - 2 * (w_DH * cov_DH).sum() + (w_DH * (cov_DD @ w_DH)).sum()
        explained = float(1 - error / total) if total > 0 else 1.0
        return Solution(w_DH.T.contiguous(), mean_H - mean_D @ w_DH, explained)
