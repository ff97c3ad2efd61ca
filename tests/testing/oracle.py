"""
Reference implementation of the paper's equations in loops over examples and classes, to test the package.

Picot, Piantanida, Messina, Labeau, "Modelling the Uncertainty of a Deep Neural Network Enhances its Adversarial
Robustness", GRETSI 2019. The functions are neither fast nor differentiable, and need no stable formulas: decimals with
100 digits and unbounded exponents neither underflow at q = exp(-5000) nor cancel at alpha = 1 + 1e-12. Each equation is
written as printed. The functions take numbers, lists or arrays and return float64 numbers or arrays.
"""

from collections.abc import Callable, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from functools import cache, wraps
from typing import Any

import numpy as np

DIGITS = Context(prec=100, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
Row = list[Decimal]


def exactly(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Compute a function with 100 digits and round its result to float64."""

    @wraps(function)
    def rounded(*args: Any, **options: Any) -> np.ndarray:
        with localcontext(DIGITS):
            return np.array(function(*args, **options), dtype=np.float64)

    return rounded


def _softmax(z: Sequence[float]) -> Row:
    """Return q_k = exp(z_k) / sum_j exp(z_j)."""
    powers = [Decimal(float(z_k)).exp() for z_k in z]
    return [power / sum(powers) for power in powers]


def _entropy(q: Row) -> Decimal:
    """Return - sum_k q_k log q_k, where 0 log 0 = 0."""
    return -sum((q_k * q_k.ln() for q_k in q if q_k > 0), Decimal(0))


def _renyi(mu: Row, nu: Row, alpha: Decimal) -> Decimal:
    """Return (4), 1/(alpha (alpha - 1)) log E_mu[(d nu/d mu)^(1 - alpha)]; at alpha = 1 E_mu[log d mu/d nu]."""
    atoms = [(m, n) for m, n in zip(mu, nu, strict=True) if m > 0]
    if alpha == 1:
        return -sum(m * (n / m).ln() for m, n in atoms)
    return sum(m * (n / m) ** (1 - alpha) for m, n in atoms).ln() / (alpha * (alpha - 1))


def _labels(target: Any, classes: int, smoothing: float) -> list[Row]:
    """Return p_ik, the label distributions mixed with the uniform one, from class indices or probabilities."""
    target, share = np.asarray(target), Decimal(float(smoothing))
    if target.ndim == 1:
        target = [[int(k == y) for k in range(classes)] for y in target]
    return [[(1 - share) * Decimal(float(p)) + share / classes for p in row] for row in target]


def _joint(
    logits: Any, target: Any, weight: Any = None, label_smoothing: float = 0.0, ignore_index: int = -100
) -> tuple[list[Row], list[Row]]:
    """Return w_k p_ik, the joint distribution of (X, Y) up to scale, 0 for ignored examples, and q_ik."""
    q = [_softmax(z) for z in logits]
    p = _labels(target, len(q[0]), label_smoothing)
    w = [Decimal(float(w_k)) for w_k in (np.ones(len(q[0])) if weight is None else weight)]
    kept = [np.ndim(y) > 0 or int(y) != ignore_index for y in target]
    return [[w_k * p_ik * keep for w_k, p_ik in zip(w, p_i, strict=True)] for p_i, keep in zip(p, kept, strict=True)], q


def _equation_3(mass: list[Row], q: list[Row], alpha: Decimal) -> Decimal:
    """Return (3), H(Y^|X) + alpha D_alpha(p_XY || p_X p_Y^|X), for p_XY(i, k) proportional to mass[i][k]."""
    total = sum(map(sum, mass))
    p_x = [sum(row) / total for row in mass]
    p_xy = [m / total for row in mass for m in row]
    p_xy_hat = [p_i * q_ik for p_i, q_i in zip(p_x, q, strict=True) for q_ik in q_i]
    uncertainty = sum(p_i * _entropy(q_i) for p_i, q_i in zip(p_x, q, strict=True))
    return uncertainty + alpha * _renyi(p_xy, p_xy_hat, alpha)


@exactly
def softmax(logits: Any) -> list[Row]:
    """Return p_Y^|X, the softmax of each row of logits (n, M)."""
    return [_softmax(z) for z in logits]


@exactly
def conditional_entropy(logits: Any) -> Decimal:
    """Return H(Y^|X) of section 2.1, mean_i [- sum_k q_ik log q_ik]."""
    return sum(_entropy(_softmax(z)) for z in logits) / len(logits)


@exactly
def renyi_divergence(p: Sequence[float], q: Sequence[float], alpha: float) -> Decimal:
    """Return (4), D_alpha(p || q), for two distributions on a finite set."""
    return _renyi([Decimal(float(p_k)) for p_k in p], [Decimal(float(q_k)) for q_k in q], Decimal(float(alpha)))


@exactly
def hr_loss(logits: Any, target: Any, alpha: float, reduction: str = "batch", **options: Any) -> Any:
    """
    Return the HR loss of logits (n, M) and labels (n,) or label distributions (n, M).

    "batch" is eq. (3) for the joint distribution p_XY(i, k) proportional to w_k p_ik, without ignored examples.
    "none" is eq. (3) of each example times its mass u_i = sum_k w_k p_ik. "sum" is the sum of these values, "mean" is
    this sum divided by sum_i u_i. Options: weight, label_smoothing, ignore_index.
    """
    mass, q = _joint(logits, target, **options)
    if reduction == "batch":
        return _equation_3(mass, q, Decimal(float(alpha)))
    u = [sum(row) for row in mass]
    each = [
        u_i * _equation_3([row], [q_i], Decimal(float(alpha))) if u_i else Decimal(0)
        for u_i, row, q_i in zip(u, mass, q, strict=True)
    ]
    return {"none": each, "sum": sum(each), "mean": sum(each) / sum(u)}[reduction]


@exactly
def cross_entropy(logits: Any, target: Any, **options: Any) -> Decimal:
    """Return E[-log q_Y^|X(Y|X)] for the joint distribution of (X, Y), with the options of `hr_loss`."""
    mass, q = _joint(logits, target, **options)
    pairs = [(m, q_ik) for row, q_i in zip(mass, q, strict=True) for m, q_ik in zip(row, q_i, strict=True) if m > 0]
    return -sum(m * q_ik.ln() for m, q_ik in pairs) / sum(m for m, _ in pairs)


@exactly
def gradient(logits: Any, labels: Sequence[int], alpha: float) -> list[Row]:
    """
    Return the closed form of the gradient of eq. (3) by the logits, for hard labels y.

    dL/dz_i = (1/n) [- q_i (log q_i + H_i)] + w_i (q_i - onehot(y_i)), where w_i is q_i,y_i^(1-alpha) over its sum.
    """
    q = [_softmax(z) for z in logits]
    powers = [q_i[y] ** (1 - Decimal(float(alpha))) for q_i, y in zip(q, labels, strict=True)]
    shares = [power / sum(powers) for power in powers]
    rows = []
    for q_i, y, w_i in zip(q, labels, shares, strict=True):
        h_i = _entropy(q_i)
        rows.append([-q_k * (q_k.ln() + h_i) / len(q) + w_i * (q_k - int(k == y)) for k, q_k in enumerate(q_i)])
    return rows


@exactly
def brier_score(logits: Any, labels: Sequence[int]) -> Decimal:
    """Return the Brier score, mean_i sum_k (q_ik - [k = y_i])^2."""
    q = [_softmax(z) for z in logits]
    return sum((q_k - (k == y)) ** 2 for q_i, y in zip(q, labels, strict=True) for k, q_k in enumerate(q_i)) / len(q)


# Proposition 1


def _digits(least: Decimal) -> Context:
    """Return a context in which 1 - p and 1 - exp(-h) have 100 significant digits for a tiny p or h."""
    return Context(prec=DIGITS.prec + max(0, -least.adjusted()), Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])


def _log_gap(h: Decimal) -> Decimal:
    """Return log[1 - exp(-h)]."""
    with localcontext(_digits(h)):
        return (1 - (-h).exp()).ln()


def _fano(p: Decimal, classes: int) -> Decimal:
    """Return q(P) = h(P) + P log M of eq. (9), where h is the binary entropy."""
    with localcontext(_digits(p)):
        return _entropy([p, 1 - p]) + p * Decimal(classes).ln()


def _fano_inverse(h: Decimal, classes: int) -> Decimal:
    """Return the inverse by bisection on a logarithmic scale; 1 - 1/M above q(1 - 1/M)."""
    low, high = h / 10**6, 1 - 1 / Decimal(classes)
    while high / low - 1 > Decimal("1e-20"):
        middle = (low * high).sqrt()
        low, high = (middle, high) if _fano(middle, classes) < h else (low, middle)
    return high


@cache
def _beta(classes: int) -> Decimal:
    """Return the maximum of log P / log[1 - exp(-q(P))] on (0, q^-1(log M)], by a ternary search in log P."""

    def ratio(log_p: Decimal) -> Decimal:
        return log_p / _log_gap(_fano(log_p.exp(), classes))

    with localcontext(DIGITS):
        low, high = Decimal("1e-9").ln(), _fano_inverse(Decimal(classes).ln(), classes).ln()
        while high - low > Decimal("1e-16"):
            third = (high - low) / 3
            low, high = (low + third, high) if ratio(low + third) < ratio(high - third) else (low, high - third)
        return ratio(high)


@exactly
def log_gap(h: float) -> Decimal:
    """Return log[1 - exp(-h)]."""
    return _log_gap(Decimal(float(h)))


@exactly
def fano_bound(p: float, classes: int) -> Decimal:
    """Return q(P) of eq. (9)."""
    return _fano(Decimal(float(p)), classes)


@exactly
def fano_inverse(h: float, classes: int, relative_change: float = 0.0) -> Decimal:
    """Return the inverse of q on [0, 1 - 1/M] at h (1 + relative_change); 1 - 1/M above q(1 - 1/M)."""
    return _fano_inverse(Decimal(float(h)) * (1 + Decimal(float(relative_change))), classes)


@exactly
def beta(classes: int) -> Decimal:
    """Return the constant beta of eq. (10) for M classes."""
    return _beta(classes)


@exactly
def log_of_others_and_log_entropy(logits: Sequence[float]) -> Row:
    """Return log(1 - max q) and log H of one softmax."""
    with localcontext(_margin_digits([logits])):
        q = sorted(_softmax(logits))
        return [sum(q[:-1]).ln(), _entropy(q).ln()]


def _margin_digits(logits: Any) -> Context:
    """Return a context in which 1 - max q has 100 significant digits for the softmax of the logits."""
    finite = [[float(z_k) for z_k in z if z_k > -np.inf] for z in logits]
    return _digits(Decimal(-max(max(z) - min(z) for z in finite)).exp())


def error_bounds(logits: Any, target: Any, alpha: float) -> dict[str, float]:
    """
    Return the fields of ErrorBounds, except the tightest orders, for logits (n, M) and labels (n,) or weights (n, M).

    The joint distribution p_XY(i, k) of example and class is proportional to the weights. P_u and H, which may
    underflow, are also returned as logarithms.
    """
    with localcontext(_margin_digits(logits)):
        mass, q = _joint(logits, target)
        total, order = sum(map(sum, mass)), Decimal(float(alpha))
        p_x = [sum(row) / total for row in mass]
        mu = [m / total for row in mass for m in row]
        nu = [p_i * q_ik for p_i, q_i in zip(p_x, q, strict=True) for q_ik in q_i]
        f = [q_i.index(max(q_i)) for q_i in q]
        wrong = [k != f_i for f_i, q_i in zip(f, q, strict=True) for k in range(len(q_i))]
        p_e, p_u = (sum(m for m, of in zip(measure, wrong, strict=True) if of) for measure in (mu, nu))
        h = sum(p_i * _entropy(q_i) for p_i, q_i in zip(p_x, q, strict=True))
        q_xy = [q_ik for q_i in q for q_ik in q_i]
        ce = -sum(m * q_ik.ln() for m, q_ik in zip(mu, q_xy, strict=True) if m > 0)
        forward, reverse = _renyi(mu, nu, order), _renyi(nu, mu, order - 1)
        log_gap, beta = _log_gap(h), _beta(len(q[0]))
        never = -Decimal("Infinity")

        def below(log_u: Decimal, factor: Decimal) -> Decimal:
            known = alpha > 2 and reverse.is_finite()
            return factor / (order - 2) * log_u - (order - 1) * reverse if known else never

        return {
            name: float(value)
            for name, value in {
                "error": p_e,
                "uncertainty": p_u,
                "log_uncertainty": p_u.ln(),
                "conditional_entropy": h,
                "log_conditional_entropy": h.ln(),
                "cross_entropy": ce,
                "renyi_divergence": forward,
                "reverse_divergence": reverse,
                "log_comparison_upper_bound": (order - 1) * (p_u.ln() / order + forward),
                "log_comparison_lower_bound": below(p_u.ln(), order - 1),
                "log_upper_bound": (order - 1) * (log_gap / order + forward),
                "log_relaxed_bound": (order - 1) / order * (h + order * forward - 1),
                "log_markov_bound": (ce / Decimal(2).ln()).ln(),
                "log_lower_bound": below(beta * log_gap, order - 1),
                "log_printed_lower_bound": below(beta * log_gap, order),
            }.items()
        }
