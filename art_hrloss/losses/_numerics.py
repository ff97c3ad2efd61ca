"""
Numerically exact softmax statistics and means of exponentials.

The value and the gradient of each function are exact up to rounding, down to the smallest normal number of the dtype.
The functions work in log space; no probability is replaced by a small constant.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# The exponential of this is finite in every dtype, and so is the sum of 10^9 such exponentials.
_NO_OVERFLOW = 60.0
# A finite log-ratio whose exponential is 0 when it is multiplied by a negative order.
_LARGE_RATIO = 1e30
# Elements per CPU thread and block: enough to make the cost of a call negligible, few enough to stay in the cache.
BLOCK = 1 << 19

Block = tuple[slice, ...]


def log_softmax(logits: Tensor) -> Tensor:
    """
    Return log_softmax over the last dimension with full relative precision for every class.

    For the top class, ``log q = - log1p(sum over the other classes of exp(z_k - z_top))``, which is precise until
    exp(-margin) underflows, at a margin of 87 in float32. The usual ``z_top - logsumexp(z)``, and its gradient, round
    to exactly 0 beyond a margin of 17 in float32, so that an attack has no gradient and seems to fail.
    """
    top = logits.detach().argmax(-1, keepdim=True)
    peak = logits.gather(-1, top)
    # peak - peak is 0, or NaN if the peak is not finite: an overflow must not look like a confident prediction. It is
    # detached, because the gradient through it would cancel the small gradients of the other classes in their sum.
    gap = (logits - peak).scatter(-1, top, (peak - peak).detach())
    sum_others = gap.exp().scatter(-1, top, 0.0).sum(-1, keepdim=True)
    return gap - sum_others.log1p()


def entropy(log_q: Tensor) -> Tensor:
    """Return the entropy over the last dimension, in nats; 0 log 0 is 0, and so is its gradient."""
    log_q = torch.where(log_q.isneginf(), 0.0, log_q)  # 1 log 1 is 0 as well, and its gradient is finite
    return -(log_q.exp() * log_q).sum(-1)


def softmax_sums(w: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    Return 1 / sum(exp(w)), the sum of exp(w) without one entry of the largest logit, and the sum of w exp(w).

    :param w: Logits minus their maximum, along dimension 1; the largest are 0.
    :param q: exp(w); it is overwritten.
    """
    total = q.sum(1, keepdim=True)
    scale = total.reciprocal()
    # total - 1 would lose the small terms. frac sets the entries that are exactly 1, those of the largest logit, to 0
    # and keeps all others. The rounded difference is the number of entries that are 1; all but one are added again.
    sum_others = q.frac_().sum(1, keepdim=True)
    return scale, total.sub_(sum_others).round_().sub_(1).add_(sum_others), q.mul_(w).sum(1, keepdim=True)


def log_of_others(log_q: Tensor) -> Tensor:
    """Return the logarithm of ``1 - max q`` without cancellation, as a sum over the other classes."""
    top = log_q.detach().argmax(-1, keepdim=True)
    return log_q.scatter(-1, top, -torch.inf).logsumexp(-1)


def log_entropy(log_q: Tensor) -> Tensor:
    """
    Return the logarithm of :func:`entropy`, finite even if the entropy underflows; -inf for a single possible class.

    It is the log-sum-exp of ``log q + log(- log q)``. For the top class ``- log q = - log1p(-s)``, where s is the sum
    of the probabilities of the other classes.
    """
    top = log_q.argmax(-1, keepdim=True)
    log_s = log_of_others(log_q).unsqueeze(-1)
    # For a tiny s, - log1p(-s) is s to the last digit, and log s is known even if s underflows.
    of_top = torch.where(log_s < -40, log_s, (-(-log_s.exp()).log1p()).log())
    terms = log_q + (-log_q).log().scatter(-1, top, of_top)
    return torch.where(log_q.isneginf(), -torch.inf, terms).logsumexp(-1)


class Sums:
    """Sums and maxima over the last dimension, which is kept with size 1."""

    def total(self, values: Tensor) -> Tensor:
        """Return the sum, shape ``(..., 1)``."""
        return values.sum(-1, keepdim=True)

    def largest(self, values: Tensor) -> Tensor:
        """Return the maximum, shape ``(..., 1)``, without a gradient; -inf if there are no values."""
        values = values.detach()
        return (
            values.amax(-1, keepdim=True) if values.shape[-1] else values.new_full((*values.shape[:-1], 1), -math.inf)
        )


LOCAL = Sums()


