"""
Proposition 1: what a soft classifier's uncertainty and its fit say of its error probability.

Notation, with that of the loss's: ``f(X)`` is the hard decision, the class of the largest softmax;
``P_e = P(Y != f(X))`` the error probability; ``P_u = P(Y^ != f(X))`` the uncertainty; ``D_alpha`` the Renyi divergence
as the paper scales it (eq. (4)), *not* times alpha; M the number of classes. A bound is one on ``log P_e``, in nats:
above 0 an upper bound says nothing, at -inf a lower bound says nothing.

Where our reading differs from the print:

* (1) prints the divergence of p_XY from itself, which is 0: without the hat on its second argument the inequality is
  false. (4) asks for nu << mu, which hard labels never meet; what makes it finite above order 1 is mu << nu.
* (2) prints alpha / (alpha - 2) where (5) and (10) give (alpha - 1) / (alpha - 2). Both are true, the printed one is
  weaker. It also prints H(Y|X), without its hat; so read it is true as well, but needs no divergence, for (9) and (10)
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

Reading = Literal["derived", "printed"]


class LogBounds(NamedTuple):
    """Bounds on the logarithm of a probability, in nats."""

    lower: Tensor
    upper: Tensor


def uncertainty(logits: Tensor) -> Tensor:
    """
    The uncertainty of the classifier, ``P_u = P(Y^ != f(X)) = 1 - mean_i max_k q_ik`` (eq. (6)).

    :param logits: Shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``.
    :return: A scalar in [0, 1 - 1/M], to full relative precision as long as it does not underflow.
    """
    q = log_softmax(classes_last(logits)).exp()
    return q.scatter(-1, q.detach().argmax(-1, keepdim=True), 0.0).sum(-1).mean()


def probability_comparison_bounds(
    log_probability: Tensor | float,
    divergence: Tensor | float,
    reverse_divergence: Tensor | float = math.inf,
    *,
    alpha: float,
) -> LogBounds:
    """
    The logarithmic probability comparison bounds: what nu(A) says of mu(A), for any event A (eq. (5)).

        ``(alpha - 1) / (alpha - 2) log nu(A) - (alpha - 1) D_(alpha - 1)(nu || mu)  <=  log mu(A)``   for alpha > 2
        ``log mu(A)  <=  (alpha - 1) / alpha log nu(A) + (alpha - 1) D_alpha(mu || nu)``               for alpha > 1

    Of a classifier, mu = p_XY, nu = p_XY^, and A is that the class is not f(X): nu(A) is P_u and mu(A) is P_e.

    :param log_probability: log nu(A), in nats; -inf is probability 0. All three broadcast, numbers are float64.
    :param divergence: D_alpha(mu || nu), nats.
    :param reverse_divergence: D_(alpha - 1)(nu || mu), nats; the default gives no lower bound.
    :param alpha: The order, above 1.
    :return: Nats. The upper bound is inf where the divergence is; the lower is -inf where the reverse divergence is
             infinite, where nu(A) is 0, and for every alpha of at most 2.
    :raises ValueError: If alpha is not finite and above 1.
    """
    alpha = _check_order(alpha, 1)
    log_nu, forward, reverse = (_as_tensor(value) for value in (log_probability, divergence, reverse_divergence))
    known = forward != torch.inf
    # Of an event that nu excludes, and a divergence that is infinite, nothing is known; their sum would be NaN.
    upper = (alpha - 1) * (torch.where(known, log_nu, 0.0) / alpha + forward)
    if alpha <= 2:
        return LogBounds(torch.full_like(upper + reverse, -torch.inf), upper)
    return LogBounds((alpha - 1) / (alpha - 2) * log_nu - (alpha - 1) * reverse, upper)


def error_upper_bound(conditional_entropy: Tensor | float, divergence: Tensor | float, *, alpha: float) -> Tensor:
    """
    The upper bound of Proposition 1 (eq. (1)), from (5) and P_u <= 1 - exp(-H):

        ``log P_e <= (alpha - 1) / alpha log[1 - exp(-H(Y^|X))] + (alpha - 1) D_alpha(p_XY || p_XY^)``

    :param conditional_entropy: H(Y^|X), nats, at least 0; numbers are float64.
    :param divergence: D_alpha(p_XY || p_XY^), nats: HRLossTerms' renyi_divergence divided by alpha.
    :param alpha: The order, above 1.
    :return: A bound on log P_e in nats, differentiable by both; inf where the divergence is, -inf at H = 0 elsewhere.
    :raises ValueError: If alpha is not finite and above 1, or the entropy below 0.
    """
    # Where the divergence is infinite the entropy plays no part: not even by an infinite derivative at H = 0.
    h = torch.where(_as_tensor(divergence) == torch.inf, 1.0, _as_tensor(conditional_entropy))
    return probability_comparison_bounds(_log_gap(h), divergence, alpha=alpha).upper


def error_lower_bound(
    conditional_entropy: Tensor | float,
    reverse_divergence: Tensor | float,
    *,
    alpha: float,
    classes: int,
    reading: Reading = "derived",
) -> Tensor:
    """
    The lower bound of Proposition 1 (eq. (2)), from (5), (9) and (10):

        ``log P_e >= beta(M) (alpha - 1) / (alpha - 2) log[1 - exp(-H(Y^|X))]
        - (alpha - 1) D_(alpha - 1)(p_XY^ || p_XY)``

    :param conditional_entropy: H(Y^|X), nats, in [0, log M]; numbers are float64.
    :param reverse_divergence: D_(alpha - 1)(p_XY^ || p_XY), nats: of order alpha - 1, and the labels second. It is
           infinite for hard labels, wherever a wrong class has any probability.
    :param alpha: The order, above 2.
    :param classes: M, at least 2.
    :param reading: "derived" is the inequality above; "printed" has alpha / (alpha - 2) for its first factor, which is
           weaker.
    :return: A bound on log P_e in nats, differentiable by both; -inf at H = 0 and where the divergence is infinite.
    :raises ValueError: If alpha is not finite and above 2, the entropy below 0, the classes fewer than 2, or the
            reading unknown.
    """
    alpha = _check_order(alpha, 2)
    if reading not in get_args(Reading):
        raise ValueError(f"expected reading to be one of {list(get_args(Reading))}, but got {reading!r}")
    factor = beta(classes) * (alpha / (alpha - 1) if reading == "printed" else 1.0)
    log_gap = factor * _log_gap(conditional_entropy)
    return probability_comparison_bounds(log_gap, 0.0, reverse_divergence, alpha=alpha).lower


def relaxed_upper_bound(hr_loss: Tensor | float, *, alpha: float) -> Tensor:
    """
    What the relaxation (11), ``log[1 - exp(-H)] <= H - 1``, leaves of (1): a bound by the HR loss alone.

        ``log P_e <= (alpha - 1) / alpha (L_HR - 1)``

    :param hr_loss: The HR loss of the same alpha, eq. (3), in nats; numbers are float64.
    :param alpha: The order, above 1.
    :return: A bound on log P_e in nats, never below -(alpha - 1) / alpha.
    :raises ValueError: If alpha is not finite and above 1.
    """
    alpha = _check_order(alpha, 1)
    return (alpha - 1) / alpha * (_as_tensor(hr_loss) - 1)


def fano_bound(probability: Tensor | float, classes: int) -> Tensor:
    """
    The most that is left to know of a class of M that is guessed wrong with probability P (Fano's inequality, eq. (9)):

        ``q(P) = h(P) + P log M``,  with h the binary entropy

    :param probability: P, in [0, 1]; numbers are float64.
    :param classes: M, at least 2.
    :return: Nats; rising on [0, M / (M + 1)], and so on [0, 1 - 1/M].
    :raises ValueError: If an argument is out of its range.
    """
    log_m, p = math.log(_check_classes(classes)), _as_tensor(probability)
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"expected probabilities in [0, 1], but got {p.detach().min()} to {p.detach().max()}")
    return _fano(p, log_m)


def fano_inverse(entropy: Tensor | float, classes: int) -> Tensor:
    """
    The inverse of :func:`fano_bound` on [0, 1 - 1/M]: the least P_u that an entropy leaves possible (eq. (9)).

    To full relative precision, by Newton's method; differentiable twice.

    :param entropy: Nats, in [0, q(1 - 1/M)], which contains [0, log M]; numbers are float64.
    :param classes: M, at least 2.
    :return: In [0, 1 - 1/M]; 0 for a subnormal entropy.
    :raises ValueError: If an argument is out of its range.
    """
    log_m, h = math.log(_check_classes(classes)), _as_tensor(entropy)
    largest = _fano(torch.tensor(1 - 1 / classes, dtype=h.dtype), log_m)
    if not bool(((h >= 0) & (h <= largest)).all()):
        raise ValueError(
            f"expected entropies in [0, {largest:.6g}] for {classes} classes, "
            f"but got {h.detach().min()} to {h.detach().max()}"
        )
    known = h >= torch.finfo(h.dtype).tiny  # below it is no precision left, and the root underflows
    h = torch.where(known, h, largest)
    p = _fano_root(h.detach(), log_m).clamp(max=1 - 1 / classes)
    for _ in range(2):  # Once more with a gradient, which makes the first derivative exact, and once for the second.
        p = p + (h - _fano(p, log_m)) / _fano_slope(p, log_m)
    return torch.where(known, p, 0.0)


def beta(classes: int) -> float:
    """
    The constant of (2): the smallest with which (10), ``log q^-1(H) >= beta log[1 - exp(-H)]``, holds on (0, log M].

    It is the greatest value of ``log P / log[1 - exp(-q(P))]``, which has one peak in P. It grows like M / log M:
    2.14 for 2 classes, 4.07 for 10, 16.3 for 100, 92.3 for 1000; and with it the exponent of the lower bound.

    :param classes: M, at least 2.
    :raises ValueError: If it is less.
    """
    last = float(fano_inverse(math.log(_check_classes(classes)), classes))

    def ratio(p: float) -> float:
        return math.log(p) / float(_log_gap(fano_bound(p, classes)))

    peak = minimize_scalar(lambda p: -ratio(p), bounds=(0.0, last), method="bounded", options={"xatol": 1e-10})
    return float(max(-peak.fun, ratio(last)))


def _fano(p: Tensor, log_m: float) -> Tensor:
    # -(1 - p) log(1 - p): for a small p from p, for a large one from 1 - p, which is then exact.
    small = torch.where(p > 0.5, 0.0, p)
    rest = torch.where(p > 0.5, torch.special.entr(1 - p), -torch.special.xlog1py(1 - small, -small))
    q: Tensor = p * log_m + torch.special.entr(p) + rest
    return q


def _fano_slope(p: Tensor, log_m: float) -> Tensor:
    """The derivative of q."""
    return torch.log1p(-p) - torch.log(p) + log_m


def _fano_root(h: Tensor, log_m: float) -> Tensor:
    """
    Where q(P) = h, by Newton's method on log q against log P, in which q is nearly a straight line.

    The curve is concave, so that from a start below the root every step stays below it; the start is one because
    q(P) <= P (log M + 1 - log P).
    """
    p = h / (2 * (log_m + 1 - h.log()))
    for _ in range(100):
        q = _fano(p, log_m)
        step = (h / q).log() * q / (p * _fano_slope(p, log_m))
        p = p * step.exp()
        if bool((step.abs() <= 4 * torch.finfo(p.dtype).eps).all()):
            break
    return p


def _log_gap(conditional_entropy: Tensor | float) -> Tensor:
    """log[1 - exp(-H)]."""
    h = _as_tensor(conditional_entropy)
    if not bool((h >= 0).all()):
        raise ValueError(f"expected conditional_entropy to be at least 0, but got {h.detach().min()}")
    return torch.log(-torch.expm1(-h))


def _as_tensor(value: Tensor | float) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    return tensor if tensor.is_floating_point() else tensor.double()


def _check_order(alpha: float, least: int) -> float:
    if check_alpha(alpha) <= least:
        raise ValueError(f"expected alpha above {least}, for which the bound holds, but got {alpha}")
    return float(alpha)


def _check_classes(classes: int) -> int:
    if not isinstance(classes, int | np.integer) or classes < 2:
        raise ValueError(f"expected classes to be a whole number of at least 2, but got {classes!r}")
    return classes
