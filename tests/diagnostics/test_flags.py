"""Tests of the flags on constructed measurements: both sides of each limit, the significance tests and their power."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from art_hrloss.diagnostics import GradientMaskingReport
from art_hrloss.diagnostics._flags import is_weaker, smallest_difference, smallest_share
from art_hrloss.diagnostics._measurements import Gradients


def first_of(count, n=1000):
    """Return a mask of n examples, of which the first `count` are True."""
    return np.arange(n) < count


def constructed(**changes):
    """Return measurements of 1000 examples for a classifier without gradient masking, with some changes."""
    attacked = first_of(300)
    report = GradientMaskingReport(
        eps=0.1,
        norm=np.inf,
        classes=10,
        clean=first_of(980),
        gradients=Gradients(0.0, 0.0, 0.0),
        margins=np.linspace(-1, 10, 1000),
        unchanged=0.0,
        single_step={"as given": first_of(500), "margin": first_of(500), "exact CE": first_of(500)},
        iterative={40: attacked, 80: attacked},
        auto_pgd=attacked,
        black_box={"Square": first_of(600), "transfer from another": first_of(700)},
        unbounded=first_of(0),
        noise=first_of(970),
        unstable=first_of(0),
        silent=first_of(0),
        moving=first_of(0),
        image_range=(0.0, 1.0),
        clip_values=(0.0, 1.0),
    )
    return replace(report, **changes)


def names(report):
    return [flag.name for flag in report.flags]


def test_measurements_without_masking_raise_no_flag():
    assert constructed().flags == ()
    assert not constructed().flagged


def test_robust_excludes_examples_misclassified_by_an_attack_within_eps():
    assert constructed().robust.sum() == 300
    for name in ("clean", "auto_pgd"):
        assert constructed(**{name: first_of(7)}).robust.sum() == 7, name
    for name in ("single_step", "iterative", "black_box"):
        assert constructed(**{name: {**getattr(constructed(), name), 0: first_of(7)}}).robust.sum() == 7, name
    # The attack with a larger eps, and noise, do not count.
    np.testing.assert_array_equal(constructed(unbounded=first_of(0), noise=first_of(0)).robust, constructed().robust)


# For each flag, measurements that raise only this flag, and measurements just below its limit. With 1000 examples, 19
# discordant examples are needed for a limit of 1%, and 59 for a limit of 5%: see the test of is_weaker.
BOTH_SIDES = {
    "zero gradients": ({"gradients": Gradients(0.0011, 0, 0)}, {"gradients": Gradients(0.001, 0, 0)}),
    "NaN gradients": ({"gradients": Gradients(0, 0.0011, 0)}, {"gradients": Gradients(0, 0.001, 0)}),
    "subnormal gradients": ({"gradients": Gradients(0, 0, 0.0011)}, {"gradients": Gradients(0, 0, 0.001)}),
    "unchanged images": ({"unchanged": 0.0011}, {"unchanged": 0.001}),
    "iterations do not help": (
        {"single_step": {"as given": first_of(281)}, "iterative": {40: first_of(300), 80: first_of(290)}},
        {"single_step": {"as given": first_of(282)}},
    ),
    "too few iterations": (
        {"iterative": {40: first_of(300), 80: first_of(281)}},
        {"iterative": {40: first_of(300), 80: first_of(282)}},
    ),
    "stronger attack succeeds": ({"auto_pgd": first_of(241)}, {"auto_pgd": first_of(242)}),
    "black box beats white box": ({"black_box": {"Square": first_of(281)}}, {"black_box": {"Square": first_of(282)}}),
    "noise beats gradients": ({"noise": first_of(481)}, {"noise": first_of(482)}),
    "unbounded attack fails": ({"unbounded": first_of(124)}, {"unbounded": first_of(123)}),
    "unstable predictions": ({"unstable": first_of(124)}, {"unstable": first_of(123)}),
    "silent success": ({"silent": first_of(19)}, {"silent": first_of(18)}),
    "incomplete optimisation": ({"moving": first_of(124)}, {"moving": first_of(123)}),
    "incomplete report": ({"unfinished": ("noise",)}, {"unfinished": ()}),
}


@pytest.mark.parametrize("name", BOTH_SIDES)
def test_both_sides_of_a_limit(name):
    above, below = BOTH_SIDES[name]
    assert names(constructed(**above)) == [name]
    assert names(constructed(**below)) == []


@pytest.mark.parametrize(
    ("accuracies", "flagged"),
    [
        ({"exact CE": 450}, True),
        ({"exact CE": 490}, False),
        ({"exact CE": 550}, False),
        ({"CE in float64": 450}, True),
        ({"CE of logits / T": 450}, True),
        ({"margin": 450}, False),
        ({"DLR": 450}, False),
        ({"margin": 400}, True),
        ({"DLR": 400}, True),
        ({"DLR": 550, "exact CE": 450}, True),
    ],
)
def test_masked_gradients(accuracies, flagged):
    """The limit is 1% for the same loss with better numerics, and 5% for another loss."""
    steps = {"as given": first_of(500)} | {name: first_of(count) for name, count in accuracies.items()}
    report = constructed(single_step=steps)
    assert names(report) == ["masked gradients"] * flagged
    for flag in report.flags:
        lowest = min(accuracies, key=accuracies.get)
        assert f"{accuracies[lowest] / 1000:.3f} under FGSM along {lowest}" in flag.evidence


OTHER_CHANGES = {
    "zero gradients explain unchanged images": (
        {"unchanged": 0.5, "gradients": Gradients(0.5, 0, 0)},
        ["zero gradients"],
    ),
    "NaN gradients do not": (
        {"unchanged": 0.5, "gradients": Gradients(0, 0.5, 0)},
        ["NaN gradients", "unchanged images"],
    ),
    "chance of two classes": ({"unbounded": first_of(537), "classes": 2}, []),
    "above it": ({"unbounded": first_of(538), "classes": 2}, ["unbounded attack fails"]),
}


@pytest.mark.parametrize(("changes", "flags"), OTHER_CHANGES.values(), ids=OTHER_CHANGES)
def test_flags_that_depend_on_several_measurements(changes, flags):
    assert names(constructed(**changes)) == flags


def test_one_flag_names_all_black_box_attacks_that_beat_white_box_attacks():
    (flag,) = constructed(black_box={"a": first_of(200), "b": first_of(600), "c": first_of(100)}).flags
    assert [name in flag.evidence for name in ("0.200 under a", "under b", "0.100 under c")] == [True, False, True]


@pytest.mark.parametrize(
    ("image_range", "clip_values", "flagged"),
    [
        ((0.0, 1.0), (0.0, 1.0), False),
        ((0.1, 0.9), (0.0, 1.0), False),
        ((0.0, 255.0), (0.0, 255.0), False),
        ((0.0, 1.0), (0.0, 255.0), True),
        ((-1.0, 1.0), (-1.0, 1.0), True),
        ((0.0, 1.0), None, True),
    ],
)
def test_units_of_eps(image_range, clip_values, flagged):
    assert names(constructed(image_range=image_range, clip_values=clip_values)) == ["units of eps"] * flagged


def test_shares_of_few_examples_are_not_flagged_by_chance():
    """Three of fifty examples are more than 1%, but not significantly more than 1%."""

    def report(silent, others):
        options = {"unstable": first_of(others, 50), "moving": first_of(others, 50), "silent": first_of(silent, 50)}
        return constructed(clean=first_of(49, 50), unbounded=first_of(0, 50), **options)

    assert names(report(3, 10)) == []
    assert names(report(4, 11)) == ["unstable predictions", "silent success", "incomplete optimisation"]


# The tests


@pytest.mark.parametrize("by", [0.01, 0.05])
def test_is_weaker_is_the_shifted_exact_mcnemar_test(by):
    random, verdicts = np.random.default_rng(0), set()
    for _ in range(200):
        first, second = random.random((2, 300)) < random.uniform(0.3, 0.7, (2, 1))
        either, successes = int((first ^ second).sum()), int((first & ~second).sum())
        expected = binomtest(successes, either, (1 + by * 300 / either) / 2, alternative="greater").pvalue < 0.01
        assert is_weaker(first, second, by) == expected
        assert not (is_weaker(first, second, by) and is_weaker(second, first, by))
        verdicts.add(expected)
    assert verdicts == {True, False}
    # All of six examples occur by chance once in 64 times; seven of a thousand examples are less than 1%.
    assert not is_weaker(first_of(6, 6), first_of(0, 6))
    assert is_weaker(first_of(7, 7), first_of(0, 7))
    assert not is_weaker(first_of(1000), first_of(993))


@pytest.mark.parametrize("n", [20, 50, 150, 1000])
def test_the_smallest_detectable_effects_have_80_percent_power(n):
    """Draw nested attacks: the second misclassifies a binomial number of the examples that the first does not."""
    for by in (0.01, 0.05):
        needed = next(k for k in range(n) if is_weaker(first_of(n, n), first_of(n - k, n), by))
        assert binom.sf(needed - 1, n, smallest_difference(n, by)) == pytest.approx(0.8)
    for limit in (0.01, 0.1):
        needed = next(k for k in range(n) if binomtest(k, n, limit, alternative="greater").pvalue < 0.01)
        assert binom.sf(needed - 1, n, smallest_share(n, limit)) == pytest.approx(0.8)


def test_few_examples_have_no_detectable_difference():
    assert np.isnan(smallest_difference(6))
    assert not np.isnan(smallest_difference(7))
    assert np.isnan(smallest_share(1, 0.1))
    assert smallest_share(2, 0.01) == pytest.approx(np.sqrt(0.8))  # two of two examples
