"""Tests of `error_bounds`: all fields against oracle.py, inequalities, invariances, and invalid arguments."""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from testing import oracle

from art_hrloss import HRClassifier
from art_hrloss.bounds import (
    ErrorBounds,
    beta,
    error_bounds,
    fano_inverse,
    probability_comparison_bounds,
)
from art_hrloss.losses._functional import renyi_divergence
from art_hrloss.losses._numerics import log_softmax

INF = math.inf
EPS = float(np.finfo(np.float64).eps)
ALPHAS = [1 + 1e-6, 1.6, 2.0, 2 + 1e-6, 3.0, 50.0]
# As in test_formulas: about ten roundings of logarithms of the size `unit`.
ROUNDING = 32 * EPS
# The factor by which each field magnifies the rounding of such a logarithm.
FACTORS: dict[str, Callable[[float, int], float]] = {
    "renyi_divergence": lambda alpha, classes: 1 / (alpha - 1),
    "reverse_divergence": lambda alpha, classes: 1 / abs(alpha - 2) if alpha != 2 else 1.0,
    "log_comparison_lower_bound": lambda alpha, classes: (alpha - 1) / (alpha - 2) if alpha > 2 else 1.0,
    "log_lower_bound": lambda alpha, classes: beta(classes) * (alpha - 1) / (alpha - 2) if alpha > 2 else 1.0,
    "log_printed_lower_bound": lambda alpha, classes: beta(classes) * alpha / (alpha - 2) if alpha > 2 else 1.0,
}


def close(actual: Any, expected: Any, rtol: float = 1e-12, atol: float = 0.0) -> None:
    """Assert that two numbers are equal up to rounding; NaN and infinities must be the same."""
    assert float(actual) == pytest.approx(float(expected), rel=rtol, abs=atol, nan_ok=True)


def same(actual: ErrorBounds, expected: ErrorBounds, rtol: float = 1e-12, atol: float = 1e-14) -> None:
    """Assert that all fields are equal up to rounding; the tightest orders, at flat optima, only approximately."""
    for name, value in asdict(expected).items():
        tightest = name.startswith("tightest")
        close(asdict(actual)[name], value, rtol=1e-5 if tightest else rtol, atol=0.0 if tightest else atol)


