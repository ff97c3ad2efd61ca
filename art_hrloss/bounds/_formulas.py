"""
Proposition 1: bounds on the error probability of a classifier from its uncertainty and its divergence from the labels.

Notation: ``f(X)`` is the hard decision, the class of the largest softmax; ``P_e = P(Y != f(X))`` the error probability;
``P_u = P(Y^ != f(X))`` the uncertainty; ``D_alpha`` the Renyi divergence as the paper scales it (eq. (4)), *not* times
alpha; M the number of classes. The bounds are on ``log P_e``, in nats: an upper bound is vacuous above 0, a lower bound
at -inf. Numbers are taken as float64, and tensors broadcast.

Differences from the printed paper:

* (1) prints the divergence of p_XY from itself, which is 0: without the hat on its second argument the inequality is
  false. (4) requires nu << mu, which hard labels never meet; above order 1 it is finite if mu << nu.
* (2) prints alpha / (alpha - 2) where (5) and (10) give (alpha - 1) / (alpha - 2). Both are true, the printed one is
  weaker. It also prints H(Y|X), without its hat: that is true as well, but needs no divergence, because (9) and (10)
  hold for the labels too. Its assumption, P_u <= 1 - 1/M, always holds: the largest of M probabilities is at least 1/M.
* (11) turns (1) into ``log P_e <= (alpha - 1) / alpha (L_HR - 1)``. As L_HR >= 0, no fit brings that bound below
  exp(-(alpha - 1) / alpha), which is 0.69 at alpha = 1.6.
* "CE <= alpha D_alpha + H(Y|X)" is true as printed. With the hat, as CE <= L_HR, it holds for hard labels only.
"""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from art_hrloss.losses._numerics import log_softmax
from art_hrloss.losses._validation import check_alpha, classes_last

Numbers = Tensor | float
Reading = Literal["derived", "printed"]


class LogBounds(NamedTuple):
    """Bounds on the logarithm of a probability, in nats."""

    lower: Tensor
    upper: Tensor


def uncertainty(logits: Tensor) -> Tensor:
    """
    Return the uncertainty of the classifier, ``P_u = P(Y^ != f(X)) = 1 - mean_i max_k q_ik`` (eq. (6)).

    :param logits: Shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
    :return: A scalar in [0, 1 - 1/M], to full relative precision as long as it does not underflow.

    >>> uncertainty(torch.tensor([[0.0, 0.0], [0.0, 0.0]]))
    tensor(0.5000)
    """
    q = log_softmax(classes_last(logits)).exp()
    return q.scatter(-1, q.detach().argmax(-1, keepdim=True), 0.0).sum(-1).mean()


def probability_comparison_bounds(
    log_probability: Numbers, divergence: Numbers, reverse_divergence: Numbers = math.inf, *, alpha: float
) -> LogBounds:
    """
    Return bounds on the logarithm of mu(A) from nu(A), for any event A (eq. (5)).

        ``(alpha - 1) / (alpha - 2) log nu(A) - (alpha - 1) D_(alpha - 1)(nu || mu)  <=  log mu(A)``   for alpha > 2
        ``log mu(A)  <=  (alpha - 1) / alpha log nu(A) + (alpha - 1) D_alpha(mu || nu)``               for alpha > 1

    For a classifier, mu = p_XY, nu = p_XY^, and A is the event that the class is not f(X): nu(A) = P_u and mu(A) = P_e.

    :param log_probability: log nu(A), in nats; -inf is probability 0.
    :param divergence: D_alpha(mu || nu), nats; the upper bound is inf where it is.
    :param reverse_divergence: D_(alpha - 1)(nu || mu), nats. The lower bound is -inf where it is infinite, where nu(A)
           is 0, and for every alpha of at most 2.
    :raises ValueError: If alpha is not finite and above 1.

    >>> lower, upper = probability_comparison_bounds(math.log(0.1), 0.0, 0.0, alpha=3.0)
    >>> round(float(lower.exp()), 4), round(float(upper.exp()), 4)
    (0.01, 0.2154)
    """
    alpha = _check_order(alpha, 1)
    log_nu, forward, reverse = (_as_tensor(value) for value in (log_probability, divergence, reverse_divergence))
    known = forward != torch.inf
    # For an event that nu excludes and an infinite divergence the bound is vacuous; the sum of both would be NaN.
    upper = (alpha - 1) * (torch.where(known, log_nu, 0.0) / alpha + forward)
    if alpha <= 2:
        return LogBounds(torch.full_like(upper + reverse, -torch.inf), upper)
    return LogBounds((alpha - 1) / (alpha - 2) * log_nu - (alpha - 1) * reverse, upper)


