"""`error_bounds`: every field against oracle.py, inequalities, invariances, and refusals."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from testing import oracle

from art_hrloss import HRClassifier
from art_hrloss.bounds import ErrorBounds, beta, error_bounds, error_lower_bound, error_upper_bound
from art_hrloss.losses import hr_loss_terms

INF = math.inf
EPS = float(np.finfo(np.float64).eps)
ALPHAS = [1 + 1e-6, 1.6, 2.0, 2 + 1e-6, 3.0, 50.0]
# As in test_bounds: some ten roundings, of logarithms of the size `unit`.
ROUNDING = 32 * EPS
# How far each field spreads the rounding of such a logarithm.
FACTORS: dict[str, Callable[[float, int], float]] = {
    "renyi_divergence": lambda alpha, classes: 1 / (alpha - 1),
    "reverse_divergence": lambda alpha, classes: 1 / abs(alpha - 2) if alpha != 2 else 1.0,
    "log_comparison_lower_bound": lambda alpha, classes: (alpha - 1) / (alpha - 2) if alpha > 2 else 1.0,
    "log_lower_bound": lambda alpha, classes: beta(classes) * (alpha - 1) / (alpha - 2) if alpha > 2 else 1.0,
    "log_printed_lower_bound": lambda alpha, classes: beta(classes) * alpha / (alpha - 2) if alpha > 2 else 1.0,
}


def close(actual: Any, expected: Any, rtol: float = 1e-12, atol: float = 0.0) -> None:
    """Assert equality, NaN and the infinite ones included, of two numbers."""
    assert float(actual) == pytest.approx(float(expected), rel=rtol, abs=atol, nan_ok=True)


def same(actual: ErrorBounds, expected: ErrorBounds, rtol: float = 1e-12, atol: float = 1e-14) -> None:
    """Assert that every field is the same but for rounding; a tightest order is the place of a flat optimum."""
    for name, value in asdict(expected).items():
        tightest = name.startswith("tightest")
        close(asdict(actual)[name], value, rtol=1e-5 if tightest else rtol, atol=0.0 if tightest else atol)


def batch(n: int = 6, classes: int = 4, scale: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that float32 holds exactly, and labels."""
    random = np.random.default_rng([n, classes, seed])
    return random.normal(scale=scale, size=(n, classes)).astype(np.float32).astype(float), random.integers(
        classes, size=n
    )