def batch(n: int = 6, classes: int = 4, scale: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that float32 represents exactly, and labels."""
    random = np.random.default_rng([n, classes, seed])
    return random.normal(scale=scale, size=(n, classes)).astype(np.float32).astype(float), random.integers(
        classes, size=n
    )


def weights(n: int = 6, classes: int = 4, seed: int = 0) -> np.ndarray:
    """Return label rows whose sums are the weights of the examples, one of them 0; some entries are 0 as well."""
    random = np.random.default_rng([n, classes, seed])
    rows = random.dirichlet(np.ones(classes), n) * random.uniform(0.1, 3, (n, 1))
    rows[rows < 0.02] = 0.0
    rows[n // 2] = 0.0
    return rows


def every_field(computed: ErrorBounds, logits: Any, target: Any, alpha: float, unit: float) -> None:
    expected = oracle.error_bounds(logits, target, alpha)
    for name in asdict(computed).keys() & expected.keys():
        factor = FACTORS.get(name, lambda alpha, classes: 1.0)(alpha, computed.classes)
        close(getattr(computed, name), expected[name], rtol=ROUNDING, atol=ROUNDING * unit * factor)


# Every field


@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_all_fields_equal_the_oracle_for_hard_labels(alpha: float, scale: float) -> None:
    logits, labels = batch(scale=scale)
    computed = error_bounds(logits, labels, alpha=alpha)
    assert (computed.n, computed.classes, computed.alpha) == (6, 4, alpha)
    unit = 1 + 2 * float(np.ptp(logits, 1).max()) + math.log(6)
    every_field(computed, logits, labels, alpha, unit)
    one_hot = np.eye(4, dtype=int)[labels]
    for target in (
        labels[:, None],
        labels.astype(float),
        labels.astype(np.uint8),
        one_hot,
        one_hot == 1,
        7.0 * one_hot,
    ):
        same(error_bounds(logits, target, alpha=alpha), computed)
    if alpha >= 2:
        assert computed.reverse_divergence == INF
    assert computed.log_comparison_lower_bound == computed.log_lower_bound == computed.log_printed_lower_bound == -INF
    assert computed.log_tightest_lower_bound == -INF
    assert math.isnan(computed.tightest_lower_alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", ["weighted", "positive", "excluded class"])
def test_all_fields_equal_the_oracle_for_soft_labels(kind: str, alpha: float) -> None:
    logits, rows = batch()[0], weights()
    if kind == "positive":
        rows = rows + 0.05
    if kind == "excluded class":
        logits[:, 1], rows[:, 1] = -INF, 0.0
    computed = error_bounds(logits, rows, alpha=alpha)
    assert computed.n == (6 if kind == "positive" else 5)
    every_field(computed, logits, rows, alpha, unit=30.0)
    if kind == "positive" and alpha > 2:
        assert -INF < computed.log_printed_lower_bound < computed.log_lower_bound < computed.log_comparison_lower_bound
        assert computed.log_comparison_lower_bound < math.log(computed.error) < computed.log_comparison_upper_bound


@pytest.mark.parametrize("margin", [50.0, 700.0, 1000.0])
def test_margins_at_which_p_u_and_h_underflow(margin: float) -> None:
    logits = [[margin, 0.0, 0.0], [0.0, 0.0, margin + 1]]
    for target in ([0, 2], [0, 1], [[0.5, 0.0, 0.5], [0.2, 0.3, 0.5]]):
        for alpha in (1.6, 3.0):
            computed = error_bounds(logits, target, alpha=alpha)
            expected = oracle.error_bounds(logits, target, alpha)
            for name in ("log_comparison_upper_bound", "log_upper_bound", "log_relaxed_bound"):
                close(getattr(computed, name), expected[name], rtol=1e-14, atol=4 * EPS * margin)
            for name in ("error", "uncertainty", "conditional_entropy", "renyi_divergence", "reverse_divergence"):
                # The logarithms of the joint distribution contain the logarithm of the share of an example.
                close(
                    getattr(computed, name),
                    expected[name],
                    rtol=1e-12,
                    atol=4 * EPS if "divergence" in name else 1e-300,
                )
            if target == [0, 2]:
                assert -INF < computed.log_upper_bound < -margin / 3


def test_tightest_orders_at_large_margins() -> None:
    right = error_bounds([[1000.0, 0.0, 0.0], [2000.0, 0.0, 0.0]], [0, 0], alpha=3.0)
    close(right.tightest_alpha, INF)
    # log H of the first example, whose share is a half: H = 2 exp(-1000) (1000 + 1).
    close(right.log_tightest_upper_bound, math.log(1001) - 1000)
    assert right.reverse_divergence == INF
    assert right.log_tightest_lower_bound == -INF
    assert math.isnan(right.tightest_lower_alpha)
    wrong = error_bounds([[1000.0, 0.0, 0.0]], [1], alpha=3.0)
    assert (wrong.tightest_alpha, wrong.log_tightest_upper_bound) == (1.0, 0.0)


def test_one_hot_outputs() -> None:
    logits = [[0.0, -INF, -INF], [-INF, 0.0, -INF]]
    right = error_bounds(logits, [0, 1], alpha=3.0)
    assert right.error == right.uncertainty == right.conditional_entropy == right.cross_entropy == 0
    assert right.renyi_divergence == right.reverse_divergence == 0
    assert right.log_comparison_upper_bound == right.log_upper_bound == right.log_markov_bound == -INF
    close(right.log_relaxed_bound, -2 / 3)
    assert right.log_lower_bound == right.log_tightest_lower_bound == right.log_tightest_upper_bound == -INF
    assert right.tightest_alpha == INF
    wrong = error_bounds(logits, [0, 2], alpha=3.0)
    assert wrong.error == 0.5
    assert wrong.renyi_divergence == wrong.log_upper_bound == wrong.log_comparison_upper_bound == INF
    assert wrong.cross_entropy == wrong.log_markov_bound == wrong.log_relaxed_bound == INF
    assert (wrong.tightest_alpha, wrong.log_tightest_upper_bound) == (1.0, 0.0)


def test_uniform_outputs() -> None:
    for classes in (2, 10, 1000):
        # A tie is predicted as class 0, so P_e is the share of the other labels.
        computed = error_bounds(np.zeros((4, classes)), [0, 1, 1, 1], alpha=1.6)
        assert computed.error == 0.75
        close(computed.uncertainty, 1 - 1 / classes)
        close(computed.conditional_entropy, math.log(classes))
        close(computed.cross_entropy, math.log(classes))
        # With D_1 = log M, no order is better than vacuous; M = 2 is the limiting case.
        assert -4 * EPS <= computed.log_tightest_upper_bound <= 0


def test_the_decision_is_the_largest_logit_even_if_the_softmax_has_ties() -> None:
    assert error_bounds([[0.0, 1e-20]], [1]).error == 0
    assert error_bounds([[0.0, 1e-20]], [0]).error == 1


# The inequalities, and the tightest orders


def joints(draws: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield logits from flat to peaked, some with excluded classes, and label weights from correct to wrong."""
    random = np.random.default_rng(0)
    for _ in range(draws):
        n, classes = int(random.integers(1, 5)), int(random.choice([2, 3, 10, 100]))
        logits = random.normal(scale=10 ** random.uniform(-2, 1.5), size=(n, classes))
        if random.random() < 0.3:
            logits[random.random(logits.shape) < 0.4] = -INF
            logits[range(n), random.integers(classes, size=n)] = 0.0
        q, decided, any_label = oracle.softmax(logits), logits.argmax(1), random.integers(classes, size=n)
        hard = [np.eye(classes)[labels] for labels in (any_label, decided, (decided + 1) % classes)]
        soft = [random.dirichlet(np.full(classes, 0.3), n), q, 0.9 * hard[0] + 0.1 / classes, 0.9 * q + 0.1 / classes]
        rows = [*hard, *soft][random.integers(7)] * random.uniform(0.1, 3, (n, 1))
        yield logits, rows


Bounded = list[tuple[np.ndarray, np.ndarray, ErrorBounds]]


@pytest.fixture(scope="module")
def bounded() -> Bounded:
    """Logits, label weights and the bounds, for all orders."""
    alphas = itertools.cycle([1 + 1e-6, 1.6, 2.1, 3.0, 1e3])
    return [(*joint, error_bounds(*joint, alpha=alpha)) for joint, alpha in zip(joints(60), alphas, strict=False)]


def test_bounds_hold_and_are_weaker_than_those_they_are_derived_from(bounded: Bounded) -> None:
    says_upper = says_lower = 0
    for logits, _, computed in bounded:
        alpha, exponent = computed.alpha, beta(computed.classes)
        finite = np.where(np.isfinite(logits), logits, 0.0)
        unit = ROUNDING * (10 + 2 * float(np.ptp(finite, 1).max())) * (alpha / (alpha - 2) if alpha > 2 else 1.0)
        log_error = math.log(computed.error) if computed.error else -INF
        ascending = [
            computed.log_printed_lower_bound,
            computed.log_lower_bound,
            computed.log_comparison_lower_bound,
            log_error,
            computed.log_comparison_upper_bound,
            computed.log_upper_bound,
            computed.log_relaxed_bound,
        ]
        assert all(less <= more + unit * exponent for less, more in itertools.pairwise(ascending)), ascending
        assert computed.log_tightest_lower_bound <= log_error + unit * exponent
        assert log_error <= min(computed.log_tightest_upper_bound, computed.log_markov_bound) + unit
        # The claim of the docstring about (11): it is never below exp(-(alpha - 1) / alpha).
        assert computed.log_relaxed_bound >= -(alpha - 1) / alpha - unit
        # Fano's inequality (9): the smallest P_u for this entropy.
        least = fano_inverse(min(computed.conditional_entropy, math.log(computed.classes)), computed.classes)
        assert least <= computed.uncertainty * (1 + unit)
        says_upper += computed.log_upper_bound < -0.01 * (alpha - 1) / alpha
        says_lower += computed.log_lower_bound > -INF
    assert min(says_upper, says_lower) > 5


def test_no_order_of_a_fine_grid_beats_the_tightest_ones(bounded: Bounded) -> None:
    orders = 1 + np.concatenate([np.logspace(-9, -1, 6), np.logspace(-1, 1, 30), np.logspace(1, 6, 6)])
    inside_upper = inside_lower = 0
    for logits, rows, computed in bounded[:40]:
        log_q, shares = log_softmax(torch.from_numpy(logits)), torch.from_numpy(rows / rows.sum())
        log_mu, log_nu = shares.log().flatten(), (shares.sum(1, keepdim=True).log() + log_q).flatten()
        exponent, log_gap = beta(computed.classes), math.log(-math.expm1(-computed.conditional_entropy))

        def bounds(alpha: float, joint: Any = (log_mu, log_nu, log_gap, exponent)) -> tuple[float, float]:
            """Return the bound (1) and, for orders above 2, the bound (2)."""
            mu, nu, gap, power = joint
            upper = probability_comparison_bounds(gap, renyi_divergence(mu, nu, alpha=alpha), alpha=alpha).upper
            reverse = renyi_divergence(nu, mu, alpha=alpha - 1)
            lower = probability_comparison_bounds(power * gap, 0.0, reverse, alpha=alpha).lower
            return float(upper), float(lower)

        unit = 1e-12 * (10 + float(np.ptp(np.where(np.isfinite(logits), logits, 0.0), 1).max()))
        best, order = computed.log_tightest_upper_bound, computed.tightest_alpha
        uppers, lowers = zip(*map(bounds, orders), strict=True)
        assert best <= min(0.0, *uppers) + unit
        if 1 < order < INF:  # the tightest order attains the tightest bound
            close(best, bounds(order)[0], rtol=0, atol=unit)
            inside_upper += 1
        best, order, unit = computed.log_tightest_lower_bound, computed.tightest_lower_alpha, unit * exponent
        assert best >= max(lowers) - 100 * unit
        assert math.isnan(order) == (best == -INF)
        if 2 < order < INF:
            close(best, bounds(order)[1], rtol=0, atol=unit * (order - 1) / (order - 2))
            inside_lower += 1
    assert min(inside_upper, inside_lower) >= 3


def test_the_tightest_order_at_its_limits() -> None:
    # p = q: the divergence is 0 for all orders, so that (1) decreases to its limit log[1 - exp(-H)].
    p = np.array([[0.7, 0.2, 0.1]])
    computed = error_bounds(np.log(p), p, alpha=3.0)
    assert computed.tightest_alpha == computed.tightest_lower_alpha == INF
    gap = math.log(-math.expm1(-computed.conditional_entropy))
    close(computed.log_tightest_upper_bound, gap)
    close(computed.log_tightest_lower_bound, beta(3) * gap)
    # A correct hard label: the maximum of log p / q is - log 0.7.
    computed = error_bounds(np.log(p), [0])
    assert computed.tightest_alpha == INF
    close(computed.log_tightest_upper_bound, gap - math.log(0.7))
    # A wrong label: no order.
    computed = error_bounds(np.log(p), [1])
    assert (computed.tightest_alpha, computed.log_tightest_upper_bound) == (1.0, 0.0)


# Invariances


@pytest.mark.parametrize("alpha", [1.6, 3.0])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_shifts_permutations_dtypes_and_copies_have_no_effect(soft: bool, alpha: float) -> None:
    logits, labels = batch()
    target = weights() + 0.05 if soft else labels
    computed = error_bounds(logits, target, alpha=alpha)
    random = np.random.default_rng(0)
    rows, names = random.permutation(len(logits)), random.permutation(4)
    renamed = target[:, names] if soft else np.argsort(names)[labels]
    same(error_bounds(logits + 2.0 ** np.arange(6)[:, None], target, alpha=alpha), computed)
    same(error_bounds(logits[rows], target[rows], alpha=alpha), computed)
    same(error_bounds(logits[:, names], renamed, alpha=alpha), computed)
    for kind in (logits.astype(np.float32), torch.from_numpy(logits).requires_grad_(), logits.tolist()):
        same(error_bounds(kind, target, alpha=alpha), computed, rtol=0, atol=0)
    same(error_bounds(logits, torch.from_numpy(target), alpha=alpha), computed, rtol=0, atol=0)
    twice = error_bounds(np.tile(logits, (2, 1)), np.concatenate([target, target]), alpha=alpha)
    assert twice.n == 2 * computed.n
    same(ErrorBounds(**{**asdict(twice), "n": computed.n}), computed)
    if soft:
        same(error_bounds(logits, 5 * target, alpha=alpha), computed)
    # Only the tightest orders do not depend on alpha.
    other = asdict(error_bounds(logits, target, alpha=7.0))
    for name in (name for name in other if "tightest" in name):
        close(other[name], asdict(computed)[name], rtol=0)


def test_a_weight_is_equivalent_to_copies() -> None:
    logits, labels = batch()
    times = np.array([1, 2, 3, 1, 2, 0])
    weighed = error_bounds(logits, np.eye(4)[labels] * times[:, None], alpha=3.0)
    copies = error_bounds(logits.repeat(times, 0), labels.repeat(times), alpha=3.0)
    same(ErrorBounds(**{**asdict(weighed), "n": copies.n}), copies)


# Classifiers


def test_an_art_classifier_on_arrays_and_tensors(hr_classifier: Callable[..., HRClassifier], digits: Any) -> None:
    classifier = hr_classifier()
    logits = classifier.predict(digits.x_test)
    expected = error_bounds(logits, digits.y_test, alpha=3.0)
    assert expected.error == pytest.approx((logits.argmax(1) != digits.y_test).mean(), abs=1e-12)
    assert 0 < expected.error < 0.1
    for x, y in (
        (digits.x_test, digits.y_test),
        (digits.x_test, np.eye(10)[digits.y_test]),
        (torch.from_numpy(digits.x_test), torch.from_numpy(digits.y_test)),
    ):
        same(error_bounds(classifier, x, y, alpha=3.0), expected, rtol=0, atol=0)


@pytest.mark.gpu
def test_bounds_on_a_gpu_equal_those_on_the_cpu() -> None:
    logits = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)) * 5
    labels = logits.argmax(1).where(torch.arange(200) % 9 > 0, torch.tensor(3))
    expected = asdict(error_bounds(logits, labels, alpha=3.0))
    for form in (labels, labels.cuda()):
        assert asdict(error_bounds(logits.cuda(), form, alpha=3.0)) == pytest.approx(expected, rel=1e-6, nan_ok=True)


