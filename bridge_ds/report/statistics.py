"""The statistics of a report: exact tests, a correction for many of them, and intervals. Pure; numpy alone.

Shapes: R seeds, N samples, B draws, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
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
"""Of every interval."""
Floats = NDArray[np.float64]

_CHUNK = 4_000_000
"""Sample numbers drawn at once (32 MB)."""


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Two-sided p-value of McNemar's test, by the binomial distribution itself (no normal approximation).

    Of two systems that answered the same samples only those count on which one is right and the other wrong. If both
    are equally good, each of these is won by either with probability 1/2.

    Args:
        first_only: samples that only the first got right.
        second_only: samples that only the second got right.

    Raises:
        ValueError: a negative count.

    Sources: McNemar 1947 (Psychometrika 12); in this use Dietterich 1998 (Neural Computation 10).
    """
    if min(first_only, second_only) < 0:
        raise ValueError(f"counts must not be negative, got {first_only} and {second_only}")
    total, fewer = first_only + second_only, min(first_only, second_only)
    term = tail = 1
    for k in range(fewer):
        term = term * (total - k) // (k + 1)
        tail += term
    # Whole numbers up to here: exact however many samples there are. Python rounds the quotient correctly.
    return min(1.0, 2 * tail / 2**total)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for there being several: those below a are findings with P(any is false) at most a.

    Raises:
        ValueError: a value outside 0..1.

    Source: Holm 1979 (Scandinavian Journal of Statistics 6). Valid whatever the dependence between the tests.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values must lie between 0 and 1, got {min(p_values)} to {max(p_values)}")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def resampled_means(columns_NC: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Means [B, C] of all columns over N samples drawn with replacement, the same samples for every column.

    Columns of one call are thus resampled in pairs: the difference of two is the difference resampled.

    Source: Efron 1979 (Annals of Statistics 7); pairs for scores of language systems: Koehn 2004 (W04-3250).
    """
    count = len(columns_NC)
    found = np.empty((draws, columns_NC.shape[1]))
    step = max(1, _CHUNK // max(1, count))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        chosen = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count)
        found[start : start + rows] = times @ columns_NC / count
    return found


def seed_errors(values_R: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Draws [B] of the error of a mean over seeds; zeros where there is one seed, which tells nothing of it.

    Seeds are few, and resampling few values gives intervals that are far too narrow (three seeds: at most 75 % where
    95 % are meant). So the error is drawn from Student's t with R - 1 degrees of freedom, times the standard error.

    Source: Student 1908 (Biometrika 6): the mean of R normal values. A parametric bootstrap in Efron's sense.
    """
    seeds = len(values_R)
    if seeds < 2:
        return np.zeros(draws)
    scale = float(np.std(values_R, ddof=1)) / math.sqrt(seeds)
    return scale * generator.standard_t(seeds - 1, size=draws)


def interval(means_B: Floats, errors_B: Floats, bounds: tuple[float, float]) -> tuple[float, float]:
    """Percentile interval of resampled means plus errors of the seeds, cut to what the quantity can be."""
    tails = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means_B + errors_B, (tails, 100 - tails))
    return float(np.clip(low, *bounds)), float(np.clip(high, *bounds))


def unseen_share(count: int) -> float:
    """How frequent a thing may be that was not seen once in `count` samples, at most.

    Resampling samples that are all alike gives an interval of no width; this one takes its place.

    Source: Clopper and Pearson 1934 (Biometrika 26), for no event.
    """
    return 1 - ((1 - LEVEL) / 2) ** (1 / count)


def method_test(differences_RN: Floats) -> float:
    """Two-sided p-value that two methods, each trained with R seeds and asked the same N samples, differ on average.

    The mean difference against what new samples (a normal error) AND new seeds (:func:`seed_errors`) would change of
    it; it fits :func:`interval`. What is common to both errors counts twice: a little too careful. Where the samples
    are too few for a normal error, the smallest McNemar p-value of the single seeds bounds the result from below.

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
    floor = min(mcnemar_exact(int((row < 0).sum()), int((row > 0).sum())) for row in differences_RN)
    return max(floor, two_errors(float(differences_RN.mean()), of_samples, of_seeds, seeds))


def two_errors(value: float, of_samples: float, of_seeds: float, seeds: int) -> float:
    """P(|X + Y| >= |value|) of a normal X of known variance and a Student Y whose squared scale was estimated.

    Given the chi-squared variable w under Y the sum is normal, so this is one mean over w:
    erfc(|value| / sqrt(2 (of_samples + of_seeds (R - 1) / w))), taken over log w, where the trapezoid rule is exact
    to rounding. With one of the two alone it is the normal or Student's t test.

    Source: the convolution is Behrens 1929 and Fisher 1935 (Annals of Eugenics 6), one variance being known.
    """
    if value == 0:
        return 1.0
    if of_seeds == 0:
        return math.erfc(abs(value) / math.sqrt(2 * of_samples)) if of_samples else 0.0
    freedom = seeds - 1
    log_w = np.arange(-80 / freedom, math.log(20 * freedom + 100), 0.05)
    weights = np.exp(freedom / 2 * (log_w - math.log(freedom)) - (np.exp(log_w) - freedom) / 2)
    widths = np.sqrt(2 * (of_samples + of_seeds * freedom / np.exp(log_w)))
    tails = [math.erfc(abs(value) / width) for width in widths]
    return float(min(1.0, weights @ np.array(tails) / weights.sum()))
