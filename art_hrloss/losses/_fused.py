"""
The HR loss in one pass over the logits, and its gradient in another, as one autograd function.

With z the logits of an example, ``w_k = z_k - max z`` and ``s`` the sum of ``exp(w_k)`` over all classes but one of the
largest logit, the entropy of the softmax q is ``log1p(s) + t`` with ``t = - sum_k w_k exp(w_k) / (1 + s)``, and
``- log q_y`` is ``log1p(s) - w_y``: sums of numbers of one sign, so that nothing cancels. For labels of a distribution p
the divergence is ``log(sum_k exp(x_k)) / (alpha - 1) + log1p(s)`` with ``x_k = alpha log p_k - (alpha - 1) w_k``. By
z_k, the entropy has the derivative ``- q_k (w_k + t)`` and the divergence ``q_k - r_k``, where r is the softmax of x (for
a class index: the one-hot vector of the label).

Between the passes only the inputs and five numbers per example are stored. On a CPU the passes take a block of examples
at a time, which stays in the cache. The class dimension stays where it is, so that dense logits are not copied.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from art_hrloss.losses._numerics import mean_and_shares
from art_hrloss.losses._validation import LossOptions

# Elements that a thread of the CPU takes at a time: enough to hide the cost of a call, few enough for its cache.
_BLOCK = 1 << 16
# Stands for w = -inf: exp(w) is 0 as well, but 0 times w is no NaN.
_FAR = -1e30
# Orders alpha - 1 nearer to 0, but not 0, magnify the rounding of log(sum_k exp(x_k)); the reference does not.
_NEAR_LIMIT = 0.1

Reference = Callable[[Tensor, Tensor, Tensor | None, LossOptions], Tensor]


class _Columns(NamedTuple):
    """Numbers of each example, with a class dimension of size 1."""

    peak: Tensor
    """max z."""
    others: Tensor
    """s."""
    excess: Tensor
    """t."""
    divergence: Tensor
    log_sum: Tensor
    """log(sum_k exp(x_k)); unused for class indices without smoothing."""
    mass: Tensor


def can_fuse(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> bool:
    """Return whether :func:`fused_loss` computes the loss of these arguments; the reference computes every loss."""
    if logits.numel() == 0 or options.process_group is not None:
        return False
    if target.requires_grad or (weight is not None and weight.requires_grad):
        return False
    order = options.alpha - 1
    return order == 0 or abs(order) >= _NEAR_LIMIT or _by_index(logits, target, options)


def _by_index(logits: Tensor, target: Tensor, options: LossOptions) -> bool:
    return target.ndim < logits.ndim and options.label_smoothing == 0


def fused_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions, reference: Reference
) -> Tensor:
    """
    Return the HR loss of checked arguments, without a copy of the logits or of their gradient.

    :param logits: Shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ...)``, float32 or float64, with at least one element.
    :param target: Class indices (int64) or probabilities.
    :param reference: The same loss made of operations that torch differentiates: derivatives beyond the first, forward
           mode and vmap are the reference's.
    """
    loss: Tensor = _Fused.apply(logits, target, weight, options, reference)[0]
    return loss


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions, reference: Reference
    ) -> tuple[Tensor, Tensor]:
        rows, labels = _as_rows(logits, target)
        parts = [_columns(rows[block], _part(labels, block, rows), weight, options) for block in _blocks(rows)]
        peak, others, excess, divergence, log_sum, mass = _joined(parts, rows)
        entropy = others.log1p() + excess
        loss, by_entropy, by_divergence = _reduced(entropy, divergence, mass, options)
        scale = 1 + others
        slope = by_entropy / -scale
        constant = by_divergence / scale + slope * excess
        if options.reduction == "none":
            loss = loss.reshape(logits.shape[:1] + logits.shape[2:] if logits.ndim > 1 else ())
        return loss, torch.stack([peak, log_sum, constant, slope, -by_divergence])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        logits, target, weight, ctx.options, ctx.reference = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, weight, output[1])
        ctx.save_for_forward(logits, target, weight)

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor | None, _: None) -> tuple[Tensor | None, None, None, None, None]:
        logits, target, weight, columns = ctx.saved_tensors
        if by_loss is None:
            return None, None, None, None, None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # the gradient is to be differentiated
            gradient = _reference_gradient(ctx, by_loss)
        else:
            gradient = _gradient(logits, target, weight, columns, by_loss, ctx.options)
        return gradient, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, None]:
        each = ctx.options.reduction == "none"  # the gradients of these losses are of one example each
        classes = 0 if tangent.ndim == 1 else 1
        shape = tangent.shape[:classes] + tangent.shape[classes + 1 :] if each else ()
        product = _reference_gradient(ctx, tangent.new_ones(shape)) * tangent
        return product.sum(classes) if each else product.sum(), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, None]]:
        *tensors, options, reference = inputs
        vectorized = torch.func.vmap(
            lambda *each: reference(*each, options), in_dims=in_dims[:3], randomness=info.randomness
        )
        loss = vectorized(*tensors)
        return (loss, tensors[0].new_empty(0)), (0, None)


# torch binds the arguments of `forward` at each call; with its signature at hand that takes a tenth of the time.
_Fused.forward.__signature__ = inspect.signature(_Fused.forward)  # type: ignore[attr-defined]


def _reference_gradient(ctx: Any, by_loss: Tensor) -> Tensor:
    """Return the gradient, itself differentiable."""
    logits, target, weight = ctx.saved_tensors[:3]
    gradient: Tensor = torch.func.vjp(lambda z: ctx.reference(z, target, weight, ctx.options), logits)[1](by_loss)[0]
    return gradient


def _as_rows(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits of shape ``(N, C)`` or ``(N, C, D)``, and the target likewise, without a copy where possible."""
    if logits.ndim == 2:
        return logits, target
    if logits.ndim == 1:
        return logits.unsqueeze(0), target.unsqueeze(0)
    return logits.flatten(2), target.flatten(2 if target.ndim == logits.ndim else 1)


