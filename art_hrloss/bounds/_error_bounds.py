"""Proposition 1 for a classifier on labelled data: its error probability, and all that the bounds say of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from art_hrloss.bounds._formulas import beta, probability_comparison_bounds, relaxed_upper_bound
from art_hrloss.losses._functional import hr_loss_terms, renyi_divergence
from art_hrloss.losses._numerics import are_distributions, entropy, log_entropy, log_of_others, log_softmax
from art_hrloss.losses._validation import check_alpha

Array = npt.NDArray[Any] | Tensor


@dataclass(frozen=True)
class ErrorBounds:
    """
    What Proposition 1 says of one classifier on one set of labelled examples; entropy and divergences in nats.

    ``str()`` is a readable table, with the bounds as probabilities.
    """

    n: int
    """Examples."""
    classes: int
    """M."""
    alpha: float
    """The order of the divergences and of the bounds, but for the tightest ones."""
    error: float
    """P_e, the error probability."""
    uncertainty: float
    """P_u (6)."""
    conditional_entropy: float
    """H(Y^|X)."""
    cross_entropy: float
    """E[-log q(Y|X)]."""
    renyi_divergence: float
    """D_alpha(p_XY || p_XY^) as in (4), not times alpha."""
    reverse_divergence: float
    """D_(alpha - 1)(p_XY^ || p_XY). For alpha >= 2, inf where a class that a label excludes has any probability."""
    log_comparison_upper_bound: float
    """(5): the upper bound on log P_e from P_u itself."""
    log_comparison_lower_bound: float
    """(5): the lower bound on log P_e from P_u itself; -inf where (2) is."""
    log_upper_bound: float
    """(1): an upper bound on log P_e; above 0 it says nothing."""
    log_relaxed_bound: float
    """(11): the upper bound on log P_e that the HR loss alone gives."""
    log_markov_bound: float
    """No part of the paper: CE / log 2, by Markov's inequality, since a label that is not f(X) has at most 1/2."""
    log_lower_bound: float
    """(2) as derived: a lower bound on log P_e; at -inf, as for every alpha of at most 2, it says nothing."""
    log_printed_lower_bound: float
    """(2) as printed."""
    tightest_alpha: float
    """The order in [1, inf] at which (1) is tightest; 1 where none brings it below 1."""
    log_tightest_upper_bound: float
    """(1) at that order; 0 where that is 1."""
    tightest_lower_alpha: float
    """The order in [2, inf] at which (2) as derived is tightest; NaN where none makes it say anything."""
    log_tightest_lower_bound: float
    """(2) at that order."""

    def __str__(self) -> str:
        rows = [
            ("P_e, the error probability", _number(self.error)),
            ("P_u, the uncertainty", _number(self.uncertainty)),
            ("H(Y^|X), in nats", _number(self.conditional_entropy)),
            ("CE, the cross-entropy, in nats", _number(self.cross_entropy)),
            ("D_alpha(p_XY || p_XY^), in nats", _number(self.renyi_divergence)),
            ("D_(alpha - 1)(p_XY^ || p_XY), in nats", _number(self.reverse_divergence)),
            ("P_e is at most", ""),
            ("  by P_u (5)", _upper(self.log_comparison_upper_bound)),
            ("  by H(Y^|X) (1)", _upper(self.log_upper_bound)),
            ("  by the HR loss (11)", _upper(self.log_relaxed_bound)),
            ("  by (1) at its best alpha", _upper(self.log_tightest_upper_bound, self.tightest_alpha)),
            ("  by CE / log 2 (Markov)", _upper(self.log_markov_bound)),
            ("P_e is at least", ""),
            ("  by P_u (5)", _lower(self.log_comparison_lower_bound)),
            ("  by H(Y^|X) (2)", _lower(self.log_lower_bound)),
            ("  by (2) as printed", _lower(self.log_printed_lower_bound)),
            ("  by (2) at its best alpha", _lower(self.log_tightest_lower_bound, self.tightest_lower_alpha)),
        ]
        title = f"Proposition 1: {self.n} examples, {self.classes} classes, alpha = {self.alpha:g}"
        width = max(len(name) for name, _ in rows)
        return "\n".join([title, *(f"{name:{width}}  {value}".rstrip() for name, value in rows)])


