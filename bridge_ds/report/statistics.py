"""The statistics of a report: exact tests, Holm's correction, bootstrap intervals. Pure.

What scipy has is scipy's: binomial tails and erfc. Not used although they exist there: `scipy.stats.binomtest` (its
two-sided p-value at 1/2 is twice the smaller tail, which `bdtr` gives a thousand times faster) and
`scipy.stats.bootstrap` (it resamples each statistic by itself; here all systems share one draw, so that differences
are paired, and the seeds' error is added). scipy has no correction by Holm, only by Benjamini and Hochberg.

Shapes: R seeds, N samples, B draws, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ALPHA",
    "DRAWS",
    "LEVEL",
    "holm",
    "interval",
    "mcnemar_exact",
    "method_test",
    "resampled_means",
    "seed_errors",
    "two_errors",
    "unseen_share",
]

LEVEL = 0.95
"""Confidence level of every interval."""
DRAWS = 2000
"""Bootstrap draws."""
ALPHA = 0.05
"""A corrected p-value below it is a finding."""
Floats = NDArray[np.float64]

_CHUNK = 4_000_000
"""Sample indices drawn at once (32 MB)."""


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Two-sided p-value of McNemar's test, by the binomial distribution itself (no normal approximation).

    Only samples count on which one system is right and the other is wrong. If both systems are equally good, each of
    these is won by either with probability 1/2.

    Args:
        first_only: samples that only the first got right.
        second_only: samples that only the second got right.

    Raises:
        ValueError: a negative count.

    Sources: McNemar 1947 (Psychometrika 12); in this use Dietterich 1998 (Neural Computation 10).
    """
    from scipy.special import bdtr  # late: the command's --help does not wait for scipy

    if min(first_only, second_only) < 0:
        raise ValueError(f"counts must not be negative, got {first_only} and {second_only}")
    return min(1.0, 2 * float(bdtr(min(first_only, second_only), first_only + second_only, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for multiple tests: the chance that any below a is a false finding is at most a.

    Raises:
        ValueError: a value outside 0..1.

    Source: Holm 1979 (Scandinavian Journal of Statistics 6). Valid whatever the dependence between the tests.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values must lie between 0 and 1, got {min(p_values)} to {max(p_values)}")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def resampled_means(
    columns_NC: Floats, draws: int, generator: np.random.Generator, held_NC: NDArray[np.bool_] | None = None
) -> Floats:
    """Means [B, C] of all columns over N samples drawn with replacement, the same samples for every column.

    The columns of one call are resampled in pairs: the difference of two is the resampled difference.

    Args:
        columns_NC: values, 0 where a column lacks a sample.
        draws: B.
        generator: of the samples' numbers.
        held_NC: which samples each column has, of which its mean is; none = all. Where a draw has none of them, the
            mean is that of the column itself.

    Source: Efron 1979 (Annals of Statistics 7); paired, for language systems: Koehn 2004 (W04-3250).
    """
    count = len(columns_NC)
    found = np.empty((draws, columns_NC.shape[1]))
    step = max(1, _CHUNK // max(1, count))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        chosen = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count)
        if held_NC is None:
            found[start : start + rows] = times @ columns_NC / count
            continue
        drawn = times @ held_NC.astype(float)
        means_C = columns_NC.sum(axis=0) / held_NC.sum(axis=0)
        found[start : start + rows] = np.where(drawn > 0, times @ columns_NC / np.maximum(drawn, 1), means_C)
    return found


def seed_errors(values_R: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Draws [B] of the error of a mean over seeds; zeros where there is one seed.

    Seeds are few, and resampling few values gives intervals that are far too narrow (three seeds: at most 75 % where
    95 % are meant). So the error is drawn from Student's t with R - 1 degrees of freedom, times the standard error.

    Source: Student 1908 (Biometrika 6): the mean of R normal values. A parametric bootstrap.
    """
    seeds = len(values_R)
    if seeds < 2:
        return np.zeros(draws)
    scale = float(np.std(values_R, ddof=1)) / math.sqrt(seeds)
    return scale * generator.standard_t(seeds - 1, size=draws)


def interval(means_B: Floats, errors_B: Floats, bounds: tuple[float, float]) -> tuple[float, float]:
    """Percentile interval of resampled means plus errors of the seeds, clipped to the range of the quantity."""
    tails = 100 * (1 - LEVEL) / 2
    low, high = np.clip(np.percentile(means_B + errors_B, (tails, 100 - tails)), *bounds)
    return float(low), float(high)


def unseen_share(count: int) -> float:
    """Upper limit of the share of an event that was not seen once in `count` samples.

    Used where all samples are alike, so that resampling gives an interval of no width.

    Source: Clopper and Pearson 1934 (Biometrika 26), for no event.
    """
    return 1 - ((1 - LEVEL) / 2) ** (1 / count)


def method_test(differences_RN: Floats) -> float:
    """Two-sided p-value for a difference of two methods, each trained with R seeds and scored on the same N samples.

    The mean difference against the error of the samples (normal) AND of the seeds (:func:`seed_errors`); it agrees with
    :func:`interval`. What both errors share counts twice, which is conservative. Where there are too few samples for a
    normal error, the smallest McNemar p-value of the single seeds is a lower limit of the result.

    Args:
        differences_RN: for each pair of seeds and sample: 1 = only the second is right, -1 = only the first, 0.

    Raises:
        ValueError: fewer than two seeds or samples.
    """
    seeds, samples = differences_RN.shape
    if min(seeds, samples) < 2:
        raise ValueError(f"the test needs two seeds and two samples, got {seeds} and {samples}")
    of_seeds = float(np.var(differences_RN.mean(axis=1), ddof=1)) / seeds
    of_samples = float(np.var(differences_RN.mean(axis=0), ddof=1)) / samples
    lowest = min(mcnemar_exact(int((row < 0).sum()), int((row > 0).sum())) for row in differences_RN)
    return max(lowest, two_errors(float(differences_RN.mean()), of_samples, of_seeds, seeds))


def two_errors(value: float, of_samples: float, of_seeds: float, seeds: int) -> float:
    """P(|X + Y| >= |value|) of a normal X of known variance and a Student Y whose squared scale was estimated.

    Given the chi-squared variable w under Y the sum is normal, so this is one mean over w:
    erfc(|value| / sqrt(2 (of_samples + of_seeds (R - 1) / w))), taken over log w, where the trapezoid rule is exact
    to rounding. With one of the two errors alone it is the normal or Student's t test.

    Source: the convolution is Behrens 1929 and Fisher 1935 (Annals of Eugenics 6), one variance being known.
    """
    from scipy.special import erfc

    if value == 0:
        return 1.0
    if of_seeds == 0:
        return float(erfc(abs(value) / math.sqrt(2 * of_samples))) if of_samples else 0.0
    freedom = seeds - 1
    log_w = np.arange(-80 / freedom, math.log(20 * freedom + 100), 0.05)
    weights = np.exp(freedom / 2 * (log_w - math.log(freedom)) - (np.exp(log_w) - freedom) / 2)
    widths = np.sqrt(2 * (of_samples + of_seeds * freedom / np.exp(log_w)))
    return float(min(1.0, weights @ erfc(abs(value) / widths) / weights.sum()))
