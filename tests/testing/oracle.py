"""The paper's equations in the plainest writing, to test the package against: loops over examples and classes.

Picot, Piantanida, Messina, Labeau, "Modelling the Uncertainty of a Deep Neural Network Enhances its Adversarial
Robustness", GRETSI 2019. Nothing here is stable, fast or differentiable, and nothing needs to be: decimals of 100
digits and unbounded exponents neither underflow at q = exp(-5000) nor cancel at alpha = 1 + 1e-12, so each equation
stands as it is printed. Every function takes numbers, lists or arrays and gives float64 (or arrays of it).
"""

from collections.abc import Callable, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from functools import cache, wraps
from typing import Any

import numpy as np
from scipy.special import logsumexp

DIGITS = Context(prec=100, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
Row = list[Decimal]


def exactly(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Run `function` in 100 digits and round what it gives to float64."""

    @wraps(function)
    def rounded(*args: Any, **options: Any) -> np.ndarray:
        with localcontext(DIGITS):
            return np.array(function(*args, **options), dtype=np.float64)

    return rounded


def _softmax(z: Sequence[float]) -> Row:
    """q_k = exp(z_k) / sum_j exp(z_j)."""
    powers = [Decimal(float(z_k)).exp() for z_k in z]
    return [power / sum(powers) for power in powers]


def _entropy(q: Row) -> Decimal:
    """- sum_k q_k log q_k, where 0 log 0 = 0."""
    return -sum((q_k * q_k.ln() for q_k in q if q_k > 0), Decimal(0))


def _renyi(mu: Row, nu: Row, alpha: Decimal) -> Decimal:
    """Eq. (4): 1/(alpha (alpha - 1)) log E_mu[(d nu/d mu)^(1 - alpha)]; at alpha = 1 its limit, E_mu[log d mu/d nu]."""
    atoms = [(m, n) for m, n in zip(mu, nu, strict=True) if m > 0]
    if alpha == 1:
        return -sum(m * (n / m).ln() for m, n in atoms)
    return sum(m * (n / m) ** (1 - alpha) for m, n in atoms).ln() / (alpha * (alpha - 1))


def _labels(target: Any, classes: int, smoothing: float) -> list[Row]:
    """p_ik: the labels' distributions, from class indices or from probabilities, mixed with the uniform one."""
    target, share = np.asarray(target), Decimal(float(smoothing))
    if target.ndim == 1:
        target = [[int(k == y) for k in range(classes)] for y in target]
    return [[(1 - share) * Decimal(float(p)) + share / classes for p in row] for row in target]


def _joint(
    logits: Any, target: Any, weight: Any = None, label_smoothing: float = 0.0, ignore_index: int = -100
) -> tuple[list[Row], list[Row]]:
    """w_k p_ik, the joint distribution of (X, Y) up to its scale, and q_ik. An ignored example has no mass at all."""
    q = [_softmax(z) for z in logits]
    p = _labels(target, len(q[0]), label_smoothing)
    w = [Decimal(float(w_k)) for w_k in (np.ones(len(q[0])) if weight is None else weight)]
    kept = [np.ndim(y) > 0 or int(y) != ignore_index for y in target]
    return [[w_k * p_ik * keep for w_k, p_ik in zip(w, p_i, strict=True)] for p_i, keep in zip(p, kept, strict=True)], q


def _equation_3(mass: list[Row], q: list[Row], alpha: Decimal) -> Decimal:
    """Eq. (3): H(Y^|X) + alpha D_alpha(p_XY || p_X p_Y^|X), for p_XY(i, k) proportional to mass[i][k]."""
    total = sum(map(sum, mass))
    p_x = [sum(row) / total for row in mass]
    p_xy = [m / total for row in mass for m in row]
    p_xy_hat = [p_i * q_ik for p_i, q_i in zip(p_x, q, strict=True) for q_ik in q_i]
    uncertainty = sum(p_i * _entropy(q_i) for p_i, q_i in zip(p_x, q, strict=True))
    return uncertainty + alpha * _renyi(p_xy, p_xy_hat, alpha)


@exactly
def softmax(logits: Any) -> list[Row]:
    """p_Y^|X: the softmax of each row of logits (n, M)."""
    return [_softmax(z) for z in logits]


@exactly
def conditional_entropy(logits: Any) -> Decimal:
    """H(Y^|X) of sec. 2.1: mean_i [- sum_k q_ik log q_ik]."""
    return sum(_entropy(_softmax(z)) for z in logits) / len(logits)


@exactly
def renyi_divergence(p: Sequence[float], q: Sequence[float], alpha: float) -> Decimal:
    """Eq. (4), D_alpha(p || q), of two distributions on one finite set."""
    return _renyi([Decimal(float(p_k)) for p_k in p], [Decimal(float(q_k)) for q_k in q], Decimal(float(alpha)))


@exactly
def hr_loss(logits: Any, target: Any, alpha: float, reduction: str = "batch", **options: Any) -> Any:
    """The HR loss of logits (n, M) and labels (n,) or label distributions (n, M).

    "batch" is eq. (3) under the joint distribution p_XY(i, k) proportional to w_k p_ik, without the ignored examples.
    "none" is eq. (3) of each example alone times its mass u_i = sum_k w_k p_ik; "sum" and "mean" are their sum and
    their sum over sum_i u_i. Options: weight, label_smoothing, ignore_index.
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
    """E[-log q_Y^|X(Y|X)] under the joint distribution of (X, Y), options as in `hr_loss`."""
    mass, q = _joint(logits, target, **options)
    pairs = [(m, q_ik) for row, q_i in zip(mass, q, strict=True) for m, q_ik in zip(row, q_i, strict=True) if m > 0]
    return -sum(m * q_ik.ln() for m, q_ik in pairs) / sum(m for m, _ in pairs)


@exactly
def gradient(logits: Any, labels: Sequence[int], alpha: float) -> list[Row]:
    """The closed gradient of eq. (3) by the logits, for hard labels y.

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


# Proposition 1


def _digits(least: Decimal) -> Context:
    """Digits with which 1 - p and 1 - exp(-h), of a tiny p or h, still have 100 of their own."""
    return Context(prec=DIGITS.prec + max(0, -least.adjusted()), Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])


def _log_gap(h: Decimal) -> Decimal:
    """log[1 - exp(-h)]."""
    with localcontext(_digits(h)):
        return (1 - (-h).exp()).ln()


def _fano(p: Decimal, classes: int) -> Decimal:
    """q(P) = h(P) + P log M of eq. (9), with h the binary entropy."""
    with localcontext(_digits(p)):
        return _entropy([p, 1 - p]) + p * Decimal(classes).ln()


def _fano_inverse(h: Decimal, classes: int) -> Decimal:
    """By bisection, geometric so that it finds 1e-303 as fast as 0.3. Above q(1 - 1/M) it is 1 - 1/M."""
    low, high = h / 10**6, 1 - 1 / Decimal(classes)
    while high / low - 1 > Decimal("1e-20"):
        middle = (low * high).sqrt()
        low, high = (middle, high) if _fano(middle, classes) < h else (low, middle)
    return high


@cache
def _beta(classes: int) -> Decimal:
    """The peak of log P / log[1 - exp(-q(P))] on (0, q^-1(log M)], by a ternary search in log P: it has one."""

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
    """log[1 - exp(-h)]."""
    return _log_gap(Decimal(float(h)))


@exactly
def fano_bound(p: float, classes: int) -> Decimal:
    """q(P) of eq. (9)."""
    return _fano(Decimal(float(p)), classes)


@exactly
def fano_inverse(h: float, classes: int, relative_change: float = 0.0) -> Decimal:
    """The inverse of q on [0, 1 - 1/M], at h times 1 + relative_change; 1 - 1/M above q(1 - 1/M)."""
    return _fano_inverse(Decimal(float(h)) * (1 + Decimal(float(relative_change))), classes)


@exactly
def beta(classes: int) -> Decimal:
    """beta(M) of eq. (10)."""
    return _beta(classes)


@exactly
def log_of_others_and_log_entropy(logits: Sequence[float]) -> Row:
    """Of one softmax, log(1 - max q) and log H."""
    with localcontext(_margin_digits([logits])):
        q = sorted(_softmax(logits))
        return [sum(q[:-1]).ln(), _entropy(q).ln()]


def _margin_digits(logits: Any) -> Context:
    """Digits with which 1 - max q, of the softmax of logits, still has 100 of its own."""
    finite = [[float(z_k) for z_k in z if z_k > -np.inf] for z in logits]
    return _digits(Decimal(-max(max(z) - min(z) for z in finite)).exp())


def error_bounds(logits: Any, target: Any, alpha: float) -> dict[str, float]:
    """
    Every field of ErrorBounds but the tightest orders, of logits (n, M) and labels (n,) or rows of weights (n, M).

    Under the joint distribution of example and class p_XY(i, k) proportional to the weights. P_u and H, which may
    underflow, come with their logarithms.
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


class FiniteJoints:
    """
    Draws of p_XY and p_XY^ on n examples and M classes, with all that Proposition 1 speaks of, in plain float64.

    For thousands of draws, on which 100 digits would take hours. Divergences are of log-probabilities, so that nothing
    underflows; 1 - max q is the sum of the others, so that nothing cancels. Values have one axis, that of the draws.
    """

    def __init__(self, log_p: np.ndarray, log_q: np.ndarray) -> None:
        """Of log p_XY(i, k) and log q(k | i), shape (draws, n, M)."""
        log_x = logsumexp(log_p, 2)[..., None]
        self.draws, _, self.classes = log_p.shape
        self.log_mu, self.log_nu, self.log_q = log_p, log_x + log_q, log_q
        wrong = np.arange(self.classes) != log_q.argmax(2)[..., None]
        self.log_error = logsumexp(np.where(wrong, self.log_mu, -np.inf), (1, 2))
        self.log_uncertainty = logsumexp(np.where(wrong, self.log_nu, -np.inf), (1, 2))
        p_x, q = np.exp(log_x), np.exp(log_q)
        self.entropy = (p_x[..., 0] * _row_entropies(q)).sum(1)
        # H(Y^|f(X)): of the mean distribution of all examples of the same decision, for each of them.
        same = (log_q.argmax(2)[:, :, None] == log_q.argmax(2)[:, None]) * p_x[:, None, :, 0]
        merged = same @ q / np.where(p_x > 0, same.sum(2, keepdims=True), 1.0)
        self.decided_entropy = (p_x[..., 0] * _row_entropies(merged)).sum(1)
        self.cross_entropy = -(np.exp(log_p) * np.where(log_p > -np.inf, log_q, 0.0)).sum((1, 2))
        logs = (np.where(np.isfinite(log), -log, 0.0).max((1, 2)) for log in (log_p, self.log_nu))
        self.magnitude = 1 + sum(logs)
        """Of the logarithms in play: the sum of exp(log) rounds by a few eps of it, relatively."""

    def log_moment(self, order: float, *, reverse: bool = False) -> np.ndarray:
        """The logarithm of eq. (4) at order + 1, log E_mu[(d nu/d mu)^-order], or with mu and nu exchanged."""
        mu, nu = (self.log_nu, self.log_mu) if reverse else (self.log_mu, self.log_nu)
        possible = mu > -np.inf
        ratio = np.where(possible, mu, 0.0) - np.where(possible, nu, 0.0)
        return logsumexp(np.where(possible, mu + order * ratio, -np.inf), (1, 2))

    def divergence(self, alpha: float, *, reverse: bool = False) -> np.ndarray:
        """Eq. (4), D_alpha(p_XY || p_XY^), or with the two exchanged."""
        return self.log_moment(alpha - 1, reverse=reverse) / (alpha * (alpha - 1))


def _row_entropies(q: np.ndarray) -> np.ndarray:
    """- sum_k q_k log q_k over the last axis, the top class by what the others leave."""
    top = np.arange(q.shape[-1]) == q.argmax(-1)[..., None]
    others = np.where(top, 0.0, q)
    s = others.sum(-1)
    return -(others * np.log(np.where(others > 0, others, 1.0))).sum(-1) - np.where(s < 1, (1 - s) * np.log1p(-s), 0.0)


def finite_joints(draws: int, examples: int, classes: int, seed: int = 0) -> FiniteJoints:
    """
    Random joint distributions, from very peaked to flat, every kind of classifier with every kind of labels.

    Classifiers: without and with classes excluded, uniform on a few classes, one-hot, uniform, sure. Labels: soft, with
    classes excluded, hard, always right, always wrong, the classifier's own, close to them, the classifier's own given
    that it is wrong, smoothed. A tenth of the examples weighs nothing.
    """
    random = np.random.default_rng([draws, examples, classes, seed])
    shape = (draws, examples, classes)

    def soft() -> np.ndarray:
        concentration = 10 ** random.uniform(-1.5, 2, (draws, 1, 1))
        return np.log(random.gamma(concentration + 1, size=shape)) + np.log(random.random(shape)) / concentration

    def some(log: np.ndarray) -> np.ndarray:
        kept = (random.random(shape) < 0.5) | (
            np.arange(classes) == random.integers(classes, size=(draws, examples, 1))
        )
        return np.where(kept, log, -np.inf)

    def hard(labels: np.ndarray) -> np.ndarray:
        return np.where(np.arange(classes) == labels, 0.0, -np.inf)

    anything, any_label = np.zeros(shape), random.integers(classes, size=(draws, examples, 1))
    sure = np.where(hard(any_label) == 0, random.uniform(0, 300, (draws, 1, 1)), random.normal(size=shape))
    kinds = [soft(), some(soft()), some(anything), hard(any_label), anything, sure]
    log_q = _normalised(_chosen(random, kinds))
    f = log_q.argmax(2)[..., None]
    wrong = (f + 1 + random.integers(classes - 1, size=f.shape)) % classes
    given_wrong = np.where(np.arange(classes) == f, -np.inf, log_q)
    given_wrong = np.where(np.isfinite(given_wrong).any(2, keepdims=True), given_wrong, hard(wrong))
    labels = random.integers(classes, size=f.shape)
    close = log_q * random.uniform(0.3, 3, (draws, 1, 1))
    smoothed = np.log(0.1 / classes + 0.9 * np.exp(hard(labels)))
    kinds = [soft(), some(soft()), hard(labels), hard(f), hard(wrong), log_q, close, given_wrong, smoothed]
    log_x = np.log(random.dirichlet(np.ones(examples), draws))
    log_x[:, 1:][random.random((draws, examples - 1)) < 0.1] = -np.inf
    return FiniteJoints(_normalised(log_x)[..., None] + _normalised(_chosen(random, kinds)), log_q)


def _chosen(random: np.random.Generator, kinds: list[np.ndarray]) -> np.ndarray:
    kind = random.integers(len(kinds), size=len(kinds[0]))
    return np.stack(kinds)[kind, np.arange(len(kind))]


def _normalised(z: np.ndarray) -> np.ndarray:
    """The log-softmax over the last axis, the top class's to full relative precision."""
    gap = z - z.max(-1, keepdims=True)
    top = np.arange(z.shape[-1]) == z.argmax(-1)[..., None]
    return gap - np.log1p(np.where(top, 0.0, np.exp(gap)).sum(-1, keepdims=True))
