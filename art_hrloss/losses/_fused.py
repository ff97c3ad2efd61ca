"""
The HR loss in one pass over the logits, and its gradient in another, as one autograd function.

With z the logits of an example, ``w_k = z_k - max z`` and ``s`` the sum of ``exp(w_k)`` over all classes but one of the
largest logit, the entropy of the softmax q is ``log1p(s) + t`` with ``t = - sum_k w_k exp(w_k) / (1 + s)``, and
``- log q_y`` is ``log1p(s) - w_y``: sums of numbers of one sign, so that nothing cancels. For labels of a distribution
p the divergence is ``log1p(s) + log(sum_k exp(x_k)) / (alpha - 1)`` with ``x_k = alpha log p_k - (alpha - 1) w_k``. By
z_k, the entropy has the derivative ``- q_k (w_k + t)`` and the divergence ``q_k - r_k``, where r is the softmax of x
(for a class index: the one-hot vector of the label).

Up to 2^19 elements the gradient is computed with the loss. Beyond, on a CPU, both passes take blocks of examples
that stay in the cache, and store three or five columns between them: numbers per example, with a class dimension of
size 1. The class dimension stays where it is, so dense logits are not copied.
"""

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from art_hrloss.losses._numerics import (
    Block,
    block_of,
    cache_blocks,
    loss_and_gradient,
    mean_and_shares,
    softmax_sums,
)
from art_hrloss.losses._validation import LossOptions

# Elements up to which the gradient is computed together with the loss, from what lies in the cache.
_IN_ADVANCE = 1 << 19
# Elements up to which the calls cost more than the arithmetic.
_SMALL = 1 << 13
# Stands for w = -inf: exp(w) is 0 as well, but 0 times w is no NaN. A divergence as large as this makes it is infinite.
_FAR, _IMPOSSIBLE, _LEAST = -1e30, 1e20, 1e-30
# Orders alpha - 1 nearer to 0, but not 0, magnify the rounding of log(sum_k exp(x_k)); the reference does not.
_NEAR_LIMIT = 0.1

Loss = Callable[[Tensor, Tensor, Tensor | None, LossOptions], Tensor]


