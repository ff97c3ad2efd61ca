"""Tests of the formulas of Proposition 1 against the equations in 100 digits: values, limits and derivatives."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from testing import oracle
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from art_hrloss.bounds import (
    beta,
    error_lower_bound,
    error_upper_bound,
    fano_bound,
    fano_inverse,
    probability_comparison_bounds,
    relaxed_upper_bound,
    uncertainty,
)
from art_hrloss.losses._functional import hr_loss_terms

INF = math.inf
EPS = float(np.finfo(np.float64).eps)
ALPHAS = [1 + 1e-6, 1.01, 1.6, 2.0, 2 + 1e-6, 2.1, 3.0, 10.0, 1e3, 1e6]

# The rounding error of a log-probability L is eps |L| / 2, which is also the relative error of its exponential, and of
# the logarithm of a sum of exponentials. Each bound has about ten roundings and sums of up to 3000 terms: 32 eps for
# every unit of its logarithms, times their factor.
ROUNDING = 32 * EPS


def t(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def close(actual: Any, expected: Any, rtol: float = 1e-14) -> None:
    torch.testing.assert_close(t(actual).detach(), t(expected), rtol=rtol, atol=0.0)


@pytest.mark.parametrize("classes", [2, 3, 5, 10, 20, 100, 300, 1000, 10**6])
def test_beta_is_the_smallest_constant_of_equation_10(classes: int) -> None:
    # Near the maximum log[1 - exp(-q)] is above -1/M: the logarithm of a number near 1, rounded by eps / 2.
    close(beta(classes), oracle.beta(classes), rtol=max(1e-14, EPS * classes))


# The formulas


@pytest.mark.parametrize("alpha", ALPHAS)
def test_bounds_equal_their_formulas_for_numbers_and_tensors(alpha: float) -> None:
    entropies, divergences = [1e-300, 1e-9, 0.3, math.log(10)], [0.0, 0.2, 40.0]
    for h in entropies:
        gap = float(oracle.log_gap(h))
        for d in divergences:
            unit = ROUNDING * (1 - gap + alpha * d)
            upper = error_upper_bound(h, d, alpha=alpha)
            assert abs(upper - ((alpha - 1) / alpha * gap + (alpha - 1) * d)) <= unit
            assert abs(relaxed_upper_bound(h + d, alpha=alpha) - (alpha - 1) / alpha * (h + d - 1)) <= unit
            assert error_upper_bound(t(h), t(d), alpha=alpha) == upper
            comparison = probability_comparison_bounds(gap, d, d, alpha=alpha)
            assert abs(comparison.upper - upper) <= unit
            assert comparison.lower == -INF or alpha > 2
            if alpha > 2:
                below = (alpha - 1) / (alpha - 2) * gap - (alpha - 1) * d
                assert abs(comparison.lower - below) <= unit * alpha / (alpha - 2)
                factor = float(oracle.beta(10)) / (alpha - 2)
                for reading, times in (("derived", alpha - 1), ("printed", alpha)):
                    lower = error_lower_bound(h, d, alpha=alpha, classes=10, reading=reading)
                    assert abs(lower - (factor * times * gap - (alpha - 1) * d)) <= unit * (1 + factor * alpha)
                    assert error_lower_bound(t(h), t(d), alpha=alpha, classes=10, reading=reading) == lower


def test_bounds_broadcast_and_numbers_are_float64() -> None:
    h, d = t([0.1, 0.5, 1.0]), t([[0.2], [3.0]])
    for function in (
        lambda a, b: error_upper_bound(a, b, alpha=1.6),
        lambda a, b: error_lower_bound(a, b, alpha=3, classes=5),
        lambda a, b: probability_comparison_bounds(-a, b, 0.7, alpha=3).upper,
        lambda a, b: probability_comparison_bounds(-a, 0.7, b, alpha=3).lower,
    ):
        table = function(h, d)
        assert table.shape == (2, 3)
        for i, row in enumerate(d):
            for j, column in enumerate(h):
                number = function(float(column), float(row))
                assert number.dtype == torch.float64
                assert number.shape == ()
                assert number == table[i, j]
    assert relaxed_upper_bound(h, alpha=1.6).shape == (3,)
    assert relaxed_upper_bound(1.0, alpha=1.6).dtype == torch.float64
    assert error_upper_bound(torch.tensor(0.5), torch.tensor(0.1), alpha=1.6).dtype == torch.float32


def test_bounds_at_their_limits() -> None:
    assert probability_comparison_bounds(-INF, 0.5, 0.5, alpha=3) == (-INF, -INF)
    assert probability_comparison_bounds(-INF, INF, INF, alpha=3) == (-INF, INF)
    assert probability_comparison_bounds(-1.0, INF, INF, alpha=1.6) == (-INF, INF)
    assert probability_comparison_bounds(-1.0, 0.5, 0.5, alpha=2.0).lower == -INF
    assert probability_comparison_bounds(-1.0, 0.5, alpha=3).lower == -INF
    assert error_upper_bound(0.0, INF, alpha=1.6) == INF
    assert error_upper_bound(0.0, 3.0, alpha=1.6) == -INF
    assert error_lower_bound(0.0, 3.0, alpha=3, classes=2) == -INF
    assert error_lower_bound(0.5, INF, alpha=3, classes=2) == -INF
    assert relaxed_upper_bound(INF, alpha=1.6) == INF
    # (5) holds for every event, also for events of probability 0 or 1.
    assert probability_comparison_bounds(0.0, 0.0, 0.0, alpha=3) == (0.0, 0.0)


def test_uncertainty_keeps_its_precision_and_takes_every_shape() -> None:
    close(uncertainty(t([40.0, 0.0, 0.0])), 2 * math.exp(-40) / (1 + 2 * math.exp(-40)))
    close(uncertainty(t([700.0, 0.0])), math.exp(-700), rtol=1e-12)
    close(uncertainty(torch.zeros(4, 5, dtype=torch.float64)), 0.8)
    logits = t(np.random.default_rng(0).normal(size=(4, 5, 3)))
    rows = logits.movedim(1, -1).reshape(-1, 5)
    close(uncertainty(logits), 1 - rows.softmax(1).amax(1).mean())
    assert uncertainty(t([[0.0, -INF]])) == 0
    assert uncertainty(torch.zeros(2, 2)).dtype == torch.float32
    assert gradcheck(uncertainty, t(rows).requires_grad_())
    with pytest.raises(TypeError, match=r"expected a floating-point tensor, but got torch.int64"):
        uncertainty(torch.zeros(2, 2, dtype=torch.long))


# Fano's q and its inverse

FANO_CLASSES = [2, 3, 10, 1000, 10**6]


@pytest.mark.parametrize("classes", FANO_CLASSES)
def test_fano_bound_is_equation_9(classes: int) -> None:
    for p in (1e-300, 1e-20, 1e-3, 0.1, 0.5, 1 - 1 / classes, 0.999999, 1.0):
        # Near 1, 1 - p has full precision, because p is the argument itself.
        close(fano_bound(p, classes), oracle.fano_bound(p, classes))
    assert fano_bound(0.0, classes) == 0
    assert fano_bound(t([[0.1, 0.2]]), classes).shape == (1, 2)
    close(fano_bound(torch.tensor(0.1), classes), oracle.fano_bound(np.float32(0.1), classes), rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 10, 10**6])
def test_fano_inverse_is_the_inverse_to_1e_12(classes: int) -> None:
    largest, log_m = float(fano_bound(1 - 1 / classes, classes)), math.log(classes)
    entropies = [1e-300, 1e-30, 1e-3, 0.1, 0.5, 0.99]
    entropies = [h * log_m for h in entropies] + [log_m, 0.5 * (log_m + largest), largest * (1 - 1e-9), largest]
    for h in entropies:
        actual = float(fano_inverse(h, classes))
        # q' is small at 1 - 1/M, so that float64 cannot distinguish the roots for entropies that differ in the
        # last digits: the root must lie between those for h (1 - 4 eps) and h (1 + 4 eps), or within 1e-12.
        low, high = (float(oracle.fano_inverse(h, classes, change)) for change in (-4 * EPS, 4 * EPS))
        assert low * (1 - 1e-12) <= actual <= high * (1 + 1e-12)
        if h <= log_m:  # as for every conditional entropy
            close(actual, oracle.fano_inverse(h, classes), rtol=1e-12)


@pytest.mark.parametrize("classes", FANO_CLASSES)
def test_fano_inverse_of_fano_bound_is_the_probability(classes: int) -> None:
    last = 1 - 1 / classes
    p = torch.cat([torch.logspace(-300, -1, 300, dtype=torch.float64), torch.linspace(0.1, last, 300).double()])
    p = p.clamp(max=last)
    h = fano_bound(p, classes)
    back = fano_inverse(h, classes)
    close(fano_bound(back, classes), h)
    slope = (1 - p).log() - p.log() + math.log(classes)
    well = slope * p > 0.01 * h
    assert well.sum() > 400
    close(back[well], p[well], rtol=1e-12)
    assert (back.diff() >= 0).all()
    single = h[300:550].float()
    close(fano_inverse(single, classes), fano_inverse(single.double(), classes), rtol=2e-6)
    assert fano_inverse(h.reshape(6, 100), classes).shape == (6, 100)
    assert (back <= last).all()


@pytest.mark.parametrize("classes", FANO_CLASSES)
def test_fano_derivatives(classes: int) -> None:
    bound = partial(fano_bound, classes=classes)
    p = t([1e-3, 0.1, 0.4]).requires_grad_()
    assert gradcheck(bound, p)
    assert gradgradcheck(bound, p)
    # Closed forms: q' = log((1 - p) / p) + log M and q'' = -1 / (p (1 - p)); for the inverse, 1 / q' and -q'' / q'^3.
    h = t([1e-290, 1e-9, 0.3, math.log(classes)]).requires_grad_()
    p = fano_inverse(h, classes)
    (first,) = torch.autograd.grad(p.sum(), h, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), h)
    p = p.detach()
    slope = (1 - p).log() - p.log() + math.log(classes)
    close(first, 1 / slope, rtol=1e-8)
    close(second[1:], (1 / (p * (1 - p) * slope**3))[1:], rtol=1e-6)


def test_fano_inverse_of_0_is_0_without_a_gradient() -> None:
    for dtype in (torch.float64, torch.float32):
        h = torch.tensor([[0.0, 0.5]], dtype=dtype, requires_grad=True)
        p = fano_inverse(h, 10)
        (gradient,) = torch.autograd.grad(p.sum(), h)
        assert p[0, 0] == 0
        assert gradient[0, 0] == 0
        assert p.dtype == gradient.dtype == dtype
        assert gradient[0, 1] > 0
    assert fano_inverse(0, 10) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_fano_inverse_of_the_smallest_numbers(dtype: torch.dtype) -> None:
    h = torch.tensor([torch.finfo(dtype).tiny * times for times in (4.0, 1.0, 0.25, 1e-3, 1e-6)], dtype=dtype)
    h[-1] = torch.nextafter(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype))
    p = fano_inverse(h, 10)
    assert ((p >= 0) & (p <= h)).all()
    assert (p[:2] > 0).all()


def test_fano_bound_near_0_and_1() -> None:
    p = t([0.0, 1.0]).requires_grad_()
    (gradient,) = torch.autograd.grad(fano_bound(p, 10).sum(), p)
    assert gradient.tolist() == [INF, -INF]


# Bad input


@pytest.mark.parametrize(
    "call",
    [
        lambda: fano_bound(t([0.5, 1.5]), 3),
        lambda: fano_bound(-0.1, 3),
        lambda: fano_bound(math.nan, 3),
        lambda: fano_inverse(t([0.1, 1.4]), 3),
        lambda: fano_inverse(-1e-9, 3),
        lambda: fano_inverse(math.nan, 3),
        lambda: beta(1),
        lambda: beta(2.5),  # type: ignore[arg-type]
        lambda: fano_bound(0.5, True),
        lambda: fano_inverse(0.1, 0),
        lambda: error_lower_bound(0.1, 0.1, alpha=3, classes=1),
        lambda: error_upper_bound(0.1, 0.1, alpha=1),
        lambda: probability_comparison_bounds(-0.1, 0.1, alpha=0.5),
        lambda: relaxed_upper_bound(0.1, alpha=1.0),
        lambda: error_lower_bound(0.1, 0.1, alpha=2, classes=3),
        lambda: error_upper_bound(0.1, 0.1, alpha=math.nan),
        lambda: error_upper_bound(0.1, 0.1, alpha=INF),
        lambda: error_upper_bound(-0.1, 0.1, alpha=2),
        lambda: error_lower_bound(math.nan, 0, alpha=3, classes=2),
        lambda: error_lower_bound(0.1, 0.1, alpha=3, classes=3, reading="print"),  # type: ignore[arg-type]
    ],
)
def test_arguments_out_of_range_raise_an_error(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"expected .* but got"):
        call()


# Gradients


@pytest.mark.parametrize("alpha", [1.01, 1.6, 2.5, 30.0])
def test_bounds_are_differentiable_by_entropy_and_divergence(alpha: float) -> None:
    h, d, reverse = (t(values).requires_grad_() for values in ([0.01, 0.4, 1.0], [0.2, 0.0, 3.0], [0.3, 1.0, 0.1]))
    cases: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (lambda a, b: error_upper_bound(a, b, alpha=alpha), (h, d)),
        (lambda a, b, c: sum(probability_comparison_bounds(-a, b, c, alpha=3)), (h, d, reverse)),
        (lambda a: relaxed_upper_bound(a, alpha=alpha), (h,)),
    ]
    if alpha > 2:
        for reading in ("derived", "printed"):
            function = partial(error_lower_bound, alpha=alpha, classes=4, reading=reading)
            cases.append((function, (h, reverse)))
    for function, inputs in cases:
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("alpha", [1.6, 3.0])
def test_an_infinite_divergence_gives_no_nan_gradients(alpha: float) -> None:
    h, d = t([0.5, 0.5]).requires_grad_(), t([INF, 0.3]).requires_grad_()
    functions = [lambda: error_upper_bound(h, d, alpha=alpha), lambda: relaxed_upper_bound(h + d, alpha=alpha)]
    if alpha > 2:
        functions.append(lambda: error_lower_bound(h, d, alpha=alpha, classes=3))
    for function in functions:
        gradients = torch.autograd.grad(function().sum(), (h, d), allow_unused=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
    # For a wrong one-hot output (H = 0, D = inf) the bound (1) is vacuous; for a correct one (H = 0) it is -inf.
    for divergence, expected in ((INF, 0.0), (0.5, INF)):
        h, d = t(0.0).requires_grad_(), t(divergence).requires_grad_()
        gradients = torch.autograd.grad(error_upper_bound(h, d, alpha=alpha), (h, d))
        assert gradients[0] == expected
        close(gradients[1], alpha - 1)
    logits = t([[0.0, -INF, -INF], [0.0, 1.0, -INF]]).requires_grad_()
    (gradient,) = torch.autograd.grad(uncertainty(logits), logits)
    assert (gradient[0] == 0).all()
    close(gradient[1, :2], np.array([1, -1]) * math.e / (1 + math.e) ** 2 / 2)


def test_equation_1_as_a_loss_of_logits() -> None:
    random = np.random.default_rng(0)
    logits, labels = t(random.normal(size=(6, 4))).requires_grad_(), torch.from_numpy(random.integers(4, size=6))
    soft = t(random.dirichlet(np.ones(4), size=6))

    def bound(z: Tensor, target: Tensor, alpha: float) -> Tensor:
        entropy, divergence = hr_loss_terms(z, target, alpha=alpha)
        return error_upper_bound(entropy, divergence / alpha, alpha=alpha)

    for target in (labels, soft):
        for alpha in (1.1, 1.6, 4.0):
            close(
                bound(logits, target, alpha),
                oracle.error_bounds(logits.detach(), target, alpha)["log_upper_bound"],
                rtol=1e-12,
            )
            assert gradcheck(lambda z, y=target, a=alpha: bound(z, y, a), logits)
