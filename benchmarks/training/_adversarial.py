"""Epochs of training on other images than those there are: noisy ones, or adversarial ones, by ART's trainers."""

import io
from contextlib import redirect_stderr
from typing import Any

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.defences.trainer import AdversarialTrainerMadryPGD, AdversarialTrainerTRADESPyTorch, Trainer
from torch import Tensor, nn

from art_hrloss import HRClassifier, seeded
from benchmarks.config import Hardening

# A step of projected gradient descent, as a share of eps times 1 / steps: Madry et al. take 2.5.
STEP = 2.5


class Whole(nn.Module):
    """A network of many layers as one: of an nn.Sequential, ART's TRADES takes its accuracy from the first layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images of shape ``(n, C, H, W)`` to logits."""
        logits: Tensor = self.network(images)
        return logits


def noisy(images: Tensor, hardening: Hardening | None) -> Tensor:
    """The images, with uniform noise of the hardening's eps if that is what it is; drawn from torch's generator."""
    if hardening is None or hardening.name != "noise":
        return images
    noise = torch.empty_like(images).uniform_(-hardening.eps, hardening.eps)
    return (images + noise).clamp(0, 1)


def adversarial_epoch(
    hardening: Hardening, classifier: HRClassifier, images: Tensor, labels: Tensor, batch_size: int, *, seed: int
) -> None:
    """
    One epoch of a trainer of ART's, which trains the classifier's network with its loss and its optimizer.

    The adversarial images climb the loss of each example, from a random start. TRADES is as ART has it: they climb the
    training loss, and not the divergence that TRADES then makes smaller.

    :param hardening: Madry's training or TRADES.
    :param classifier: Its network is a :class:`Whole`, its attack loss the training loss's per-example form.
    :param images: Shape ``(n, C, H, W)``, in [0, 1].
    :param labels: Class indices, shape ``(n,)``.
    :param batch_size: Images per step.
    :param seed: Of the order of the images and of the random starts.
    """
    trainer = _trainer(hardening, classifier, batch_size)
    # ART draws a progress bar for every epoch, whatever it is told.
    with seeded(seed), redirect_stderr(io.StringIO()):
        trainer.fit(images.cpu().numpy(), labels.cpu().numpy(), batch_size=batch_size, nb_epochs=1)


def _trainer(hardening: Hardening, classifier: HRClassifier, batch_size: int) -> Trainer:
    attack: dict[str, Any] = {
        "eps": hardening.eps,
        "eps_step": STEP * hardening.eps / hardening.steps,
        "max_iter": hardening.steps,
        "num_random_init": 1,
    }
    if hardening.name == "madry":
        trainer = AdversarialTrainerMadryPGD(classifier, nb_epochs=1, batch_size=batch_size, **attack)
        trainer.attack.set_params(batch_size=batch_size)  # else 32, whatever the trainer's own is
        return trainer
    descent = ProjectedGradientDescentPyTorch(classifier, norm=np.inf, batch_size=batch_size, verbose=False, **attack)
    return AdversarialTrainerTRADESPyTorch(classifier, descent, hardening.beta)
