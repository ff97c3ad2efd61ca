"""
The HR loss in one pass over the logits, and its gradient in another, as one autograd function.

With z the logits of an example, ``w_k = z_k - max z`` and ``s`` the sum of ``exp(w_k)`` over all classes but one of the
largest logit, the entropy of the softmax q is ``log1p(s) + t`` with ``t = - sum_k w_k exp(w_k) / (1 + s)``, and
``- log q_y`` is ``log1p(s) - w_y``: sums of numbers of one sign, so that nothing cancels. For labels of a distribution p
the divergence is ``log1p(s) + log(sum_k exp(x_k)) / (alpha - 1)`` with ``x_k = alpha log p_k - (alpha - 1) w_k``. By
z_k, the entropy has the derivative ``- q_k (w_k + t)`` and the divergence ``q_k - r_k``, where r is the softmax of x (for
a class index: the one-hot vector of the label).

Between the passes only the inputs and five numbers per example are stored; a small batch stores its gradient, which
spares calls. On a CPU the passes take a block of examples at a time, which stays in the cache. The class dimension stays
where it is, so that dense logits are not copied.
"""

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from art_hrloss.losses._numerics import mean_and_shares
from art_hrloss.losses._validation import LossOptions

# Elements that a thread of the CPU takes at a time: enough to hide the cost of a call, few enough for its cache.
_BLOCK = 1 << 17
# Elements up to which the gradient is computed together with the loss, from what lies in the cache.
_SMALL = 1 << 20
# Stands for w = -inf: exp(w) is 0 as well, but 0 times w is no NaN.
_FAR = -1e30
# A divergence that such a w has entered, which is no possible one: it is infinite.
_IMPOSSIBLE = 1e20
# Orders alpha - 1 nearer to 0, but not 0, magnify the rounding of log(sum_k exp(x_k)); the reference does not.
_NEAR_LIMIT = 0.1

Reference = Callable[[Tensor, Tensor, Tensor | None, LossOptions], Tensor]


def can_fuse(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> bool:
    """Return whether :func:`fused_loss` computes the loss of these arguments; the reference computes every loss."""
    if target.requires_grad or (weight is not None and weight.requires_grad) or options.process_group is not None:
        return False
    order = options.alpha - 1
    by_index = target.ndim < logits.ndim and options.label_smoothing == 0
    return logits.numel() > 0 and (by_index or order == 0 or abs(order) >= _NEAR_LIMIT)


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
    in_advance = logits.numel() <= _SMALL and logits.requires_grad and not torch.compiler.is_compiling()
    function = _Traced if torch.compiler.is_compiling() else _Fused
    loss: Tensor = function.apply(logits, target, weight, options, reference, in_advance)[0]
    return loss


class _Traced(torch.autograd.Function):
    """The loss for torch.compile, which takes neither forward mode nor vmap."""

    @staticmethod
    def forward(
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: LossOptions,
        reference: Reference,
        in_advance: bool,
    ) -> tuple[Tensor, Tensor, bool]:
        batch = _Batch(*_as_rows(logits, target), weight, options)
        return batch.loss(logits.shape[:1] + logits.shape[2:] if logits.ndim > 1 else (), in_advance=in_advance)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, bool]) -> None:
        logits, target, weight, ctx.options, ctx.reference, ctx.in_advance = inputs
        ctx.finite = output[2]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, weight, output[1])
        ctx.save_for_forward(logits, target, weight)

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        logits, target, weight, stored = ctx.saved_tensors
        if by_loss is None:
            gradient = None
        elif torch.is_grad_enabled() and not torch.compiler.is_compiling():  # the gradient is to be differentiated
            gradient = _reference_gradient(ctx, by_loss)
        else:
            rows, labels = _as_rows(logits, target)
            if by_loss.ndim:
                by_loss = by_loss.reshape(len(rows), 1, *rows.shape[2:])
            if ctx.in_advance:
                gradient = stored * by_loss
            else:
                gradient = _Batch(rows, labels, weight, ctx.options).gradient(stored, by_loss, ctx.finite)
            gradient = gradient.reshape(logits.shape)
        return gradient, None, None, None, None, None


