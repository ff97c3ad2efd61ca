"""
The numerics under the mathematics: each function is exact to rounding, in value and in gradient, down to the smallest
normal number of the dtype. Everything works in log space; nothing is clamped away from 0.
"""

import torch
from torch import Tensor


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


def exponential_mean(values: Tensor, log_weights: Tensor, order: float) -> Tensor:
    """
    ``1 / order log (sum_i w_i exp(order v_i) / sum_i w_i)`` over the last dimension; at order 0 its limit, the mean.

    Written directly, it divides the rounding of a logarithm by an order that may be tiny. Around a constant c near the
    result it is ``c + 1 / order log1p(sum_i w_i expm1(order (v_i - c)))``: exact for any c, in value and in all
    derivatives, with a rounding error in proportion to the spread of the values.

    :param values: Shape ``(..., n)``; those of weight 0 may be anything.
    :param log_weights: Shape ``(..., n)``, up to a constant; -inf is weight 0.
    :param order: Any finite number; above 0 the result leans to the greatest value, below 0 to the least.
    :return: Shape ``(...)``, between the least and the greatest value; NaN, with gradient 0, where all weights are 0.
    """
    if values.shape[-1] == 0:
        return values.sum(-1) / 0.0
    used = ~log_weights.isneginf()
    log_weights = torch.where(used.any(-1, keepdim=True), log_weights, 0.0)
    weights = log_weights.softmax(-1)
    if order == 0:
        # A weight may underflow to 0, but what it weighs was used: infinite, it makes the mean so.
        result = torch.where(used & values.isinf(), values, weights * torch.where(used, values, 0.0)).sum(-1)
    else:
        log_weights = log_weights.log_softmax(-1)
        centre = _centre(values.detach(), log_weights.detach(), used, order)
        exponent = order * torch.where(used, values - centre, 0.0)
        result = centre.squeeze(-1) + _log_mean_exp(exponent, weights, log_weights, used, order) / order
    return torch.where(used.any(-1), result, torch.nan)


def _log_mean_exp(exponent: Tensor, weights: Tensor, log_weights: Tensor, used: Tensor, order: float) -> Tensor:
    """``log sum_i w_i exp(e_i)`` over the last dimension, for a sum near 1: its excess to full relative precision."""
    if abs(order) > 1e3:  # The rounding of the centre, times such an order, no longer leaves the sum near 1.
        return (log_weights + exponent).logsumexp(-1)
    # Two branches, so that neither expm1 of a large exponent overflows nor the weight of a rare one underflows.
    small = weights * exponent.clamp(max=1.0).expm1()
    large = (torch.where(used, log_weights, 0.0) + exponent.clamp(min=1.0)).exp() - weights
    return torch.where(exponent < 1, small, large).sum(-1).log1p()


def _centre(values: Tensor, log_weights: Tensor, used: Tensor, order: float) -> Tensor:
    """The exponential mean as rounding leaves it, held between the least and the greatest value in use."""
    values = torch.where(used, values, 0.0)
    estimate = (order * values + log_weights).logsumexp(-1, keepdim=True) / order
    least = torch.where(used, values, torch.inf).amin(-1, keepdim=True)
    greatest = torch.where(used, values, -torch.inf).amax(-1, keepdim=True)
    estimate = torch.minimum(torch.maximum(estimate, least), greatest)
    return torch.where(estimate.isfinite(), estimate, 0.0)


def are_distributions(outputs: Tensor) -> bool:
    """Whether there are rows, shape ``(n, M)``, and all are probabilities: at least 0, with a sum of 1."""
    return bool(len(outputs) and (outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < 1e-5).all())
