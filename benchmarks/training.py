"""RunSpec -> checkpoint and learning curve."""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import models
from benchmarks.config import Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.evaluation import as_classifier, measure_all
from benchmarks.losses import training_loss
from benchmarks.store import Store


class TrainingError(RuntimeError):
    """Training that cannot go on; says where and why."""


def train(run: RunSpec, data: Dataset, store: Store) -> None:
    """
    Train a run from where it stands, keep its state after every epoch, and its weights at the end.

    The seed fixes the initial weights and the order of the images, whatever the loss, so that the losses of one seed
    are compared as pairs. A run that is resumed ends, on the CPU, in the same bits as one that was not interrupted. A
    row of the curve holds epoch (from 1), lr, train_loss (mean over the batches, nats), train_accuracy (as the epoch
    went by), validation_accuracy (after it) and, every so many epochs, for each attack that the recipe names: attacks,
    the accuracy under it, and bounds, as a record has them under "labels". The log gets each epoch's seconds, and those
    of its training alone.

    :param run: What to train.
    :param data: Its data set.
    :param store: Where state, curve and weights go; the run's lock is the caller's.
    :raises TrainingError: If the loss is no longer finite.
    """
    recipe = run.recipe
    device = torch.device("cuda" if recipe.device == "gpu" else "cpu")
    model_seed, order_seed = (int(s) for s in np.random.SeedSequence(run.seed).generate_state(2))
    model = models.build_for(recipe, data, seed=model_seed).to(device)
    optimizer = build_optimizer(recipe, model)
    order = torch.Generator().manual_seed(order_seed)
    curve: list[dict[str, Any]] = []
    state = store.load_state(run)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        order.set_state(state["order"])
        curve = state["curve"]
    images, labels = data.train.tensors(device)
    validation = data.validation.tensors(device)
    classifier = as_classifier(model, run, data)
    loss = training_loss(run.loss).to(device)
    for epoch in range(len(curve), recipe.epochs):
        begun = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch)
        batches = torch.randperm(len(images), generator=order).to(device).split(recipe.batch_size)
        with torch.random.fork_rng():
            # For networks with random layers: drawn anew in every epoch, so that a resumed run draws the same.
            torch.manual_seed(int(np.random.SeedSequence((run.seed, epoch)).generate_state(1)[0]))
            row = train_epoch(model, loss, optimizer, ((images[batch], labels[batch]) for batch in batches))
        trained = time.perf_counter()
        if not math.isfinite(row["train_loss"]):
            raise TrainingError(f"the loss of {run} became {row['train_loss']} in epoch {epoch + 1}")
        row |= {"epoch": epoch + 1, "lr": recipe.lr_at(epoch), "validation_accuracy": accuracy(model, *validation)}
        if recipe.curve_every and (epoch + 1) % recipe.curve_every == 0:
            measured = dict(measure_all(recipe.curve_attacks, classifier, data, recipe.input_scale))
            row["attacks"] = {spec.key(): record["correct"] / record["n"] for spec, record in measured.items()}
            row["bounds"] = {spec.key(): record["bounds"]["labels"] for spec, record in measured.items()}
        curve.append(row)
        store.save_state(
            run,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "order": order.get_state(),
                "curve": curve,
            },
        )
        seconds = {"training": round(trained - begun, 3), "seconds": round(time.perf_counter() - begun, 3)}
        store.log(run, "epoch", epoch=epoch + 1, **seconds)
    store.save_checkpoint(run, model.state_dict())


def train_epoch(
    model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """One pass over the batches; returns train_loss and train_accuracy."""
    model.train()
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    count = 0
    for images, labels in batches:
        optimizer.zero_grad()
        logits = model(images)
        value = loss(logits, labels)
        value.backward()
        optimizer.step()
        # Kept as tensors until the epoch ends: reading one would make a GPU wait.
        losses.append(value.detach())
        hits.append((logits.detach().argmax(1) == labels).sum())
        count += len(labels)
    return {
        "train_loss": torch.stack(losses).mean().item(),
        "train_accuracy": torch.stack(hits).sum().item() / count,
    }


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 500) -> float:
    """Share of images that the model, in evaluation mode, gets right."""
    model.eval()
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(labels)


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters, its penalty on the convolutions' kernels alone."""
    kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    ids = {id(kernel) for kernel in kernels}
    others = [p for p in model.parameters() if id(p) not in ids]
    # The gradient of l2 * ||w||^2 is 2 l2 w; torch adds weight_decay * w.
    groups: list[dict[str, Any]] = [{"params": kernels, "weight_decay": 2 * recipe.l2}, {"params": others}]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
