"""
The HR loss of class indices, fast: one pass over the logits forward, one back, with the gradient written out.

With z the logits of an example, ``u_k = max z - z_k``, ``s`` the sum of ``exp(-u_k)`` over all classes but one of the
largest logit, and ``t = sum_k u_k exp(-u_k) / (1 + s)``, the entropy of q is ``log1p(s) + t`` and ``- log q_y`` is
``log1p(s) + u_y``: sums of what is never negative, so that nothing cancels and every digit counts. By z_k, the entropy
has the derivative ``q_k (u_k - t)`` and ``- log q_y`` that of ``q_k``, less 1 at y.

Between the passes only the logits and a few numbers per example are kept. On a CPU the passes take some rows at a time,
which stay in the cache.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# From here on exp(-u) is 0 in float32 and float64; with u no greater, 0 times infinity does not come up.
_FAR = 1e4
# Stands in for u at the largest logit: exp(-u) is 0 there, and the sum of a row's u tells how many classes share it.
_TOP = 1e30
# Elements that a thread of the CPU takes at a time: enough to hide the calls, few enough for its cache.
_BLOCK = 1 << 16

# A number for each example, shape (n, 1), or one for all.
_PerExample = Tensor | float


class Options(NamedTuple):
    """What the loss is made with; see :func:`art_hrloss.functional.hr_loss`."""

    order: float
    """alpha - 1."""
    ignore_index: int
    reduction: str
    plain: Callable[[Tensor], Tensor]
    """The same loss as a function of the logits alone, made of operations that torch differentiates: derivatives beyond
    the first and forward mode go through it."""


def can_fuse(logits: Tensor, weight: Tensor | None) -> bool:
    """Whether :func:`fused_loss` takes these tensors here; compilers and vmap do better with plain operations."""
    # Torch has no public word for this; its own autograd.Function asks by the same one.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    differentiable_weight = weight is not None and weight.requires_grad
    return logits.numel() > 0 and not differentiable_weight and logits.device.type in ("cpu", "cuda")


def fused_loss(logits: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> Tensor:
    """
    The HR loss as :func:`art_hrloss.functional.hr_loss` defines it, for class indices without label smoothing.

    :param logits: Shape ``(..., C)``, float32 or float64, with at least one example.
    :param target: Class indices, int64, shape ``(...)``.
    :param weight: Shape ``(C,)``, of the logits' dtype, or None.
    :return: In nats, shape ``(...)`` for reduction "none", else a scalar.
    """
    loss: Tensor = _Fused.apply(logits, target, weight, options)
    return loss


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> Tensor:
        rows = logits.reshape(-1, logits.shape[-1])
        index, mass = _index_and_mass(target.reshape(-1, 1), weight, options.ignore_index, rows)
        peak, others, excess = _statistics(rows)
        distance = peak - rows.gather(1, index)
        log1p = others.log1p()
        loss, *by = _reduced(log1p + excess, log1p + distance, mass, options)
        ctx.options, ctx.examples = options, (index, peak, others, excess, distance, *by)
        ctx.save_for_backward(logits)
        ctx.save_for_forward(logits)
        return loss.reshape(target.shape) if options.reduction == "none" else loss

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None, None, None]:
        (logits,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # The gradient's own derivative is wanted.
            return _by_plain(ctx.options, logits, by_loss), None, None, None
        rows, by_loss = logits.reshape(-1, logits.shape[-1]), by_loss.reshape(-1, 1)
        try:
            gradient = _gradient(rows, by_loss, *ctx.examples)
        except RuntimeError:  # Many gradients at once (is_grads_batched=True) cannot be worked in place.
            gradient = _gradient(rows, rows.new_ones(1, 1), *ctx.examples) * by_loss
        return gradient.reshape(logits.shape), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (logits,) = ctx.saved_tensors
        per_example = ctx.options.reduction == "none"
        ones = logits.new_ones(logits.shape[:-1] if per_example else ())
        product = _by_plain(ctx.options, logits, ones) * tangent
        return product.sum(-1) if per_example else product.sum()


def _by_plain(options: Options, logits: Tensor, by_loss: Tensor) -> Tensor:
    """The gradient, itself differentiable."""
    gradient: Tensor = torch.func.vjp(options.plain, logits)[1](by_loss)[0]
    return gradient


def _index_and_mass(
    target: Tensor, weight: Tensor | None, ignore_index: int, rows: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Indices that can all be looked up, and the weight of each example, 0 for an ignored one; None where all are 1."""
    ignored = target == ignore_index
    # On a GPU the question would make the caller wait.
    if weight is None and target.device.type == "cpu" and not ignored.any():
        return target, None
    index = target.masked_fill(ignored, 0)
    mass = rows.new_ones(index.shape) if weight is None else weight.unsqueeze(1).gather(0, index)
    return index, mass.masked_fill(ignored, 0.0)