def weights(n: int = 6, classes: int = 4, seed: int = 0) -> np.ndarray:
    """Rows of labels that sum to the weights of the examples, of which one is 0; some labels are 0 as well."""
    random = np.random.default_rng([n, classes, seed])
    rows = random.dirichlet(np.ones(classes), n) * random.uniform(0.1, 3, (n, 1))
    rows[rows < 0.02] = 0.0
    rows[n // 2] = 0.0
    return rows


def every_field(found: ErrorBounds, logits: Any, target: Any, alpha: float, unit: float) -> None:
    expected = oracle.error_bounds(logits, target, alpha)
    for name in asdict(found).keys() & expected.keys():
        factor = FACTORS.get(name, lambda alpha, classes: 1.0)(alpha, found.classes)
        close(getattr(found, name), expected[name], rtol=ROUNDING, atol=ROUNDING * unit * factor)


# Every field


def test_fields_that_the_oracle_gives() -> None:
    logits, labels = batch()
    others = {"n", "classes", "alpha", "tightest_alpha", "log_tightest_upper_bound", "tightest_lower_alpha"}
    others |= {"log_tightest_lower_bound"}
    fields = set(asdict(error_bounds(logits, labels)))
    assert fields - set(oracle.error_bounds(logits, labels, 1.6)) == others


@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_every_field_is_the_papers_for_hard_labels(alpha: float, scale: float) -> None:
    logits, labels = batch(scale=scale)
    found = error_bounds(logits, labels, alpha=alpha)
    assert (found.n, found.classes, found.alpha) == (6, 4, alpha)
    unit = 1 + 2 * float(np.ptp(logits, 1).max()) + math.log(6)
    every_field(found, logits, labels, alpha, unit)
    one_hot = np.eye(4, dtype=int)[labels]
    for target in (
        labels[:, None],
        labels.astype(float),
        labels.astype(np.uint8),
        one_hot,
        one_hot == 1,
        7.0 * one_hot,
    ):
        same(error_bounds(logits, target, alpha=alpha), found)
    if alpha >= 2:
        assert found.reverse_divergence == INF
    assert found.log_comparison_lower_bound == found.log_lower_bound == found.log_printed_lower_bound == -INF
    assert found.log_tightest_lower_bound == -INF
    assert math.isnan(found.tightest_lower_alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("kind", ["weighted", "positive", "excluded class"])
def test_every_field_is_the_papers_for_soft_labels(kind: str, alpha: float) -> None:
    logits, rows = batch()[0], weights()
    if kind == "positive":
        rows = rows + 0.05
    if kind == "excluded class":
        logits[:, 1], rows[:, 1] = -INF, 0.0
    found = error_bounds(logits, rows, alpha=alpha)
    assert found.n == (6 if kind == "positive" else 5)
    every_field(found, logits, rows, alpha, unit=30.0)
    if kind == "positive" and alpha > 2:
        assert -INF < found.log_printed_lower_bound < found.log_lower_bound < found.log_comparison_lower_bound
        assert found.log_comparison_lower_bound < math.log(found.error) < found.log_comparison_upper_bound


@pytest.mark.parametrize("margin", [50.0, 700.0, 1000.0])
def test_margins_at_which_p_u_and_h_underflow(margin: float) -> None:
    logits = [[margin, 0.0, 0.0], [0.0, 0.0, margin + 1]]
    for target in ([0, 2], [0, 1], [[0.5, 0.0, 0.5], [0.2, 0.3, 0.5]]):
        for alpha in (1.6, 3.0):
            found = error_bounds(logits, target, alpha=alpha)
            expected = oracle.error_bounds(logits, target, alpha)
            for name in ("log_comparison_upper_bound", "log_upper_bound", "log_relaxed_bound"):
                close(getattr(found, name), expected[name], rtol=1e-14, atol=4 * EPS * margin)
            for name in ("error", "uncertainty", "conditional_entropy", "renyi_divergence", "reverse_divergence"):
                # The divergences are of a joint distribution whose logarithms hold that of the share of an example.
                close(
                    getattr(found, name), expected[name], rtol=1e-12, atol=4 * EPS if "divergence" in name else 1e-300
                )
            if target == [0, 2]:
                assert -INF < found.log_upper_bound < -margin / 3


def test_margins_leave_the_tightest_orders_right() -> None:
    right = error_bounds([[1000.0, 0.0, 0.0], [2000.0, 0.0, 0.0]], [0, 0], alpha=3.0)
    close(right.tightest_alpha, INF)
    # log H of the first, whose share is a half: H = 2 exp(-1000) (1000 + 1).
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
        # All ties are class 0, whatever the label: P_e is exactly as often as the label is another.
        found = error_bounds(np.zeros((4, classes)), [0, 1, 1, 1], alpha=1.6)
        assert found.error == 0.75
        close(found.uncertainty, 1 - 1 / classes)
        close(found.conditional_entropy, math.log(classes))
        close(found.cross_entropy, math.log(classes))
        # With D_1 = log M, no order does, but at M = 2 it is at the very edge.
        assert -4 * EPS <= found.log_tightest_upper_bound <= 0


def test_the_decision_is_the_largest_logit_even_where_the_softmax_ties() -> None:
    assert error_bounds([[0.0, 1e-20]], [1]).error == 0
    assert error_bounds([[0.0, 1e-20]], [0]).error == 1


# The inequalities

DRAWS = {2: 60, 3: 60, 10: 60, 100: 40, 1000: 25}


@pytest.mark.parametrize("alpha", [1.6, 2 + 1e-6, 3.0, 100.0])
@pytest.mark.parametrize("classes", DRAWS)
def test_every_inequality_on_random_joint_distributions(classes: int, alpha: float) -> None:
    draws = oracle.finite_joints(DRAWS[classes], 3, classes, seed=1)
    reverse, spoken = draws.divergence(alpha - 1, reverse=True) if alpha > 2 else np.full(draws.draws, INF), 0
    for i, unit in enumerate(ROUNDING * draws.magnitude):
        found = error_bounds(draws.log_q[i], np.exp(draws.log_mu[i]), alpha=alpha)
        log_error = draws.log_error[i]
        close(found.error, np.exp(log_error), rtol=unit, atol=4 * EPS)
        close(found.uncertainty, np.exp(draws.log_uncertainty[i]), rtol=unit)
        close(found.conditional_entropy, draws.entropy[i], rtol=unit)
        close(found.cross_entropy, draws.cross_entropy[i], rtol=unit)
        close(found.renyi_divergence, draws.divergence(alpha)[i], rtol=1e-14, atol=unit / (alpha - 1))
        if alpha > 2:
            close(found.reverse_divergence, reverse[i], rtol=1e-14, atol=unit / (alpha - 2))
        factor = unit * beta(classes) * (alpha / (alpha - 2) if alpha > 2 else 1.0)
        assert found.uncertainty <= 1 - 1 / classes + 4 * EPS
        assert found.log_printed_lower_bound <= found.log_lower_bound
        assert found.log_lower_bound <= found.log_comparison_lower_bound + factor
        assert found.log_comparison_lower_bound <= log_error + factor
        assert log_error <= found.log_comparison_upper_bound + unit
        assert found.log_comparison_upper_bound <= found.log_upper_bound + unit
        assert found.log_upper_bound <= found.log_relaxed_bound + unit
        assert log_error <= found.log_markov_bound + unit
        assert log_error <= found.log_tightest_upper_bound + unit
        assert found.log_tightest_upper_bound <= min(0.0, found.log_upper_bound + unit)
        assert found.log_lower_bound - factor <= found.log_tightest_lower_bound <= log_error + unit * beta(classes)
        spoken += found.log_tightest_upper_bound < 0
    assert spoken > 5


# The tightest orders


def upper_curve(draws: oracle.FiniteJoints, t: float) -> np.ndarray:
    """(1) at alpha = 1 / (1 - t), of t in [0, 1): t log[1 - exp(-H)] + (1 - t) log E[(p / q)^(alpha - 1)]."""
    with np.errstate(divide="ignore"):
        gap = np.log(-np.expm1(-draws.entropy))
    moment = draws.log_moment(t / (1 - t))
    return np.where(moment < INF, t * gap, 0.0) + (1 - t) * moment


def lower_curve(draws: oracle.FiniteJoints, order: float) -> np.ndarray:
    """(2) at alpha = 1 + order, of an order above 1."""
    with np.errstate(divide="ignore"):
        gap = np.log(-np.expm1(-draws.entropy))
    s = 1 / (order - 1)
    return (1 + s) * beta(draws.classes) * gap - s * draws.log_moment(order - 1, reverse=True)


@pytest.mark.parametrize("classes", [2, 5, 100])
def test_no_order_of_a_fine_grid_beats_the_tightest_ones(classes: int) -> None:
    draws = oracle.finite_joints(120, 2, classes, seed=2)
    steps = np.concatenate([np.linspace(0.001, 0.999, 999), 1 - np.logspace(-12, -3, 91)])
    upper = np.min([upper_curve(draws, step) for step in steps], axis=0)
    lower = np.max([lower_curve(draws, 1 + above) for above in np.logspace(-4, 12, 801)], axis=0)
    inside_upper = inside_lower = 0
    for i, unit in enumerate(ROUNDING * draws.magnitude):
        found = error_bounds(draws.log_q[i], np.exp(draws.log_mu[i]))
        best, order = found.log_tightest_upper_bound, found.tightest_alpha
        assert best <= min(upper[i], 0.0) + unit
        if 1 < order < INF:
            # It is attained where it is said to be, and the grid comes near it: no better value was made up.
            close(best, upper_curve(draws, (order - 1) / order)[i], rtol=0, atol=unit)
            close(best, upper[i], rtol=1e-4, atol=1e-4)
            inside_upper += 1
        best, order = found.log_tightest_lower_bound, found.tightest_lower_alpha
        unit *= beta(classes)
        assert best >= lower[i] - unit or best == lower[i]
        assert math.isnan(order) == (best == -INF)
        if 2 < order < INF:
            amplified = unit * (order - 1) / (order - 2)
            close(best, lower_curve(draws, order - 1)[i], rtol=0, atol=amplified)
            close(best, lower[i], rtol=1e-2, atol=1e-4)
            inside_lower += 1
    assert min(inside_upper, inside_lower) >= 3


def test_the_tightest_bounds_are_those_of_the_bounds_module() -> None:
    logits, rows = batch(n=8, classes=3, scale=1.0)[0], None
    rows = np.exp(1.2 * logits) / np.exp(1.2 * logits).sum(1, keepdims=True)
    found = error_bounds(logits, rows, alpha=3.0)
    at_best = error_bounds(logits, rows, alpha=found.tightest_alpha)
    assert 1 < found.tightest_alpha < INF
    close(at_best.log_upper_bound, found.log_tightest_upper_bound)
    close(
        error_upper_bound(at_best.conditional_entropy, at_best.renyi_divergence, alpha=found.tightest_alpha),
        found.log_tightest_upper_bound,
    )
    assert 2 < found.tightest_lower_alpha < INF
    at_best = error_bounds(logits, rows, alpha=found.tightest_lower_alpha)
    close(at_best.log_lower_bound, found.log_tightest_lower_bound)
    close(
        error_lower_bound(
            at_best.conditional_entropy, at_best.reverse_divergence, alpha=found.tightest_lower_alpha, classes=3
        ),
        found.log_tightest_lower_bound,
    )
    assert found.log_tightest_upper_bound < found.log_upper_bound
    assert found.log_tightest_lower_bound > found.log_lower_bound


def test_the_edge_at_which_some_order_brings_equation_1_below_1() -> None:
    # q = (0.9, 0.1), labels (1 - e, e): exactly where D_1 + log[1 - exp(-H)] is below 0.
    def criterion(e: float) -> float:
        h = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
        return e * math.log(e / 0.1) + (1 - e) * math.log((1 - e) / 0.9) + math.log(-math.expm1(-h))

    edge = brentq(criterion, 0.2, 0.9999, xtol=1e-15)
    logits = np.log([[0.9, 0.1]])
    below = error_bounds(logits, [[1 - edge * (1 - 1e-4), edge * (1 - 1e-4)]])
    above = error_bounds(logits, [[1 - edge * (1 + 1e-4), edge * (1 + 1e-4)]])
    # At a distance d the minimum of a parabola is in proportion to d, its depth to d^2.
    assert 1 + 1e-6 < below.tightest_alpha < 1 + 1e-3
    assert -1e-6 < below.log_tightest_upper_bound < -1e-12
    assert (above.tightest_alpha, above.log_tightest_upper_bound) == (1.0, 0.0)
    just_above = oracle.FiniteJoints(np.log([[[1 - edge * (1 + 1e-4), edge * (1 + 1e-4)]]]), np.log([[[0.9, 0.1]]]))
    for step in np.concatenate([np.logspace(-9, -1, 200), np.linspace(0.1, 0.999, 200)]):
        assert upper_curve(just_above, step) > 0


def test_the_tightest_order_at_its_ends() -> None:
    # p = q: no divergence at any order, so that (1) falls to the end: log[1 - exp(-H)].
    p = np.array([[0.7, 0.2, 0.1]])
    found = error_bounds(np.log(p), p, alpha=3.0)
    assert found.tightest_alpha == found.tightest_lower_alpha == INF
    gap = math.log(-math.expm1(-found.conditional_entropy))
    close(found.log_tightest_upper_bound, gap)
    close(found.log_tightest_lower_bound, beta(3) * gap)
    # Right and hard: the largest log p / q is - log 0.7.
    found = error_bounds(np.log(p), [0])
    assert found.tightest_alpha == INF
    close(found.log_tightest_upper_bound, gap - math.log(0.7))
    # Wrong: none.
    found = error_bounds(np.log(p), [1])
    assert (found.tightest_alpha, found.log_tightest_upper_bound) == (1.0, 0.0)


def test_the_orders_in_use_do_not_depend_on_alpha() -> None:
    logits, rows = batch()[0], weights() + 0.05
    first, second = (error_bounds(logits, rows, alpha=alpha) for alpha in (1.2, 7.0))
    for name in ("tightest_alpha", "log_tightest_upper_bound", "tightest_lower_alpha", "log_tightest_lower_bound"):
        assert getattr(first, name) == getattr(second, name)
    assert error_bounds(logits, rows) == error_bounds(logits, rows, alpha=1.6)


def test_equation_1_is_that_of_the_loss_terms() -> None:
    logits, labels = batch()
    for alpha in (1.1, 1.6, 4.0):
        entropy, divergence = hr_loss_terms(torch.from_numpy(logits), torch.from_numpy(labels), alpha=alpha)
        found = error_bounds(logits, labels, alpha=alpha)
        close(found.log_upper_bound, error_upper_bound(entropy, divergence / alpha, alpha=alpha))
        close(found.conditional_entropy, entropy)
        close(alpha * found.renyi_divergence, divergence)


# Invariances


@pytest.mark.parametrize("alpha", [1.6, 3.0])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_what_must_not_matter(soft: bool, alpha: float) -> None:
    logits, labels = batch()
    target = weights() + 0.05 if soft else labels
    found = error_bounds(logits, target, alpha=alpha)
    random = np.random.default_rng(0)
    rows, names = random.permutation(len(logits)), random.permutation(4)
    renamed = target[:, names] if soft else np.argsort(names)[labels]
    same(error_bounds(logits + 2.0 ** np.arange(6)[:, None], target, alpha=alpha), found)
    same(error_bounds(logits[rows], target[rows], alpha=alpha), found)
    same(error_bounds(logits[:, names], renamed, alpha=alpha), found)
    for kind in (logits.astype(np.float32), torch.from_numpy(logits).requires_grad_(), logits.tolist()):
        same(error_bounds(kind, target, alpha=alpha), found, rtol=0, atol=0)
    same(error_bounds(logits, torch.from_numpy(target), alpha=alpha), found, rtol=0, atol=0)
    twice = error_bounds(np.tile(logits, (2, 1)), np.concatenate([target, target]), alpha=alpha)
    assert twice.n == 2 * found.n
    same(ErrorBounds(**{**asdict(twice), "n": found.n}), found)
    if soft:
        same(error_bounds(logits, 5 * target, alpha=alpha), found)


def test_an_example_of_weight_0_does_not_count() -> None:
    logits, rows = batch()[0], weights()
    kept = rows.sum(1) > 0
    assert not kept.all()
    same(error_bounds(logits, rows, alpha=3.0), error_bounds(logits[kept], rows[kept], alpha=3.0), rtol=0, atol=0)


def test_a_weight_is_as_good_as_copies() -> None:
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


def test_float64_images_of_arts_classifier(art_classifier: Callable[..., Any], digits: Any) -> None:
    classifier = art_classifier()
    images, labels = digits.x_test[:40], digits.y_test[:40]
    assert error_bounds(classifier, images.astype(np.float64), labels) == error_bounds(classifier, images, labels)


@pytest.mark.parametrize(
    ("last_layer", "scale", "message"),
    [
        (torch.nn.Softmax(dim=1), 1.0, "take the softmax out"),
        (torch.nn.AlphaDropout(0.5), 1.0, "deterministic"),
        (torch.nn.Threshold(1e9, math.inf), 1.0, "finite logits"),
        (torch.nn.Identity(), math.nan, "images to be finite"),
        (torch.nn.Identity(), 255.0, "inside clip_values"),
    ],
    ids=["probabilities", "random network", "infinite logits", "NaN in the images", "images as bytes"],
)
def test_a_classifier_that_no_bound_can_be_based_on_is_refused(
    hr_classifier: Callable[..., HRClassifier],
    trained_network: Any,
    digits: Any,
    last_layer: torch.nn.Module,
    scale: float,
    message: str,
) -> None:
    network = torch.nn.Sequential(trained_network, AlwaysTraining(last_layer))
    with pytest.raises(ValueError, match=message):
        error_bounds(hr_classifier(network=network), scale * digits.x_test[:50], digits.y_test[:50])


class AlwaysTraining(torch.nn.Module):
    """A layer that evaluation mode does not reach."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def train(self, mode: bool = True) -> "AlwaysTraining":
        return super().train(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


# Bad input

LOGITS, LABELS = np.zeros((2, 3)), np.array([0, 1])
BAD: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "one argument": ((LOGITS,), {}, TypeError, r"expected \(logits, labels\) or \(classifier, x, .* got \(ndarray\)"),
    "no argument": ((), {}, TypeError, r"but got \(\)"),
    "three arrays": ((LOGITS, LOGITS, LABELS), {}, TypeError, r"but got \(ndarray, ndarray, ndarray\)"),
    "alpha 1": ((LOGITS, LABELS), {"alpha": 1}, ValueError, "expected alpha above 1, for .* but got 1"),
    "alpha 0.5": ((LOGITS, LABELS), {"alpha": 0.5}, ValueError, "expected alpha above 1, for .* but got 0.5"),
    "alpha inf": ((LOGITS, LABELS), {"alpha": INF}, ValueError, "expected alpha to be finite"),
    "alpha text": ((LOGITS, LABELS), {"alpha": "2"}, TypeError, "expected alpha to be a number, but got str"),
    "logits of one example": ((LOGITS[0], [0]), {}, ValueError, r"logits of shape \(n, M\) .*, but got \(3,\)"),
    "logits of 3 axes": ((np.zeros((2, 3, 4)), LABELS), {}, ValueError, r"but got \(2, 3, 4\)"),
    "one class": ((np.zeros((2, 1)), [0, 0]), {}, ValueError, r"with M at least 2, but got \(2, 1\)"),
    "logits nan": (([[0.0, math.nan]], [0]), {}, ValueError, "expected logits that are finite, or -inf for some"),
    "logits inf": (([[0.0, INF]], [0]), {}, ValueError, "expected logits that are finite, or -inf for some"),
    "a row of -inf": (([[0.0, 1.0], [-INF, -INF]], [0, 0]), {}, ValueError, "expected logits that are finite, or -inf"),
    "too few labels": ((LOGITS, [0]), {}, ValueError, r"class indices, .* of shape \(2,\) .*, but got shape \(1,\)"),
    "class too high": ((LOGITS, [0, 3]), {}, ValueError, "whole numbers from 0 to 2, .* but got values from 0 to 3"),
    "negative row": ((LOGITS, [[1.0, -0.1, 0.1]] * 2), {}, ValueError, "numbers below 0"),
    "no weight": ((LOGITS, np.zeros((2, 3))), {}, ValueError, "at least one example .* but got none in 2"),
    "no example": ((np.zeros((0, 3)), np.zeros(0)), {}, ValueError, "at least one example of .* but got none in 0"),
}


@pytest.mark.parametrize(("arguments", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        error_bounds(*arguments, **options)


def test_a_classifier_needs_x_and_labels(hr_classifier: Callable[..., HRClassifier]) -> None:
    with pytest.raises(TypeError, match=r"or \(classifier, x, labels\), but got \(HRClassifier, ndarray\)"):
        error_bounds(hr_classifier(), LABELS)


def test_rows_that_happen_to_sum_to_1_are_logits_where_logits_are_passed() -> None:
    assert error_bounds([[0.5, 0.5], [1.0, 0.0]], [0, 0]).conditional_entropy > 0.6


# The readable form

EXPECTED_SOFT = """\
Proposition 1: 1 examples, 2 classes, alpha = 3
P_e, the error probability             0.5
P_u, the uncertainty                   0.25
H(Y^|X), in nats                       0.5623
CE, the cross-entropy, in nats         0.837
D_alpha(p_XY || p_XY^), in nats        0.1331
D_(alpha - 1)(p_XY^ || p_XY), in nats  0.1116
P_e is at most
  by P_u (5)                           0.5179
  by H(Y^|X) (1)                       0.7436
  by the HR loss (11)                  0.9747
  by (1) at its best alpha             0.7421, alpha = 2.695
  by CE / log 2 (Markov)               1.208, vacuous
P_e is at least
  by P_u (5)                           0.05
  by H(Y^|X) (2)                       0.02144
  by (2) as printed                    0.00351
  by (2) at its best alpha             0.1091, alpha = inf"""
EXPECTED_VACUOUS = """\
Proposition 1: 1 examples, 2 classes, alpha = 1.6
P_e, the error probability             1
P_u, the uncertainty                   0.25
H(Y^|X), in nats                       0.5623
CE, the cross-entropy, in nats         1.386
D_alpha(p_XY || p_XY^), in nats        0.8664
D_(alpha - 1)(p_XY^ || p_XY), in nats  3.466
P_e is at most
  by P_u (5)                           1, vacuous
  by H(Y^|X) (1)                       1.226, vacuous
  by the HR loss (11)                  1.427, vacuous
  by (1) at its best alpha             1, vacuous
  by CE / log 2 (Markov)               2, vacuous
P_e is at least
  by P_u (5)                           0, vacuous
  by H(Y^|X) (2)                       0, vacuous
  by (2) as printed                    0, vacuous
  by (2) at its best alpha             0, vacuous"""


def test_readable_form_of_soft_labels() -> None:
    # q = (1/4, 3/4) and p = (1/2, 1/2), whose figures are those of the paper's equations by hand.
    found = error_bounds([[0.0, math.log(3)]], [[0.5, 0.5]], alpha=3.0)
    close(found.renyi_divergence, math.log(0.5**3 * 4**2 * (1 + 1 / 9)) / 6)
    close(found.reverse_divergence, math.log(2 * (1 + 9) / 16) / 2)
    assert str(found) == EXPECTED_SOFT


def test_readable_form_of_vacuous_bounds() -> None:
    assert str(error_bounds([[0.0, math.log(3)]], [0])) == EXPECTED_VACUOUS


def test_readable_form_of_a_bound_beyond_the_largest_number() -> None:
    text = str(error_bounds([[5000.0, 0.0, 0.0]], [1], alpha=3.0))
    assert "by the HR loss (11)                  inf, vacuous\n" in text


def test_readable_form_of_zeros() -> None:
    text = str(error_bounds([[0.0, -INF]], [0], alpha=3.0))
    assert "D_alpha(p_XY || p_XY^), in nats        0\n" in text
    assert "by (1) at its best alpha             0, alpha = inf\n" in text
    assert "by (2) at its best alpha             0, vacuous" in text
    assert "-0" not in text


def test_as_a_frame_and_as_html() -> None:
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
    # (2) says nothing at an alpha of at most 2.
    lower = bounds.loc["lower bound", "by H(Y^|X) (2)"]
    assert (lower["value"], lower["log_value"], bool(lower["vacuous"])) == (0.0, -math.inf, True)
    error = frame.set_index("name").loc["P_e, the error probability"]
    assert (error["value"], error["log_value"], bool(error["vacuous"])) == (0.0, -math.inf, False)
    assert result._repr_html_().count("<tr>") == len(str(result).splitlines())  # the title is none, the header is one
