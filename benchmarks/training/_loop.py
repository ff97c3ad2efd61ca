"""RunSpec -> checkpoint and learning curve."""

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from art_hrloss.attacks._constraints import margins
from benchmarks import models
from benchmarks.config import Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.evaluation import as_classifier, curve_point
from benchmarks.losses import training_loss
from benchmarks.store import Store
from benchmarks.training._adversarial import Whole, adversarial_epoch, noisy


class TrainingError(RuntimeError):
    """Training that cannot go on; says where and why."""


# Validation images at once: on a GPU enough for few launches.
BATCH_SIZE = {"cpu": 500, "cuda": 5000}


class Training:
    """A run in training: its network, its optimizer, its images, and how far it is."""

    def __init__(self, run: RunSpec, data: Dataset) -> None:
        self.run, self.data = run, data
        self.device = torch.device("cuda" if run.recipe.device == "gpu" else "cpu")
        model_seed, order_seed = (int(s) for s in np.random.SeedSequence(run.seed).generate_state(2))
        self.model = models.build_for(run.recipe, data, seed=model_seed).to(self.device)
        self.optimizer = build_optimizer(run.recipe, self.model)
        self.order = torch.Generator().manual_seed(order_seed)
        self.curve: list[dict[str, Any]] = []
        self.loss = training_loss(run.loss).to(self.device)
        self.classifier = as_classifier(self.model, run, data)

    @cached_property
    def train(self) -> tuple[Tensor, Tensor]:
        """The training images and their labels."""
        return self.data.train.tensors(self.device)

    @cached_property
    def validation(self) -> tuple[Tensor, Tensor]:
        """The validation images and their labels."""
        return self.data.validation.tensors(self.device)

    def resume(self, store: Store) -> None:
        """Go on from what the store has of the run, if anything."""
        state = store.load_state(self.run)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.order.set_state(state["order"])
            self.curve = state["curve"]

    def extend(self, row: dict[str, Any]) -> None:
        """
        End an epoch: complete its row of the curve by measuring the network as it is.

        :param row: What the epoch has told.
        :raises TrainingError: If the loss is no longer finite.
        """
        epoch = len(self.curve)
        if not math.isfinite(row["train_loss"]):
            raise TrainingError(f"the loss of {self.run} became {row['train_loss']} in epoch {epoch + 1}")
        self.curve.append(row | self._measured(epoch))

    def state(self) -> dict[str, Any]:
        """All that :meth:`resume` needs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "curve": self.curve,
        }

    def finish(self, store: Store) -> None:
        """
        Keep the weights of a run whose epochs are done.

        :raises TrainingError: If no temperature gives the network the run's margin.
        """
        if self.run.loss.margin:
            self._scale_margins()
        store.save_checkpoint(self.run, self.model.state_dict())

    def shuffled(self) -> Tensor:
        """The order of the images in the next epoch, on the CPU."""
        return torch.randperm(len(self.data.train), generator=self.order)

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train for an epoch, counted from 0; returns train_loss and train_accuracy."""
        recipe, hardening = self.run.recipe, self.run.loss.hardening
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch)
        order = self.shuffled().to(self.device).split(recipe.batch_size)
        images, labels = self.train
        batches = ((noisy(images[batch], hardening), labels[batch]) for batch in order)
        # For noise and networks with random layers: drawn anew in every epoch, so that a resumed run draws the same.
        seed = int(np.random.SeedSequence((self.run.seed, epoch)).generate_state(1)[0])
        if hardening is not None and hardening.name != "noise":
            classifier = as_classifier(Whole(self.model), self.run, self.data, self.optimizer)
            adversarial_epoch(hardening, classifier, images, labels, recipe.batch_size, seed=seed)
            return look(self.model, self.loss, batches)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return train_epoch(self.model, self.loss, self.optimizer, batches)

    def _measured(self, epoch: int) -> dict[str, Any]:
        """What else a row of the curve holds."""
        recipe = self.run.recipe
        row: dict[str, Any] = {"epoch": epoch + 1, "lr": recipe.lr_at(epoch)}
        row["validation_accuracy"] = accuracy(self.model, *self.validation, batch_size=BATCH_SIZE[self.device.type])
        if recipe.curve_every and (epoch + 1) % recipe.curve_every == 0:
            row |= curve_point(recipe.curve_attacks, self.classifier, self.data, recipe.input_scale).row()
        return row

    def _scale_margins(self) -> None:
        """Multiply the logits by what gives the validation images the run's median margin."""
        images, labels = (part.cpu().numpy() for part in self.validation)
        logits = self.classifier.predict(images, batch_size=500).astype(np.float64)
        median = float(np.median(margins(logits, labels)))
        if not 0 < median < math.inf:
            wanted = f"{self.run.loss.margin:g} for {self.run}"
            raise TrainingError(f"expected a median margin above 0, to be scaled to {wanted}, but got {median:g}")
        models.scale_logits(self.model, self.run.loss.margin / median)


def train_epoch(
    model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """One pass over the batches; returns train_loss and train_accuracy."""
    model.train()
    # Kept as tensors until the epoch ends: reading one would make a GPU wait, and one look at all costs less than many.
    losses: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor]] = []
    for images, labels in batches:
        optimizer.zero_grad()
        logits = model(images)
        value = loss(logits, labels)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
        seen.append((logits.detach(), labels))
    return _told(losses, seen)


@torch.no_grad()
def look(model: nn.Module, loss: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """As :func:`train_epoch`, of the model as it is, in evaluation mode, without training it."""
    model.eval()
    seen = [(model(images), labels) for images, labels in batches]
    losses = [loss(logits, labels) for logits, labels in seen]
    return _told(losses, seen)


def _told(losses: list[Tensor], seen: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """An epoch's train_loss and train_accuracy, from each batch's loss, and its logits and labels."""
    logits, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return {
        "train_loss": torch.stack(losses).mean().item(),
        "train_accuracy": (logits.argmax(1) == labels).sum().item() / len(labels),
    }


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 500) -> float:
    """Share of images that the model, in evaluation mode, gets right."""
    model.eval()
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(labels)


def build_optimizer(
    recipe: Recipe, model: nn.Module, parameters: Mapping[str, Tensor] | None = None
) -> torch.optim.Optimizer:
    """
    The recipe's optimizer over all parameters, its penalty on the convolutions' kernels alone.

    :param parameters: By the names that the model has for its own, those in their place.
    """
    named = dict(model.named_parameters()) if parameters is None else parameters
    kernel_names = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    kernels = [named[name] for name in kernel_names]
    others = [parameter for name, parameter in named.items() if name not in kernel_names]
    # The gradient of l2 * ||w||^2 is 2 l2 w; torch adds weight_decay * w.
    groups: list[dict[str, Any]] = [{"params": kernels, "weight_decay": 2 * recipe.l2}, {"params": others}]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
