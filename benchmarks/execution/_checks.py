"""A user's own network, losses and attacks, tried before a grid is begun."""

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

# Images that an attack is tried on.
IMAGES = 2


def try_own_things(grid: Grid, name: str, recipe: Recipe, data: Dataset) -> None:
    """
    Build each network, loss and attack of a grid that is a user's own, and use it once.

    :raises ConfigError: If one is not there, fails, or is not what it must be.
    """
    own_attacks = [attack for attack in (*grid.attacks, *recipe.curve_attacks) if isinstance(attack.name, Reference)]
    own_losses = [loss for loss in grid.losses if isinstance(loss.name, Reference)]
    if not own_attacks and not own_losses and not isinstance(recipe.model, Reference):
        return
    recipe = replace(recipe, device="cpu")  # a cluster's GPU is elsewhere
    model = models.build_for(recipe, data)
    for loss in own_losses:
        _try_loss(losses.training_loss(loss), str(loss.name), data.classes)
    classifier = as_classifier(model, RunSpec(name, recipe, replace(grid.losses[0], margin=0.0), 0), data)
    for attack in own_attacks:
        _try_attack(attack, classifier, data, recipe.input_scale)


def _try_loss(loss: nn.Module, name: str, classes: int) -> None:
    """Make sure that a loss of logits and class indices is a scalar with a gradient."""
    logits, labels = torch.zeros(classes, classes, requires_grad=True), torch.arange(classes)
    try:
        value = loss(logits, labels)
    except Exception as error:  # from code that is not ours
        raise ConfigError(f"expected {name} to take logits (n, C) and class indices (n,), but got {error!r}") from error
    if not isinstance(value, Tensor) or value.ndim or not value.isfinite() or not value.requires_grad:
        raise ConfigError(f"expected {name} to give a finite scalar with a gradient, but got {str(value)[:60]}")


def _try_attack(spec: AttackSpec, classifier: HRClassifier, data: Dataset, input_scale: float) -> None:
    """Attack a few images of a network that has not learned; what is wrong with the attack it says itself."""
    attacked = attack_view(classifier, losses.attack_loss(spec.loss or "ce"))
    attack = attacks.build(spec, attacked, batch_size=IMAGES, input_scale=input_scale)
    assert attack is not None
    images = data.test.images[:IMAGES].astype(np.float32) / np.float32(255)
    try:
        with seeded(0):
            attack.generate(images, data.test.labels[:IMAGES])
    except ConfigError:
        raise
    except Exception as error:  # from code that is not ours
        raise ConfigError(f"expected {spec.name} to attack {IMAGES} images, but got {error!r}") from error