def exponential_mean(values: Tensor, log_weights: Tensor, order: float, sums: Sums = LOCAL) -> Tensor:
    """
    Return ``1 / order log (sum_i w_i exp(order v_i) / sum_i w_i)`` over the last dimension; at order 0 the mean.

    :param values: Shape ``(..., n)``; values of weight 0 have no effect, even if they are not finite.
    :param log_weights: Logarithms of the weights up to a constant, shape ``(..., n)``; -inf is weight 0.
    :param order: Any finite number. The result tends to the largest value for large orders, and to the smallest value
           for large negative orders.
    :param sums: Sums and maxima over the tensor, or over the tensors of all processes of a group.
    :return: Shape ``(...)``, between the smallest and the largest value; NaN, with gradient 0, if all weights are 0.
    """
    # The largest weight is scaled to 1 before the weights are normalised, so that their sum cannot underflow.
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
    Return the :func:`exponential_mean` for weights that sum to 1, and its derivatives by the values.

    Exponentials are computed around a centre c, ``c + 1 / order log sum_i w_i exp(order (v_i - c))``: the rounding
    error of the logarithm is divided by the order, which may be tiny. If c is the mean, the sum is at least 1 (Jensen's
    inequality), and log1p of its excess over 1 is precise. If an exponential around the mean would overflow, c is the
    value of the largest exponent instead.

    :param weights: Shape ``(..., n)``; None for equal weights.
    :param log_weights: The logarithms of the weights, if these may underflow; None to compute them.
    :param near: Whether to assume that no exponential around the mean overflows. If one does, the result is not finite.
    :return: The mean, shape ``(..., 1)``, and its derivatives, shape ``(..., n)`` or one number for all values.
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
        # If a weight underflows to 0, its value can still be infinite, and then the mean is infinite, not NaN.
        return sums.total(torch.where(values.isinf() & used, values, share * finite)), share
    exponents = order * finite
    # Without a gradient: the result does not depend on the centre, so its derivatives by the centre cancel.
    centre = mean(exponents.detach())
    if near:
        log_mean = mean(exponents.sub_(centre).expm1()).log1p_()
        return centre.add_(log_mean).div_(order), exponents.sub_(log_mean).exp_().mul_(share)
    largest = sums.largest(exponents if used is None else torch.where(used, exponents, -math.inf))
    is_near = largest - centre < _NO_OVERFLOW
    centre = torch.where(is_near, centre, _finite(largest))
    exponents = exponents - centre if used is None else torch.where(used, exponents - centre, 0.0)
    # Both branches of torch.where are computed and differentiated, so the unused one must be finite as well.
    excess = mean(exponents.clamp(max=_NO_OVERFLOW).expm1())
    # A weight may underflow while its product with a large exponential does not, so they are multiplied in log space.
    powers = exponents + (math.log(share) if log_weights is None else log_weights)
    top = _finite(sums.largest(powers))
    far = top + sums.total((powers - top).exp()).log()
    log_mean = torch.where(is_near, excess.clamp(min=-0.5).log1p(), far)
    return (centre + log_mean) / order, (powers - log_mean).exp()


def log_ratio_mean(log_p: Tensor, log_q: Tensor, order: float) -> Tensor:
    """Return ``1 / order log E_p[(p / q)^order]`` over the last dimension: alpha D_alpha for order alpha - 1."""
    possible = ~log_p.isneginf()
    absent = possible & log_q.isneginf()
    infinite = absent.any(-1) if order >= 0 else (absent == possible).all(-1)
    finite = possible & ~absent
    # Infinite ratios are replaced before the exponential mean, because infinity times a weight of 0 would make its
    # gradient NaN. Where the divergence is infinite, the last line sets its value.
    ratio = torch.where(finite, log_p, 0.0) - torch.where(finite, log_q, 0.0)
    ratio = torch.where(absent & ~infinite.unsqueeze(-1), _LARGE_RATIO, ratio)
    return torch.where(infinite, math.inf, exponential_mean(ratio, log_p, order))


def _finite(values: Tensor) -> Tensor:
    """Return the values with infinities replaced by the largest number of the dtype, because inf - inf is NaN."""
    greatest = torch.finfo(values.dtype).max
    return values.clamp(-greatest, greatest)


def cache_blocks(rows: Tensor) -> Iterator[Block]:
    """
    Yield indices of blocks of examples that are computed together, small enough for the cache of the CPU.

    :param rows: Logits, shape ``(N, C)`` or ``(N, C, D)``.
    :return: Indices of `rows`; the empty index is all examples in one block, as on a GPU.
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
    """Return True if all rows, shape ``(n, M)``, are probability distributions, and there is at least one row."""
    return bool(len(outputs) and (outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < 1e-5).all())
