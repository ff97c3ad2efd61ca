"""The divergence of soft or smoothed labels, in the notation of :mod:`art_hrloss.losses._passes`."""

import math

import torch
from torch import Tensor

from art_hrloss.losses._validation import LossOptions

# Replaces w = -inf: exp(w) is 0 for both, but 0 times -inf is NaN.
LOWEST = -1e30
# A sum of exponentials below this may have lost digits, because its terms are near the smallest number of float32.
_LEAST = 1e-30


def soft_divergence(
    w: Tensor,
    labels: Tensor,
    mass: Tensor | None,
    absent: Tensor | None,
    out: Tensor,
    *,
    weight: Tensor | None,
    options: LossOptions,
    soft: bool,
) -> tuple[Tensor, ...]:
    """
    Return r up to a factor, the divergence minus log1p(s), the sum of r, and for probabilities also their sum.

    :param w: Logits minus their maximum, shape ``(N, C)`` or ``(N, C, D)``.
    :param labels: Probabilities, whose sum need not be 1, or class indices, with a class dimension of size 1.
    :param mass: The weights of examples with class indices; None for ones.
    :param absent: The classes with logit -inf, whose probability is 0; None to assume that there are none.
    :param out: Memory for r.
    :param weight: The weights of the classes, shape ``(C,)``.
    :param soft: Whether the labels are probabilities.
    """
    alpha, order, sums = options.alpha, options.alpha - 1, []
    if soft:
        joint = _joint(w, labels, weight, options)
        mass = joint.sum(1, keepdim=True)
        sums = [mass]
        # If all sums are nearly 1 the division is skipped, and alpha log(mass) is subtracted from a logarithm below.
        if absent is not None or mass.sub(1).abs_().max().item() > 1e-5:
            joint, mass = joint / mass.masked_fill(mass == 0, 1.0), None
        x = torch.log(joint, out=out).mul_(alpha)
    else:
        x = _smoothed(w, labels, weight, options, out)
    possible = None if absent is None else ~x.isneginf()
    x.sub_(w, alpha=order)
    if order == 0:  # the Kullback-Leibler divergence
        p = x.exp()
        divergence = x.clamp(min=LOWEST).sub_(w).mul_(p).sum(1, keepdim=True)
        total = x.copy_(p).sum(1, keepdim=True)
        divergence = divergence if mass is None else divergence / mass - mass.log()
    else:
        # For order > 0 each exponential is at least p^alpha, so the sum needs no shift by its largest exponent,
        # unless p^alpha itself is tiny: then the result is NaN, and Batch.loss computes again without assumptions.
        if absent is None and order > 0:
            total = x.exp_().sum(1, keepdim=True)
            divergence = torch.where(total > _LEAST, total.log(), math.nan)
        else:
            top = x.amax(1, keepdim=True).clamp_(min=LOWEST)  # -inf for an example without mass
            total = x.sub_(top).exp_().sum(1, keepdim=True)
            divergence = total.log().add_(top)
        divergence = (divergence if mass is None else divergence.sub_(mass.log(), alpha=alpha)).div_(order)
    if absent is not None and possible is not None:
        # The divergence is infinite for alpha >= 1 if a class of the label is absent, for alpha < 1 if all are.
        infinite = (possible & absent).any(1, True) if order >= 0 else ~(possible & ~absent).any(1, True)
        divergence.masked_fill_(infinite, math.inf)
    return x, divergence, total, *sums


def _joint(w: Tensor, labels: Tensor, weight: Tensor | None, options: LossOptions) -> Tensor:
    """Return probabilities, smoothed and times the class weights."""
    joint, smoothing = labels.to(w.dtype), options.label_smoothing
    if smoothing:
        joint = joint * (1 - smoothing) + joint.sum(1, keepdim=True) * (smoothing / w.shape[1])
    return joint if weight is None else joint * weight.view(-1, *(1,) * (w.ndim - 2))


def _smoothed(w: Tensor, labels: Tensor, weight: Tensor | None, options: LossOptions, out: Tensor) -> Tensor:
    """Return alpha times the logarithm of smoothed class indices times the class weights, in the memory `out`."""
    smoothing, classes = options.label_smoothing, w.shape[1]
    weight = w.new_ones(classes) if weight is None else weight
    # There are only two values per class: for the label and for any other class.
    off_label = weight * (smoothing / classes)
    at_label = (off_label + weight * (1 - smoothing)).log_().mul_(options.alpha)
    off_label = off_label.log_().mul_(options.alpha).view(-1, *(1,) * (w.ndim - 2))
    return out.copy_(off_label.expand_as(w)).scatter_(1, labels, at_label[labels])
