"""
The numerics under the mathematics: each function is exact to rounding, in value and in gradient, down to the smallest
normal number of the dtype. Everything works in log space; nothing is clamped away from 0.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# exp of this is finite in every dtype, and so is the sum of 10^3 million of them.
_NO_OVERFLOW = 60.0
# Elements that a thread of the CPU takes at a time: enough to hide the cost of a call, few enough for its cache.
BLOCK = 1 << 19

Block = tuple[slice, ...]


def log_softmax(logits: Tensor) -> Tensor:
    """
    log_softmax over the last dimension, to full relative precision for every class, up to the margin at which
    exp(-margin) underflows: 87 in float32.

    For the top class, ``log q = - log1p(sum over the others of exp(z_k - z_top))``. The usual z_top - logsumexp(z)
    rounds to exactly 0 past a margin of 17 in float32, and its gradient with it: an attack then reads as failed. The
    top class's own gap is a constant 0, lest its gradient drown the small ones of the others in their sum.
    """
    top = logits.detach().argmax(-1, keepdim=True)
    peak = logits.gather(-1, top)
    # peak - peak is 0, or NaN where the peak is not finite: an overflow must not pass for certainty.
    gap = (logits - peak).scatter(-1, top, (peak - peak).detach())
    others = gap.exp().scatter(-1, top, 0.0).sum(-1, keepdim=True)
    return gap - others.log1p()


def entropy(log_q: Tensor) -> Tensor:
    """Entropy over the last dimension; 0 log 0 is 0, in value and in gradient."""
    log_q = torch.where(log_q.isneginf(), 0.0, log_q)
    return -(log_q.exp() * log_q).sum(-1)


def softmax_sums(w: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    Return one over the sum of exp(w), the sum without one of the largest w, which is 0, and that of w exp(w).

    :param w: Logits less their largest one, along dimension 1.
    :param q: exp(w); it is overwritten.
    """
    total = q.sum(1, keepdim=True)
    scale = total.reciprocal()
    # At the largest logits q is 1, and elsewhere only where it differs from 1 by rounding: frac leaves the others.
    others = q.frac_().sum(1, keepdim=True)
    return scale, total.sub_(others).round_().sub_(1).add_(others), q.mul_(w).sum(1, keepdim=True)


def log_of_others(log_q: Tensor) -> Tensor:
    """Logarithm of ``1 - max q`` over the last dimension, without the cancellation: of all but the top class."""
    top = log_q.detach().argmax(-1, keepdim=True)
    return log_q.scatter(-1, top, -torch.inf).logsumexp(-1)


def log_entropy(log_q: Tensor) -> Tensor:
    """
    Logarithm of :func:`entropy`, finite where the entropy itself underflows; -inf for a distribution on one class.

    It is the log-sum-exp of ``log q + log(- log q)``. For the top class ``- log q`` is ``- log1p(-s)``, with s the sum
    of the others; where s underflows, that is s.
    """
    top = log_q.argmax(-1, keepdim=True)
    log_s = log_of_others(log_q).unsqueeze(-1)
    of_top = torch.where(log_s < -40, log_s, (-(-log_s.exp()).log1p()).log())
    terms = log_q + (-log_q).log().scatter(-1, top, of_top)
    return torch.where(log_q.isneginf(), -torch.inf, terms).logsumexp(-1)


class Sums:
    """Sums and maxima over the last dimension, which stays with size 1."""

    def total(self, values: Tensor) -> Tensor:
        """Return the sum."""
        return values.sum(-1, keepdim=True)

    def largest(self, values: Tensor) -> Tensor:
        """Return the maximum, without a gradient; -inf if there are no values."""
        values = values.detach()
        return (
            values.amax(-1, keepdim=True) if values.shape[-1] else values.new_full((*values.shape[:-1], 1), -math.inf)
        )


LOCAL = Sums()


def exponential_mean(values: Tensor, log_weights: Tensor, order: float, sums: Sums = LOCAL) -> Tensor:
    """
    Return ``1 / order log (sum_i w_i exp(order v_i) / sum_i w_i)`` over the last dimension; at order 0 the mean.

    :param values: Shape ``(..., n)``; those of weight 0 may be anything.
    :param log_weights: Shape ``(..., n)``, up to a constant; -inf is weight 0.
    :param order: Any finite number; above 0 the result tends to the largest value, below 0 to the smallest.
    :param sums: How sums and maxima are taken: over the tensor, or over those of all processes.
    :return: Shape ``(...)``, between the smallest and the largest value; NaN, with gradient 0, where all weights are 0.
    """
    peak = sums.largest(log_weights)
    any_used = peak > -math.inf
    log_weights = torch.where(any_used, log_weights - torch.where(any_used, peak, 0.0), 0.0)
    log_weights = log_weights - sums.total(log_weights.exp()).log()
    result, _ = mean_and_shares(values, log_weights.exp(), order, log_weights, sums)
    return torch.where(any_used, result, math.nan).squeeze(-1)


