"""
The HR loss of class indices, fast: one pass over the logits forward, one back, with the gradient written out.

With z the logits of an example, ``u_k = max z - z_k``, ``s`` the sum of ``exp(-u_k)`` over all classes but one of the
largest logit, and ``t = sum_k u_k exp(-u_k) / (1 + s)``, the entropy of q is ``log1p(s) + t`` and ``- log q_y`` is
``log1p(s) + u_y``: sums of what is never negative, so that nothing cancels and every digit counts. By z_k, the entropy
has the derivative ``q_k (u_k - t)`` and ``- log q_y`` that of ``q_k``, less 1 at y.

Between the passes only the logits and a few numbers per example are kept. On a CPU the passes take some rows at a time,
which stay in the cache; the loss of a small batch comes with its gradient from :mod:`art_hrloss.losses._small_batch`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from art_hrloss.losses import _small_batch as small_batch
from art_hrloss.losses._reduction import Options, PerExample, index_and_mass, reduced
from art_hrloss.losses._traced import traced_loss

# From here on exp(-u) is 0 in float32 and float64; with u no greater, 0 times infinity does not come up.
_FAR = 1e4
# Stands in for u at the largest logit: exp(-u) is 0 there, and the sum of a row's u tells how many classes share it.
_TOP = 1e30
# Elements that a thread of the CPU takes at a time: enough to hide the calls, few enough for its cache.
_BLOCK = 1 << 16


def can_fuse(logits: Tensor, weight: Tensor | None) -> bool:
    """Whether :func:`fused_loss` takes these tensors here; torch.func and recorders need plain operations."""
    # Torch has no public words for these.
    if torch._C._are_functorch_transforms_active():
        return False
    if not torch.compiler.is_compiling() and (torch._C._is_tracing() or torch._C._len_torch_dispatch_stack()):
        return False
    differentiable_weight = weight is not None and weight.requires_grad
    return logits.numel() > 0 and not differentiable_weight and (logits.is_cpu or logits.is_cuda)


def fused_loss(logits: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> Tensor:
    """
    The HR loss as :func:`art_hrloss.functional.hr_loss` defines it, for class indices without label smoothing.

    :param logits: Shape ``(..., C)``, float32 or float64, with at least one example.
    :param target: Class indices, int64, shape ``(...)``.
    :param weight: Shape ``(C,)``, of the logits' dtype, or None.
    :return: In nats, shape ``(...)`` for reduction "none", else a scalar.
    """
    if torch.compiler.is_compiling():
        return traced_loss(logits, target, weight, options)
    loss: Tensor = _Fused.apply(logits, target, weight, options)
    return loss


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, options: Options) -> Tensor:
        ctx.options, ctx.gradient = options, None
        ctx.save_for_backward(logits)
        ctx.save_for_forward(logits)
        if weight is None and _is_small(logits):
            found = small_batch.loss_and_gradient(
                logits.detach().numpy(),
                target.numpy(),
                options.order,
                ignore_index=options.ignore_index,
                reduction=options.reduction,
                gradient=ctx.needs_input_grad[0],
            )
            if found is not None:
                ctx.gradient = found[1]
                return torch.from_numpy(found[0])
        rows = logits.reshape(-1, logits.shape[-1])
        index, mass = index_and_mass(target.reshape(-1, 1), weight, options.ignore_index, rows)
        peak, others, excess = _statistics(rows)
        distance = peak - rows.gather(1, index)
        log1p = others.log1p()
        loss, *by = reduced(log1p + excess, log1p + distance, mass, options.order, options.reduction)
        ctx.examples = index, peak, others, excess, distance, *by
        return loss.reshape(target.shape) if options.reduction == "none" else loss

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor, None, None, None]:
        wanted = torch.is_grad_enabled()  # the gradient's own derivative
        if ctx.gradient is not None and not wanted:
            return _times(ctx.gradient, by_loss), None, None, None
        (logits,) = ctx.saved_tensors
        if wanted:
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


def _is_small(logits: Tensor) -> bool:
    """Whether NumPy is quicker, and may see the tensor: subclasses follow torch's operations only."""
    return logits.is_cpu and logits.numel() <= small_batch.LARGEST and type(logits) in (Tensor, Parameter)


def _times(gradient: small_batch.Floats, by_loss: Tensor) -> Tensor:
    """The gradient of each example, shape ``(..., C)``, times that by its loss, or by the one loss of all."""
    try:
        by: Any = by_loss.numpy()[..., np.newaxis] if by_loss.ndim else by_loss.item()
        return torch.from_numpy(gradient * by)
    except RuntimeError:  # Many gradients at once (is_grads_batched=True) are not to be had in NumPy.
        return torch.from_numpy(gradient) * by_loss.unsqueeze(-1)


def _by_plain(options: Options, logits: Tensor, by_loss: Tensor) -> Tensor:
    """The gradient, itself differentiable."""
    gradient: Tensor = torch.func.vjp(options.plain, logits)[1](by_loss)[0]
    return gradient


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


def _gradient(
    rows: Tensor,
    by_loss: Tensor,
    index: Tensor,
    peak: Tensor,
    others: Tensor,
    excess: Tensor,
    distance: Tensor,
    by_entropy: PerExample,
    by_nll: PerExample,
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
