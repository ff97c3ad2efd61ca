"""Trial of a user's network, losses and attacks before a grid is started."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from art_hrloss import HRClassifier, attack_view, seeded
from benchmarks import attacks, losses, models
from benchmarks.config import AttackSpec, ConfigError, Grid, Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.evaluation import as_classifier
from benchmarks.references import Reference

# Number of images in the trial of an attack.
IMAGES = 2


def try_user_code(grid: Grid, name: str, recipe: Recipe, data: Dataset) -> None:
    """
    Build each network, loss and attack of a grid that is a reference to a user's code, and use it once.

    :raises ConfigError: If one is missing, fails, or returns something else than required.
    """
    user_attacks = [attack for attack in (*grid.attacks, *recipe.curve_attacks) if isinstance(attack.name, Reference)]
    user_losses = [loss for loss in grid.losses if isinstance(loss.name, Reference)]
    if not user_attacks and not user_losses and not isinstance(recipe.model, Reference):
        return
    recipe = replace(recipe, device="cpu")  # the GPU may be on another machine, that of a cluster's worker
    model = models.build_for(recipe, data)
    for loss in user_losses:
        _try_loss(losses.training_loss(loss), str(loss.name), data.classes)
    classifier = as_classifier(model, RunSpec(name, recipe, replace(grid.losses[0], margin=0.0), 0), data)
    for attack in user_attacks:
        _try_attack(attack, classifier, data, recipe.input_scale)


def _try_loss(loss: nn.Module, name: str, classes: int) -> None:
    """Make sure that a loss of logits and class indices is a scalar with a gradient."""
    logits, labels = torch.zeros(classes, classes, requires_grad=True), torch.arange(classes)
    try:
        value = loss(logits, labels)
    except Exception as error:  # a user's code can raise anything
        raise ConfigError(f"expected {name} to take logits (n, C) and class indices (n,), but got {error!r}") from error
    if not isinstance(value, Tensor) or value.ndim or not value.isfinite() or not value.requires_grad:
        raise ConfigError(f"expected {name} to return a finite scalar with a gradient, but got {str(value)[:60]}")


def _try_attack(spec: AttackSpec, classifier: HRClassifier, data: Dataset, input_scale: float) -> None:
    """Attack a few images of an untrained network; the attack raises a ConfigError if its images are invalid."""
    attacked = attack_view(classifier, losses.attack_loss(spec.loss or "ce"))
    attack = attacks.build(spec, attacked, batch_size=IMAGES, input_scale=input_scale)
    assert attack is not None
    images = data.test.images[:IMAGES].astype(np.float32) / np.float32(255)
    try:
        with seeded(0):
            attack.generate(images, data.test.labels[:IMAGES])
    except ConfigError:
        raise
    except Exception as error:  # a user's code can raise anything
        raise ConfigError(f"expected {spec.name} to attack {IMAGES} images, but got {error!r}") from error
