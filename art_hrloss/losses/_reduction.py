"""From the entropy and ``- log q_y`` of each example to the loss of all, and its derivatives by each of them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# A number for each example, shape (n, 1), or one for all.
PerExample = Tensor | float


class Options(NamedTuple):
    """What the loss is made with; see :func:`art_hrloss.functional.hr_loss`."""

    order: float
    """alpha - 1."""
    ignore_index: int
    reduction: str
    plain: Callable[[Tensor], Tensor]
    """The same loss as a function of the logits alone, made of operations that torch differentiates: derivatives beyond
    the first and forward mode go through it."""


def index_and_mass(
    target: Tensor, weight: Tensor | None, ignore_index: int, rows: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Indices that can all be looked up, and the weight of each example, 0 for an ignored one; None where all are 1."""
    ignored = target == ignore_index
    # On a GPU the question would make the caller wait, and a compiler could not look behind it.
    if weight is None and target.is_cpu and not torch.compiler.is_compiling() and not ignored.any():
        return target, None
    index = target.masked_fill(ignored, 0)
    mass = rows.new_ones(index.shape) if weight is None else weight.unsqueeze(1).gather(0, index)
    return index, mass.masked_fill(ignored, 0.0)


def reduced(
    entropy: Tensor, nll: Tensor, mass: Tensor | None, order: float, reduction: str
) -> tuple[Tensor, PerExample, PerExample]:
    """The loss of columns ``(n, 1)``, and its derivatives by each example's entropy and ``- log q_y``."""
    share: PerExample = 1.0 if mass is None else mass
    if reduction in ("batch", "mean"):
        share = 1 / len(nll) if mass is None else mass * mass.sum().reciprocal()
    if mass is not None:  # What weighs nothing may be anything.
        entropy, nll = entropy.masked_fill(mass == 0, 0.0), nll.masked_fill(mass == 0, 0.0)
    by_entropy = by_nll = share
    if reduction == "none":
        loss = (entropy + nll) * share
    elif reduction != "batch" or order == 0:
        loss = _weighted_sum(entropy + nll, share)
    else:
        divergence, by_nll = _log_mean_power(nll, mass, share, order)
        loss = _weighted_sum(entropy, share) + divergence
    if mass is None:
        return loss, by_entropy, by_nll
    # Where nothing weighs anything the loss is NaN, and its derivatives are 0.
    return loss, torch.where(mass == 0, 0.0, by_entropy), torch.where(mass == 0, 0.0, by_nll)


def _log_mean_power(nll: Tensor, mass: Tensor | None, share: PerExample, order: float) -> tuple[Tensor, Tensor]:
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


def _weighted_sum(values: Tensor, weights: PerExample) -> Tensor:
    return (values * weights).sum() if isinstance(weights, Tensor) else values.sum() * weights
