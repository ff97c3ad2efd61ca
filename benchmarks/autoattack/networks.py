"""Attacked networks: runs of the grids, adversarially trained networks, and controls with masked gradients."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from art_hrloss import HRClassifier, seeded
from benchmarks import grids
from benchmarks.autoattack import masked
from benchmarks.autoattack.masked import Around
from benchmarks.config import ConfigError, Hardening, LossSpec, Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.evaluation import as_classifier, trained_classifier
from benchmarks.execution import Job, execute, load_data
from benchmarks.protocols import CE, HR
from benchmarks.recipes import CIFAR10_SHORT, DIGITS_ADAM, MNIST_ADAM
from benchmarks.references import did_you_mean, refer
from benchmarks.store import Store

SEED = 0
MASKED = "benchmarks.autoattack.masked"
Change = Callable[[nn.Module, RunSpec, Dataset], nn.Module]


@dataclass(frozen=True)
class Case:
    """Network with the eps and the images of its attacks."""

    name: str
    """The name: the group, a dash, and the network in it."""
    what: str
    """The network, as tables show it."""
    run: RunSpec
    """The training run."""
    eps: float
    """The largest change of a pixel, L-infinity, as a share of its range."""
    images: int
    """The number of attacked images, the first of the test images."""
    change: Change = lambda network, run, data: network
    """A function from the trained network to the attacked one."""

    @property
    def key(self) -> str:
        """The name in file names."""
        return f"{self.name}-eps-{self.eps:.4g}-first-{self.images}"


def _trained(
    dataset: str, recipe: Recipe, madry: tuple[Recipe, Hardening], images: int, eps: tuple[float, float]
) -> list[Case]:
    """
    Return a CE-trained, an HR-trained and an adversarially trained network.

    :param madry: The recipe and the defence of adversarial training.
    :param eps: The eps of the attacks on the first two networks, and on the third.
    """
    plain, adversarial = eps
    kinds = {"ce": (recipe, CE, plain), "hr": (recipe, HR, plain)}
    kinds["madry"] = (madry[0], LossSpec("ce", hardening=madry[1]), adversarial)
    return [
        Case(f"{dataset}-{name}", str(loss), RunSpec(dataset, its_recipe, loss, SEED), radius, images)
        for name, (its_recipe, loss, radius) in kinds.items()
    ]


def _recipe(grid: str) -> Recipe:
    return grids.get(grid).recipes[0][1]


def _distilled(network: nn.Module, run: RunSpec, data: Dataset) -> nn.Module:
    images, _ = data.train.tensors(torch.device("cpu"))
    recipe = run.recipe
    return masked.distilled(network, images, epochs=recipe.epochs, batch_size=recipe.batch_size, lr=recipe.lr)


def _controls() -> list[Case]:
    """Return networks on the digits with masked gradients, most of which wrap the CE-trained network."""
    run = RunSpec("digits", _recipe("digits"), CE, SEED)
    winners = replace(run, recipe=replace(DIGITS_ADAM, model=refer(f"{MASKED}:winners_take_all")))
    teacher = replace(run, recipe=DIGITS_ADAM, loss=LossSpec(refer(f"{MASKED}:Tempered")))
    changes: dict[str, tuple[str, RunSpec, Change]] = {
        "kwta": ("k-WTA", winners, lambda network, run, data: network),
        "shattered": ("shattered gradients", run, lambda network, run, data: masked.shattered(network)),
        "rounded": ("rounded input", run, lambda network, run, data: masked.rounding(network)),
        "decoy": ("decoy gradients", run, lambda network, run, data: masked.Decoy(network, masked.WinnersTakeAll())),
        "scaled": ("logits times 50", run, lambda network, run, data: masked.scaled(network, 50.0)),
        "distilled": (f"distilled at temperature {masked.TEMPERATURE:g}", teacher, _distilled),
    }
    return [Case(f"masked-{name}", what, run, 0.1, 360, change) for name, (what, run, change) in changes.items()]


def cases() -> list[Case]:
    """
    Return all networks, each with an eps at which some images are robust and others are not, if there is one.

    At eps 2/255 nearly all images are misclassified by the networks on CIFAR-10 without adversarial training.
    """
    madry = {
        "digits": (DIGITS_ADAM, Hardening("madry", 0.1, 7)),
        "mnist": (MNIST_ADAM, Hardening("madry", 0.2, 7)),
        "cifar10": (CIFAR10_SHORT, Hardening("madry", 2 / 255, 3)),
    }
    return [
        *_trained("digits", _recipe("digits"), madry["digits"], 360, (0.1, 0.1)),
        *_controls(),
        *_trained("mnist", _recipe("mnist-long"), madry["mnist"], 1000, (0.1, 0.2)),
        *_trained("cifar10", _recipe("cifar10-short"), madry["cifar10"], 1000, (1 / 255, 2 / 255)),
    ]


def chosen(names: Sequence[str], eps: Iterable[float] = (), images: int | None = None) -> list[Case]:
    """
    Return the networks with the given groups or names, each at every given eps, or at its default eps without any.

    :raises ConfigError: If there is no such group or network.
    """
    known = {group: [case for case in cases() if case.name.split("-")[0] == group] for group in groups()}
    known |= {case.name: [case] for case in cases()}
    for name in names:
        if name not in known:
            raise ConfigError(f"expected networks of {list(known)}, but got {name!r}{did_you_mean(name, known)}")
    selected = dict.fromkeys(case for name in names for case in known[name])
    selected = dict.fromkeys(replace(case, images=images or case.images) for case in selected)
    return [replace(case, eps=radius) for case in selected for radius in (list(eps) or [case.eps])]


def groups() -> list[str]:
    """Return the groups of networks, in order."""
    return list(dict.fromkeys(case.name.split("-")[0] for case in cases()))


def classifier(case: Case, store: Store, data_dir: Path) -> tuple[HRClassifier, Dataset]:
    """
    Return a case's network in evaluation mode and its data; a network that the store does not have is trained first.

    Its weights do not require gradients, so that no attack spends time on them.

    :raises StoreError: If the run in the store was trained on other data.
    """
    run = case.run
    data = load_data(run.dataset, run.recipe, data_dir=data_dir)
    store.check(run, data.fingerprint)
    if not store.is_trained(run):
        store.root.mkdir(parents=True, exist_ok=True)
        execute(Job(run, (), store.root.resolve(), data_dir, wait=True))
    with seeded(SEED):
        network = case.change(trained_classifier(run, data, store).model, run, data)
    # Wrapped in a module: ART calls the layers of an nn.Sequential one by one, which the counter of passes would miss.
    return as_classifier(Around(network).eval().requires_grad_(False), run, data), data
