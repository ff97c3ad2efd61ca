"""
One network trained by several processes, each on its part of every batch: an example of HRLoss(process_group=...).

    torchrun --standalone --nproc-per-node 2 -m benchmarks.data_parallel

trains the ResNet of the CIFAR-10 recipe on the HR loss of the joint batches. Where the network has no batch
normalisation, the weights are those that one process alone would find, to rounding; with it, each process normalises
its own part.
"""

import io
import os
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
from benchmarks.data import Dataset, load
from benchmarks.store._atomic import write_bytes
from benchmarks.training import accuracy, build_optimizer, train_epoch

RECIPES = {"digits": recipes.DIGITS, "mnist": recipes.MNIST_SHORT, "cifar10": recipes.CIFAR10_SHORT}


@dataclass(frozen=True)
class Options:
    """What to train; every process is given the same."""

    dataset: str = "cifar10"
    """digits, mnist or cifar10, with the recipe of its short grid."""
    data_dir: Path = DATA_DIR
    """Folder of the data sets."""
    download: bool = False
    """Fetch the data set if it is not there."""
    epochs: int | None = None
    """Instead of the recipe's."""
    alpha: float = 1.6
    """Of the HR loss."""
    seed: int = 0
    """Of the initial weights and the order of the images."""
    weights: Path | None = None
    """Where the first process leaves the weights, as a state_dict."""


def train(options: Options, device: torch.device) -> nn.Module:
    """
    Train in the default process group, which must be there; the first process says how it goes.

    :raises ValueError: If the data set is none of the three.
    :raises DataError: If it cannot be read.
    """
    if options.dataset not in RECIPES:
        raise ValueError(f"expected dataset to be one of {list(RECIPES)}, but got {options.dataset!r}")
    recipe = RECIPES[options.dataset]
    recipe = replace(recipe, epochs=options.epochs or recipe.epochs)
    first = dist.get_rank() == 0
    data = _read(options, recipe.validation_size, first=first)
    model = models.build_for(recipe, data, seed=options.seed).to(device)
    parallel = DistributedDataParallel(model)
    optimizer, loss = build_optimizer(recipe, model), HRLoss(options.alpha, process_group=dist.group.WORLD)
    (images, labels), validation = data.train.tensors(device), data.validation.tensors(device)
    order = torch.Generator().manual_seed(options.seed)
    for epoch in range(recipe.epochs):
        begun = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch)
        shuffled = torch.randperm(len(images), generator=order).to(device)
        batches = own_parts(images, labels, shuffled.split(recipe.batch_size))
        row = train_epoch(parallel, loss, optimizer, batches)
        if first:
            right = accuracy(model, *validation)
            figures = f"loss {row['train_loss']:.4f} nats, validation accuracy {right:.4f}"
            print(f"epoch {epoch + 1}: {figures}, {time.perf_counter() - begun:.1f} s", flush=True)
    return model


def own_parts(images: Tensor, labels: Tensor, batches: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's part of every batch; a batch with fewer examples than processes is left out by all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for batch in batches:
        if len(batch) >= world:
            own = batch[rank::world]
            yield images[own], labels[own]


def _read(options: Options, validation_size: int, *, first: bool) -> Dataset:
    """The data set; on a disk that all share, the first process fetches it for all."""

    def read(*, download: bool) -> Dataset:
        return load(options.dataset, data_dir=options.data_dir, download=download, validation_size=validation_size)

    data = read(download=options.download) if first else None
    dist.barrier()
    return data or read(download=False)


def main() -> None:
    """Find the other processes, as torchrun has told, and train with them."""
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
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
