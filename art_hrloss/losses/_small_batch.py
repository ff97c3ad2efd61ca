"""
The HR loss of a small batch on a CPU and its gradient, in NumPy, whose calls cost a third of torch's.

The formulas are those of ``_fused``, with ``w_k = z_k - max z = -u_k``. What is out of the ordinary, an
infinite logit or a label that is to be ignored, is left to the functions there.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]

# Elements beyond which torch, which works in blocks and in threads, is faster.
LARGEST = 1 << 17
# From here on it is quicker to leave the rows of logits as they are than to turn them into columns.
_MANY_CLASSES = 32
# A mean of powers beyond these bounds has lost digits, or will.
_LEAST, _GREATEST = 1e-30, 1e30


def loss_and_gradient(
    logits: Floats, labels: Indices, order: float, *, ignore_index: int, reduction: str, gradient: bool
) -> tuple[Floats, Floats | None] | None:
    """
    The loss of class indices, all of weight 1.

    :param logits: Shape ``(..., C)``, with at least one example and one class.
    :param labels: Shape ``(...)``.
    :param order: alpha - 1.
    :param ignore_index: As for :func:`art_hrloss.functional.hr_loss`, as is `reduction`.
    :param gradient: Whether it is wanted.
    :return: The loss, shape ``()`` or, for "none", ``(...)``; and the gradient of its sum by the logits, in C order.
             None if a label is to be ignored or out of range, or if the numbers need more care than is taken here.
    """
    classes = logits.shape[-1]
    if np.maximum.reduce(labels.view(np.uint64), None) >= classes:  # a negative one is a large unsigned one
        return None
    if 0 <= ignore_index < classes and (labels == ignore_index).any():
        return None
    with np.errstate(all="ignore"):  # whatever goes wrong shows in the loss
        found = _of_rows(logits.reshape(-1, classes), labels.reshape(-1), order, reduction, gradient)
    if found is None or logits.ndim == 2:
        return found
    loss, by_logits = found
    return (
        loss.reshape(labels.shape) if reduction == "none" else loss,
        None if by_logits is None else by_logits.reshape(logits.shape),
    )


def _of_rows(
    logits: Floats, labels: Indices, order: float, reduction: str, gradient: bool
) -> tuple[Floats, Floats | None] | None:
    n, classes = logits.shape
    by_rows = classes >= _MANY_CLASSES
    axis, column = (1, (n, 1)) if by_rows else (0, (n,))
    w, label, top = _placed(logits, labels, by_rows=by_rows)
    w -= w.ravel()[top].reshape(column)
    at_label = w.ravel()[label]
    q = np.exp(w)  # this and what follows from it are times 1 + s
    flat = q.ravel()
    flat[top] = 0
    s = np.add.reduce(q, axis)
    w *= q
    flat[top] = 1
    del top  # as large as two vectors of floats
    slope = s + 1
    t = np.add.reduce(w, axis)  # minus the t of the formulas
    t /= slope
    found = _reduced(s, t, at_label, order, reduction)
    if found is None or not gradient:
        return None if found is None else (found[0], None)
    loss, share, by_nll = found
    np.divide(share, slope, out=slope)
    by_nll = slope if by_nll is None else np.multiply(by_nll, slope, out=by_nll)
    np.subtract(t, at_label, out=at_label)
    at_label *= slope
    _at_label(at_label, flat[label], s, by_nll)
    t *= slope
    t += by_nll
    w *= slope.reshape(column)
    q *= t.reshape(column)
    q -= w
    flat[label] = at_label
    return loss, q if by_rows else _turned(q, w)


def _at_label(by_entropy: Floats, q: Floats, s: Floats, by_nll: Floats) -> None:
    """The gradient at the labels, into the first array, which holds that of the entropy over q."""
    by_entropy *= q
    s += np.subtract(1, q, out=q)  # 1 - q_y, exact where it is nearly 0
    s *= by_nll
    by_entropy -= s


def _placed(logits: Floats, labels: Indices, *, by_rows: bool) -> tuple[Floats, Indices, Indices]:
    """A copy of the logits, by rows or by columns, and where in it each example's label and largest logit lie."""
    n, classes = logits.shape
    top = logits.argmax(1)
    if by_rows:
        first = np.arange(0, n * classes, classes)
        top += first
        return logits.copy(), labels + first, top
    label, example = labels * n, np.arange(n)
    label += example
    top *= n
    top += example
    return logits.T.copy(), label, top


def _turned(columns: Floats, spare: Floats) -> Floats:
    """The transpose, written into the memory of an array of the same size."""
    rows: Floats = spare.reshape(columns.shape[::-1])
    rows[...] = columns.T
    return rows


def _reduced(
    s: Floats, t: Floats, w_label: Floats, order: float, reduction: str
) -> tuple[Floats, float, Floats | None] | None:
    """The loss, each example's share in it, and by what the share is multiplied for ``- log q_y``; None for 1."""
    n, power = len(s), None
    share = 1 / n if reduction in ("batch", "mean") else 1.0
    each = np.log1p(s)
    nll = each - w_label
    each -= t
    if reduction != "batch" or order == 0:
        each += nll
        value = share * float(np.add.reduce(each))
    else:
        value = share * float(np.add.reduce(each))
        nll *= order
        power = np.exp(nll, out=each)
        mean = share * float(np.add.reduce(power))
        if not _LEAST < mean < _GREATEST:
            return None
        # Near 1 the mean has lost what that of exp(x) - 1 keeps.
        near = 0.5 < mean < 2
        log_mean = math.log1p(share * float(np.add.reduce(np.expm1(nll, out=nll)))) if near else math.log(mean)
        value += log_mean / order
        power /= mean
    if not math.isfinite(value):
        return None
    return each if reduction == "none" else np.array(value, s.dtype), share, power
