"""Joint distributions of labelled data and of a classifier, and the orders at which Proposition 1 is tightest."""

import math
from collections.abc import Callable

from scipy.optimize import minimize_scalar
from torch import Tensor

from art_hrloss.bounds._formulas import probability_comparison_bounds
from art_hrloss.losses._functional import hr_loss_terms, renyi_divergence
from art_hrloss.losses._numerics import entropy, log_entropy, log_of_others, log_softmax


class JointDistributions:
    """Joint distributions of example and class: p_XY of the labels and p_XY^ of the classifier, in float64."""

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        """
        :param logits: Shape ``(n, M)``.
        :param labels: Weights of the classes of each example, shape ``(n, M)``; the sum of each row is above 0.
        """
        mass = labels.sum(1, keepdim=True)
        share = (mass / mass.sum()).squeeze(1)
        self.logits, self.labels, self.classes = logits, labels, logits.shape[1]
        self.log_q, self.log_p, self.log_x = log_softmax(logits), (labels / mass).log(), share.log()
        self.error = float(labels.scatter(1, logits.argmax(1, keepdim=True), 0.0).sum() / mass.sum())
        self.cross_entropy = -float((labels / mass.sum() * self.log_q)[labels > 0].sum())
        self.log_uncertainty = float((self.log_x + log_of_others(self.log_q)).logsumexp(0))
        self.conditional_entropy = h = float(share @ entropy(self.log_q))
        # log[1 - exp(-H)]. For a small H it equals log H, which is known even if H underflows.
        log_h = float((self.log_x + log_entropy(self.log_q)).logsumexp(0))
        self.log_gap = math.log(-math.expm1(-h)) if h > 1e-30 else log_h

    def divergence(self, order: float) -> float:
        """Return D_order(p_XY || p_XY^), computed as in the loss."""
        return float(hr_loss_terms(self.logits, self.labels, alpha=order).renyi_divergence) / order

    def reverse_divergence(self, order: float) -> float:
        """Return D_order(p_XY^ || p_XY)."""
        log_mu, log_nu = ((self.log_x[:, None] + log).flatten() for log in (self.log_p, self.log_q))
        return float(renyi_divergence(log_nu, log_mu, alpha=order))


def tightest_upper(joint: JointDistributions) -> tuple[float, float]:
    """
    Return the order at which (1) is tightest, and the bound (1) at this order.

    With t = (alpha - 1) / alpha, (1) is ``t log_gap + (1 - t) K(t / (1 - t))``, where K(s) = log E[(p / q)^s] is
    convex. Therefore (1) is convex in t on [0, 1]. It is 0 at t = 0, and decreases there only if log_gap + D_1 < 0.
    """
    if not joint.log_gap + joint.divergence(1.0) < 0:
        return 1.0, 0.0
    # For large alpha, alpha D_alpha tends to the maximum of log(p / q).
    at_infinity = joint.log_gap + float((joint.log_p - joint.log_q)[joint.labels > 0].max())
    return _minimum(
        lambda alpha: float(probability_comparison_bounds(joint.log_gap, joint.divergence(alpha), alpha=alpha).upper),
        at_infinity,
    )


def tightest_lower(joint: JointDistributions, log_fano: float) -> tuple[float, float]:
    """
    Return the order at which (2) is tightest, and the bound (2) at this order.

    With s = 1 / (alpha - 2), (2) is ``(1 + s) log_fano - s K(1 / s)``, where K(s) = log E[(q / p)^s] under q is convex.
    Therefore (2) is concave in s, and has a single maximum in alpha.

    :param log_fano: The bound on log P_u from H(Y^|X) by Fano's inequality, ``beta(M) log[1 - exp(-H)]``.
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
    """
    Return the order in (1, inf] at which a bound is smallest, and the bound at this order.

    :param bound: The bound as a function of the order; it has a single minimum.
    :param at_infinity: The limit of the bound for large orders.
    """
    if at_infinity == -math.inf:
        return math.inf, at_infinity
    # t = (order - 1) / order maps the infinite range of orders to [0, 1].
    minimum = minimize_scalar(lambda t: bound(1 / (1 - t)), bounds=(0, 1), method="bounded", options={"xatol": 1e-12})
    return min((float(1 / (1 - minimum.x)), float(minimum.fun)), (math.inf, at_infinity), key=lambda pair: pair[1])