class _Fused(_Traced):
    """The loss with every transformation of torch."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, by_target: Tensor | None, *_: Any) -> tuple[Tensor, None, None]:
        logits, target, weight = ctx.saved_tensors[:3]
        each = ctx.options.reduction == "none"  # the loss of an example depends on its own logits and labels only
        classes = 0 if logits.ndim == 1 else 1
        shape = logits.shape[:classes] + logits.shape[classes + 1 :] if each else ()
        tangents = {0: tangent, 1: by_target}
        tangents = {i: t for i, t in tangents.items() if t is not None}

        def of(*moved: Tensor) -> Tensor:
            tensors = {0: logits, 1: target} | dict(zip(tangents, moved, strict=True))
            return ctx.reference(*tensors.values(), weight, ctx.options)

        gradients = torch.func.vjp(of, *((logits, target)[i] for i in tangents))[1](logits.new_ones(shape))
        total = sum(g * t for g, t in zip(gradients, tangents.values(), strict=True))
        return total.sum(classes) if each else total.sum(), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], *inputs: Any
    ) -> tuple[tuple[Tensor, Tensor, bool], tuple[int, None, None]]:
        logits, target, weight, options, reference, _ = inputs
        vectorized = torch.func.vmap(
            lambda *tensors: reference(*tensors, options), in_dims=in_dims[:3], randomness=info.randomness
        )
        return (vectorized(logits, target, weight), logits.new_empty(0), False), (0, None, None)


# torch binds the arguments of `forward` at each call; with its signature at hand that takes a tenth of the time.
_Fused.forward.__signature__ = inspect.signature(_Fused.forward)  # type: ignore[attr-defined]


def _reference_gradient(ctx: Any, by_loss: Tensor) -> Tensor:
    """Return the gradient, itself differentiable."""
    logits, target, weight, _ = ctx.saved_tensors
    gradient: Tensor = torch.func.vjp(lambda z: ctx.reference(z, target, weight, ctx.options), logits)[1](by_loss)[0]
    return gradient


def _as_rows(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits of shape ``(N, C)`` or ``(N, C, D)``, and the target likewise, without a copy where possible."""
    if logits.ndim == 2:
        return logits, target
    if logits.ndim == 1:
        return logits.unsqueeze(0), target.unsqueeze(0)
    return logits.flatten(2), target.flatten(2 if target.ndim == logits.ndim else 1)


def _values_are_known(values: Tensor) -> bool:
    """Return whether Python may read the values: on a CPU, not where operations are only recorded."""
    if not values.is_cpu or type(values) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_compiling():
        return False
    recorder = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return not torch.jit.is_tracing() and (recorder is None or recorder.get_proxy_mode() is None)


