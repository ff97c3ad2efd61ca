"""Means, intervals and paired differences against hand-computed ones and scipy, and their coverage by simulation."""

import math

import numpy as np
import pytest
import scipy.stats

from benchmarks.report.statistics import distance_to_identity, mean_interval, paired_interval


def test_five_seeds_by_hand() -> None:
    # Mean 3, standard deviation sqrt(2.5), Student's t for 4 degrees of freedom at 97.5%: 2.7764451.
    interval = mean_interval([1, 2, 3, 4, 5])
    assert interval.mean == 3
    assert interval.half_width == pytest.approx(2.7764451051977987 * math.sqrt(2.5 / 5), rel=1e-12)
    assert interval.n == 5


def test_one_seed_has_no_interval() -> None:
    interval = mean_interval([0.25])
    assert (interval.mean, interval.n) == (0.25, 1)
    assert math.isnan(interval.half_width)
    assert str(interval) == "0.250"


def test_equal_seeds_have_an_interval_of_zero() -> None:
    assert str(mean_interval([0.5, 0.5, 0.5])) == "0.500 ± 0.000"


def test_a_95_percent_interval_holds_the_mean_95_times_in_a_hundred() -> None:
    draws = np.random.default_rng(0).normal(loc=2.0, scale=3.0, size=(4000, 5))
    intervals = [mean_interval(row) for row in draws]
    covered = np.mean([abs(i.mean - 2.0) <= i.half_width for i in intervals])
    # Four standard errors of a proportion of 0.95 in 4000 draws.
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]], ids=["none", "nan", "inf"])
def test_values_without_a_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected at least one value, all finite"):
        mean_interval(values)


def test_confidence_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="confidence between 0 and 1, but got 95"):
        mean_interval([1, 2], confidence=95)


def test_pairs_by_hand() -> None:
    # Differences 1, 2, 3, 4, 5 in the order of the first: as above.
    first, second = {4: 9.0, 0: 1.0, 1: 3.0, 2: 7.0, 3: 4.0}, {0: -1.0, 1: 0.0, 2: 3.0, 3: -1.0, 4: 8.0}
    interval = paired_interval(first, second)
    assert interval.mean == 3
    assert interval.half_width == pytest.approx(2.7764451051977987 * math.sqrt(2.5 / 5), rel=1e-12)
    assert interval.n == 5


def test_only_seeds_that_both_have_are_pairs() -> None:
    interval = paired_interval({0: 1.0, 1: 5.0, 7: 100.0}, {1: 2.0, 0: 0.0, 8: -100.0})
    # Differences 1 and 3: mean 2, standard error 1, and the t of one degree of freedom is tan(0.475 pi), which scipy
    # 1.13 gives to ten digits.
    assert (interval.mean, interval.n) == (2, 2)
    assert interval.half_width == pytest.approx(math.tan(0.475 * math.pi), rel=1e-10)
    assert paired_interval({0: 1.0}, {1: 1.0}) is None
    assert paired_interval({}, {}) is None
    single = paired_interval({0: 0.75, 1: 9.0}, {0: 0.5})
    assert (single.mean, single.n) == (0.25, 1)
    assert math.isnan(single.half_width)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_pairs_as_scipy_has_them(confidence: float) -> None:
    first, second = np.random.default_rng(1).normal(size=(2, 6))
    interval = paired_interval(dict(enumerate(first)), dict(enumerate(second)), confidence=confidence)
    low, high = scipy.stats.ttest_rel(first, second).confidence_interval(confidence)
    assert interval.mean - interval.half_width == pytest.approx(low, rel=1e-12)
    assert interval.mean + interval.half_width == pytest.approx(high, rel=1e-12)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_a_paired_interval_holds_the_difference_95_times_in_a_hundred(correlation: float) -> None:
    covariance = [[1.0, correlation], [correlation, 1.0]]
    draws = np.random.default_rng(2).multivariate_normal([0.7, 0.4], covariance, size=(4000, 5))
    intervals = [paired_interval(dict(enumerate(a)), dict(enumerate(b))) for a, b in draws.transpose(0, 2, 1)]
    covered = np.mean([abs(i.mean - 0.3) <= i.half_width for i in intervals])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_pairing_gives_a_narrower_interval_where_pairs_correlate() -> None:
    draws = np.random.default_rng(3).multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], size=(1000, 5))
    paired = np.mean([paired_interval(dict(enumerate(a)), dict(enumerate(b))).half_width for a, b in draws.mT])
    tests = [scipy.stats.ttest_ind(a, b).confidence_interval(0.95) for a, b in draws.mT]
    unpaired = np.mean([(test.high - test.low) / 2 for test in tests])
    # The difference has variance 2 (1 - 0.9) against 2: a factor of 0.32; fewer degrees of freedom widen it by 1.2.
    assert paired < 0.5 * unpaired


def test_pairs_that_are_not_finite_are_refused_and_others_ignored() -> None:
    with pytest.raises(ValueError, match="all finite"):
        paired_interval({0: math.nan}, {0: 1.0})
    assert paired_interval({0: math.nan, 1: 1.0}, {1: 0.5}).mean == 0.5


def test_distance_to_identity_by_hand() -> None:
    # I - C has the entries 0.1, -0.2, -0.1, 0.2: squares 0.01 + 0.04 + 0.01 + 0.04.
    assert distance_to_identity(np.array([[0.9, 0.2], [0.1, 0.8]])) == pytest.approx(math.sqrt(0.1))
    assert distance_to_identity(np.eye(10)) == 0
    # The second class has no images: 0.01 + 0.01 are left.
    assert distance_to_identity(np.array([[0.9, math.nan], [0.1, math.nan]])) == pytest.approx(math.sqrt(0.02))
