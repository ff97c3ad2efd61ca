"""Attacks (L-infinity) as loops over torch by hand, and those of other libraries: what ours are measured against.

Each loop makes the images that ART's attack of the same settings makes, and does no more for it than it must: gradients
by the images alone, and no prediction or loss computed twice.
"""

import importlib
import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from art.utils import random_sphere
from torch import Tensor, nn

from benchmarks.speed.subjects import AttackKind, Subject

# Per-example losses, shape (n,), from logits and class indices.
Loss = Callable[[Tensor, Tensor], Tensor]
# From images and class indices to adversarial images.
Attack = Callable[[Tensor, Tensor], Tensor]
FOOLBOX, TORCHATTACKS = "Foolbox", "torchattacks"
MISSING, LACKING = "not installed", "has no such attack"
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
    clean, wanted = images[right], labels[right]
    if not len(clean):
        return images.clone()
    noise = random_sphere(len(clean), clean[0].numel(), eps, np.inf).astype(np.float32)
    start = _inside(clean + torch.from_numpy(noise).to(clean).reshape(clean.shape), clean, eps)

    def look(x: Tensor, before: Tensor, *, gradient: bool = True) -> _Points:
        """Evaluate the network at x, in one pass forward and back."""
        with torch.set_grad_enabled(gradient):
            leaf = x.detach().requires_grad_(gradient)
            logits = network(leaf)
            losses = loss(logits, wanted)
        direction = torch.autograd.grad(losses.sum(), leaf)[0].sign_() if gradient else before
        return _Points(x.detach(), before, losses.detach(), direction, logits.detach().argmax(1) != wanted)

    last = _iterate(look, clean, start, eps=eps, eps_step=eps_step, steps=steps)
    result = images.clone()
    result[right] = torch.where(_wide(last.wrong, start), last.x, start)
    return result


class _Points(NamedTuple):
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
        """Return these where chosen, shape ``(n,)``, and the other ones elsewhere."""
        return _Points(*(torch.where(_wide(chosen, a), a, b) for a, b in zip(self, other, strict=True)))


def _iterate(
    look: Callable[..., _Points], images: Tensor, start: Tensor, *, eps: float, eps_step: float, steps: int
) -> _Points:
    """Return the points at which the iteration ends."""
    here = look(start, start)
    best = here._replace(before=images)
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
        best = (new if k > 0 else new._replace(before=images)).where(better, best)
        successes += better
        here = new
        if k > 0 and k in checks:
            rare = successes < RHO * (k - checks[checks.index(k) - 1])
            back = rare | (best.loss == best_then)
            eta = torch.where(_wide(back, eta), eta / 2, eta)
            here, best_then = best.where(back, here), best.loss
            successes.zero_()
    return here


def _inside(x: Tensor, images: Tensor, eps: float) -> Tensor:
    """Clip to [0, 1] and to eps around the images, in place, in ART's order, so that the rounding is the same."""
    return x.clamp_(0, 1).sub_(images).clamp_(-eps, eps).add_(images)


def _wide(flags: Tensor, like: Tensor) -> Tensor:
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


def _checkpoints(steps: int) -> Sequence[int]:
    """Return the iterations at which step sizes are looked at, section 3.2."""
    shares = [0.0, 0.22]
    while (following := shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06)) <= 1:
        shares.append(following)
    return [math.ceil(share * steps) for share in shares]


def library_attack(library: str, kind: AttackKind, subject: Subject, network: nn.Module) -> Attack | str:
    """
    Return a library's attack with its own cross-entropy, without a random start where it can go without.

    :param library: FOOLBOX or TORCHATTACKS, which only these measurements need and which may not be installed.
    :param kind: Which attack.
    :param subject: Gives eps and the size of a step.
    :param network: On the device that is attacked on, in evaluation mode.
    :return: The attack, or why there is none.
    """
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # Foolbox imports GitPython, which else asks for git
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they use of SciPy is deprecated
            module: Any = importlib.import_module(library.lower())
    except ModuleNotFoundError:
        return MISSING
    except ImportError as error:
        return f"cannot be imported: {error}".splitlines()[0]
    eps, eps_step, steps = subject.eps, subject.eps_step, kind.steps
    if library == TORCHATTACKS:
        own: Attack = {
            "FGM": lambda: module.FGSM(network, eps=eps),
            "PGD": lambda: module.PGD(network, eps=eps, alpha=eps_step, steps=steps, random_start=False),
            "AutoPGD": lambda: module.APGD(network, eps=eps, steps=steps, n_restarts=1),
        }[kind.name]()
        return own
    if kind.name == "AutoPGD":
        return LACKING
    options = {} if kind.name == "FGM" else {"abs_stepsize": eps_step, "steps": steps}
    name = "LinfFastGradientAttack" if kind.name == "FGM" else "LinfProjectedGradientDescentAttack"
    attack = getattr(module.attacks, name)(random_start=False, **options)
    model = module.PyTorchModel(network, bounds=(0, 1), device=next(network.parameters()).device)

    def attacked(images: Tensor, labels: Tensor) -> Tensor:
        _, clipped, _ = attack(model, images, module.criteria.Misclassification(labels), epsilons=eps)
        result: Tensor = clipped
        return result

    return attacked
