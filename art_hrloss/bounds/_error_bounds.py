"""Proposition 1 for a classifier on labelled data: its error probability and every bound on it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from art_hrloss._html import html_table
from art_hrloss._labels import parse_labels
from art_hrloss._preconditions import checked_images, checked_logits
from art_hrloss.bounds._formulas import beta, probability_comparison_bounds, relaxed_upper_bound
from art_hrloss.losses._functional import hr_loss_terms, renyi_divergence
from art_hrloss.losses._numerics import entropy, log_entropy, log_of_others, log_softmax
from art_hrloss.losses._validation import check_alpha

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any] | Tensor


@dataclass(frozen=True)
class ErrorBounds:
    """
    Proposition 1 for one classifier on one set of labelled examples; entropies, divergences and logarithms in nats.

    ``str()``, or a notebook, shows a readable table, with the bounds as probabilities.
    """

    n: int  #: Examples of any weight.
    classes: int  #: M.
    alpha: float  #: The order of the divergences and of the bounds, except the tightest ones.
    error: float  #: P_e, the error probability.
    uncertainty: float  #: P_u (6).
    conditional_entropy: float  #: H(Y^|X).
    cross_entropy: float  #: E[-log q(Y|X)].
    renyi_divergence: float  #: D_alpha(p_XY || p_XY^) as in (4), not times alpha.
    reverse_divergence: float
    """D_(alpha - 1)(p_XY^ || p_XY). For alpha >= 2, inf where a class that a label excludes has any probability."""
    log_comparison_upper_bound: float  #: (5): the upper bound on log P_e from P_u itself.
    log_comparison_lower_bound: float  #: (5): the lower bound on log P_e from P_u itself; -inf where (2) is.
    log_upper_bound: float  #: (1): an upper bound on log P_e; vacuous above 0.
    log_relaxed_bound: float  #: (11): the upper bound on log P_e from the HR loss alone.
    log_markov_bound: float
    """CE / log 2, by Markov's inequality, since a label other than f(X) has at most 1/2; not in the paper."""
    log_lower_bound: float
    """(2) as derived: a lower bound on log P_e; vacuous at -inf, as for every alpha of at most 2."""
    log_printed_lower_bound: float  #: (2) as printed.
    tightest_alpha: float  #: The order in [1, inf] at which (1) is tightest; 1 where it is vacuous at every order.
    log_tightest_upper_bound: float  #: (1) at that order; 0 where that is 1.
    tightest_lower_alpha: float
    """The order in [2, inf] at which (2) is tightest; NaN where it is vacuous at every order."""
    log_tightest_lower_bound: float  #: (2) as derived, at that order.

    def to_frame(self) -> "pd.DataFrame":
        """
        Return a row per quantity and bound as a DataFrame: kind, name, value, log_value, alpha, vacuous; needs pandas.

        A kind is "quantity", "upper bound" or "lower bound". The value of a bound is a probability, and its log_value a
        field above. Where no order belongs to it alpha is NaN.
        """
        import pandas as pd

        with np.errstate(divide="ignore"):
            rows = [("quantity", name, x, float(np.log(x)), math.nan, False) for name, x in self._quantities()]
        for kind, name, bound, alpha in self._bounds():
            vacuous = _is_vacuous(bound, lower=kind == "lower bound")
            rows.append((kind, name, _probability(bound), bound, alpha, vacuous))
        return pd.DataFrame(rows, columns=["kind", "name", "value", "log_value", "alpha", "vacuous"])

    def __str__(self) -> str:
        rows = self._cells()
        width = max(len(name) for name, _ in rows)
        return "\n".join([self._title(), *(f"{name:{width}}  {value}".rstrip() for name, value in rows)])

    def _repr_html_(self) -> str:
        return html_table(self._title(), ("quantity", "value"), self._cells())

    def _title(self) -> str:
        return f"Proposition 1: {self.n} examples, {self.classes} classes, alpha = {self.alpha:g}"

    def _quantities(self) -> list[tuple[str, float]]:
        return [
            ("P_e, the error probability", self.error),
            ("P_u, the uncertainty", self.uncertainty),
            ("H(Y^|X), in nats", self.conditional_entropy),
            ("CE, the cross-entropy, in nats", self.cross_entropy),
            ("D_alpha(p_XY || p_XY^), in nats", self.renyi_divergence),
            ("D_(alpha - 1)(p_XY^ || p_XY), in nats", self.reverse_divergence),
        ]

    def _bounds(self) -> list[tuple[str, str, float, float]]:
        """Return kind, name, logarithm and order of each bound; the order of Markov's, which has none, is NaN."""
        upper, lower, alpha = "upper bound", "lower bound", self.alpha
        return [
            (upper, "by P_u (5)", self.log_comparison_upper_bound, alpha),
            (upper, "by H(Y^|X) (1)", self.log_upper_bound, alpha),
            (upper, "by the HR loss (11)", self.log_relaxed_bound, alpha),
            (upper, "by (1) at its best alpha", self.log_tightest_upper_bound, self.tightest_alpha),
            (upper, "by CE / log 2 (Markov)", self.log_markov_bound, math.nan),
            (lower, "by P_u (5)", self.log_comparison_lower_bound, alpha),
            (lower, "by H(Y^|X) (2)", self.log_lower_bound, alpha),
            (lower, "by (2) as printed", self.log_printed_lower_bound, alpha),
            (lower, "by (2) at its best alpha", self.log_tightest_lower_bound, self.tightest_lower_alpha),
        ]

    def _cells(self) -> list[tuple[str, str]]:
        """Return names and values as text, the bounds as probabilities below what they bound."""
        rows = [(name, _number(value)) for name, value in self._quantities()]
        for heading, kind in {"P_e is at most": "upper bound", "P_e is at least": "lower bound"}.items():
            rows.append((heading, ""))
            for name, log, alpha in (bound[1:] for bound in self._bounds() if bound[0] == kind):
                best = alpha if "best" in name else None
                rows.append((f"  {name}", _bound(log, best, lower=kind == "lower bound")))
        return rows