# Bad input

LOGITS, LABELS = np.zeros((2, 3)), np.array([0, 1])
BAD = {
    "vector": (LOGITS[0], [0]),
    "3-d": (np.zeros((2, 3, 4)), LABELS),
    "1 class": (np.zeros((2, 1)), [0, 0]),
    "NaN": ([[0.0, math.nan]], [0]),
    "inf": ([[0.0, INF]], [0]),
    "no class": ([[0.0, 1.0], [-INF, -INF]], [0, 0]),
    "negative weight": (LOGITS, [[1.0, -0.1, 0.1]] * 2),
    "no weight": (LOGITS, np.zeros((2, 3))),
    "no example": (np.zeros((0, 3)), np.zeros(0)),
}


def test_invalid_arguments_raise_an_error(hr_classifier: Callable[..., HRClassifier]) -> None:
    for arguments in ((LOGITS,), (), (LOGITS, LOGITS, LABELS), (hr_classifier(), LABELS)):
        with pytest.raises(TypeError, match=r"expected \(logits, labels\) or \(classifier, x, labels\), but got"):
            error_bounds(*arguments)
    for alpha in (1, 0.5, INF, "2"):
        shown = "str" if alpha == "2" else alpha
        with pytest.raises((TypeError, ValueError), match=f"expected alpha .* but got {shown}"):
            error_bounds(LOGITS, LABELS, alpha=alpha)  # type: ignore[arg-type]
    # Rows whose sum is 1 are valid logits if logits are passed.
    assert error_bounds([[0.5, 0.5], [1.0, 0.0]], [0, 0]).conditional_entropy > 0.6
    for name, arguments in BAD.items():
        with pytest.raises(ValueError, match=r"expected .* but got"):
            pytest.fail(f"{name}: {error_bounds(*arguments)}")


