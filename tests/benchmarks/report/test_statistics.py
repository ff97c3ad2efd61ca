"""Statistics: comparison with values computed by hand and with scipy, and coverage by simulation."""

import math

import numpy as np
import pytest
import scipy.stats

from benchmarks.report.statistics import (
    Interval,
    corrected,
    distance_to_identity,
    judge,
    mean_interval,
    paired_interval,
    seeds_to_decide,
)


def test_intervals_of_five_seeds_agree_with_values_computed_by_hand() -> None:
    # Mean 3, standard deviation sqrt(2.5), Student's t for 4 degrees of freedom at 97.5%: 2.7764451.
    expected = (3, pytest.approx(2.7764451051977987 * math.sqrt(2.5 / 5), rel=1e-12), 5)
    interval = mean_interval([1, 2, 3, 4, 5])
    assert (interval.mean, interval.half_width, interval.n) == expected
    # Pairs whose differences are 1, 2, 3, 4, 5 in the order of the first.
    first, second = {4: 9.0, 0: 1.0, 1: 3.0, 2: 7.0, 3: 4.0}, {0: -1.0, 1: 0.0, 2: 3.0, 3: -1.0, 4: 8.0}
    interval = paired_interval(first, second)
    assert (interval.mean, interval.half_width, interval.n) == expected


@pytest.mark.parametrize(
    ("values", "text", "signed"),
    [
        ([], "not yet", "not yet"),
        ([0.25], "0.250", "+0.250"),
        ([0.5, 0.5, 0.5], "0.500 ± 0.000", "+0.500 ± 0.000"),
        ([-1e-4, -1e-4], "0.000 ± 0.000", "+0.000 ± 0.000"),
    ],
)
def test_intervals_are_formatted_with_and_without_sign(values: list[float], text: str, signed: str) -> None:
    interval = mean_interval(values)
    assert (str(interval), f"{interval:+z.3f}", interval.n) == (text, signed, len(values))
    assert math.isnan(interval.half_width) == (len(values) < 2)


@pytest.mark.parametrize("values", [[0.5, math.nan], [math.inf]])
def test_values_that_are_not_finite_are_rejected(values: list[float]) -> None:
    with pytest.raises(ValueError, match="inf" if len(values) == 1 else "nan"):
        mean_interval(values)


def test_only_common_seeds_are_paired() -> None:
    interval = paired_interval({0: 1.0, 1: 5.0, 7: math.nan}, {1: 2.0, 0: 0.0, 8: -100.0})
    # Differences 1 and 3: mean 2, standard error 1, and the t of one degree of freedom is tan(0.475 pi), which scipy
    # 1.13 gives to ten digits.
    assert (interval.mean, interval.n) == (2, 2)
    assert interval.half_width == pytest.approx(math.tan(0.475 * math.pi), rel=1e-10)
    assert paired_interval({0: 1.0}, {1: 1.0}).n == 0
    single = paired_interval({0: 0.75, 1: 9.0}, {0: 0.5})
    assert (single.mean, single.n) == (0.25, 1)


def test_paired_intervals_agree_with_scipy() -> None:
    first, second = np.random.default_rng(1).normal(size=(2, 6))
    interval = paired_interval(dict(enumerate(first)), dict(enumerate(second)))
    low, high = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
    assert interval.mean - interval.half_width == pytest.approx(low, rel=1e-12)
    assert interval.mean + interval.half_width == pytest.approx(high, rel=1e-12)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_paired_intervals_have_a_coverage_of_95_percent(correlation: float) -> None:
    covariance = [[1.0, correlation], [correlation, 1.0]]
    draws = np.random.default_rng(2).multivariate_normal([0.7, 0.4], covariance, size=(1000, 5))
    intervals = [paired_interval(dict(enumerate(a)), dict(enumerate(b))) for a, b in draws.transpose(0, 2, 1)]
    covered = np.mean([abs(i.mean - 0.3) <= i.half_width for i in intervals])
    # Four standard errors of a proportion of 0.95 in 1000 draws.
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)


