"""Proposition 1 for a classifier on labelled data: its error probability and all bounds on it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from art_hrloss._html import html_table
from art_hrloss._labels import parse_labels
from art_hrloss._preconditions import checked_images, checked_logits
from art_hrloss.bounds._fano import beta
from art_hrloss.bounds._formulas import probability_comparison_bounds, relaxed_upper_bound
from art_hrloss.bounds._joint_distributions import JointDistributions, tightest_lower, tightest_upper
from art_hrloss.losses._validation import check_alpha

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any] | Tensor


@dataclass(frozen=True)
class ErrorBounds:
    """
    Proposition 1 for one classifier and labelled examples; entropies, divergences and log bounds are in nats.

    ``str()``, or a notebook, shows a table, with the bounds as probabilities. Numbers in parentheses are equations of
    the paper.

    >>> from art_hrloss import error_bounds
    >>> result = error_bounds([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], [0, 1, 0])
    >>> result.n, result.classes, result.error, result.log_markov_bound < 0
    (3, 2, 0.0, True)
    """

    n: int  #: The number of examples with a weight above 0.
    classes: int  #: M, the number of classes.
    alpha: float  #: The order of the divergences and of the bounds, except the tightest bounds.
    error: float  #: P_e, the error probability, in [0, 1].
    uncertainty: float  #: P_u (6), in [0, 1 - 1/M].
    conditional_entropy: float  #: H(Y^|X), in [0, log M].
    cross_entropy: float  #: E[-log q(Y|X)], at least 0.
    renyi_divergence: float  #: D_alpha(p_XY || p_XY^) as in (4), without a factor alpha.
    reverse_divergence: float
    """D_(alpha - 1)(p_XY^ || p_XY). inf for alpha >= 2 if a class with label probability 0 has softmax probability
    above 0, as for hard labels."""
    log_comparison_upper_bound: float  #: (5): upper bound on log P_e from P_u.
    log_comparison_lower_bound: float  #: (5): lower bound on log P_e from P_u; -inf if (2) is vacuous.
    log_upper_bound: float  #: (1): upper bound on log P_e from H(Y^|X); vacuous from 0 on.
    log_relaxed_bound: float  #: (11): upper bound on log P_e from the HR loss only.
    log_markov_bound: float
    """Logarithm of CE / log 2, an upper bound by Markov's inequality: a class other than f(X) has probability at most
    1/2. It is not in the paper."""
    log_lower_bound: float
    """(2) as derived: lower bound on log P_e; -inf is vacuous, as for every alpha of at most 2."""
    log_printed_lower_bound: float  #: (2) as printed in the paper.
    tightest_alpha: float  #: The order in [1, inf] at which (1) is tightest; 1 if (1) is vacuous at every order.
    log_tightest_upper_bound: float  #: (1) at `tightest_alpha`; 0 if it is vacuous at every order.
    tightest_lower_alpha: float
    """The order in [2, inf] at which (2) is tightest; NaN if (2) is vacuous at every order."""
    log_tightest_lower_bound: float  #: (2) as derived, at `tightest_lower_alpha`.

    def to_frame(self) -> "pd.DataFrame":
        """
        Return a DataFrame with one row per quantity and bound.

        The columns are kind ("quantity", "upper bound" or "lower bound"), name, value (a probability for a bound),
        log_value (its logarithm), alpha (the order; NaN if there is none) and vacuous.

        :raises ImportError: If pandas is not installed.

        >>> from art_hrloss import error_bounds
        >>> frame = error_bounds([[2.0, 0.0], [0.0, 3.0]], [0, 1]).to_frame()
        >>> frame.groupby("kind").size().to_dict()
        {'lower bound': 4, 'quantity': 6, 'upper bound': 5}
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
        """Return kind, name, logarithm and order of each bound; the order is NaN if the bound has none."""
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
        """Return names and values as text: the quantities, then the upper and the lower bounds as probabilities."""
        rows = [(name, _number(value)) for name, value in self._quantities()]
        for heading, kind in {"upper bounds on P_e": "upper bound", "lower bounds on P_e": "lower bound"}.items():
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
    Return the error probability of a classifier on labelled data and all bounds of Proposition 1, in float64.

    Call it as ``error_bounds(logits, labels)`` or ``error_bounds(classifier, x, labels)``. P_e is the error rate on
    these examples, and p_XY is their empirical distribution. The bounds relate quantities of these examples; they do
    not extend to other data.

    :param logits: Shape ``(n, M)``, finite, or -inf for probability 0. Logits on a GPU are evaluated there.
    :param classifier: A PyTorchClassifier that predicts logits.
    :param x: Images, shape ``(n, *input_shape)``, finite and inside clip_values.
    :param labels: Class indices ``(n,)`` or ``(n, 1)``, or one-hot labels or probabilities ``(n, M)``; the sum of a
           row is the weight of the example, and may be 0.
    :param alpha: The order, above 1; the lower bound (2) is vacuous for an order of at most 2.
    :return: The quantities and bounds, in nats.
    :raises TypeError: If the arguments have neither form, or alpha is not a number.
    :raises ValueError: If an argument is out of its range, or the outputs of the classifier are not logits, not finite,
            random, or dependent on the batch.

    >>> import numpy as np
    >>> from art_hrloss import error_bounds
    >>> result = error_bounds([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], [0, 1, 0])
    >>> result.error
    0.0
    >>> print(round(float(np.exp(result.log_upper_bound)), 3))
    0.691
    """
    if check_alpha(alpha) <= 1:
        raise ValueError(f"expected alpha above 1, because Proposition 1 needs it, but got {alpha}")
    joint = JointDistributions(*_checked(arguments))
    divergence, reverse = joint.divergence(alpha), joint.reverse_divergence(alpha - 1)
    log_u, log_gap, exponent = joint.log_uncertainty, joint.log_gap, beta(joint.classes)
    # (1) and (2) are (5) with P_u replaced by its bounds from H(Y^|X).
    comparison, upper, lower, printed = (
        probability_comparison_bounds(log_bound, divergence, reverse, alpha=alpha)
        for log_bound in (log_u, log_gap, exponent * log_gap, exponent * log_gap * alpha / (alpha - 1))
    )
    hr_loss = joint.conditional_entropy + alpha * divergence
    tightest_alpha, log_tightest_upper = tightest_upper(joint)
    tightest_lower_alpha, log_tightest_lower = tightest_lower(joint, exponent * log_gap)
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
        log_comparison_upper_bound=float(comparison.upper),
        log_comparison_lower_bound=float(comparison.lower),
        log_upper_bound=float(upper.upper),
        log_relaxed_bound=float(relaxed_upper_bound(hr_loss, alpha=alpha)),
        log_markov_bound=math.log(joint.cross_entropy / math.log(2)) if joint.cross_entropy else -math.inf,
        log_lower_bound=float(lower.lower),
        log_printed_lower_bound=float(printed.lower),
        tightest_alpha=tightest_alpha,
        log_tightest_upper_bound=log_tightest_upper,
        tightest_lower_alpha=tightest_lower_alpha,
        log_tightest_lower_bound=log_tightest_lower,
    )


def _checked(arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Return logits and label weights, both float64 of shape ``(n, M)``, from the arguments of error_bounds."""
    if len(arguments) == 3 and hasattr(arguments[0], "predict"):
        logits = torch.from_numpy(checked_logits(arguments[0], checked_images(*arguments[:2])))
    elif len(arguments) == 2 and not hasattr(arguments[0], "predict"):
        logits = arguments[0]
        logits = logits.detach() if isinstance(logits, Tensor) else torch.as_tensor(np.asarray(logits))
        logits = logits if logits.is_cuda else logits.cpu()  # other devices may not support float64
    else:
        kinds = ", ".join(type(argument).__name__ for argument in arguments)
        raise TypeError(f"expected (logits, labels) or (classifier, x, labels), but got ({kinds})")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"expected logits of shape (n, M) with M at least 2, but got {tuple(logits.shape)}")
    if bool((logits.isnan() | logits.isposinf() | logits.isneginf().all(1, keepdim=True)).any()):
        raise ValueError(
            "expected logits that are finite, or -inf for some but not all classes of a row, but got NaN, infinity or "
            "a row of -inf"
        )
    n, classes = logits.shape
    labels = parse_labels(arguments[-1], n=n, classes=classes, zero_rows=True).to(logits.device)
    weights = labels if labels.is_floating_point() else torch.nn.functional.one_hot(labels, classes)
    weighted = weights.sum(1) > 0
    if not bool(weighted.any()):
        raise ValueError(f"expected at least one example with a weight above 0, but got {n} examples without weight")
    return logits.double()[weighted], weights.double()[weighted]


def _number(value: float) -> str:
    """Return a number as text with four significant digits."""
    return f"{value + 0.0:.4g}"  # adding 0 turns -0.0 into 0.0


def _probability(log_bound: float) -> float:
    """Return the exponential of a bound; inf if it overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(log_bound))


def _is_vacuous(log_bound: float, *, lower: bool) -> bool:
    """Return True if a bound excludes no probability."""
    return log_bound == -math.inf if lower else log_bound >= 0


def _bound(log_bound: float, alpha: float | None = None, *, lower: bool = False) -> str:
    """Return a bound as text, with its order if there is one, and whether it is vacuous."""
    probability = _number(_probability(log_bound))
    if _is_vacuous(log_bound, lower=lower):
        return f"{probability}, vacuous"
    return probability if alpha is None else f"{probability}, alpha = {_number(alpha)}"