@overload
def error_bounds(logits: Array, labels: Array, /, *, alpha: float = 1.6) -> ErrorBounds: ...
@overload
def error_bounds(classifier: Any, x: Array, labels: Array, /, *, alpha: float = 1.6) -> ErrorBounds: ...
def error_bounds(*arguments: Any, alpha: float = 1.6) -> ErrorBounds:
    """
    The error probability of a classifier on labelled data, and every bound of Proposition 1 on it, in float64.

    Either ``error_bounds(logits, labels)`` or ``error_bounds(classifier, x, labels)``. P_e is the error rate on these
    examples, and p_XY their empirical distribution: the bounds explain an error that is known, and promise nothing of
    other data.

    :param logits: Shape ``(n, M)``; a class at -inf is one that never occurs.
    :param classifier: An ART classifier whose `predict` gives logits, as it does for a network made for HRLoss.
    :param x: What it is to predict.
    :param labels: Class indices, shape ``(n,)`` or ``(n, 1)``; or one-hot labels or probabilities, shape ``(n, M)``,
           where a row's sum is the example's weight.
    :param alpha: The order, above 1; the lower bound (2) says nothing unless it is above 2.
    :raises TypeError: If the arguments are neither of the two.
    :raises ValueError: If a shape or a value is out of its range, or `predict` gives probabilities.
    """
    if check_alpha(alpha) <= 1:
        raise ValueError(f"expected alpha above 1, for which Proposition 1 holds, but got {alpha}")
    joint = _Joint(*_checked(arguments))
    divergence, reverse = joint.divergence(alpha), joint.reverse_divergence(alpha - 1)
    # (1) and (2) are (5) with what H(Y^|X) says of P_u in the place of P_u.
    log_gap, exponent = joint.log_gap, beta(joint.classes)
    by_uncertainty, by_entropy, by_fano, as_printed = (
        probability_comparison_bounds(log_u, divergence, reverse, alpha=alpha)
        for log_u in (joint.log_uncertainty, log_gap, exponent * log_gap, exponent * log_gap * alpha / (alpha - 1))
    )
    hr_loss = joint.conditional_entropy + alpha * divergence
    tightest_alpha, tightest_upper = _tightest_upper(joint, log_gap)
    tightest_lower_alpha, tightest_lower = _tightest_lower(joint, exponent * log_gap)
    return ErrorBounds(
        n=len(joint.log_q),
        classes=joint.classes,
        alpha=float(alpha),
        error=joint.error,
        uncertainty=math.exp(joint.log_uncertainty),
        conditional_entropy=joint.conditional_entropy,
        cross_entropy=joint.cross_entropy,
        renyi_divergence=divergence,
        reverse_divergence=reverse,
        log_comparison_upper_bound=float(by_uncertainty.upper),
        log_comparison_lower_bound=float(by_uncertainty.lower),
        log_upper_bound=float(by_entropy.upper),
        log_relaxed_bound=float(relaxed_upper_bound(hr_loss, alpha=alpha)),
        log_markov_bound=math.log(joint.cross_entropy / math.log(2)) if joint.cross_entropy else -math.inf,
        log_lower_bound=float(by_fano.lower),
        log_printed_lower_bound=float(as_printed.lower),
        tightest_alpha=tightest_alpha,
        log_tightest_upper_bound=tightest_upper,
        tightest_lower_alpha=tightest_lower_alpha,
        log_tightest_lower_bound=tightest_lower,
    )


class _Joint:
    """The joint distributions of example and class, the data's p_XY and the classifier's p_XY^, in float64."""

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        """Of logits and of the labels' weights, both of shape (n, M), no row of the weights without weight."""
        mass = labels.sum(1, keepdim=True)
        self.classes = logits.shape[1]
        self._logits, self._labels = logits, labels
        self.log_q, self._log_p, self._log_x = log_softmax(logits), (labels / mass).log(), (mass / mass.sum()).log()
        self._labelled = labels > 0
        self.error = float(labels.scatter(1, logits.argmax(1, keepdim=True), 0.0).sum() / mass.sum())
        self.cross_entropy = -float((labels / mass.sum() * self.log_q)[self._labelled].sum())
        self.log_uncertainty = self._log_mean(log_of_others(self.log_q))
        self.conditional_entropy = float((mass / mass.sum()).squeeze(1) @ entropy(self.log_q))

    @property
    def log_gap(self) -> float:
        """log[1 - exp(-H)]: for a small H, even for one that underflows, it is log H."""
        h = self.conditional_entropy
        return math.log(-math.expm1(-h)) if h > 1e-30 else self._log_mean(log_entropy(self.log_q))

    def divergence(self, order: float) -> float:
        """D_order(p_XY || p_XY^), as the loss has it."""
        return float(hr_loss_terms(self._logits, self._labels, alpha=order).renyi_divergence) / order

    def reverse_divergence(self, order: float) -> float:
        """D_order(p_XY^ || p_XY)."""
        log_mu, log_nu = ((self._log_x + log).flatten() for log in (self._log_p, self.log_q))
        return float(renyi_divergence(log_nu, log_mu, alpha=order))

    def largest_log_ratio(self) -> float:
        """The limit of alpha D_alpha(p_XY || p_XY^) for alpha to infinity."""
        return float((self._log_p - self.log_q)[self._labelled].max())

    def largest_reverse_log_ratio(self) -> float:
        """That of alpha D_alpha(p_XY^ || p_XY)."""
        return float((self.log_q - self._log_p)[~self.log_q.isneginf()].max())

    def _log_mean(self, log_values: Tensor) -> float:
        return float((self._log_x.squeeze(1) + log_values).logsumexp(0))