@pytest.mark.parametrize(
    ("mean", "half_width", "sign", "margin", "verdict"),
    [
        (0.2, 0.1, 1, 0, "supported"),
        (-0.2, 0.1, 1, 0, "contradicted"),
        (0.05, 0.1, 1, 0, "undecided"),
        (-0.05, 0.1, 1, 0, "undecided"),
        (0.125, 0.125, 1, 0, "undecided"),
        (-0.125, 0.125, 1, 0, "undecided"),
        (0.0, 0.0, 1, 0, "undecided"),
        (0.125, 0.0, 1, 0, "supported"),
        (-0.2, 0.1, -1, 0, "supported"),
        (0.2, 0.1, -1, 0, "contradicted"),
        (0.2, 0.1, 0, 0, "no claim"),
        # Above -0.25.
        (0.0, 0.125, 1, 0.25, "supported"),
        (-0.125, 0.125, 1, 0.25, "undecided"),
        (-0.25, 0.125, 1, 0.25, "undecided"),
        (-0.5, 0.125, 1, 0.25, "contradicted"),
        # Below +0.25.
        (0.0, 0.125, -1, 0.25, "supported"),
        (0.125, 0.125, -1, 0.25, "undecided"),
        (0.5, 0.125, -1, 0.25, "contradicted"),
        (0.5, math.nan, 1, 0, "undecided"),
        (math.nan, math.nan, 1, 0, "undecided"),
    ],
)
def test_the_verdict_follows_from_the_interval(
    mean: float, half_width: float, sign: int, margin: float, verdict: str
) -> None:
    assert judge(Interval(mean, half_width, 5), sign=sign, margin=margin) == verdict


@pytest.mark.parametrize("comparisons", [1, 4, 20])
def test_a_corrected_interval_is_that_of_a_smaller_error_probability(comparisons: int) -> None:
    values = [0.04, -0.03, 0.05, -0.01, 0.0]
    interval = corrected(mean_interval(values), comparisons)
    expected = scipy.stats.t.interval(1 - 0.05 / comparisons, 4, np.mean(values), scipy.stats.sem(values))
    assert (interval.mean - interval.half_width, interval.mean + interval.half_width) == pytest.approx(expected)


def test_one_seed_has_no_interval_to_correct() -> None:
    assert np.isnan(corrected(mean_interval([0.5]), 4).half_width)


def test_distance_to_identity_agrees_with_values_computed_by_hand() -> None:
    # I - C has the entries 0.1, -0.2, -0.1, 0.2: squares 0.01 + 0.04 + 0.01 + 0.04.
    assert distance_to_identity(np.array([[0.9, 0.2], [0.1, 0.8]])) == pytest.approx(math.sqrt(0.1))
    assert distance_to_identity(np.eye(10)) == 0
    # The second class has no images: 0.01 + 0.01 are left.
    assert distance_to_identity(np.array([[0.9, math.nan], [0.1, math.nan]])) == pytest.approx(math.sqrt(0.02))


@pytest.mark.parametrize("margin", [0.0, 0.01])
@pytest.mark.parametrize("sign", [1, -1])
def test_seeds_to_decide_is_the_smallest_number_with_a_decided_interval(sign: int, margin: float) -> None:
    values = [0.04, -0.03, 0.05, -0.01, 0.0]
    effect = mean_interval(values)
    assert judge(effect, sign=sign, margin=margin) == "undecided"
    deviation = np.std(values, ddof=1)

    def decided(n: int) -> bool:
        half_width = scipy.stats.t.ppf(0.975, n - 1) * deviation / n**0.5
        return judge(Interval(effect.mean, half_width, n), sign=sign, margin=margin) != "undecided"

    n = seeds_to_decide(effect, sign=sign, margin=margin)
    if (sign, margin) == (-1, 0.01):  # the effect is just at its margin
        assert n == np.inf
    else:
        assert decided(int(n))
        assert not decided(int(n) - 1)


def test_seeds_to_decide_is_nan_without_an_undecided_claim_and_infinite_if_no_number_suffices() -> None:
    effect = mean_interval([0.02, -0.01, 0.03])
    assert np.isnan(seeds_to_decide(mean_interval([1.0, 1.1, 0.9])))
    assert np.isnan(seeds_to_decide(effect, sign=0))
    assert np.isnan(seeds_to_decide(mean_interval([0.5])))
    assert seeds_to_decide(mean_interval([0.0, 0.0])) == np.inf
    assert seeds_to_decide(effect, most=3) == np.inf