def _blocks(rows: Tensor) -> Iterator[tuple[slice, ...]]:
    """Yield the blocks of examples that are computed together, as indices of the rows."""
    size = max(1, _BLOCK * torch.get_num_threads() // rows.shape[1])
    n, inner, whole = len(rows), rows[0, 0].numel(), slice(None)
    if rows.is_cuda or torch.compiler.is_compiling() or n * inner <= size:
        yield (whole,) * rows.ndim
    elif inner <= size:
        for i in range(0, n, size // inner):
            yield slice(i, i + size // inner), *(whole,) * (rows.ndim - 1)
    else:
        for i in range(n):
            for j in range(0, inner, size):
                yield slice(i, i + 1), whole, slice(j, j + size)


def _part(labels: Tensor, block: tuple[slice, ...], rows: Tensor) -> Tensor:
    return labels[block if labels.ndim == rows.ndim else (block[0], *block[2:])]


def _joined(parts: list[_Columns], rows: Tensor) -> _Columns:
    if len(parts) == 1:
        return parts[0]
    shape = (len(rows), 1, *rows.shape[2:])
    return _Columns(*(torch.cat([c.reshape(-1) for c in column]).reshape(shape) for column in zip(*parts, strict=True)))


def _columns(rows: Tensor, labels: Tensor, weight: Tensor | None, options: LossOptions) -> _Columns:
    order, by_index = options.alpha - 1, _by_index(rows, labels, options)
    peak = rows.amax(1, keepdim=True)
    w = rows - peak
    if by_index:
        surprise = nll_loss(w, labels, ignore_index=options.ignore_index, reduction="none").unsqueeze(1)
        mass = log_sum = _mass_of_indices(labels, weight, rows, options.ignore_index)
    w.clamp_(min=_FAR)
    if not by_index:
        surprise, log_sum, mass = _surprise_of_distributions(w, labels, weight, options)
    q = w.exp()
    total = q.sum(1, keepdim=True)
    excess = w.mul_(q).sum(1, keepdim=True)
    # At the largest logits q is 1, and nowhere else in more than the last digit: frac leaves the others.
    others = q.frac_().sum(1, keepdim=True)
    others = others + (total - others).round_().sub_(1)
    divergence = surprise + others.log1p()
    return _Columns(peak, others, excess / -(1 + others), divergence, log_sum, mass)


def _mass_of_indices(labels: Tensor, weight: Tensor | None, rows: Tensor, ignore_index: int) -> Tensor:
    used = labels != ignore_index
    if weight is None:
        return used.to(rows.dtype).unsqueeze(1)
    return torch.where(used, weight[torch.where(used, labels, 0)], 0.0).unsqueeze(1)


def _surprise_of_distributions(
    w: Tensor, labels: Tensor, weight: Tensor | None, options: LossOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the divergence without its log1p(s), log(sum_k exp(x_k)), and the mass of each example."""
    order = options.alpha - 1
    x, mass = _exponents(w, labels, weight, options)
    if order == 0:  # x is log p up to log mass, whose mean over p is the label's own
        joint = x.exp()
        surprise = x.clamp_(min=_FAR).sub_(w).mul_(joint).sum(1, keepdim=True) / mass - mass.log()
        log_sum = mass.log()
    else:
        top = x.amax(1, keepdim=True)
        log_sum = x.sub_(top).exp_().sum(1, keepdim=True).log_().add_(top)
        surprise = (log_sum - options.alpha * mass.log()) / order
    impossible = surprise > -_FAR / 2
    surprise = torch.where(impossible, torch.inf, surprise)
    return torch.where(mass == 0, 0.0, surprise), torch.where(mass == 0, 0.0, log_sum), mass


def _exponents(w: Tensor, labels: Tensor, weight: Tensor | None, options: LossOptions) -> tuple[Tensor, Tensor]:
    """Return x, of labels that need not sum to 1, and their sum, the mass of each example."""
    alpha, smoothing = options.alpha, options.label_smoothing
    column = (-1, *(1,) * (w.ndim - 2))
    if labels.ndim == w.ndim:
        joint = labels.to(w.dtype)
        if smoothing:
            joint = joint * (1 - smoothing) + joint.sum(1, keepdim=True) * (smoothing / w.shape[1])
        if weight is not None:
            joint = joint * weight.view(column)
        return joint.log().mul_(alpha).sub_(w, alpha=alpha - 1), joint.sum(1, keepdim=True)
    weight = w.new_ones(w.shape[1]) if weight is None else weight
    used = (labels != options.ignore_index).unsqueeze(1)
    index = torch.where(used, labels.unsqueeze(1), 0)
    off, on = weight * (smoothing / w.shape[1]), weight[index] * (1 - smoothing)
    x = torch.add(off.log().mul_(alpha).view(column), w, alpha=1 - alpha)
    x.scatter_(1, index, (off[index] + on).log_() * alpha - w.gather(1, index) * (alpha - 1))
    return x, torch.where(used, off.sum() + on, 0.0)


def _reduced(
    entropy: Tensor, divergence: Tensor, mass: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, and its derivatives by the entropy and by the divergence of each example."""
    used = mass != 0
    if options.reduction in ("none", "sum"):
        loss = torch.where(used, mass * (entropy + divergence), 0.0)
        return loss if options.reduction == "none" else loss.sum(), mass, mass
    share = (mass / mass.sum()).reshape(-1)
    log_share = share.log()
    order = options.alpha - 1 if options.reduction == "batch" else 0.0
    uncertainty, _ = mean_and_shares(entropy.reshape(-1), share, log_share, 0.0)
    mean, by_divergence = mean_and_shares(divergence.reshape(-1), share, log_share, order)
    by = (torch.where(used, each.reshape(mass.shape), 0.0) for each in (share, by_divergence))
    return (uncertainty + mean).squeeze(0), *by


def _gradient(
    logits: Tensor, target: Tensor, weight: Tensor | None, columns: Tensor, by_loss: Tensor, options: LossOptions
) -> Tensor:
    rows, labels = _as_rows(logits, target)
    if options.reduction == "none":
        by_loss = by_loss.reshape(columns.shape[1:])
    coefficients = columns[2:] * by_loss
    blocks = list(_blocks(rows))
    if len(blocks) == 1:
        return _gradient_of(rows, labels, weight, columns, coefficients, options).reshape(logits.shape)
    # Made from the coefficients, because torch may take many gradients at once (is_grads_batched=True).
    whole = coefficients.new_empty(rows.shape)
    for block in blocks:
        column = (slice(None), block[0], slice(None), *block[2:])
        part = _gradient_of(rows[block], _part(labels, block, rows), weight, columns[column], coefficients[column], options)
        whole[block].copy_(part)
    return whole.reshape(logits.shape)


def _gradient_of(
    rows: Tensor, labels: Tensor, weight: Tensor | None, columns: Tensor, coefficients: Tensor, options: LossOptions
) -> Tensor:
    constant, slope, by_label = coefficients.unbind()
    w = (rows - columns[0]).clamp_(min=_FAR)
    q = w.exp()
    gradient = (slope * w).add_(constant).mul_(q)
    # The entries of a row sum to 0. At the largest logit two terms near 1 may have cancelled: what they have lost is
    # the sum of the row.
    if _by_index(rows, labels, options):
        index = labels.masked_fill(labels == options.ignore_index, 0).unsqueeze(1)
        gradient.scatter_add_(1, index, by_label)
        return gradient.scatter_add_(1, index, gradient.sum(1, keepdim=True).neg_())
    x, _ = _exponents(w, labels, weight, options)
    gradient.add_(x.sub_(columns[1]).exp_() * by_label)
    return gradient.sub_(q.trunc_() * gradient.sum(1, keepdim=True))