def error_upper_bound(conditional_entropy: Numbers, divergence: Numbers, *, alpha: float) -> Tensor:
    """
    Return the upper bound of Proposition 1 (eq. (1)), from (5) and P_u <= 1 - exp(-H):

        ``log P_e <= (alpha - 1) / alpha log[1 - exp(-H(Y^|X))] + (alpha - 1) D_alpha(p_XY || p_XY^)``

    :param conditional_entropy: H(Y^|X), nats.
    :param divergence: D_alpha(p_XY || p_XY^), nats: HRLossTerms' renyi_divergence divided by alpha.
    :return: A bound on log P_e in nats, differentiable by both; inf where the divergence is, -inf at H = 0 elsewhere.
    :raises ValueError: If alpha is not finite and above 1, or the entropy below 0.

    >>> round(float(error_upper_bound(0.1, 0.05, alpha=1.6).exp()), 4)
    0.4265
    """
    # An infinite divergence makes the bound constant: the derivative by the entropy, infinite at H = 0, must not enter.
    h = torch.where(_as_tensor(divergence) == torch.inf, 1.0, _as_tensor(conditional_entropy))
    return probability_comparison_bounds(_log_gap(h), divergence, alpha=alpha).upper


def error_lower_bound(
    conditional_entropy: Numbers,
    reverse_divergence: Numbers,
    *,
    alpha: float,
    classes: int,
    reading: Reading = "derived",
) -> Tensor:
    """
    Return the lower bound of Proposition 1 (eq. (2)), from (5), (9) and (10):

        ``log P_e >= beta(M) (alpha - 1) / (alpha - 2) log[1 - exp(-H(Y^|X))]
        - (alpha - 1) D_(alpha - 1)(p_XY^ || p_XY)``

    :param conditional_entropy: H(Y^|X), nats, in [0, log M].
    :param reverse_divergence: D_(alpha - 1)(p_XY^ || p_XY), nats: the order is alpha - 1, and the labels come second.
           It is infinite for hard labels wherever a wrong class has any probability.
    :param classes: M, at least 2.
    :param reading: "derived" is the inequality above; "printed" has the factor alpha / (alpha - 2), and is weaker.
    :return: A bound on log P_e in nats, differentiable by both; -inf at H = 0 and where the divergence is infinite.
    :raises ValueError: If alpha is not finite and above 2, or another argument out of its range.

    >>> round(float(error_lower_bound(0.5, 0.01, alpha=3.0, classes=2).exp()), 4)
    0.0179
    """
    alpha = _check_order(alpha, 2)
    if reading not in get_args(Reading):
        raise ValueError(f"expected reading to be one of {list(get_args(Reading))}, but got {reading!r}")
    factor = beta(classes) * (alpha / (alpha - 1) if reading == "printed" else 1.0)
    log_u = factor * _log_gap(conditional_entropy)
    return probability_comparison_bounds(log_u, 0.0, reverse_divergence, alpha=alpha).lower


def relaxed_upper_bound(hr_loss: Numbers, *, alpha: float) -> Tensor:
    """
    Return the upper bound on log P_e from the HR loss alone, ``(alpha - 1) / alpha (L_HR - 1)`` nats.

    It follows from (1) and the relaxation (11), ``log[1 - exp(-H)] <= H - 1``, and is never below -(alpha - 1) / alpha.

    :param hr_loss: The HR loss of the same alpha, eq. (3), in nats.
    :raises ValueError: If alpha is not finite and above 1.

    >>> relaxed_upper_bound(1.0, alpha=1.6)
    tensor(0., dtype=torch.float64)
    """
    alpha = _check_order(alpha, 1)
    return (alpha - 1) / alpha * (_as_tensor(hr_loss) - 1)


def fano_bound(probability: Numbers, classes: int) -> Tensor:
    """
    Return the largest conditional entropy of one of M classes that is guessed wrong with probability P (Fano, eq. (9)).

    It is ``q(P) = h(P) + P log M`` nats, with h the binary entropy, and increases on [0, M / (M + 1)].

    :param probability: P, in [0, 1].
    :param classes: M, at least 2.
    :raises ValueError: If an argument is out of its range.

    >>> round(float(fano_bound(0.1, 10)), 4)
    0.5553
    """
    log_m, p = _log_classes(classes), _as_tensor(probability)
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"expected probabilities in [0, 1], but got {p.detach().min()} to {p.detach().max()}")
    return _fano(p, log_m)[0]


