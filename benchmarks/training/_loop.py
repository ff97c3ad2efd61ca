"""Training of one run: state, epochs, learning curve and checkpoint."""

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
    """Training cannot continue; the message names the run, the epoch and the cause."""


# Validation images per batch. On a GPU large batches reduce the number of kernel launches.
BATCH_SIZE = {"cpu": 500, "cuda": 5000}


class Training:
    """State of a run in training: network, optimizer, data and learning curve."""

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
        """Load the training state of the run from the store, if there is one."""
        state = store.load_state(self.run)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.order.set_state(state["order"])
            self.curve = state["curve"]

    def extend(self, row: dict[str, Any]) -> None:
        """
        End an epoch: evaluate the network, and append the completed row to the learning curve.

        :param row: The result of the epoch: train_loss and train_accuracy.
        :raises TrainingError: If the loss is not finite.
        """
        epoch = len(self.curve)
        if not math.isfinite(row["train_loss"]):
            raise TrainingError(f"the loss of {self.run} became {row['train_loss']} in epoch {epoch + 1}")
        self.curve.append(row | self._measured(epoch))

    def state(self) -> dict[str, Any]:
        """Return the state from which :meth:`resume` continues."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "curve": self.curve,
        }

    def finish(self, store: Store) -> None:
        """
        Store the checkpoint of a run after its last epoch.

        :raises TrainingError: If the logits cannot be scaled to the run's margin.
        """
        if self.run.loss.margin:
            self._scale_margins()
        store.save_checkpoint(self.run, self.model.state_dict())

    def shuffled(self) -> Tensor:
        """Return the order of the images in the next epoch, on the CPU."""
        return torch.randperm(len(self.data.train), generator=self.order)

    def epoch(self, epoch: int) -> dict[str, Any]:
        """Train for an epoch, counted from 0, and return train_loss and train_accuracy."""
        recipe, hardening = self.run.recipe, self.run.loss.hardening
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch)
        order = self.shuffled().to(self.device).split(recipe.batch_size)
        images, labels = self.train
        batches = ((noisy(images[batch], hardening), labels[batch]) for batch in order)
        # Seed of noise and of random layers. It depends on the run's seed and the epoch only, so that a resumed run
        # draws the same numbers.
        seed = int(np.random.SeedSequence((self.run.seed, epoch)).generate_state(1)[0])
        if hardening is not None and hardening.name != "noise":
            classifier = as_classifier(Whole(self.model), self.run, self.data, self.optimizer)
            adversarial_epoch(hardening, classifier, images, labels, recipe.batch_size, seed=seed)
            return evaluate_epoch(self.model, self.loss, batches)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return train_epoch(self.model, self.loss, self.optimizer, batches)

    def _measured(self, epoch: int) -> dict[str, Any]:
        """Return the entries of a curve's row that are measured after the epoch."""
        recipe = self.run.recipe
        row: dict[str, Any] = {"epoch": epoch + 1, "lr": recipe.lr_at(epoch)}
        row["validation_accuracy"] = accuracy(self.model, *self.validation, batch_size=BATCH_SIZE[self.device.type])
        if recipe.curve_every and (epoch + 1) % recipe.curve_every == 0:
            row |= curve_point(recipe.curve_attacks, self.classifier, self.data, recipe.input_scale).row()
        return row

    def _scale_margins(self) -> None:
        """Scale the logits so that the median margin on the validation images is the run's margin."""
        images, labels = (part.cpu().numpy() for part in self.validation)
        logits = self.classifier.predict(images, batch_size=500).astype(np.float64)
        median = float(np.median(margins(logits, labels)))
        if not 0 < median < math.inf:
            target = f"{self.run.loss.margin:g} for {self.run}"
            raise TrainingError(f"expected a median margin above 0, to be scaled to {target}, but got {median:g}")
        models.scale_logits(self.model, self.run.loss.margin / median)


def train_epoch(
    model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """Train on all batches, and return train_loss and train_accuracy."""
    model.train()
    # Results stay on the device until the epoch ends: reading a value would synchronise with the GPU in every step.
    losses: list[Tensor] = []
    outputs: list[tuple[Tensor, Tensor]] = []
    for images, labels in batches:
        optimizer.zero_grad()
        logits = model(images)
        value = loss(logits, labels)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
        outputs.append((logits.detach(), labels))
    return _train_metrics(losses, outputs)


@torch.no_grad()
def evaluate_epoch(model: nn.Module, loss: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Return train_loss and train_accuracy of the model in evaluation mode, without training it."""
    model.eval()
    outputs = [(model(images), labels) for images, labels in batches]
    losses = [loss(logits, labels) for logits, labels in outputs]
    return _train_metrics(losses, outputs)


def _train_metrics(losses: list[Tensor], outputs: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Return train_loss and train_accuracy from the loss, logits and labels of each batch."""
    logits, labels = (torch.cat(tensors) for tensors in zip(*outputs, strict=True))
    return {
        "train_loss": torch.stack(losses).mean().item(),
        "train_accuracy": (logits.argmax(1) == labels).sum().item() / len(labels),
    }


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 500) -> float:
    """Return the accuracy of the model in evaluation mode."""
    model.eval()
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(labels)


def build_optimizer(
    recipe: Recipe, model: nn.Module, parameters: Mapping[str, Tensor] | None = None
) -> torch.optim.Optimizer:
    """
    Return the recipe's optimizer of all parameters; the L2 penalty applies to the convolutions' kernels only.

    :param recipe: The recipe.
    :param model: The network.
    :param parameters: Parameters that replace the model's, by name; None for the model's.
    """
    named = dict(model.named_parameters()) if parameters is None else parameters
    kernel_names = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    kernels = [named[name] for name in kernel_names]
    unpenalised = [parameter for name, parameter in named.items() if name not in kernel_names]
    # The gradient of l2 * ||w||^2 is 2 l2 w; torch's optimizers add weight_decay * w.
    groups: list[dict[str, Any]] = [{"params": kernels, "weight_decay": 2 * recipe.l2}, {"params": unpenalised}]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
