"""
The HR loss in one pass over the logits, and its gradient in another.

With z the logits of an example, ``w_k = z_k - max z`` and ``s`` the sum of ``exp(w_k)`` over all classes but one of the
largest logit, the entropy of the softmax q is ``log1p(s) + t`` with ``t = - sum_k w_k exp(w_k) / (1 + s)``, and
``- log q_y`` is ``log1p(s) - w_y``: sums of numbers of one sign, so that nothing cancels. For labels of a distribution
p the divergence is ``log1p(s) + log(sum_k exp(x_k)) / (alpha - 1)`` with ``x_k = alpha log p_k - (alpha - 1) w_k``. By
z_k, the entropy has the derivative ``- q_k (w_k + t)`` and the divergence ``q_k - r_k``, where r is the softmax of x
(for a class index: the one-hot vector of the label).

On a CPU both passes take blocks of examples that stay in the cache, and store columns between them: numbers per
example, with a class dimension of size 1. Where one block is all, the gradient is computed with the loss. The class
dimension stays where it is, so dense logits are not copied. On CUDA these passes would be some sixty operations, each
of which is started by itself: for class indices they are kernels, in :mod:`art_hrloss.losses._kernels`; what is here
is the way of labels of a distribution, and of devices without Triton.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from art_hrloss.losses._numerics import BLOCK, block_of, cache_blocks, mean_and_shares, softmax_sums
from art_hrloss.losses._validation import LossOptions

# Elements up to which the gradient is computed together with the loss.
IN_ADVANCE = BLOCK
# Stands for w = -inf: exp(w) is 0 as well, but 0 times w is no NaN. A sum of powers below _LEAST has lost digits.
FAR, _LEAST = -1e30, 1e-30
# Where exp(w) is 0 in every dtype.
_ZERO = -1e4


class Stored(NamedTuple):
    """Intermediate values that the loss stores for its gradient."""

    columns: Tensor
    """What the gradient is computed from, stacked; or the gradient itself, if it was computed in advance."""
    powers: Tensor
    """For labels of a distribution: r up to a factor for each example; else empty."""
    plain: bool
    """Whether it is known that no logit is infinite, no power overflows and no distribution is without weight."""
    valid: bool
    """Whether it is known that every class index is one of a class, none the index to be ignored."""
    strides: tuple[int, ...] = ()
    """Those of the rows, for the kernel that writes the gradient: torch.compile knows none when it traces that."""


def is_by_index(logits: Tensor, target: Tensor, options: LossOptions) -> bool:
    """Return whether labels are class indices without smoothing: of a distribution only one class has a weight."""
    return target.ndim < logits.ndim and options.label_smoothing == 0


def rows_of(logits: Tensor) -> Tensor:
    """Return logits as rows ``(N, C)`` or ``(N, C, D)``, a view where that is possible."""
    if logits.ndim == 1:
        return logits.unsqueeze(0)
    return logits if logits.ndim == 2 else logits.flatten(2)


class Batch:
    """Logits as rows ``(N, C)`` or ``(N, C, D)``, views of what was given, with their labels."""

    def __init__(self, logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> None:
        self.weight, self.options, self.order = weight, options, options.alpha - 1
        self.soft = target.ndim == logits.ndim
        self.by_index = is_by_index(logits, target, options)
        self.example_shape = logits.shape[:1] + logits.shape[2:] if logits.ndim > 1 else logits.shape[:0]
        labels = target.unsqueeze(0) if logits.ndim == 1 else target
        self.rows, self.labels = rows_of(logits), rows_of(labels if self.soft else labels.unsqueeze(1))
        self.column_shape = (len(self.rows), 1, *self.rows.shape[2:])

    def loss(self, *, with_gradient: bool, in_advance: bool) -> tuple[Tensor, Stored]:
        """
        Return the loss and what its gradient is computed from.

        :param with_gradient: Whether the gradient will be wanted.
        :param in_advance: Whether it is computed at once.
        """
        # On a CPU, values may be read to spare work; elsewhere that would wait for the device.
        known = self.rows.is_cpu and type(self.rows) is Tensor and not torch.compiler.is_compiling()
        mass = None if self.soft else self._valid_labels(known)
        if known:
            loss, stored, check = self._loss(with_gradient, in_advance, mass, plain=True)
            if math.isfinite(check.item()):
                return loss, stored
        return self._loss(with_gradient, in_advance, mass, plain=False)[:2]

    def _loss(
        self, with_gradient: bool, in_advance: bool, mass: Tensor | None, *, plain: bool
    ) -> tuple[Tensor, Stored, Tensor]:
        """
        Return the loss, what is stored, and a number that is finite if `plain` was right to be assumed.

        :param mass: Of class indices; None for ones.
        :param plain: Whether to assume that no logit is infinite, no power overflows and every example has a weight.
        """
        memory = torch.empty_like(self.rows) if with_gradient and not (self.by_index or in_advance) else None
        powers = self.rows.new_empty(0) if memory is None else memory
        columns: Any = None
        for block in [()] if in_advance else cache_blocks(self.rows):
            rows, labels = block_of(self.rows, block), block_of(self.labels, block)
            weights, out = (None if each is None else block_of(each, block) for each in (mass, memory))
            part, work = self._terms(rows, labels, weights, plain, out)
            if columns is None:
                columns = rows.new_empty(len(part), *self.column_shape) if block else part
            for column, values in zip(columns, part if block else (), strict=False):
                column[block] = values
        *kept, divergence, entropy = columns
        valid, mass = mass is None, kept[-1] if self.soft else mass
        loss, *shares = self._reduced(divergence, entropy, mass, plain)
        check = loss.sum() if loss.ndim else loss
        if mass is not None:  # a weight of 0 keeps what is not finite out of the loss, but not out of this
            check = check + (divergence + entropy).sum()
        if in_advance:
            del part, columns, divergence, entropy
            return loss, Stored(self._gradient_of(work, self.labels, kept, *shares), powers, plain, valid), check
        if isinstance(columns, Tensor):
            columns[-2], columns[-1] = shares
        else:
            columns = torch.stack([*kept, *(torch.ones_like(kept[0]) * share for share in shares)])
        return loss, Stored(columns, powers, plain, valid), check

    def gradient(self, stored: Stored, by_loss: Tensor) -> Tensor:
        """Return the gradient of the loss times a number or, with reduction "none", times one for each example."""
        by_loss = by_loss.reshape(self.column_shape) if by_loss.ndim else by_loss
        if not (stored.valid or self.soft):
            self.labels = self.labels.masked_fill(self.labels == self.options.ignore_index, 0)
        whole: Tensor | None = None
        for block in cache_blocks(self.rows):
            *kept, by_label, by_entropy = (block_of(column, block) for column in stored.columns)
            each = block_of(by_loss, block) if by_loss.ndim else by_loss
            powers = None if self.by_index else block_of(stored.powers, block)
            work = self._work(block_of(self.rows, block), kept, stored.plain, powers)
            labels = block_of(self.labels, block)
            part = self._gradient_of(work, labels, kept, by_label * each, by_entropy * each)
            if not block:
                return part
            if whole is None:  # made from a part, because torch may take many gradients at once (is_grads_batched=True)
                whole = part.new_empty(self.rows.shape)
            whole[block].copy_(part)
            del part
        return whole  # type: ignore[return-value]  # there is at least one block

    def _terms(
        self, rows: Tensor, labels: Tensor, mass: Tensor | None, plain: bool, powers: Tensor | None
    ) -> tuple[Any, Any]:
        """
        Return columns of a block, the last two of which are the divergence and the entropy, and :meth:`_work`.

        :param powers: Memory for r, if it is to be kept.
        """
        peak = rows.amax(1, keepdim=True)
        w, r = rows - peak, None
        of_label = w.gather(1, labels) if self.by_index else None
        absent = None if plain or self.by_index else w.isneginf()
        if not plain:
            w.clamp_(min=_ZERO if self.by_index else FAR)
        memory = w.exp()
        scale, others, excess = softmax_sums(w, memory)
        excess, log1p = excess.mul_(scale), others.log1p_()  # -t, log1p(s)
        kept = [peak, scale, excess]
        if of_label is None:
            memory = memory if powers is None else powers
            r, surprise, *of_distribution = self._powers(w, labels, mass, absent, memory)
            w = w if plain else w.clamp_(min=_ZERO)
            kept, divergence = [*kept, *of_distribution], surprise.add_(log1p)
            return (*kept, divergence, log1p.sub_(excess)), (w, r)
        divergence = log1p - of_label
        # The label's entries of the two gradients, q_y - 1 and - q_y (w_y + t), which would cancel as those of others.
        log_q = -divergence
        by_entropy = log_q.exp().mul_(excess - (of_label if plain else of_label.clamp(min=FAR)))
        return (*kept, log_q.expm1_(), by_entropy, divergence, log1p.sub_(excess)), (w, r)

    def _work(self, rows: Tensor, kept: list[Tensor], plain: bool, powers: Tensor | None) -> Any:
        """Return w, as far as exp(w) is not 0, and r up to a factor."""
        w = rows - kept[0]
        return w if plain else w.clamp_(min=_ZERO), powers

    def _gradient_of(self, work: Any, labels: Tensor, kept: list[Tensor], by_label: Any, by_entropy: Any) -> Tensor:
        """Return the gradient of a block, given the derivatives by its divergences and entropies."""
        (w, r), (scale, excess, *of_label) = work, kept[1:]
        slope = scale * -by_entropy
        constant = (scale * by_label).addcmul_(excess, slope, value=-1)
        gradient: Tensor = (slope * w).add_(constant)
        gradient.mul_(q := w.exp_())
        if r is None:
            at_label = of_label[0] * by_label + of_label[1] * by_entropy
            if torch.compiler.is_compiling():  # which fuses this, but not scatter
                classes = torch.arange(w.shape[1], device=w.device).view(-1, *(1,) * (w.ndim - 2))
                return torch.where(classes == labels, at_label, gradient)
            return gradient.scatter_(1, labels, at_label)
        gradient.addcmul_(r, by_label / of_label[0].masked_fill(of_label[0] == 0, 1.0), value=-1)
        # The entries of a row sum to 0. Where q and r are near the same class, its entry would cancel:
        # it is minus the sum of the others.
        readable = scale.is_cpu and not torch.compiler.is_compiling()
        if not (readable and scale.max().item() < 0.5):
            gradient.addcmul_(q.trunc_(), gradient.sum(1, keepdim=True), value=-1)
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

    def _powers(
        self, w: Tensor, labels: Tensor, mass: Tensor | None, absent: Tensor | None, out: Tensor
    ) -> tuple[Tensor, ...]:
        """
        Return r up to a factor, the divergence less log1p(s), the sum of r, and of soft labels their sum.

        Labels need not sum to 1.

        :param absent: Which classes never occur, for their logit is -inf; None if that is to be assumed of none.
        :param out: Memory for r.
        """
        alpha, smoothing, classes = self.options.alpha, self.options.label_smoothing, w.shape[1]
        column, sums = (-1, *(1,) * (w.ndim - 2)), []
        if self.soft:
            joint = labels.to(w.dtype)
            if smoothing:
                joint = joint * (1 - smoothing) + joint.sum(1, keepdim=True) * (smoothing / classes)
            if self.weight is not None:
                joint = joint * self.weight.view(column)
            sums = [joint.sum(1, keepdim=True)]
            mass = sums[0]
            if absent is not None or mass.sub(1).abs_().max().item() > 1e-5:
                joint, mass = joint / mass.masked_fill(mass == 0, 1.0), None
            x = torch.log(joint, out=out).mul_(alpha)
        else:
            weight = w.new_ones(classes) if self.weight is None else self.weight
            off = weight * (smoothing / classes)
            on = (off + weight * (1 - smoothing)).log_().mul_(alpha)
            x = out.copy_(off.log_().mul_(alpha).view(column).expand_as(w)).scatter_(1, labels, on[labels])
        given = None if absent is None else ~x.isneginf()
        x.sub_(w, alpha=self.order)
        if self.order == 0:
            p = x.exp()
            surprise = x.clamp(min=FAR).sub_(w).mul_(p).sum(1, keepdim=True)
            total = x.copy_(p).sum(1, keepdim=True)
            surprise = surprise if mass is None else surprise / mass - mass.log()
        else:
            if absent is None and self.order > 0:  # no power is below p^alpha; but those of a large alpha may vanish
                total = x.exp_().sum(1, keepdim=True)
                surprise = torch.where(total > _LEAST, total.log(), math.nan)
            else:
                top = x.amax(1, keepdim=True).clamp_(min=FAR)  # of no mass: -inf
                total = x.sub_(top).exp_().sum(1, keepdim=True)
                surprise = total.log().add_(top)
            surprise = (surprise if mass is None else surprise.sub_(mass.log(), alpha=alpha)).div_(self.order)
        if absent is not None and given is not None:
            # At alpha >= 1 no class of the label may be absent; below, not all of them.
            excluded = (
                (given & absent).any(1, keepdim=True) if self.order >= 0 else ~(given & ~absent).any(1, keepdim=True)
            )
            surprise.masked_fill_(excluded, math.inf)
        return x, surprise, total, *sums

    def _reduced(
        self, divergence: Tensor, entropy: Tensor, mass: Tensor | None, plain: bool
    ) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Return the loss, and its derivatives by the divergence and by the entropy of each example."""
        if self.options.reduction in ("none", "sum"):
            loss = divergence + entropy
            loss = loss if mass is None else (mass * loss).masked_fill_(mass == 0, 0.0)
            share = 1.0 if mass is None else mass
            return loss.reshape(self.example_shape) if self.options.reduction == "none" else loss.sum(), share, share
        order = self.order if self.options.reduction == "batch" else 0.0
        weights = None if mass is None else (mass / mass.sum()).reshape(-1)
        terms = (divergence.reshape(-1), order), (entropy.reshape(-1), 0.0)
        (d, by_d), (h, by_h) = (mean_and_shares(values, weights, power, near=plain) for values, power in terms)
        shares = (by.reshape(self.column_shape) if isinstance(by, Tensor) else by for by in (by_d, by_h))
        by_label, by_entropy = (by if mass is None else torch.where(mass == 0, 0.0, by) for by in shares)
        return h.add_(d).squeeze(0), by_label, by_entropy
