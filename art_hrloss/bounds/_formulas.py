"""
Proposition 1: bounds on the error probability of a classifier from its uncertainty and its divergence from the labels.

Notation: ``f(X)`` is the hard decision, the class of the largest softmax probability; ``P_e = P(Y != f(X))`` the error
probability; ``P_u = P(Y^ != f(X))`` the uncertainty; ``D_alpha`` the Renyi divergence in the paper's scaling (eq. (4)),
*without* a factor alpha; M the number of classes. The bounds are bounds on ``log P_e`` in nats. An upper bound is
vacuous from 0 on, a lower bound at -inf. Python numbers are converted to float64, and tensors broadcast.

Differences from the printed paper:

* (1) prints the divergence of p_XY from itself, which is 0: without the hat on the second argument the inequality is
  false. (4) requires nu << mu, which hard labels never satisfy; for orders above 1 it is finite if mu << nu.
* (2) prints the factor alpha / (alpha - 2), whereas (5) and (10) give (alpha - 1) / (alpha - 2). Both are true, and the
  printed bound is weaker. (2) also prints H(Y|X) without the hat. That is true as well, but then no divergence is
  needed, because (9) and (10) also hold for the labels. Its assumption, P_u <= 1 - 1/M, always holds, because the
  largest of M probabilities is at least 1/M.
* (11) turns (1) into ``log P_e <= (alpha - 1) / alpha (L_HR - 1)``. Because L_HR >= 0, this bound on P_e is never below
  exp(-(alpha - 1) / alpha), which is 0.69 at alpha = 1.6.
* "CE <= alpha D_alpha + H(Y|X)" is true as printed. With the hat, that is CE <= L_HR, it holds for hard labels only.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from art_hrloss.bounds._fano import Numbers, as_tensor, beta, log_gap
from art_hrloss.losses._numerics import log_softmax
from art_hrloss.losses._validation import check_alpha, classes_last

Reading = Literal["derived", "printed"]


class LogBounds(NamedTuple):
    """
    Lower and upper bound on the logarithm of a probability, in nats.

    >>> import torch
    >>> from art_hrloss.bounds import LogBounds
    >>> LogBounds(torch.tensor(-2.0), torch.tensor(-1.0)).upper
    tensor(-1.)
    """

    lower: Tensor
    """-inf if it is vacuous."""
    upper: Tensor
    """At least 0 if it is vacuous."""


def uncertainty(logits: Tensor) -> Tensor:
    """
    Return the uncertainty of the classifier, ``P_u = P(Y^ != f(X)) = 1 - mean_i max_k q_ik`` (eq. (6)).

    :param logits: Shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, floating point.
    :return: A probability in [0, 1 - 1/M], a scalar, with full relative precision unless it underflows.
    :raises TypeError: If the logits are not floating point.

    >>> import torch
    >>> from art_hrloss.bounds import uncertainty
    >>> uncertainty(torch.tensor([[0.0, 0.0], [0.0, 0.0]]))
    tensor(0.5000)
    """
    q = log_softmax(classes_last(logits)).exp()
    # The sum over the other classes instead of 1 - max q, which would cancel.
    return q.scatter(-1, q.detach().argmax(-1, keepdim=True), 0.0).sum(-1).mean()


def probability_comparison_bounds(
    log_probability: Numbers, divergence: Numbers, reverse_divergence: Numbers = math.inf, *, alpha: float
) -> LogBounds:
    """
    Return bounds on the logarithm of mu(A) from nu(A), for any event A (eq. (5)).

    The bounds are::

        (alpha - 1) / (alpha - 2) log nu(A) - (alpha - 1) D_(alpha - 1)(nu || mu)  <=  log mu(A)   for alpha > 2
        log mu(A)  <=  (alpha - 1) / alpha log nu(A) + (alpha - 1) D_alpha(mu || nu)               for alpha > 1

    For a classifier, mu = p_XY, nu = p_XY^, and A is the event that the class is not f(X): nu(A) = P_u and mu(A) = P_e.

    :param log_probability: log nu(A), in nats; -inf is probability 0.
    :param divergence: D_alpha(mu || nu), in nats. If it is inf, so is the upper bound.
    :param reverse_divergence: D_(alpha - 1)(nu || mu), in nats. The lower bound is -inf if this is inf, if nu(A) is 0,
           and for every alpha of at most 2.
    :param alpha: The order, finite and above 1.
    :return: The two bounds in nats, float64 tensors unless the arguments are tensors of another dtype.
    :raises TypeError: If alpha is not a number.
    :raises ValueError: If alpha is not finite and above 1.

    >>> import math
    >>> from art_hrloss.bounds import probability_comparison_bounds
    >>> lower, upper = probability_comparison_bounds(math.log(0.1), 0.0, 0.0, alpha=3.0)
    >>> round(float(lower.exp()), 4), round(float(upper.exp()), 4)
    (0.01, 0.2154)
    """
    alpha = _check_order(alpha, 1)
    log_nu, forward, reverse = (as_tensor(value) for value in (log_probability, divergence, reverse_divergence))
    finite = forward != torch.inf
    # If log nu(A) is -inf and the divergence inf, their sum would be NaN, but the bound is inf, that is vacuous.
    upper = (alpha - 1) * (torch.where(finite, log_nu, 0.0) / alpha + forward)
    if alpha <= 2:
        return LogBounds(torch.full_like(upper + reverse, -torch.inf), upper)
    return LogBounds((alpha - 1) / (alpha - 2) * log_nu - (alpha - 1) * reverse, upper)


def error_upper_bound(conditional_entropy: Numbers, divergence: Numbers, *, alpha: float) -> Tensor:
    """
    Return the upper bound of Proposition 1 (eq. (1)).

    It follows from (5) and P_u <= 1 - exp(-H)::

        log P_e <= (alpha - 1) / alpha log[1 - exp(-H(Y^|X))] + (alpha - 1) D_alpha(p_XY || p_XY^)

    :param conditional_entropy: H(Y^|X), in nats.
    :param divergence: D_alpha(p_XY || p_XY^), in nats: the `renyi_divergence` of
           :class:`~art_hrloss.losses.HRLossTerms` divided by alpha.
    :param alpha: The order, finite and above 1.
    :return: A bound on log P_e in nats, differentiable by both arguments; inf if the divergence is inf, otherwise -inf
             at H = 0.
    :raises TypeError: If alpha is not a number.
    :raises ValueError: If alpha is not finite and above 1, or the entropy is below 0.

    >>> from art_hrloss.bounds import error_upper_bound
    >>> round(float(error_upper_bound(0.1, 0.05, alpha=1.6).exp()), 4)
    0.4265
    """
    # With an infinite divergence the bound is constant. A constant entropy then avoids its derivative, inf at H = 0.
    h = torch.where(as_tensor(divergence) == torch.inf, 1.0, as_tensor(conditional_entropy))
    return probability_comparison_bounds(log_gap(h), divergence, alpha=alpha).upper


def error_lower_bound(
    conditional_entropy: Numbers,
    reverse_divergence: Numbers,
    *,
    alpha: float,
    classes: int,
    reading: Reading = "derived",
) -> Tensor:
    """
    Return the lower bound of Proposition 1 (eq. (2)).

    It follows from (5), (9) and (10)::

        log P_e >= beta(M) (alpha - 1) / (alpha - 2) log[1 - exp(-H(Y^|X))]
                   - (alpha - 1) D_(alpha - 1)(p_XY^ || p_XY)

    :param conditional_entropy: H(Y^|X), in nats, in [0, log M].
    :param reverse_divergence: D_(alpha - 1)(p_XY^ || p_XY), in nats: the order is alpha - 1, and the labels are the
           second argument. It is inf for hard labels if any wrong class has a probability above 0.
    :param alpha: The order, finite and above 2.
    :param classes: M, at least 2.
    :param reading: "derived" is the inequality above; "printed" has the factor alpha / (alpha - 2) and is weaker.
    :return: A bound on log P_e in nats, differentiable by both arguments; -inf at H = 0 and for an infinite divergence.
    :raises TypeError: If alpha is not a number.
    :raises ValueError: If alpha is not finite and above 2, or another argument is out of its range.

    >>> from art_hrloss.bounds import error_lower_bound
    >>> round(float(error_lower_bound(0.5, 0.01, alpha=3.0, classes=2).exp()), 4)
    0.0179
    """
    alpha = _check_order(alpha, 2)
    if reading not in get_args(Reading):
        raise ValueError(f"expected reading to be one of {list(get_args(Reading))}, but got {reading!r}")
    factor = beta(classes) * (alpha / (alpha - 1) if reading == "printed" else 1.0)
    log_u = factor * log_gap(conditional_entropy)
    return probability_comparison_bounds(log_u, 0.0, reverse_divergence, alpha=alpha).lower


def relaxed_upper_bound(hr_loss: Numbers, *, alpha: float) -> Tensor:
    """
    Return the upper bound on log P_e from the HR loss only, ``(alpha - 1) / alpha (L_HR - 1)``, in nats.

    It follows from (1) and the relaxation (11), ``log[1 - exp(-H)] <= H - 1``, and is never below -(alpha - 1) / alpha.

    :param hr_loss: The HR loss with the same alpha, eq. (3), in nats.
    :param alpha: The order, finite and above 1.
    :return: A bound on log P_e in nats, at least -(alpha - 1) / alpha.
    :raises TypeError: If alpha is not a number.
    :raises ValueError: If alpha is not finite and above 1.

    >>> from art_hrloss.bounds import relaxed_upper_bound
    >>> relaxed_upper_bound(1.0, alpha=1.6)
    tensor(0., dtype=torch.float64)
    """
    alpha = _check_order(alpha, 1)
    return (alpha - 1) / alpha * (as_tensor(hr_loss) - 1)


def _check_order(alpha: float, least: int) -> float:
    """Return alpha as a float; raise ValueError unless it is above `least`."""
    if check_alpha(alpha) <= least:
        raise ValueError(f"expected alpha above {least}, because the bound needs it, but got {alpha}")
    return float(alpha)