def mean_and_shares(
    values: Tensor,
    weights: Tensor | None,
    order: float,
    log_weights: Tensor | None = None,
    sums: Sums = LOCAL,
    *,
    near: bool = False,
) -> tuple[Tensor, Tensor | float]:
    """
    Return the :func:`exponential_mean` for weights that sum to 1, and its derivative by each value.

    Powers are taken around a centre c, ``c + 1 / order log sum_i w_i exp(order (v_i - c))``, because the rounding of a
    logarithm is divided by an order that may be tiny. Around the mean the sum is at least 1 (Jensen), so log1p of its
    excess keeps every digit; where a power would overflow, c is the value of the largest exponent.

    :param weights: Shape ``(..., n)``; None for equal ones. `log_weights` are theirs, where they may underflow.
    :param near: Whether to assume that no power around the mean overflows; else the result is not finite.
    :return: Shapes ``(..., 1)`` and ``(..., n)``, or one number for all.
    """
    used, finite = None, values
    if weights is not None:
        log_weights = weights.log() if log_weights is None else log_weights
        used = ~log_weights.isneginf()
        finite = torch.where(used, values, 0.0)
    share: Tensor | float = 1 / values.shape[-1] if weights is None else weights

    def mean(values: Tensor) -> Tensor:
        return values.mean(-1, keepdim=True) if weights is None else sums.total(weights * values)

    if order == 0:
        if used is None:
            return mean(values), share
        # A weight may underflow to 0, but an infinite value of it makes the mean infinite.
        return sums.total(torch.where(values.isinf() & used, values, share * finite)), share
    exponents = order * finite
    centre = mean(exponents.detach())
    if near:
        log_mean = mean(exponents.sub_(centre).expm1()).log1p_()
        return centre.add_(log_mean).div_(order), exponents.sub_(log_mean).exp_().mul_(share)
    lead = sums.largest(exponents if used is None else torch.where(used, exponents, -math.inf))
    is_near = lead - centre < _NO_OVERFLOW
    centre = torch.where(is_near, centre, _finite(lead))
    exponents = exponents - centre if used is None else torch.where(used, exponents - centre, 0.0)
    excess = mean(exponents.clamp(max=_NO_OVERFLOW).expm1())
    # A weight may underflow, but not the product of it and the power: the powers are weighted in log space.
    powers = exponents + (math.log(share) if log_weights is None else log_weights)
    top = _finite(sums.largest(powers))
    far = top + sums.total((powers - top).exp()).log()
    log_mean = torch.where(is_near, excess.clamp(min=-0.5).log1p(), far)
    return (centre + log_mean) / order, (powers - log_mean).exp()


def _finite(values: Tensor) -> Tensor:
    """Return the values, with the largest number of the dtype for infinity: inf - inf is no number."""
    greatest = torch.finfo(values.dtype).max
    return values.clamp(-greatest, greatest)


def cache_blocks(rows: Tensor) -> Iterator[Block]:
    """
    Yield the examples of rows ``(N, C)`` or ``(N, C, D)`` that are computed together, as indices of the rows.

    On a CPU a block stays in the cache. The empty index is all of them.
    """
    if rows.is_cuda or torch.compiler.is_compiling() or rows.numel() <= BLOCK:
        yield ()
        return
    inner, whole = math.prod(rows.shape[2:]), slice(None)
    size = max(1, BLOCK * torch.get_num_threads() // rows.shape[1])
    step = max(1, size // inner)
    for i in range(0, len(rows), step):
        for j in range(0, inner, size):
            yield (slice(i, i + step), whole, slice(j, j + size))[: rows.ndim]


def block_of(values: Tensor, block: Block) -> Tensor:
    """Return the values at an index of :func:`cache_blocks`."""
    return values[block] if block else values


def are_distributions(outputs: Tensor) -> bool:
    """Return whether there are rows, shape ``(n, M)``, and all are probabilities: at least 0, with a sum of 1."""
    return bool(len(outputs) and (outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < 1e-5).all())
