"""
Reference implementations of attacks (L-infinity) as loops in torch, and attacks of other libraries.

The attacks of this plugin are compared with them. Each loop computes the same images as ART's attack with the same
settings, with the least work: gradients with respect to the images only, and no prediction or loss computed twice.
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

# A function from logits and class indices to per-example losses, shape (n,).
Loss = Callable[[Tensor, Tensor], Tensor]
# A function from images and class indices to adversarial images.
Attack = Callable[[Tensor, Tensor], Tensor]
FOOLBOX, TORCHATTACKS = "Foolbox", "torchattacks"
MISSING, LACKING = "not installed", "has no such attack"
# Parameters of Auto-PGD in Croce and Hein (2020) and in ART: the momentum, and the share of steps in a checkpoint
# interval that must increase the loss for the step size to stay the same.
MOMENTUM, RHO = 0.75, 0.75


def pgd(
    network: nn.Module, loss: Loss, images: Tensor, labels: Tensor, *, eps: float, eps_step: float, steps: int
) -> Tensor:
    """
    Return adversarial images by projected gradient descent without random start; one step of size eps is FGSM.

    :param network: The network in evaluation mode, from images to logits.
    :param images: Images in [0, 1], shape ``(n, C, H, W)``.
    :param labels: Class indices, shape ``(n,)``.
    :return: Images of the same shape, in [0, 1] and with pixels within eps of the original.
    """
    x = images
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(network(x), labels).sum(), x)
        x = _project(x.detach() + eps_step * gradient.sign(), images, eps)
    return x


def auto_pgd(
    network: nn.Module, loss: Loss, images: Tensor, labels: Tensor, *, eps: float, eps_step: float, steps: int
) -> Tensor:
    """
    Return adversarial images by Auto-PGD (Croce and Hein 2020, Algorithm 1) as in ART, with one random start.

    Each image has its own step size. Images that are already misclassified are returned unchanged. Of the others, the
    last iterate is returned if it is misclassified, and the random start if not; the start is drawn from NumPy's global
    generator, as in ART.

    :param eps_step: The first step size; the other parameters are as for :func:`pgd`.
    """
    with torch.no_grad():
        right = network(images).argmax(1) == labels
    clean, true_labels = images[right], labels[right]
    if not len(clean):
        return images.clone()
    noise = random_sphere(len(clean), clean[0].numel(), eps, np.inf).astype(np.float32)
    start = _project(clean + torch.from_numpy(noise).to(clean).reshape(clean.shape), clean, eps)

    def evaluate(x: Tensor, previous: Tensor, *, gradient: bool = True) -> _Iterate:
        """Evaluate loss, gradient and prediction at x, in one forward and one backward pass."""
        with torch.set_grad_enabled(gradient):
            leaf = x.detach().requires_grad_(gradient)
            logits = network(leaf)
            losses = loss(logits, true_labels)
        direction = torch.autograd.grad(losses.sum(), leaf)[0].sign_() if gradient else previous
        return _Iterate(x.detach(), previous, losses.detach(), direction, logits.detach().argmax(1) != true_labels)

    last = _ascend(evaluate, clean, start, eps=eps, eps_step=eps_step, steps=steps)
    result = images.clone()
    result[right] = torch.where(_broadcastable(last.wrong, start), last.x, start)
    return result


class _Iterate(NamedTuple):
    """Iterate of each image, with its loss, gradient and prediction."""

    x: Tensor
    previous: Tensor
    """The iterate before this one."""
    loss: Tensor
    direction: Tensor
    """The sign of the gradient."""
    wrong: Tensor
    """True for images that are misclassified."""

    def where(self, mask: Tensor, other: "_Iterate") -> "_Iterate":
        """Return this iterate for images in the mask, shape ``(n,)``, and the other one for the rest."""
        return _Iterate(*(torch.where(_broadcastable(mask, a), a, b) for a, b in zip(self, other, strict=True)))


def _ascend(
    evaluate: Callable[..., _Iterate], images: Tensor, start: Tensor, *, eps: float, eps_step: float, steps: int
) -> _Iterate:
    """Return the last iterate of Auto-PGD."""
    current = evaluate(start, start)
    best = current._replace(previous=images)
    eta = torch.full((len(images), 1, 1, 1), eps_step, device=images.device)
    successes, checkpoints = torch.zeros(len(images), device=images.device), _checkpoints(steps)
    best_at_checkpoint = current.loss
    for k in range(steps):
        moved = _project(current.x + eta * current.direction, images, eps)
        if k > 0:
            moved = current.x + MOMENTUM * (moved - current.x) + (1 - MOMENTUM) * (current.x - current.previous)
            moved = _project(moved, images, eps)
        new = evaluate(moved, current.x, gradient=k + 1 < steps)
        if k > 0 and not new.loss.any():  # as in ART: if every loss is exactly 0, so is every gradient
            return new
        better = new.loss > best.loss if k > 0 else new.loss >= best.loss
        best = (new if k > 0 else new._replace(previous=images)).where(better, best)
        successes += better
        current = new
        if k > 0 and k in checkpoints:
            # Conditions 1 and 2 of section 3.2: too few successful steps, or no better loss since the last checkpoint.
            too_few = successes < RHO * (k - checkpoints[checkpoints.index(k) - 1])
            halved = too_few | (best.loss == best_at_checkpoint)
            eta = torch.where(_broadcastable(halved, eta), eta / 2, eta)
            current, best_at_checkpoint = best.where(halved, current), best.loss
            successes.zero_()
    return current


def _project(x: Tensor, images: Tensor, eps: float) -> Tensor:
    """Clip to [0, 1] and to eps around the images, in place, in ART's order, so that the rounding is the same."""
    return x.clamp_(0, 1).sub_(images).clamp_(-eps, eps).add_(images)


def _broadcastable(flags: Tensor, like: Tensor) -> Tensor:
    """Return flags of shape ``(n,)`` with as many dimensions as another tensor."""
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


def _checkpoints(steps: int) -> Sequence[int]:
    """Return the iterations at which the step sizes may be halved, section 3.2."""
    shares = [0.0, 0.22]
    while (following := shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06)) <= 1:
        shares.append(following)
    return [math.ceil(share * steps) for share in shares]


def library_attack(library: str, kind: AttackKind, subject: Subject, network: nn.Module) -> Attack | str:
    """
    Return a library's attack with the library's cross-entropy, without a random start if the library allows it.

    :param library: FOOLBOX or TORCHATTACKS; both are optional and used by these measurements only.
    :param kind: The attack.
    :param subject: The eps and the step size.
    :param network: The network in evaluation mode, on the device of the attack.
    :return: The attack, or the reason why there is none.
    """
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # Foolbox imports GitPython, which would complain without git
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both use deprecated functions of SciPy
            module: Any = importlib.import_module(library.lower())
    except ModuleNotFoundError:
        return MISSING
    except ImportError as error:
        return f"cannot be imported: {error}".splitlines()[0]
    eps, eps_step, steps = subject.eps, subject.eps_step, kind.steps
    if library == TORCHATTACKS:
        library_function: Attack = {
            "FGM": lambda: module.FGSM(network, eps=eps),
            "PGD": lambda: module.PGD(network, eps=eps, alpha=eps_step, steps=steps, random_start=False),
            "AutoPGD": lambda: module.APGD(network, eps=eps, steps=steps, n_restarts=1),
        }[kind.name]()
        return library_function
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