def _statistics(rows: Tensor) -> tuple[Tensor, ...]:
    """The largest logit, s and t of every row, shape ``(n, 1)`` each."""
    size = _rows_at_a_time(rows)
    if size >= len(rows):
        return _statistics_at_once(rows)
    columns = [_statistics_at_once(block) for block in rows.split(size)]
    return tuple(torch.cat(column) for column in zip(*columns, strict=True))


def _rows_at_a_time(rows: Tensor) -> int:
    """As many as the processor's cache holds; a GPU takes them all at once."""
    return len(rows) if rows.is_cuda else max(1, _BLOCK * torch.get_num_threads() // rows.shape[1])


def _statistics_at_once(rows: Tensor) -> tuple[Tensor, ...]:
    peak = rows.amax(1, keepdim=True)
    u = torch.threshold_((peak - rows).clamp_(max=_FAR), 0.0, _TOP)
    q = u.neg().exp_()
    # Of equal largest logits all but one are others; dividing by a little more than _TOP, floor leaves that one out.
    others = u.sum(1, keepdim=True).div_(_TOP * (1 + 1e-6), rounding_mode="floor")
    others += q.sum(1, keepdim=True)
    return peak, others, q.mul_(u).sum(1, keepdim=True).div_(others + 1)


def _reduced(
    entropy: Tensor, nll: Tensor, mass: Tensor | None, options: Options
) -> tuple[Tensor, _PerExample, _PerExample]:
    """The loss of columns ``(n, 1)``, and its derivatives by each example's entropy and ``- log q_y``."""
    share: _PerExample = 1.0 if mass is None else mass
    if options.reduction in ("batch", "mean"):
        share = 1 / len(nll) if mass is None else mass / mass.sum()
    if mass is not None:  # What weighs nothing may be anything.
        entropy, nll = entropy.masked_fill(mass == 0, 0.0), nll.masked_fill(mass == 0, 0.0)
    by_entropy = by_nll = share
    if options.reduction == "none":
        loss = (entropy + nll) * share
    elif options.reduction != "batch" or options.order == 0:
        loss = _weighted_sum(entropy + nll, share)
    else:
        divergence, by_nll = _log_mean_power(nll, mass, share, options.order)
        loss = _weighted_sum(entropy, share) + divergence
    if mass is None:
        return loss, by_entropy, by_nll
    # Where nothing weighs anything the loss is NaN, and its derivatives are 0.
    return loss, torch.where(mass == 0, 0.0, by_entropy), torch.where(mass == 0, 0.0, by_nll)


def _log_mean_power(nll: Tensor, mass: Tensor | None, share: _PerExample, order: float) -> tuple[Tensor, Tensor]:
    """``1 / order log sum_i m_i exp(order nll_i)`` with shares m, and its derivative by each nll, shape ``(n, 1)``."""
    if mass is not None:
        nll = nll.masked_fill(mass == 0, -math.copysign(math.inf, order))
    # Around the one that leads no power overflows. It is held finite, because inf - inf is no number.
    greatest = torch.finfo(nll.dtype).max
    lead = (nll.amax() if order > 0 else nll.amin()).clamp_(-greatest, greatest)
    exponents = (nll - lead).mul_(order)
    powers = exponents.exp().mul_(share)
    total = powers.sum()
    # Near 1 it has lost what the sum of m (exp(x) - 1) keeps; near 0 it is the other way round.
    log_total = torch.where(total > 0.5, _weighted_sum(exponents.expm1_(), share).log1p(), total.log())
    return lead + log_total / order, powers.div_(total)


def _weighted_sum(values: Tensor, weights: _PerExample) -> Tensor:
    return (values * weights).sum() if isinstance(weights, Tensor) else values.sum() * weights


def _gradient(
    rows: Tensor,
    by_loss: Tensor,
    index: Tensor,
    peak: Tensor,
    others: Tensor,
    excess: Tensor,
    distance: Tensor,
    by_entropy: _PerExample,
    by_nll: _PerExample,
) -> Tensor:
    """The gradient by the logits, shape ``(n, C)``, from what forward has found of each example."""
    scale = (others + 1).reciprocal_().mul_(by_loss)
    slope = scale * by_entropy
    constant = scale * by_nll - slope * excess
    gradient, size = torch.empty_like(rows), _rows_at_a_time(rows)
    for i in range(0, len(rows), size):
        _fill_gradient(*(whole[i : i + size] for whole in (rows, peak, constant, slope, gradient)))
    # At y, q_y - 1 is - (s - expm1(-u_y)) / (1 + s): exact where q_y is nearly 1.
    near = distance.clamp(max=_FAR)
    power = near.neg()
    at_label = slope * power.exp() * (near - excess) - scale * by_nll * (others - power.expm1_())
    return gradient.scatter_(1, index, at_label)


def _fill_gradient(rows: Tensor, peak: Tensor, constant: Tensor, slope: Tensor, gradient: Tensor) -> None:
    """``exp(-u) (constant + slope u)``, into the last of the tensors."""
    u = (peak - rows).clamp_(max=_FAR)
    torch.neg(u, out=gradient).exp_()
    gradient.mul_(u.mul_(slope).add_(constant))
