"""Defences during training: noisy images, and adversarial training with ART's trainers."""

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

# Step size of PGD times the number of steps, relative to eps: 2.5 as in Madry et al.
RELATIVE_STEP = 2.5


class Whole(nn.Module):
    """
    Wrapper that hides the layers of a network.

    For an nn.Sequential, ART's TRADES trainer would compute the accuracy from the output of the first layer.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images of shape ``(n, C, H, W)``."""
        logits: Tensor = self.network(images)
        return logits


def noisy(images: Tensor, hardening: Hardening | None) -> Tensor:
    """Return the images with uniform noise from torch's generator if the defence is noise, and unchanged otherwise."""
    if hardening is None or hardening.name != "noise":
        return images
    noise = torch.empty_like(images).uniform_(-hardening.eps, hardening.eps)
    return (images + noise).clamp(0, 1)


def adversarial_epoch(
    hardening: Hardening, classifier: HRClassifier, images: Tensor, labels: Tensor, batch_size: int, *, seed: int
) -> None:
    """
    Train the classifier's network for one epoch with an ART trainer, with the classifier's loss and optimizer.

    PGD maximises the loss of each example from a random start. TRADES is ART's implementation: its adversarial images
    maximise the training loss, and not the divergence that TRADES adds to the objective.

    :param hardening: The defence: adversarial training (Madry) or TRADES.
    :param classifier: The classifier. Its network is a :class:`Whole`, and it attacks the per-example training loss.
    :param images: Images in [0, 1], shape ``(n, C, H, W)``.
    :param labels: Class indices, shape ``(n,)``.
    :param batch_size: Images per step.
    :param seed: Seed of the order of the images and of the random starts.
    """
    trainer = _trainer(hardening, classifier, batch_size)
    # ART's trainers print a progress bar for every epoch, and have no option against it.
    with seeded(seed), redirect_stderr(io.StringIO()):
        trainer.fit(images.cpu().numpy(), labels.cpu().numpy(), batch_size=batch_size, nb_epochs=1)


def _trainer(hardening: Hardening, classifier: HRClassifier, batch_size: int) -> Trainer:
    attack: dict[str, Any] = {
        "eps": hardening.eps,
        "eps_step": RELATIVE_STEP * hardening.eps / hardening.steps,
        "max_iter": hardening.steps,
        "num_random_init": 1,
    }
    if hardening.name == "madry":
        trainer = AdversarialTrainerMadryPGD(classifier, nb_epochs=1, batch_size=batch_size, **attack)
        trainer.attack.set_params(batch_size=batch_size)  # ART would use 32 for the attack
        return trainer
    pgd = ProjectedGradientDescentPyTorch(classifier, norm=np.inf, batch_size=batch_size, verbose=False, **attack)
    return AdversarialTrainerTRADESPyTorch(classifier, pgd, hardening.beta)
