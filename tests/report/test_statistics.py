"""The statistics against scipy and statsmodels on known data, and against chance on data without an effect."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bridge_ds.report.statistics import (
    holm,
    interval,
    mcnemar_exact,
    method_test,
    resampled_means,
    seed_errors,
    two_errors,
    unseen_share,
)

scipy_stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (0, 1), (5, 5), (3, 11), (11, 3), (0, 30), (60, 91), (1200, 1300), (9000, 8000)]
)
def test_mcnemar_is_that_of_statsmodels_and_scipy(first: int, second: int) -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    expected = tables.mcnemar([[7, first], [second, 9]], exact=True).pvalue
    assert mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)
    if first + second:
        exact = scipy_stats.binomtest(first, first + second).pvalue
        assert mcnemar_exact(first, second) == pytest.approx(exact, rel=1e-9)


def test_mcnemar_of_impossible_counts() -> None:
    with pytest.raises(ValueError, match="got -1 and 3"):
        mcnemar_exact(-1, 3)
    assert mcnemar_exact(0, 5000) == 0.0  # below the smallest number, not an error


@pytest.mark.parametrize("count", [0, 1, 2, 5, 40])
def test_holm_is_that_of_statsmodels(count: int) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    generator = np.random.default_rng(count)
    for _ in range(2 if count else 0):
        values = np.round(generator.random(count) ** 4, 2).tolist()  # small ones, and ties
        found = holm(values)
        assert found == pytest.approx(list(multitest.multipletests(values, method="holm")[1]), abs=1e-12)


def test_holm_of_what_is_no_p_value() -> None:
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.2, 1.2])


@pytest.mark.parametrize("seeds", [2, 3, 5, 10, 40])
@pytest.mark.parametrize("t", [0.01, 0.7, 1.96, 4.0, 12.0])
def test_two_errors_at_its_ends_are_known_tests(seeds: int, t: float) -> None:
    assert two_errors(0.3 * t, 0.0, 0.09, seeds) == pytest.approx(2 * scipy_stats.t.sf(t, seeds - 1), rel=1e-8)
    assert two_errors(0.3 * t, 0.09, 0.0, seeds) == pytest.approx(2 * scipy_stats.norm.sf(t), rel=1e-12)


@pytest.mark.parametrize(("of_samples", "of_seeds", "seeds"), [(1.0, 0.2, 2), (0.5, 0.5, 3), (0.1, 1.0, 5)])
def test_two_errors_between_is_the_convolution(of_samples: float, of_seeds: float, seeds: int) -> None:
    from scipy.integrate import quad

    def density(y: float) -> float:
        tails = scipy_stats.norm.sf((1.5 - y) / math.sqrt(of_samples)) + scipy_stats.norm.cdf(
            (-1.5 - y) / math.sqrt(of_samples)
        )
        return tails * scipy_stats.t.pdf(y / math.sqrt(of_seeds), seeds - 1) / math.sqrt(of_seeds)

    expected = quad(density, -math.inf, math.inf, epsabs=1e-11, limit=500)[0]
    assert two_errors(1.5, of_samples, of_seeds, seeds) == pytest.approx(expected, rel=1e-6)


def test_unseen_share_is_the_exact_interval() -> None:
    for count in (1, 10, 300):
        assert unseen_share(count) == pytest.approx(scipy_stats.binomtest(0, count).proportion_ci(0.95, "exact").high)


def test_resampling_is_paired_and_that_of_scipy() -> None:
    values = np.random.default_rng(0).random((80, 2)) < (0.7, 0.8)
    columns = np.column_stack([values, values[:, 1].astype(float) - values[:, 0]])
    means = resampled_means(columns.astype(float), 4000, np.random.default_rng(1))
    assert np.allclose(means[:, 1] - means[:, 0], means[:, 2])
    low, high = interval(means[:, 0], np.zeros(4000), (0, 1))
    expected = scipy_stats.bootstrap(
        (columns[:, 0],), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.015)


def test_resampling_in_parts_draws_all_samples_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge_ds.report.statistics._CHUNK", 50)
    means = resampled_means(np.eye(10), 2000, np.random.default_rng(0))
    assert np.allclose(means.sum(axis=1), 1) and np.allclose(means.mean(axis=0), 0.1, atol=0.01)


def test_columns_that_lack_samples_are_drawn_with_the_others() -> None:
    """Each of 20 columns lacks one of 200 samples: the error of their mean is as if none did. A column of few samples
    has a mean in every draw."""
    generator = np.random.default_rng(0)
    columns = np.repeat(generator.integers(0, 2, (200, 1)), 20, axis=1).astype(float)
    held = np.ones(columns.shape, dtype=bool)
    held[np.arange(20), np.arange(20)] = False
    whole = resampled_means(columns, 2000, np.random.default_rng(1)).mean(axis=1)
    lacking = resampled_means(columns * held, 2000, np.random.default_rng(1), held).mean(axis=1)
    assert np.std(lacking) == pytest.approx(np.std(whole), rel=0.03)
    assert np.allclose(lacking, whole, atol=0.02)
    held[2:, 0] = False  # one sample is left
    few = resampled_means(columns * held, 50, np.random.default_rng(1), held)[:, 0]
    assert (few == columns[1, 0]).all()


def test_one_seed_tells_nothing_of_seeds() -> None:
    assert not seed_errors(np.array([0.5]), 10, np.random.default_rng(0)).any()
    with pytest.raises(ValueError, match="got 1 and 30"):
        method_test(np.zeros((1, 30)))


def test_seeds_that_agree_wholly() -> None:
    assert method_test(np.zeros((3, 50))) == 1.0
    # The same five samples won with every seed: no more than McNemar's test of one seed says.
    differences = np.zeros((3, 50))
    differences[:, :5] = 1
    assert method_test(differences) == pytest.approx(mcnemar_exact(0, 5))


def _answers(generator: np.random.Generator, seeds: int, samples: int, spread: float) -> np.ndarray:
    """Right answers [2, R, N] of two methods that are equally good: hard samples, habits, and luck of the seed."""
    hard = generator.normal(0.8, 1.5, samples)
    habits = generator.normal(0, 0.7, (2, 1, samples))
    luck = generator.normal(0, spread, (2, seeds, 1)) + generator.normal(0, 0.5, (2, seeds, samples))
    return (generator.random((2, seeds, samples)) < 1 / (1 + np.exp(-(hard + habits + luck)))).astype(float)


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (2, 0.6), (3, 0.6), (5, 0.6)])
def test_intervals_cover_what_they_should(seeds: int, spread: float) -> None:
    generator = np.random.default_rng(seeds)
    covered = np.zeros(2)
    many = 1 / (1 + np.exp(-generator.normal(0.8, math.sqrt(1.5**2 + 0.7**2 + 0.5**2 + spread**2), 1_000_000)))
    for _ in range(300):
        answers = _answers(generator, seeds, 120, spread)
        one, two = answers
        draws = resampled_means(np.stack([one.mean(axis=0), (two - one).mean(axis=0)], axis=1), 300, generator)
        for place, (by_seed, truth) in enumerate([(one, many.mean()), (two - one, 0.0)]):
            low, high = interval(draws[:, place], seed_errors(by_seed.mean(axis=1), 300, generator), (-1, 1))
            covered[place] += low <= truth <= high
    assert (covered / 300 >= 0.92).all() and (covered / 300 <= 1).all()


def test_mcnemar_on_equal_systems_finds_what_chance_allows() -> None:
    generator = np.random.default_rng(0)
    found = [mcnemar_exact(k, 40 - k) < 0.05 for k in generator.binomial(40, 0.5, 4000)]
    assert 0.02 < np.mean(found) < 0.06  # exactly 3.8 %: the binomial has no step at 5 %


def test_holm_keeps_the_family_on_equal_systems() -> None:
    generator = np.random.default_rng(1)
    families = generator.binomial(300, 0.5, (1500, 20))
    p_values = {int(k): mcnemar_exact(int(k), 300 - int(k)) for k in np.unique(families)}
    raw = np.mean([min(p_values[int(k)] for k in family) < 0.05 for family in families])
    kept = np.mean([min(holm([p_values[int(k)] for k in family])) < 0.05 for family in families])
    assert raw > 0.4 and kept < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.parametrize(("seeds", "spread"), [(2, 0.0), (2, 1.0), (3, 0.5), (5, 0.0), (5, 1.0)])
def test_the_test_of_methods_on_equal_methods(seeds: int, spread: float) -> None:
    generator = np.random.default_rng(seeds)
    found, pooled = [], []
    for _ in range(600):
        one, two = _answers(generator, seeds, 100, spread)
        found.append(method_test(two - one) < 0.05)
        pooled.append(mcnemar_exact(int((two < one).sum()), int((two > one).sum())) < 0.05)
    assert np.mean(found) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
    if spread == 1.0:  # what taking seeds for samples would find where there is nothing
        assert np.mean(pooled) > 0.3


def test_the_test_of_methods_finds_a_true_difference() -> None:
    generator = np.random.default_rng(3)
    found = []
    for _ in range(100):
        one, two = _answers(generator, 5, 300, 0.3)
        two = np.maximum(two, generator.random(two.shape) < 0.5)
        found.append(method_test(two - one) < 0.05)
    assert np.mean(found) > 0.9
