"""
Example of data-parallel training with HRLoss(process_group=...): several processes train one network.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.data_parallel

trains the ResNet of the CIFAR-10 recipe. Each process has a part of every batch, and the loss is the HR loss of the
whole batch. For a network without batch normalisation, the weights equal those of a single process, except for
rounding. With batch normalisation they differ, because each process normalises its part of the batch.
"""

import io
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import tyro
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from art_hrloss import HRLoss
from benchmarks import models, recipes
from benchmarks.config import DATA_DIR
from benchmarks.data import DataError, Dataset, load
from benchmarks.store import write_bytes
from benchmarks.training import accuracy, build_optimizer, train_epoch

RECIPES = {"digits": recipes.DIGITS, "mnist": recipes.MNIST_SHORT, "cifar10": recipes.CIFAR10_SHORT}


@dataclass(frozen=True)
class Options:
    """Options of the training; they are the same in every process."""

    dataset: str = "cifar10"
    """Data set: digits, mnist or cifar10, with the recipe of its short grid."""
    data_dir: Path = DATA_DIR
    """Folder of the data sets."""
    download: bool = False
    """Download the data set if it is missing."""
    epochs: int | None = None
    """Number of epochs instead of the recipe's."""
    alpha: float = 1.6
    """Renyi order of the HR loss."""
    seed: int = 0
    """Seed of the initial weights and of the order of the images."""
    weights: Path | None = None
    """File for the trained weights, a state_dict, which the first process writes."""


def train(options: Options, device: torch.device) -> nn.Module:
    """
    Train in the default process group, which must be initialised; the first process prints the progress.

    :raises ValueError: If the data set is unknown.
    :raises DataError: If the data set cannot be read.
    """
    if options.dataset not in RECIPES:
        raise ValueError(f"expected dataset to be one of {list(RECIPES)}, but got {options.dataset!r}")
    recipe = RECIPES[options.dataset]
    recipe = replace(recipe, epochs=options.epochs or recipe.epochs)
    first = dist.get_rank() == 0
    if first:
        processes = f"{dist.get_world_size()} process{'es' * (dist.get_world_size() > 1)}"
        print(f"training on {options.dataset}, {recipe.epochs} epochs, {processes}, {device.type}", flush=True)
    data = _read(options, recipe.validation_size, first=first)
    model = models.build_for(recipe, data, seed=options.seed).to(device)
    parallel = DistributedDataParallel(model)
    optimizer, loss = build_optimizer(recipe, model), HRLoss(options.alpha, process_group=dist.group.WORLD)
    (images, labels), validation = data.train.tensors(device), data.validation.tensors(device)
    order = torch.Generator().manual_seed(options.seed)
    for epoch in range(recipe.epochs):
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch)
        shuffled = torch.randperm(len(images), generator=order).to(device)
        batches = local_batches(images, labels, shuffled.split(recipe.batch_size))
        row = train_epoch(parallel, loss, optimizer, batches)
        if first:
            validation_accuracy = accuracy(model, *validation)
            metrics = f"loss {row['train_loss']:.4f} nats, validation accuracy {validation_accuracy:.4f}"
            print(f"epoch {epoch + 1}: {metrics}, {time.perf_counter() - start:.1f} s", flush=True)
    return model


def local_batches(images: Tensor, labels: Tensor, batches: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """
    Yield the current process's part of every batch.

    All processes skip a batch with fewer examples than processes: otherwise some would wait forever in a collective.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    for batch in batches:
        if len(batch) >= world:
            part = batch[rank::world]
            yield images[part], labels[part]


def _read(options: Options, validation_size: int, *, first: bool) -> Dataset:
    """Return the data set. The first process downloads it to a shared disk, and the other processes wait for it."""

    def read(*, download: bool) -> Dataset:
        return load(options.dataset, data_dir=options.data_dir, download=download, validation_size=validation_size)

    data, problem = None, [""]
    try:
        data = read(download=options.download) if first else None
    except DataError as error:  # all processes raise it: the others would wait for the first one
        problem = [str(error)]
    dist.broadcast_object_list(problem)
    if problem[0]:
        raise DataError(problem[0])
    return data or read(download=False)


def main() -> None:
    """Join the process group that torchrun has described in the environment, and train."""
    options = tyro.cli(Options, description=__doc__)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        model = train(options, device)
        if options.weights is not None and dist.get_rank() == 0:
            content = io.BytesIO()
            torch.save(model.state_dict(), content)
            write_bytes(options.weights, content.getvalue())
    except DataError as error:
        sys.exit(f"Error: {error}" if dist.get_rank() == 0 else 2)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