@overload
def error_bounds(logits: Array, labels: Array, /, *, alpha: float = 1.6) -> ErrorBounds: ...
@overload
def error_bounds(classifier: Any, x: Array, labels: Array, /, *, alpha: float = 1.6) -> ErrorBounds: ...
def error_bounds(*arguments: Any, alpha: float = 1.6) -> ErrorBounds:
    """
    Return the error probability of a classifier on labelled data and every bound of Proposition 1 on it, in float64.

    Call it as ``error_bounds(logits, labels)`` or ``error_bounds(classifier, x, labels)``. P_e is the error rate on
    these examples, and p_XY their empirical distribution: the bounds explain a known error, and do not extend to other
    data.

    :param logits: Shape ``(n, M)``, finite, or -inf for a class that never occurs. Those on a GPU are taken there.
    :param classifier: A PyTorchClassifier that predicts logits.
    :param x: Images, shape ``(n, *input_shape)``, finite and inside clip_values.
    :param labels: In any form of :func:`art_hrloss._labels.parse_labels`; the sum of a row is the example's weight, and
           may be 0.
    :param alpha: The order, above 1; the lower bound (2) is vacuous unless it is above 2.
    :raises TypeError: If the arguments are neither of the two.
    :raises ValueError: If a shape or a value is out of its range, or the classifier predicts no logits (see
            :func:`art_hrloss._preconditions.checked_logits`).

    >>> result = error_bounds([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], [0, 1, 0])
    >>> result.error
    0.0
    >>> print(round(float(np.exp(result.log_upper_bound)), 3))
    0.691
    """
    if check_alpha(alpha) <= 1:
        raise ValueError(f"expected alpha above 1, for which Proposition 1 holds, but got {alpha}")
    joint = _Joint(*_checked(arguments))
    divergence, reverse = joint.divergence(alpha), joint.reverse_divergence(alpha - 1)
    log_u, log_gap, exponent = joint.log_uncertainty, joint.log_gap, beta(joint.classes)
    # (1) and (2) are (5) with a bound on P_u from H(Y^|X) in the place of P_u.
    by_uncertainty, by_entropy, by_fano, as_printed = (
        probability_comparison_bounds(log_bound, divergence, reverse, alpha=alpha)
        for log_bound in (log_u, log_gap, exponent * log_gap, exponent * log_gap * alpha / (alpha - 1))
    )
    hr_loss = joint.conditional_entropy + alpha * divergence
    tightest_alpha, tightest_upper = _tightest_upper(joint)
    tightest_lower_alpha, tightest_lower = _tightest_lower(joint, exponent * log_gap)
    return ErrorBounds(
        n=len(joint.log_q),
        classes=joint.classes,
        alpha=float(alpha),
        error=joint.error,
        uncertainty=math.exp(log_u),
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
        """Take logits and the labels' weights, both of shape ``(n, M)``; every row has a weight."""
        mass = labels.sum(1, keepdim=True)
        share = (mass / mass.sum()).squeeze(1)
        self.logits, self.labels, self.classes = logits, labels, logits.shape[1]
        self.log_q, self.log_p, self.log_x = log_softmax(logits), (labels / mass).log(), share.log()
        self.error = float(labels.scatter(1, logits.argmax(1, keepdim=True), 0.0).sum() / mass.sum())
        self.cross_entropy = -float((labels / mass.sum() * self.log_q)[labels > 0].sum())
        self.log_uncertainty = float((self.log_x + log_of_others(self.log_q)).logsumexp(0))
        self.conditional_entropy = h = float(share @ entropy(self.log_q))
        # log[1 - exp(-H)]: for a small H, even for one that underflows, it is log H.
        log_h = float((self.log_x + log_entropy(self.log_q)).logsumexp(0))
        self.log_gap = math.log(-math.expm1(-h)) if h > 1e-30 else log_h

    def divergence(self, order: float) -> float:
        """Return D_order(p_XY || p_XY^), as in the loss."""
        return float(hr_loss_terms(self.logits, self.labels, alpha=order).renyi_divergence) / order

    def reverse_divergence(self, order: float) -> float:
        """Return D_order(p_XY^ || p_XY)."""
        log_mu, log_nu = ((self.log_x[:, None] + log).flatten() for log in (self.log_p, self.log_q))
        return float(renyi_divergence(log_nu, log_mu, alpha=order))


def _tightest_upper(joint: _Joint) -> tuple[float, float]:
    """
    Return the order that makes (1) tightest, and (1) at it.

    With t = (alpha - 1) / alpha, (1) is ``t log_gap + (1 - t) K(t / (1 - t))``, where K(s) = log E[(p / q)^s] is
    convex: so (1) is convex in t on [0, 1]. It is 0 at t = 0, and falls from 0 only if log_gap + D_1 is below 0.
    """
    if not joint.log_gap + joint.divergence(1.0) < 0:
        return 1.0, 0.0
    # alpha D_alpha tends to the largest log(p / q).
    at_infinity = joint.log_gap + float((joint.log_p - joint.log_q)[joint.labels > 0].max())
    return _minimum(
        lambda alpha: float(probability_comparison_bounds(joint.log_gap, joint.divergence(alpha), alpha=alpha).upper),
        at_infinity,
    )


def _tightest_lower(joint: _Joint, log_fano: float) -> tuple[float, float]:
    """
    Return the order that makes (2) tightest, and (2) at it.

    With s = 1 / (alpha - 2), (2) is ``(1 + s) log_fano - s K(1 / s)``, where K(s) = log E[(q / p)^s] under q is
    convex: so (2) is concave in s, and has one peak on any scale of alpha.
    """
    if math.inf in (-log_fano, joint.reverse_divergence(1.0)):
        return math.nan, -math.inf

    def bound(order: float) -> float:
        reverse = joint.reverse_divergence(order)
        return -float(probability_comparison_bounds(log_fano, 0.0, reverse, alpha=order + 1).lower)

    largest = float((joint.log_q - joint.log_p)[~joint.log_q.isneginf()].max())
    order, value = _minimum(bound, largest - log_fano)
    return order + 1, -value


def _minimum(bound: Callable[[float], float], at_infinity: float) -> tuple[float, float]:
    """Return the order in (1, inf] that minimises a bound of one valley in t = (order - 1) / order, and the minimum."""
    if at_infinity == -math.inf:
        return math.inf, at_infinity
    valley = minimize_scalar(lambda t: bound(1 / (1 - t)), bounds=(0, 1), method="bounded", options={"xatol": 1e-12})
    return min((float(1 / (1 - valley.x)), float(valley.fun)), (math.inf, at_infinity), key=lambda pair: pair[1])


def _checked(arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Return logits and the weights of the labels, both float64 of shape ``(n, M)``, from error_bounds' arguments."""
    if len(arguments) == 3 and hasattr(arguments[0], "predict"):
        logits = torch.from_numpy(checked_logits(arguments[0], checked_images(*arguments[:2])))
    elif len(arguments) == 2 and not hasattr(arguments[0], "predict"):
        logits = arguments[0]
        logits = logits.detach() if isinstance(logits, Tensor) else torch.as_tensor(np.asarray(logits))
        logits = logits if logits.is_cuda else logits.cpu()  # not all devices have float64
    else:
        kinds = ", ".join(type(argument).__name__ for argument in arguments)
        raise TypeError(f"expected (logits, labels) or (classifier, x, labels), but got ({kinds})")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"expected logits of shape (n, M) with M at least 2, but got {tuple(logits.shape)}")
    if bool((logits.isnan() | logits.isposinf() | logits.isneginf().all(1, keepdim=True)).any()):
        raise ValueError("expected logits that are finite, or -inf for some classes of a row, but got others")
    n, classes = logits.shape
    labels = parse_labels(arguments[-1], n=n, classes=classes, zero_rows=True).to(logits.device)
    weights = labels if labels.is_floating_point() else torch.nn.functional.one_hot(labels, classes)
    weighted = weights.sum(1) > 0
    if not bool(weighted.any()):
        raise ValueError(f"expected at least one example of a weight above 0, but got none in {n}")
    return logits.double()[weighted], weights.double()[weighted]


def _number(value: float) -> str:
    return f"{value + 0.0:.4g}"  # a zero without its sign


def _probability(log_bound: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(log_bound))


def _is_vacuous(log_bound: float, *, lower: bool) -> bool:
    return log_bound == -math.inf if lower else log_bound >= 0


def _bound(log_bound: float, alpha: float | None = None, *, lower: bool = False) -> str:
    probability = _number(_probability(log_bound))
    if _is_vacuous(log_bound, lower=lower):
        return f"{probability}, vacuous"
    return probability if alpha is None else f"{probability}, alpha = {_number(alpha)}"