def fano_inverse(entropy: Numbers, classes: int) -> Tensor:
    """
    Return the inverse of :func:`fano_bound` on [0, 1 - 1/M]: the smallest P_u possible at an entropy (eq. (9)).

    It has full relative precision, but is 0 for a subnormal entropy, and is differentiable twice.

    :param entropy: Nats, in [0, q(1 - 1/M)], which contains [0, log M].
    :param classes: M, at least 2.
    :raises ValueError: If an argument is out of its range.

    >>> round(float(fano_inverse(fano_bound(0.1, 10), 10)), 4)
    0.1
    """
    log_m, h = _log_classes(classes), _as_tensor(entropy)
    largest, _ = _fano(torch.tensor(1 - 1 / classes, dtype=h.dtype), log_m)
    if not bool(((h >= 0) & (h <= largest)).all()):
        raise ValueError(
            f"expected entropies in [0, {largest:.6g}] for {classes} classes, "
            f"but got {h.detach().min()} to {h.detach().max()}"
        )
    limits = torch.finfo(h.dtype)
    normal = h >= limits.tiny  # subnormal numbers have lost their precision, and the root underflows
    h = torch.where(normal, h, largest)
    target = h.detach()
    # Newton's method on log q against log P, nearly a straight line. The start is below the root, because
    # q(P) <= P (log M + 1 - log P), and so is every step: the curve is concave.
    p = target / (2 * (log_m + 1 - target.log()))
    for _ in range(100):
        q, slope = _fano(p, log_m)
        step = (target / q).log() * q / (p * slope)
        p = p * step.exp()
        if bool((step.abs() <= 4 * limits.eps).all()):
            break
    p = p.clamp(max=1 - 1 / classes)
    for _ in range(2):  # One step with a gradient makes the first derivative exact, another one the second.
        q, slope = _fano(p, log_m)
        p = p + (h - q) / slope
    return torch.where(normal, p, 0.0)


def beta(classes: int) -> float:
    """
    Return the constant of (2): the smallest for which (10), ``log q^-1(H) >= beta log[1 - exp(-H)]``, holds.

    It is the greatest value of ``log P / log[1 - exp(-q(P))]`` for q(P) in (0, log M], which has one peak in P. It and
    the exponent of the lower bound grow like M / log M: 2.14 for 2 classes, 4.07 for 10, 16.3 for 100, 92.3 for 1000.

    :raises ValueError: If classes, M, is no whole number of at least 2.

    >>> round(beta(10), 2)
    4.07
    """
    last = float(fano_inverse(_log_classes(classes), classes))

    def ratio(p: float) -> float:
        return math.log(p) / float(_log_gap(fano_bound(p, classes)))

    peak = minimize_scalar(lambda p: -ratio(p), bounds=(0.0, last), method="bounded", options={"xatol": 1e-10})
    return float(-peak.fun)


def _fano(p: Tensor, log_m: float) -> tuple[Tensor, Tensor]:
    """Return q(P) and its derivative."""
    # -(1 - p) log(1 - p): from p where it is small, else from 1 - p, which is then exact.
    small = torch.where(p > 0.5, 0.0, p)
    rest = torch.where(p > 0.5, torch.special.entr(1 - p), -torch.special.xlog1py(1 - small, -small))
    return p * log_m + torch.special.entr(p) + rest, torch.log1p(-p) - torch.log(p) + log_m


def _log_gap(conditional_entropy: Numbers) -> Tensor:
    """Return log[1 - exp(-H)]."""
    h = _as_tensor(conditional_entropy)
    if not bool((h >= 0).all()):
        raise ValueError(f"expected conditional_entropy to be at least 0, but got {h.detach().min()}")
    return torch.log(-torch.expm1(-h))


def _as_tensor(value: Numbers) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    return tensor if tensor.is_floating_point() else tensor.double()


def _check_order(alpha: float, least: int) -> float:
    if check_alpha(alpha) <= least:
        raise ValueError(f"expected alpha above {least}, for which the bound holds, but got {alpha}")
    return float(alpha)


def _log_classes(classes: int) -> float:
    if not isinstance(classes, int | np.integer) or classes < 2:
        raise ValueError(f"expected classes to be a whole number of at least 2, but got {classes!r}")
    return math.log(classes)
