"""Means and intervals against hand-computed ones, and the interval's coverage by simulation."""

import math

import numpy as np
import pytest

from benchmarks.statistics import mean_interval


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
