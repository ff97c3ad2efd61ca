"""
The HR loss in one pass over the logits, and its gradient in a second pass.

Notation for one example: z are the logits, ``w_k = z_k - max z``, and ``s`` is the sum of ``exp(w_k)`` over all classes
except one with the largest logit. Then

* the entropy of the softmax q is ``log1p(s) + t`` with ``t = - sum_k w_k exp(w_k) / (1 + s)``;
* the divergence for a class index is ``- log q_y = log1p(s) - w_y``;
* the divergence for soft labels p is ``log1p(s) + log(sum_k exp(x_k)) / (alpha - 1)``, where
  ``x_k = alpha log p_k - (alpha - 1) w_k``;
* the derivative of the entropy by z_k is ``- q_k (w_k + t)``;
* the derivative of the divergence by z_k is ``q_k - r_k``, where r is the softmax of x, or the one-hot class index.

The first two are sums of numbers of the same sign, so there is no cancellation.

On a CPU both passes process blocks of examples that stay in the cache. The first pass stores columns for the second
pass: some numbers per example, with a class dimension of size 1. If there is only one block, the gradient is computed
together with the loss. The class dimension is not moved, so that dense logits are not copied. On CUDA, the passes for
class indices are three kernels, in :mod:`art_hrloss.losses._kernels`, instead of some sixty operations of torch. This
module computes the loss of soft labels, and the loss on devices without Triton.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from art_hrloss.losses._numerics import BLOCK, block_of, cache_blocks, mean_and_shares, softmax_sums
from art_hrloss.losses._soft_labels import LOWEST, soft_divergence
from art_hrloss.losses._validation import LossOptions

# The largest number of elements for which the gradient is computed together with the loss.
IN_ADVANCE = BLOCK
# exp(w) is 0 in every dtype for w at or below this.
_ZERO = -1e4


class Stored(NamedTuple):
    """Intermediate values that the loss stores for its gradient."""

    columns: Tensor
    """Numbers per example for the second pass, stacked; or the gradient itself, if it was computed in advance."""
    powers: Tensor
    """For soft labels: r up to a factor per example; otherwise empty."""
    all_finite: bool
    """True if it is known that all logits are finite, no exponential overflows, and every example has a weight."""
    valid: bool
    """True if it is known that every class index is valid and none is the index to be ignored."""
    strides: tuple[int, ...] = ()
    """The strides of the rows, for the gradient kernel: torch.compile does not know them when it traces backward."""


def has_hard_labels(logits: Tensor, target: Tensor, options: LossOptions) -> bool:
    """Return True for class indices without smoothing, which give all weight of an example to one class."""
    return target.ndim < logits.ndim and options.label_smoothing == 0


def rows_of(logits: Tensor) -> Tensor:
    """Return logits as rows ``(N, C)`` or ``(N, C, D)``, as a view if possible."""
    if logits.ndim == 1:
        return logits.unsqueeze(0)
    return logits if logits.ndim == 2 else logits.flatten(2)


class Batch:
    """Logits as rows ``(N, C)`` or ``(N, C, D)``, without a copy if possible, and their labels."""

    def __init__(self, logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> None:
        self.weight, self.options, self.order = weight, options, options.alpha - 1
        self.soft = target.ndim == logits.ndim
        self.hard_labels = has_hard_labels(logits, target, options)
        self.example_shape = logits.shape[:1] + logits.shape[2:] if logits.ndim > 1 else logits.shape[:0]
        labels = target.unsqueeze(0) if logits.ndim == 1 else target
        self.rows, self.labels = rows_of(logits), rows_of(labels if self.soft else labels.unsqueeze(1))
        self.column_shape = (len(self.rows), 1, *self.rows.shape[2:])

    def loss(self, *, with_gradient: bool, in_advance: bool) -> tuple[Tensor, Stored]:
        """
        Return the loss, and the intermediate values for its gradient.

        :param with_gradient: Whether the gradient will be requested.
        :param in_advance: Whether to compute the gradient now, while the logits are in the cache.
        """
        # On a CPU, values can be read to choose a cheaper computation. On a GPU, reading would wait for the device.
        readable = self.rows.is_cpu and type(self.rows) is Tensor and not torch.compiler.is_compiling()
        mass = None if self.soft else self._valid_labels(readable)
        if readable:
            # Optimistic: the computation without special cases is cheaper, and one number shows whether it was valid.
            loss, stored, check = self._loss(with_gradient, in_advance, mass, all_finite=True)
            if math.isfinite(check.item()):
                return loss, stored
        return self._loss(with_gradient, in_advance, mass, all_finite=False)[:2]

    def _loss(
        self, with_gradient: bool, in_advance: bool, mass: Tensor | None, *, all_finite: bool
    ) -> tuple[Tensor, Stored, Tensor]:
        """
        Return the loss, the values stored for the gradient, and a number that is finite if the assumption was true.

        :param mass: The weights of examples with class indices; None for ones.
        :param all_finite: Whether to assume finite logits, no overflow, and a weight above 0 for every example.
        """
        memory = torch.empty_like(self.rows) if with_gradient and not (self.hard_labels or in_advance) else None
        powers = self.rows.new_empty(0) if memory is None else memory
        columns: Any = None
        for block in [()] if in_advance else cache_blocks(self.rows):
            rows, labels = block_of(self.rows, block), block_of(self.labels, block)
            weights, out = (None if values is None else block_of(values, block) for values in (mass, memory))
            part, inputs = self._terms(rows, labels, weights, all_finite, out)
            if columns is None:
                columns = rows.new_empty(len(part), *self.column_shape) if block else part
            for column, values in zip(columns, part if block else (), strict=False):
                column[block] = values
        *kept_columns, divergence, entropy = columns
        valid, mass = mass is None, kept_columns[-1] if self.soft else mass
        loss, *derivatives = self._reduced(divergence, entropy, mass, all_finite)
        check = loss.sum() if loss.ndim else loss
        if mass is not None:  # a weight of 0 removes terms that are not finite from the loss, but the check needs them
            check = check + (divergence + entropy).sum()
        if in_advance:
            del part, columns, divergence, entropy  # frees their memory before the gradient needs more
            return (
                loss,
                Stored(self._gradient_of(inputs, self.labels, kept_columns, *derivatives), powers, all_finite, valid),
                check,
            )
        # The gradient does not need the terms themselves: their columns are reused for the derivatives of the loss.
        if isinstance(columns, Tensor):
            columns[-2], columns[-1] = derivatives
        else:
            columns = torch.stack(
                [*kept_columns, *(torch.ones_like(kept_columns[0]) * values for values in derivatives)]
            )
        return loss, Stored(columns, powers, all_finite, valid), check

    def gradient(self, stored: Stored, grad_loss: Tensor) -> Tensor:
        """
        Return the gradient by the logits.

        :param grad_loss: The gradient by the loss: a scalar, or with reduction "none" one number per example.
        """
        grad_loss = grad_loss.reshape(self.column_shape) if grad_loss.ndim else grad_loss
        if not (stored.valid or self.soft):
            self.labels = self.labels.masked_fill(self.labels == self.options.ignore_index, 0)
        result: Tensor | None = None
        for block in cache_blocks(self.rows):
            *kept_columns, grad_divergence, grad_entropy = (block_of(column, block) for column in stored.columns)
            factor = block_of(grad_loss, block) if grad_loss.ndim else grad_loss
            powers = None if self.hard_labels else block_of(stored.powers, block)
            inputs = self._inputs(block_of(self.rows, block), kept_columns, stored.all_finite, powers)
            labels = block_of(self.labels, block)
            part = self._gradient_of(inputs, labels, kept_columns, grad_divergence * factor, grad_entropy * factor)
            if not block:
                return part
            if result is None:  # new_empty of the part, because with is_grads_batched=True the part is a batch of vmap
                result = part.new_empty(self.rows.shape)
            result[block].copy_(part)
            del part  # the next block reuses its memory
        return result  # type: ignore[return-value]  # there is at least one block

    def _terms(
        self, rows: Tensor, labels: Tensor, mass: Tensor | None, all_finite: bool, powers: Tensor | None
    ) -> tuple[Any, Any]:
        """
        Return the columns of a block, of which the last two are the divergence and the entropy, and :meth:`_inputs`.

        :param powers: Memory for r, if the second pass needs it.
        """
        peak = rows.amax(1, keepdim=True)
        w, r = rows - peak, None
        w_label = w.gather(1, labels) if self.hard_labels else None
        absent = None if all_finite or self.hard_labels else w.isneginf()
        if not all_finite:
            w.clamp_(min=_ZERO if self.hard_labels else LOWEST)
        memory = w.exp()
        scale, sum_others, excess = softmax_sums(w, memory)
        excess, log1p = excess.mul_(scale), sum_others.log1p_()  # -t, log1p(s)
        kept_columns = [peak, scale, excess]
        if w_label is None:
            memory = memory if powers is None else powers
            r, partial_divergence, *sums = soft_divergence(
                w, labels, mass, absent, memory, weight=self.weight, options=self.options, soft=self.soft
            )
            w = w if all_finite else w.clamp_(min=_ZERO)
            kept_columns, divergence = [*kept_columns, *sums], partial_divergence.add_(log1p)
            return (*kept_columns, divergence, log1p.sub_(excess)), (w, r)
        divergence = log1p - w_label
        # The entries of the label in the two gradients, q_y - 1 and - q_y (w_y + t). The formula for the other classes
        # would subtract nearly equal numbers if q_y is near 1, so these two are computed separately, from log q_y.
        log_q = -divergence
        grad_entropy = log_q.exp().mul_(excess - (w_label if all_finite else w_label.clamp(min=LOWEST)))
        return (*kept_columns, log_q.expm1_(), grad_entropy, divergence, log1p.sub_(excess)), (w, r)

    def _inputs(self, rows: Tensor, kept_columns: list[Tensor], all_finite: bool, powers: Tensor | None) -> Any:
        """Return w, bounded where exp(w) is 0, and r up to a factor: the inputs of :meth:`_gradient_of`."""
        w = rows - kept_columns[0]
        return w if all_finite else w.clamp_(min=_ZERO), powers

    def _gradient_of(
        self, inputs: Any, labels: Tensor, kept_columns: list[Tensor], grad_divergence: Any, grad_entropy: Any
    ) -> Tensor:
        """
        Return the gradient of a block by its logits.

        :param inputs: The result of :meth:`_inputs` or :meth:`_terms`; w is overwritten.
        :param grad_divergence: The derivatives of the loss by the divergences.
        :param grad_entropy: The derivatives of the loss by the entropies.
        """
        (w, r), (scale, excess, *other_columns) = inputs, kept_columns[1:]
        # Both gradients together are exp(w) (slope w + constant), except at the label.
        slope = scale * -grad_entropy
        constant = (scale * grad_divergence).addcmul_(excess, slope, value=-1)
        gradient: Tensor = (slope * w).add_(constant)
        gradient.mul_(q := w.exp_())
        if r is None:
            at_label = other_columns[0] * grad_divergence + other_columns[1] * grad_entropy
            if torch.compiler.is_compiling():  # the compiler fuses torch.where with the lines above, but not scatter
                classes = torch.arange(w.shape[1], device=w.device).view(-1, *(1,) * (w.ndim - 2))
                return torch.where(classes == labels, at_label, gradient)
            return gradient.scatter_(1, labels, at_label)
        total = other_columns[0]  # the sum of r over the classes
        gradient.addcmul_(r, grad_divergence / total.masked_fill(total == 0, 1.0), value=-1)
        # If q and r are both concentrated on one class, its entry q_k - r_k is a difference of nearly equal numbers.
        # The entries of a row sum to 0, so this entry is replaced by minus the sum of the others. trunc selects it: at
        # the top class exp(w) is 1, elsewhere below 1. Without a probability above 0.5 there is no such cancellation.
        readable = scale.is_cpu and not torch.compiler.is_compiling()
        if not (readable and scale.max().item() < 0.5):
            gradient.addcmul_(q.trunc_(), gradient.sum(1, keepdim=True), value=-1)
        return gradient

    def _valid_labels(self, readable: bool) -> Tensor | None:
        """Make every index valid; return the mass of each example, 0 if it is ignored, or None if all masses are 1."""
        ignore_index, smoothing = self.options.ignore_index, self.options.label_smoothing
        if readable and self.weight is None and ignore_index < 0 and self.labels.min().item() > ignore_index:
            return None
        ignored = self.labels == ignore_index
        self.labels = self.labels.masked_fill(ignored, 0)
        if self.weight is None:
            return self.rows.new_ones(self.labels.shape).masked_fill_(ignored, 0.0)
        mass = self.weight[self.labels] * (1 - smoothing) + self.weight.mean() * smoothing
        return mass.masked_fill_(ignored, 0.0)

    def _reduced(
        self, divergence: Tensor, entropy: Tensor, mass: Tensor | None, all_finite: bool
    ) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Return the loss, and its derivatives by the divergences and by the entropies of the examples."""
        if self.options.reduction in ("none", "sum"):
            loss = divergence + entropy
            loss = loss if mass is None else (mass * loss).masked_fill_(mass == 0, 0.0)
            share = 1.0 if mass is None else mass
            return loss.reshape(self.example_shape) if self.options.reduction == "none" else loss.sum(), share, share
        order = self.order if self.options.reduction == "batch" else 0.0
        weights = None if mass is None else (mass / mass.sum()).reshape(-1)
        terms = (divergence.reshape(-1), order), (entropy.reshape(-1), 0.0)
        (d, grad_d), (h, grad_h) = (mean_and_shares(values, weights, power, near=all_finite) for values, power in terms)
        grads = (grad.reshape(self.column_shape) if isinstance(grad, Tensor) else grad for grad in (grad_d, grad_h))
        grad_divergence, grad_entropy = (grad if mass is None else torch.where(mass == 0, 0.0, grad) for grad in grads)
        return h.add_(d).squeeze(0), grad_divergence, grad_entropy