def _tightest_upper(joint: _Joint, log_gap: float) -> tuple[float, float]:
    """
    The order that makes (1) tightest, and (1) there.

    With t = (alpha - 1) / alpha, (1) is ``t log_gap + (1 - t) K(t / (1 - t))``, where K(s) = log E[(p / q)^s] is
    convex: so (1) is convex in t on [0, 1]. It is 0 at t = 0, and falls from there only if log_gap + D_1 is below 0.
    """
    if not log_gap + joint.divergence(1.0) < 0:
        return 1.0, 0.0
    return _least(
        lambda alpha: float(probability_comparison_bounds(log_gap, joint.divergence(alpha), alpha=alpha).upper),
        at_infinity=log_gap + joint.largest_log_ratio(),
    )


def _tightest_lower(joint: _Joint, log_of_fano: float) -> tuple[float, float]:
    """
    The order that makes (2) tightest, and (2) there.

    With s = 1 / (alpha - 2), (2) is ``(1 + s) log_of_fano - s K(1 / s)``, where K(s) = log E[(q / p)^s] under q is
    convex: so (2) is concave in s, and has one peak on any scale of alpha.
    """
    if math.inf in (-log_of_fano, joint.reverse_divergence(1.0)):
        return math.nan, -math.inf

    def bound(order: float) -> float:
        reverse = joint.reverse_divergence(order)
        return -float(probability_comparison_bounds(log_of_fano, 0.0, reverse, alpha=order + 1).lower)

    order, least = _least(bound, at_infinity=joint.largest_reverse_log_ratio() - log_of_fano)
    return order + 1, -least


def _least(bound: Callable[[float], float], *, at_infinity: float) -> tuple[float, float]:
    """The order in (1, inf] at which a bound is least that has one valley in t = (order - 1) / order, and its value."""
    if at_infinity == -math.inf:
        return math.inf, at_infinity
    found = minimize_scalar(lambda t: bound(1 / (1 - t)), bounds=(0, 1), method="bounded", options={"xatol": 1e-12})
    return min((float(1 / (1 - found.x)), float(found.fun)), (math.inf, at_infinity), key=lambda pair: pair[1])


def _checked(arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Logits and the weights of the labels, both float64 of shape (n, M), from what error_bounds may be given."""
    if len(arguments) == 3 and hasattr(arguments[0], "predict"):
        images = _as_tensor(arguments[1]).numpy()
        # In ART's own dtype: its classifiers take no float64 into a float32 network.
        logits = _as_tensor(arguments[0].predict(images.astype(np.float32) if images.dtype == np.float64 else images))
        _expect_no_probabilities(logits)
    elif len(arguments) == 2 and not hasattr(arguments[0], "predict"):
        logits = _as_tensor(arguments[0])
    else:
        kinds = ", ".join(type(argument).__name__ for argument in arguments)
        raise TypeError(f"expected (logits, labels) or (classifier, x, labels), but got ({kinds})")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"expected logits of shape (n, M) with M at least 2, but got {tuple(logits.shape)}")
    if bool((logits.isnan() | logits.isposinf() | logits.isneginf().all(1, keepdim=True)).any()):
        raise ValueError("expected logits that are finite, or -inf for some classes of a row, but got others")
    logits, labels = logits.double(), _label_weights(_as_tensor(arguments[-1]), *logits.shape)
    weighed = labels.sum(1) > 0
    if not bool(weighed.any()):
        raise ValueError(f"expected at least one example of some weight, but got none in {len(labels)}")
    return logits[weighed], labels[weighed]


def _expect_no_probabilities(outputs: Tensor) -> None:
    if outputs.ndim == 2 and are_distributions(outputs):
        raise ValueError(
            "expected a classifier that predicts logits, but each of its rows is a distribution; "
            "if they are probabilities, pass their logarithms in place of classifier and x"
        )


def _label_weights(labels: Tensor, n: int, classes: int) -> Tensor:
    """Labels in either form as float64 of shape (n, M)."""
    if labels.shape == (n, classes):
        weights = labels.double()
        if not bool((weights.isfinite() & (weights >= 0)).all()):
            raise ValueError("expected rows of labels to be finite and not negative, but got others")
        return weights
    if labels.shape not in ((n,), (n, 1)):
        shapes = f"({n},), ({n}, 1) or ({n}, {classes})"
        raise ValueError(f"expected labels of shape {shapes}, but got {tuple(labels.shape)}")
    index = labels.reshape(-1).long()
    if bool(((index != labels.reshape(-1)) | (index < 0) | (index >= classes)).any()):
        raise ValueError(
            f"expected class indices, whole numbers from 0 to {classes - 1}, "
            f"but got values from {labels.min()} to {labels.max()}"
        )
    return torch.nn.functional.one_hot(index, classes).double()


def _as_tensor(values: Any) -> Tensor:
    return values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))


def _number(value: float) -> str:
    return f"{value + 0.0:.4g}"  # a zero without its sign


def _upper(log_bound: float, alpha: float | None = None) -> str:
    with np.errstate(over="ignore"):
        return _bound(float(np.exp(log_bound)), alpha, says=log_bound < 0)


def _lower(log_bound: float, alpha: float | None = None) -> str:
    return _bound(math.exp(log_bound), alpha, says=log_bound > -math.inf)


def _bound(bound: float, alpha: float | None, *, says: bool) -> str:
    at = "" if alpha is None else f", alpha = {_number(alpha)}"
    return f"{_number(bound)}{at if says else ', which says nothing'}"