class _Batch:
    """Logits ``(N, C)`` or ``(N, C, D)`` with their labels; a column is a tensor with a class dimension of size 1."""

    def __init__(self, rows: Tensor, labels: Tensor, weight: Tensor | None, options: LossOptions) -> None:
        self.rows, self.weight, self.options = rows, weight, options
        self.soft = labels.ndim == rows.ndim
        self.by_index = not self.soft and options.label_smoothing == 0
        self.labels = labels if self.soft else labels.unsqueeze(1)

    def loss(self, shape: tuple[int, ...], *, in_advance: bool) -> tuple[Tensor, Tensor, bool]:
        """
        Return the loss, and what :meth:`gradient` needs: columns, or, in advance, the gradient itself.

        :return: Also whether no w is -inf, as far as that is known.
        """
        known, mass = _values_are_known(self.rows), None
        finite = known
        if not self.soft:
            mass = self._look_up(known)
        columns: Any = None
        for block in self._blocks(in_advance):
            rows, labels = _at(self.rows, block), _at(self.labels, block)
            peak = rows.amax(1, keepdim=True)
            w = rows - peak
            of_labels = [w.gather(1, labels).neg_()] if self.by_index else []
            q = w.exp()
            if not known:
                w.clamp_(min=_FAR)
            others, excess, spare = _sums(w, q, keep=in_advance or not self.by_index)
            if known and math.isnan(excess.sum().item()):  # a w is -inf, or NaN
                finite, w = False, (rows - peak).clamp_(min=_FAR)
                excess = (w * q).sum(1, keepdim=True)
            if not self.by_index:
                powers, *of_labels = self._log_sum(w, labels, spare)
            part = (peak, others, excess, *of_labels)
            if not block:
                columns = part
                continue
            if columns is None:
                columns = rows.new_empty(len(part), len(self.rows), 1, *self.rows.shape[2:])
            for column, values in zip(columns, part, strict=True):
                column[block] = values
        peak, others, excess, surprise, *label_mass = columns
        surprise, log_sum, mass = self._surprise(surprise, label_mass[0] if label_mass else mass)
        scale = (others + 1).reciprocal_()
        excess.mul_(scale)  # - t
        log1p = others.log1p_()
        loss, by_entropy, by_label = self._reduced(log1p - excess, surprise.add_(log1p), mass, known)
        if self.options.reduction == "none":
            loss = loss.reshape(shape)
        slope = torch.mul(scale, -by_entropy, out=others)
        constant = torch.sub(scale.mul_(by_label), excess.mul_(slope), out=excess)
        if in_advance:
            r = None if log_sum is None else powers.mul_(powers.sum(1, keepdim=True).reciprocal_().mul_(by_label))
            return loss, self._gradient_of(w.mul_(slope), q, self.labels, constant, r, r), finite
        if log_sum is None:
            return loss, columns[:3] if isinstance(columns, Tensor) else torch.stack(columns[:3]), finite
        by_label = by_label if isinstance(by_label, Tensor) else torch.full_like(peak, by_label)
        return loss, torch.stack([peak, slope, constant, log_sum, by_label]), finite

    def gradient(self, columns: Tensor, by_loss: Tensor, finite: bool) -> Tensor:
        """Return the gradient of the loss times a number, or a number per example."""
        if not self.soft:
            self.labels = self.labels.masked_fill(self.labels == self.options.ignore_index, 0)
        slope, constant, *by_label = (column * by_loss for column in (*columns[1:3], *columns[4:]))
        blocks = list(self._blocks())
        # Made from these columns, because torch may take many gradients at once (is_grads_batched=True).
        whole = constant.new_empty(self.rows.shape) if len(blocks) > 1 else None
        for block in blocks:
            w, labels = _at(self.rows, block) - _at(columns[0], block), _at(self.labels, block)
            if not finite:
                w.clamp_(min=_FAR)
            r = None
            if not self.by_index:
                r = self._exponents(w, labels)[0].sub_(_at(columns[3], block)).exp_() * _at(by_label[0], block)
            sloped = _at(slope, block) * w
            gradient = self._gradient_of(sloped, w.exp_(), labels, _at(constant, block), r)
            if whole is None:
                return gradient
            whole[block].copy_(gradient)
        return whole  # type: ignore[return-value]  # there is at least one block

    def _gradient_of(
        self,
        sloped: Tensor,
        q: Tensor,
        labels: Tensor,
        constant: Tensor,
        r: Tensor | None,
        spare: Tensor | None = None,
    ) -> Tensor:
        """Return ``q (slope w + constant) - r`` of a block, in the memory of `sloped`; q is overwritten."""
        # The entries of a row sum to 0. Where two terms near 1 cancel, the entry is minus the sum of the others.
        gradient = sloped.add_(constant).mul_(q)
        if r is None:
            gradient.scatter_(1, labels, torch.zeros_like(constant))
            return gradient.scatter_(1, labels, gradient.sum(1, keepdim=True).neg_())
        gradient.sub_(r)
        return gradient.sub_(torch.mul(q.trunc_(), gradient.sum(1, keepdim=True), out=spare))

    def _blocks(self, together: bool = False) -> Iterator[tuple[slice, ...]]:
        """Yield the examples that are computed together, as indices; the empty index is all of them."""
        if together or self.rows.is_cuda or torch.compiler.is_compiling() or self.rows.numel() <= _BLOCK:
            yield ()
            return
        (n, classes), inner, whole = self.rows.shape[:2], math.prod(self.rows.shape[2:]), slice(None)
        size = max(1, _BLOCK * torch.get_num_threads() // classes)
        if inner <= size:
            for i in range(0, n, size // inner):
                yield slice(i, i + size // inner), *(whole,) * (self.rows.ndim - 1)
        else:
            for i in range(n):
                for j in range(0, inner, size):
                    yield slice(i, i + 1), whole, slice(j, j + size)

    def _look_up(self, known: bool) -> Tensor | None:
        """Make every index valid; return the mass of each example, 0 for an ignored one, or None where all are 1."""
        ignore_index = self.options.ignore_index
        if known and self.weight is None and ignore_index < 0 and self.labels.min().item() > ignore_index:
            return None
        ignored = self.labels == ignore_index
        self.labels = self.labels.masked_fill(ignored, 0)
        smoothing = self.options.label_smoothing
        if self.weight is None:
            mass = self.rows.new_ones(self.labels.shape)
        else:
            mass = self.weight[self.labels] * (1 - smoothing) + self.weight.mean() * smoothing
        return mass.masked_fill_(ignored, 0.0)

    def _log_sum(self, w: Tensor, labels: Tensor, spare: Tensor) -> tuple[Tensor, ...]:
        """Return r up to a factor; log(sum_k exp(x_k)), at alpha = 1 sum_k p_k (log p_k - w_k); the mass of soft labels."""
        x, *mass = self._exponents(w, labels, spare)
        if self.options.alpha == 1:
            powers = x.exp()
            return powers, x.clamp_(min=_FAR).sub_(w).mul_(powers).sum(1, keepdim=True), *mass
        top = x.amax(1, keepdim=True)
        powers = x.sub_(top).exp_()
        return powers, powers.sum(1, keepdim=True).log_().add_(top), *mass

    def _exponents(self, w: Tensor, labels: Tensor, out: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return x, of labels that need not sum to 1; and the sum of soft ones."""
        alpha, smoothing, classes = self.options.alpha, self.options.label_smoothing, w.shape[1]
        column = (-1, *(1,) * (w.ndim - 2))
        if self.soft:
            joint = labels.to(w.dtype)
            if smoothing:
                joint = joint * (1 - smoothing) + joint.sum(1, keepdim=True) * (smoothing / classes)
            if self.weight is not None:
                joint = joint * self.weight.view(column)
            return torch.log(joint, out=out).mul_(alpha).sub_(w, alpha=alpha - 1), joint.sum(1, keepdim=True)
        weight = w.new_ones(classes) if self.weight is None else self.weight
        off = weight * (smoothing / classes)
        on = (off + weight * (1 - smoothing)).log_().mul_(alpha)
        x = torch.sub(off.log_().mul_(alpha).view(column), w, alpha=alpha - 1, out=out)
        return (x.scatter_(1, labels, on[labels].sub_(w.gather(1, labels), alpha=alpha - 1)),)

    def _surprise(self, surprise: Tensor, mass: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the divergence without log1p(s), log(sum_k exp(x_k)), and the mass, from columns of labels."""
        if self.by_index:
            return surprise, None, mass
        log_mass = torch.zeros_like(surprise) if mass is None else mass.log()
        if self.options.alpha == 1:
            log_sum = log_mass
            surprise = (surprise if mass is None else surprise / mass) - log_mass
        else:
            log_sum = surprise
            surprise = (log_sum - self.options.alpha * log_mass) / (self.options.alpha - 1)
        if mass is not None:
            log_sum = log_sum.masked_fill(mass == 0, 0.0)
        return surprise.masked_fill_(surprise > _IMPOSSIBLE, math.inf), log_sum, mass

    def _reduced(
        self, entropy: Tensor, divergence: Tensor, mass: Tensor | None, known: bool
    ) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Return the loss, and its derivatives by the entropy and by the divergence of each example."""
        reduction = self.options.reduction
        if reduction in ("none", "sum"):
            loss = entropy.add_(divergence)
            loss = loss if mass is None else (mass * loss).masked_fill_(mass == 0, 0.0)
            share: Tensor | float = 1.0 if mass is None else mass
            return loss if reduction == "none" else loss.sum(), share, share
        order = self.options.alpha - 1 if reduction == "batch" else 0.0
        weights = None if mass is None else (mass / mass.sum()).reshape(-1)
        log_weights = None if weights is None else weights.log()
        uncertainty, by_entropy = mean_and_shares(entropy.reshape(-1), weights, log_weights, 0.0)
        mean, by_label = mean_and_shares(divergence.reshape(-1), weights, log_weights, order, known=known)
        loss, shares = uncertainty.add_(mean).squeeze(0), (by_entropy, by_label)
        shares = tuple(by.reshape(entropy.shape) if isinstance(by, Tensor) else by for by in shares)
        return loss, *(by if mass is None else torch.where(mass == 0, 0.0, by) for by in shares)


def _at(values: Tensor, block: tuple[slice, ...]) -> Tensor:
    return values[block] if block else values


def _sums(w: Tensor, q: Tensor, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return s, the sum of w exp(w), and spare memory, from w and exp(w); w is overwritten unless it is to be kept."""
    total = q.sum(1, keepdim=True)
    product = w * q if keep else w.mul_(q)
    excess = product.sum(1, keepdim=True)
    # At the largest logits q is 1, and elsewhere only where it differs from 1 by rounding: frac leaves the others.
    others = torch.frac(q, out=product).sum(1, keepdim=True)
    return total.sub_(others).round_().sub_(1).add_(others), excess, product
