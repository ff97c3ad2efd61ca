"""Which networks are attacked: trained runs of the grids, adversarially trained ones, and controls on the digits."""

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
    """A network, and how it is attacked."""

    name: str
    """The group, a dash, and the network in it."""
    what: str
    """The network, for tables."""
    run: RunSpec
    """The training."""
    eps: float
    """The largest change of a pixel, L-infinity, as a share of its range."""
    images: int
    """How many test images, from the first, are attacked."""
    change: Change = lambda network, run, data: network
    """What is made of the trained network."""

    @property
    def key(self) -> str:
        """A name for files."""
        return f"{self.name}-eps-{self.eps:.4g}-first-{self.images}"


def _trained(
    dataset: str, recipe: Recipe, madry: tuple[Recipe, Hardening], images: int, eps: tuple[float, float]
) -> list[Case]:
    """Return a CE-trained, an HR-trained and an adversarially trained network; the last has an eps of its own."""
    plain, adversarial = eps
    kinds = {"ce": (recipe, CE, plain), "hr": (recipe, HR, plain)}
    kinds["madry"] = (madry[0], LossSpec("ce", hardening=madry[1]), adversarial)
    return [
        Case(f"{dataset}-{name}", str(loss), RunSpec(dataset, own, loss, SEED), radius, images)
        for name, (own, loss, radius) in kinds.items()
    ]


def _recipe(grid: str) -> Recipe:
    return grids.get(grid).recipes[0][1]


def _distilled(network: nn.Module, run: RunSpec, data: Dataset) -> nn.Module:
    images, _ = data.train.tensors(torch.device("cpu"))
    recipe = run.recipe
    return masked.distilled(network, images, epochs=recipe.epochs, batch_size=recipe.batch_size, lr=recipe.lr)


def _controls() -> list[Case]:
    """Return networks of the digits with masked gradients, most of them around the CE-trained one."""
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
    Return all networks, at an eps that leaves some images robust and others not, as far as there is one.

    Those of CIFAR-10's ResNet-8 that are not adversarially trained lose nearly all images at an eps of 2/255 already.
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
    Return the networks of these groups or names, each at each eps, or at its own if there are none.

    :raises ConfigError: If there is no such group or network.
    """
    known = {group: [case for case in cases() if case.name.split("-")[0] == group] for group in groups()}
    known |= {case.name: [case] for case in cases()}
    for name in names:
        if name not in known:
            raise ConfigError(f"expected networks of {list(known)}, but got {name!r}{did_you_mean(name, known)}")
    found = dict.fromkeys(case for name in names for case in known[name])
    found = dict.fromkeys(replace(case, images=images or case.images) for case in found)
    return [replace(case, eps=radius) for case in found for radius in (list(eps) or [case.eps])]


def groups() -> list[str]:
    """Return the groups, in order."""
    return list(dict.fromkeys(case.name.split("-")[0] for case in cases()))


def classifier(case: Case, store: Store, data_dir: Path) -> tuple[HRClassifier, Dataset]:
    """
    Return a case's network in evaluation mode, trained first if the store has it not yet, and its data.

    No gradient of a weight is computed through it, so that no attack spends time on one.

    :raises StoreError: If the run in the store is of other data.
    """
    run = case.run
    data = load_data(run.dataset, run.recipe, data_dir=data_dir)
    store.check(run, data.fingerprint)
    if not store.is_trained(run):
        store.root.mkdir(parents=True, exist_ok=True)
        execute(Job(run, (), store.root.resolve(), data_dir, wait=True))
    with seeded(SEED):
        network = case.change(trained_classifier(run, data, store).model, run, data)
    # In a module of its own: of an nn.Sequential ART calls the layers one by one, and not the whole.
    return as_classifier(Around(network).eval().requires_grad_(False), run, data), data
