"""Attacks (L-infinity) as loops over torch by hand: what those of libraries are measured against.

Each makes the images that ART's attack of the same settings makes, and does no more for it than it must: gradients by
the images alone, and no prediction or loss computed twice.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from art.utils import random_sphere
from torch import Tensor, nn

# Per-example losses, shape (n,), from logits and class indices.
Loss = Callable[[Tensor, Tensor], Tensor]

# ART's, and Croce and Hein's (2020): the share of the last step that is kept, and of steps that must have succeeded.
MOMENTUM, RHO = 0.75, 0.75


def pgd(
    network: nn.Module, loss: Loss, images: Tensor, labels: Tensor, *, eps: float, eps_step: float, steps: int
) -> Tensor:
    """
    Projected gradient descent from the images themselves; with one step of size eps the fast gradient method.

    :param network: In evaluation mode; maps images to logits.
    :param images: Shape ``(n, C, H, W)``, in [0, 1].
    :param labels: Class indices, shape ``(n,)``.
    :return: Images of the same shape, within eps of each pixel and in [0, 1].
    """
    x = images
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(network(x), labels).sum(), x)
        x = _inside(x.detach() + eps_step * gradient.sign(), images, eps)
    return x


def auto_pgd(
    network: nn.Module, loss: Loss, images: Tensor, labels: Tensor, *, eps: float, eps_step: float, steps: int
) -> Tensor:
    """
    Auto-PGD (Croce and Hein 2020, Algorithm 1) as ART has it, from one random start, each image with its own step.

    Images that the network has wrong already stay as they are. The others are returned where the last iterate is
    wrong, and else at their start, which is drawn from NumPy's global generator as ART draws it.

    :param eps_step: The first step; otherwise as for :func:`pgd`.
    """
    with torch.no_grad():
        right = network(images).argmax(1) == labels
    kept = images[right]
    if not len(kept):
        return images.clone()
    noise = random_sphere(len(kept), kept[0].numel(), eps, np.inf).astype(np.float32)
    start = _inside(kept + torch.from_numpy(noise).to(kept).reshape(kept.shape), kept, eps)
    last = _iterate(partial(_look, network, loss, labels[right]), kept, start, eps=eps, eps_step=eps_step, steps=steps)
    result = images.clone()
    result[right] = torch.where(_wide(last.wrong), last.x, start)
    return result


@dataclass(frozen=True, eq=False)
class _Points:
    """One point of each image's path, and what is known there."""

    x: Tensor
    before: Tensor
    """The point from which it was reached."""
    loss: Tensor
    direction: Tensor
    """The gradient's sign."""
    wrong: Tensor
    """Whether the network is."""

    def where(self, chosen: Tensor, other: "_Points") -> "_Points":
        """These where chosen, shape ``(n,)``, and the other ones elsewhere."""
        wide = _wide(chosen)
        return _Points(
            torch.where(wide, self.x, other.x),
            torch.where(wide, self.before, other.before),
            torch.where(chosen, self.loss, other.loss),
            torch.where(wide, self.direction, other.direction),
            torch.where(chosen, self.wrong, other.wrong),
        )


def _look(
    network: nn.Module, loss: Loss, labels: Tensor, x: Tensor, before: Tensor, *, gradient: bool = True
) -> _Points:
    """Loss, direction and success at x, from one pass forward and back."""
    with torch.set_grad_enabled(gradient):
        leaf = x.detach().requires_grad_(gradient)
        logits = network(leaf)
        losses = loss(logits, labels)
    direction = torch.autograd.grad(losses.sum(), leaf)[0].sign_() if gradient else before
    return _Points(x.detach(), before, losses.detach(), direction, logits.detach().argmax(1) != labels)


def _iterate(
    look: Callable[..., _Points], images: Tensor, start: Tensor, *, eps: float, eps_step: float, steps: int
) -> _Points:
    """The points at which the iteration ends."""
    here = look(start, start)
    best = replace(here, before=images)
    eta = torch.full((len(images), 1, 1, 1), eps_step, device=images.device)
    best_then, successes, checks = here.loss, torch.zeros(len(images), device=images.device), _checkpoints(steps)
    for k in range(steps):
        moved = _inside(here.x + eta * here.direction, images, eps)
        if k > 0:
            moved = here.x + MOMENTUM * (moved - here.x) + (1 - MOMENTUM) * (here.x - here.before)
            moved = _inside(moved, images, eps)
        new = look(moved, here.x, gradient=k + 1 < steps)
        if k > 0 and not new.loss.any():  # as ART: where every loss is exactly 0 there is nowhere to go
            return new
        better = new.loss > best.loss if k > 0 else new.loss >= best.loss
        best = (new if k > 0 else replace(new, before=images)).where(better, best)
        successes += better
        here = new
        if k > 0 and k in checks:
            rare = successes < RHO * (k - checks[checks.index(k) - 1])
            back = rare | (best.loss == best_then)
            eta = torch.where(_wide(back), eta / 2, eta)
            here, best_then = best.where(back, here), best.loss
            successes.zero_()
    return here


def _inside(x: Tensor, images: Tensor, eps: float) -> Tensor:
    """Clipped to [0, 1] and to eps around the images, in place, in ART's order, so that the rounding is the same."""
    return x.clamp_(0, 1).sub_(images).clamp_(-eps, eps).add_(images)


def _wide(flags: Tensor) -> Tensor:
    return flags.reshape(-1, 1, 1, 1)


def _checkpoints(steps: int) -> Sequence[int]:
    """The iterations at which step sizes are looked at, section 3.2."""
    shares = [0.0, 0.22]
    while (following := shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06)) <= 1:
        shares.append(following)
    return [math.ceil(share * steps) for share in shares]