# The readable form


def table_cells(computed: ErrorBounds) -> list[tuple[str, str]]:
    """Return the numbers of the table, each with the remark behind it."""
    text = "\n".join(str(computed).splitlines()[1:])
    return re.findall(r"  +(-?[\d.]+|inf)(, vacuous|, alpha = [\d.a-z]+)?$", text, re.MULTILINE)


def test_the_table_has_a_line_for_each_number_and_says_which_bounds_are_vacuous() -> None:
    # q = (1/4, 3/4) and p = (1/2, 1/2); the expected numbers were computed from the paper's equations by hand.
    computed = error_bounds([[0.0, math.log(3)]], [[0.5, 0.5]], alpha=3.0)
    close(computed.renyi_divergence, math.log(0.5**3 * 4**2 * (1 + 1 / 9)) / 6)
    close(computed.reverse_divergence, math.log(2 * (1 + 9) / 16) / 2)
    plain = ["0.5", "0.25", "0.5623", "0.837", "0.1331", "0.1116", "0.5179", "0.7436", "0.9747"]
    lower = [("0.05", ""), ("0.02144", ""), ("0.00351", ""), ("0.1091", ", alpha = inf")]
    best = [("0.7421", ", alpha = 2.695"), ("1.208", ", vacuous")]
    assert table_cells(computed) == [*((value, "") for value in plain), *best, *lower]
    assert [remark for _, remark in table_cells(error_bounds([[0.0, math.log(3)]], [0]))].count(", vacuous") == 9
    # A bound above the largest float64, and bounds of 0.
    assert ("inf", ", vacuous") in table_cells(error_bounds([[5000.0, 0.0, 0.0]], [1], alpha=3.0))
    zeros = error_bounds([[0.0, -INF]], [0], alpha=3.0)
    assert {("0", ""), ("0", ", alpha = inf"), ("0", ", vacuous")} <= set(table_cells(zeros))
    assert "-0" not in str(zeros)


def test_data_frame_and_html() -> None:
    result = error_bounds([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], [0, 1, 0])
    frame = result.to_frame()
    assert list(frame.columns) == ["kind", "name", "value", "log_value", "alpha", "vacuous"]
    bounds = frame[frame["kind"] != "quantity"].set_index(["kind", "name"])
    markov, best = (
        bounds.loc["upper bound", "by CE / log 2 (Markov)"],
        bounds.loc["upper bound", "by (1) at its best alpha"],
    )
    assert (markov["log_value"], best["alpha"]) == (result.log_markov_bound, result.tightest_alpha)
    assert math.isnan(markov["alpha"])
    assert best["value"] == pytest.approx(math.exp(result.log_tightest_upper_bound))
    # (2) is vacuous for an alpha of at most 2.
    lower = bounds.loc["lower bound", "by H(Y^|X) (2)"]
    assert (lower["value"], lower["log_value"], bool(lower["vacuous"])) == (0.0, -math.inf, True)
    error = frame.set_index("name").loc["P_e, the error probability"]
    assert (error["value"], error["log_value"], bool(error["vacuous"])) == (0.0, -math.inf, False)
    # In HTML the title is not a row, but the header is one.
    assert result._repr_html_().count("<tr>") == len(str(result).splitlines())