def can_fuse(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> bool:
    """Return whether :func:`fused_loss` computes the loss of these arguments; the reference computes every loss."""
    if options.process_group is not None or _is_differentiated(weight) or _is_differentiated(target):
        return False
    by_index = target.ndim < logits.ndim and options.label_smoothing == 0
    near_limit = 0 < abs(options.alpha - 1) < _NEAR_LIMIT
    return logits.numel() > 0 and (by_index or not near_limit) and not _is_recorded()


def _is_differentiated(values: Tensor | None) -> bool:
    floating = values is not None and values.is_floating_point()
    return floating and (values.requires_grad or unpack_dual(values).tangent is not None)  # type: ignore[union-attr]


def _is_recorded() -> bool:
    """Return whether a program of plain operations is recorded, by export, jit.trace or make_fx."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    recorder = sys.modules.get("torch.fx.experimental.proxy_tensor")
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return tracing or (recorder is not None and recorder.get_proxy_mode() is not None)


def fused_loss(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions, reference: Loss) -> Tensor:
    """
    Return the HR loss of checked arguments.

    :param logits: float32 or float64, with at least one element.
    :param reference: The same loss made of operations that torch differentiates: derivatives beyond the first, forward
           mode and vmap are the reference's.
    """
    compiling = torch.compiler.is_compiling()
    in_advance = logits.requires_grad and not compiling and logits.numel() <= _IN_ADVANCE
    function = _Compiled if compiling else _Fused
    return function.apply(logits, target, weight, _Plan(options, reference, in_advance))[0]  # type: ignore[no-any-return]


class _Plan(NamedTuple):
    options: LossOptions
    reference: Loss
    in_advance: bool  # whether the gradient is computed with the loss


class _Compiled(torch.autograd.Function):
    """The loss for torch.compile, which does not take the methods of :class:`_Fused`."""

    @staticmethod
    def forward(logits: Tensor, target: Tensor, weight: Tensor | None, plan: _Plan) -> tuple[Tensor, Tensor, bool]:
        return _Batch(logits, target, weight, plan.options).loss(in_advance=plan.in_advance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, bool]) -> None:
        *tensors, ctx.plan = inputs
        _, stored, ctx.plain = output
        ctx.mark_non_differentiable(stored)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, stored)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor | None, *_: None) -> tuple[Tensor | None, None, None, None]:
        logits, target, weight, stored = ctx.saved_tensors
        if by_loss is None:
            return None, None, None, None
        options, reference, in_advance = ctx.plan
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # the gradient is differentiated in turn
            return (
                torch.func.vjp(lambda z: reference(z, target, weight, options), logits)[1](by_loss)[0],
                None,
                None,
                None,
            )
        if in_advance:
            each = by_loss.unsqueeze(1) if by_loss.ndim else by_loss  # with reduction "none", a number per example
            return stored.reshape(logits.shape) * each, None, None, None
        batch = _Batch(logits, target, weight, options)
        by_loss = by_loss.reshape(batch.column_shape) if by_loss.ndim else by_loss
        return batch.gradient(stored, by_loss, plain=ctx.plain).reshape(logits.shape), None, None, None


class _Fused(_Compiled):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        logits, target, weight = ctx.saved_tensors[:3]
        options, reference, _ = ctx.plan
        loss, pull = torch.func.vjp(lambda z: reference(z, target, weight, options), logits)  # type: ignore[misc]
        product = pull(torch.ones_like(loss))[0] * tangent  # an example's loss depends on its own logits only
        return product.sum(1) if loss.ndim else product.sum(), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        *tensors, (options, reference, _) = inputs
        each = torch.func.vmap(lambda *one: reference(*one, options), in_dims[:3], randomness=info.randomness)
        return (each(*tensors), tensors[0].new_empty(0), False), (0, None, None)


# torch binds the arguments of `forward` at each call; with its signature at hand that takes a tenth of the time.
_Compiled.forward.__signature__ = inspect.signature(_Compiled.forward)  # type: ignore[attr-defined]


class _Batch:
    """Logits as rows ``(N, C)`` or ``(N, C, D)``, views of what was given, with their labels."""

    def __init__(self, logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> None:
        self.weight, self.options, self.order = weight, options, options.alpha - 1
        self.soft = target.ndim == logits.ndim
        self.by_index = not self.soft and options.label_smoothing == 0
        self.example_shape = logits.shape[:1] + logits.shape[2:] if logits.ndim > 1 else logits.shape[:0]
        rows, labels = (logits.unsqueeze(0), target.unsqueeze(0)) if logits.ndim == 1 else (logits, target)
        labels = labels if self.soft else labels.unsqueeze(1)
        self.rows, self.labels = (each if each.ndim == 2 else each.flatten(2) for each in (rows, labels))
        self.column_shape = (len(self.rows), 1, *self.rows.shape[2:])

    def loss(self, *, in_advance: bool) -> tuple[Tensor, Tensor, bool]:
        """
        Return the loss; its gradient, or the columns from which :meth:`gradient` computes it; and whether it is known
        that no logit is infinite and no example ignored.
        """
        # On a CPU, values may be read to spare work; elsewhere that would wait for the device.
        known = self.rows.is_cpu and type(self.rows) is Tensor and not torch.compiler.is_compiling()
        mass = None if self.soft else self._valid_labels(known)
        plain = known and (self.soft or mass is None)
        if in_advance and plain and self.by_index and self.rows.ndim == 2 and self.rows.numel() <= _SMALL:
            small = loss_and_gradient(self.rows, self.labels, self.order, self.options.reduction)
            if small is not None:
                loss, gradient = small
                return loss.reshape(self.example_shape) if self.options.reduction == "none" else loss, gradient, True
        columns: Any = None
        for block in [()] if in_advance else cache_blocks(self.rows):
            rows, labels = block_of(self.rows, block), block_of(self.labels, block)
            peak = rows.amax(1, keepdim=True)
            w = rows - peak
            of_labels = [w.gather(1, labels).neg_()] if self.by_index else []
            if not known:
                w.clamp_(min=_FAR)
            memory = w.exp()
            others, excess = softmax_sums(w, memory)
            if known and math.isnan(excess.sum().item()):  # a logit is -inf or no number
                plain, w = False, (rows - peak).clamp_(min=_FAR)
                excess = softmax_sums(w, torch.exp(w, out=memory))[1]
            if not self.by_index:
                powers, *of_labels = self._powers(w, labels, memory)
            part = (peak, others, excess, *of_labels)
            if columns is None:
                columns = peak.new_empty(len(part), *self.column_shape) if block else part
            for column, values in zip(columns, part if block else (), strict=False):
                column[block] = values
        peak, others, excess, surprise, *label_mass = columns
        surprise, log_sum, mass = self._surprise(surprise, label_mass[0] if label_mass else mass)
        scale = (others + 1).reciprocal_()
        excess.mul_(scale)  # - t
        log1p = others.log1p_()
        loss, by_entropy, by_label = self._reduced(log1p - excess, surprise.add_(log1p), mass, known)
        slope = torch.mul(scale, -by_entropy, out=others)
        constant = torch.sub(scale.mul_(by_label), excess.mul_(slope), out=excess)
        if in_advance:
            q = torch.exp(w, out=memory if self.by_index else None)
            r = None if self.by_index else powers.mul_(by_label / powers.sum(1, keepdim=True).clamp_(min=_LEAST))
            return loss, self._gradient_of(w.mul_(slope), q, self.labels, constant, r), plain
        if log_sum is None:
            return loss, columns[:3] if isinstance(columns, Tensor) else torch.stack(columns[:3]), plain
        return loss, torch.stack([peak, slope, constant, log_sum, torch.ones_like(peak) * by_label]), plain

    def gradient(self, columns: Tensor, by_loss: Tensor, *, plain: bool) -> Tensor:
        """Return the gradient of the loss times a number, or times a column."""
        if not (plain or self.soft):
            self.labels = self.labels.masked_fill(self.labels == self.options.ignore_index, 0)
        parts = [column if i in (0, 3) else column * by_loss for i, column in enumerate(columns)]
        whole: Tensor | None = None
        for block in cache_blocks(self.rows):
            part = self._gradient_of_block(block, plain, *(block_of(column, block) for column in parts))
            if not block:
                return part
            if whole is None:  # made from a part, because torch may take many gradients at once (is_grads_batched=True)
                whole = part.new_empty(self.rows.shape)
            whole[block].copy_(part)
            del part
        return whole  # type: ignore[return-value]  # there is at least one block

    def _gradient_of_block(
        self, block: Block, plain: bool, peak: Tensor, slope: Tensor, constant: Tensor, *of_labels: Tensor
    ) -> Tensor:
        w, labels, r = block_of(self.rows, block) - peak, block_of(self.labels, block), None
        if not plain:
            w.clamp_(min=_FAR)
        if of_labels:
            r = self._exponents(w, labels)[0].sub_(of_labels[0]).exp_() * of_labels[1]
        return self._gradient_of(slope * w, w.exp_(), labels, constant, r)

    def _gradient_of(self, sloped: Tensor, q: Tensor, labels: Tensor, constant: Tensor, r: Tensor | None) -> Tensor:
        """Return ``q (slope w + constant) - r``, in the memory of `sloped`; q is overwritten."""
        # The entries of a row sum to 0. Where two terms near 1 cancel, the entry is minus the sum of the others.
        gradient = sloped.add_(constant).mul_(q)
        if r is None:
            gradient.scatter_(1, labels, torch.zeros_like(constant))
            return gradient.scatter_(1, labels, gradient.sum(1, keepdim=True).neg_())
        gradient.sub_(r)
        if self.soft:  # a row may be one-hot; the terms of a smoothed label are never both near 1
            gradient.sub_(r.copy_(q.trunc_()).mul_(gradient.sum(1, keepdim=True)))
        return gradient

    def _valid_labels(self, known: bool) -> Tensor | None:
        """Make every index valid; return the mass of each example, 0 for an ignored one, or None where all are 1."""
        ignore_index, smoothing = self.options.ignore_index, self.options.label_smoothing
        if known and self.weight is None and ignore_index < 0 and self.labels.min().item() > ignore_index:
            return None
        ignored = self.labels == ignore_index
        self.labels = self.labels.masked_fill(ignored, 0)
        if self.weight is None:
            return self.rows.new_ones(self.labels.shape).masked_fill_(ignored, 0.0)
        mass = self.weight[self.labels] * (1 - smoothing) + self.weight.mean() * smoothing
        return mass.masked_fill_(ignored, 0.0)

    def _exponents(self, w: Tensor, labels: Tensor, out: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return x of labels that need not sum to 1, and the sum of soft ones."""
        alpha, smoothing, classes = self.options.alpha, self.options.label_smoothing, w.shape[1]
        column = (-1, *(1,) * (w.ndim - 2))
        if self.soft:
            joint = labels.to(w.dtype)
            if smoothing:
                joint = joint * (1 - smoothing) + joint.sum(1, keepdim=True) * (smoothing / classes)
            if self.weight is not None:
                joint = joint * self.weight.view(column)
            return torch.log(joint, out=out).mul_(alpha).sub_(w, alpha=self.order), joint.sum(1, keepdim=True)
        weight = w.new_ones(classes) if self.weight is None else self.weight
        off = weight * (smoothing / classes)
        on = (off + weight * (1 - smoothing)).log_().mul_(alpha)
        x = torch.sub(off.log_().mul_(alpha).view(column), w, alpha=self.order, out=out)
        return (x.scatter_(1, labels, on[labels].sub_(w.gather(1, labels), alpha=self.order)),)

    def _powers(self, w: Tensor, labels: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        """Return r up to a factor; ``log(sum_k exp(x_k))``, or p's mean of ``log p - w`` at alpha = 1; and the mass."""
        x, *mass = self._exponents(w, labels, out)
        if self.order == 0:
            powers = x.exp()
            return powers, x.clamp_(min=_FAR).sub_(w).mul_(powers).sum(1, keepdim=True), *mass
        top = x.amax(1, keepdim=True).clamp_(min=_FAR)  # for rows of no mass
        powers = x.sub_(top).exp_()
        return powers, powers.sum(1, keepdim=True).log_().add_(top), *mass

    def _surprise(self, surprise: Tensor, mass: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return columns of the divergence without log1p(s), of ``log(sum_k exp(x_k))``, and of the mass."""
        if self.by_index:
            return surprise, None, mass
        weights = torch.ones_like(surprise) if mass is None else mass
        log_mass, log_sum = weights.log(), surprise
        if self.order == 0:
            surprise, log_sum = surprise / weights - log_mass, log_mass
        else:
            surprise = (surprise - self.options.alpha * log_mass) / self.order
        log_sum = log_sum.masked_fill(log_sum.isneginf(), 0.0)  # of no mass
        return surprise.masked_fill_(surprise > _IMPOSSIBLE, math.inf), log_sum, mass

    def _reduced(
        self, entropy: Tensor, divergence: Tensor, mass: Tensor | None, known: bool
    ) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Return the loss, and its derivatives by the entropy and by the divergence of each example."""
        if self.options.reduction in ("none", "sum"):
            loss = entropy.add_(divergence)
            loss = loss if mass is None else (mass * loss).masked_fill_(mass == 0, 0.0)
            share = 1.0 if mass is None else mass
            return loss.reshape(self.example_shape) if self.options.reduction == "none" else loss.sum(), share, share
        order = self.order if self.options.reduction == "batch" else 0.0
        weights = None if mass is None else (mass / mass.sum()).reshape(-1)
        terms = (entropy.reshape(-1), 0.0), (divergence.reshape(-1), order)
        (h, by_h), (d, by_d) = (mean_and_shares(values, weights, power, known=known) for values, power in terms)
        shares = (by.reshape(self.column_shape) if isinstance(by, Tensor) else by for by in (by_h, by_d))
        by_entropy, by_label = (by if mass is None else torch.where(mass == 0, 0.0, by) for by in shares)
        return h.add_(d).squeeze(0), by_entropy, by_label
