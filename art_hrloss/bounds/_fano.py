"""Fano's inequality (eq. (9)), its inverse, and the constant of the lower bound of Proposition 1 (eq. (10))."""

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

Numbers = Tensor | float


def fano_bound(probability: Numbers, classes: int) -> Tensor:
    """
    Return Fano's upper bound on the conditional entropy of a class that is guessed wrong with probability P (eq. (9)).

    It is ``q(P) = h(P) + P log M`` nats, where h is the binary entropy, and increases on [0, M / (M + 1)].

    :param probability: P, in [0, 1].
    :param classes: M, at least 2.
    :return: q(P) in nats, of the shape of `probability`.
    :raises ValueError: If an argument is out of its range.

    >>> from art_hrloss.bounds import fano_bound
    >>> round(float(fano_bound(0.1, 10)), 4)
    0.5553
    """
    log_m, p = _log_classes(classes), as_tensor(probability)
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"expected probabilities in [0, 1], but got {p.detach().min()} to {p.detach().max()}")
    return _fano(p, log_m)[0]


def fano_inverse(entropy: Numbers, classes: int) -> Tensor:
    """
    Return the inverse of :func:`fano_bound` on [0, 1 - 1/M]: the smallest P_u for a conditional entropy (eq. (9)).

    It has full relative precision, except that it is 0 for a subnormal entropy, and is differentiable twice.

    :param entropy: The conditional entropy in nats, in [0, q(1 - 1/M)], which contains [0, log M].
    :param classes: M, at least 2.
    :return: A probability in [0, 1 - 1/M], of the shape of `entropy`.
    :raises ValueError: If an argument is out of its range.

    >>> from art_hrloss.bounds import fano_bound, fano_inverse
    >>> round(float(fano_inverse(fano_bound(0.1, 10), 10)), 4)
    0.1
    """
    log_m, h = _log_classes(classes), as_tensor(entropy)
    largest, _ = _fano(torch.tensor(1 - 1 / classes, dtype=h.dtype), log_m)
    if not bool(((h >= 0) & (h <= largest)).all()):
        raise ValueError(
            f"expected entropies in [0, {largest:.6g}] for {classes} classes, "
            f"but got {h.detach().min()} to {h.detach().max()}"
        )
    limits = torch.finfo(h.dtype)
    normal = h >= limits.tiny  # subnormal numbers have few digits, and the root underflows
    h = torch.where(normal, h, largest)
    target = h.detach()
    # Newton's method on log q as a function of log P, which is nearly linear. The start is below the root, because
    # q(P) <= P (log M + 1 - log P), and so are all iterates, because the function is concave.
    p = target / (2 * (log_m + 1 - target.log()))
    for _ in range(100):
        q, slope = _fano(p, log_m)
        step = (target / q).log() * q / (p * slope)
        p = p * step.exp()
        if bool((step.abs() <= 4 * limits.eps).all()):
            break
    p = p.clamp(max=1 - 1 / classes)
    # The loop above has no graph. A Newton step with a graph has the exact first derivative, a second step also the
    # second derivative.
    for _ in range(2):
        q, slope = _fano(p, log_m)
        p = p + (h - q) / slope
    return torch.where(normal, p, 0.0)


def beta(classes: int) -> float:
    """
    Return the constant of (2), the smallest number for which ``log q^-1(H) >= beta log[1 - exp(-H)]`` (10) holds.

    It is the maximum of ``log P / log[1 - exp(-q(P))]`` for q(P) in (0, log M], which has a single maximum in P. beta,
    and with it the exponent of the lower bound, grows like M / log M: 2.14 for 2 classes, 4.07 for 10, 16.3 for 100,
    92.3 for 1000.

    :param classes: M, a whole number of at least 2.
    :return: beta(M), at least 1.
    :raises ValueError: If `classes` is not a whole number of at least 2.

    >>> from art_hrloss.bounds import beta
    >>> round(beta(10), 2)
    4.07
    """
    last = float(fano_inverse(_log_classes(classes), classes))

    def ratio(p: float) -> float:
        return math.log(p) / float(log_gap(fano_bound(p, classes)))

    maximum = minimize_scalar(lambda p: -ratio(p), bounds=(0.0, last), method="bounded", options={"xatol": 1e-10})
    return float(-maximum.fun)


def _fano(p: Tensor, log_m: float) -> tuple[Tensor, Tensor]:
    """Return q(P) and its derivative."""
    # -(1 - p) log(1 - p) is computed with log1p for small p, and from 1 - p, which is then exact, for large p.
    small = torch.where(p > 0.5, 0.0, p)
    entropy_of_right = torch.where(p > 0.5, torch.special.entr(1 - p), -torch.special.xlog1py(1 - small, -small))
    return p * log_m + torch.special.entr(p) + entropy_of_right, torch.log1p(-p) - torch.log(p) + log_m


def log_gap(conditional_entropy: Numbers) -> Tensor:
    """Return log[1 - exp(-H)]; raise ValueError if H is below 0."""
    h = as_tensor(conditional_entropy)
    if not bool((h >= 0).all()):
        raise ValueError(f"expected conditional_entropy to be at least 0, but got {h.detach().min()}")
    return torch.log(-torch.expm1(-h))


def as_tensor(value: Numbers) -> Tensor:
    """Return a number or an integer tensor as float64, and a floating tensor unchanged."""
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    return tensor if tensor.is_floating_point() else tensor.double()


def _log_classes(classes: int) -> float:
    """Return log M; raise ValueError unless M is a whole number of at least 2."""
    if not isinstance(classes, int | np.integer) or classes < 2:
        raise ValueError(f"expected classes to be a whole number of at least 2, but got {classes!r}")
    return math.log(classes)
