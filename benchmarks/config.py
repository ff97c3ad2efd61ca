"""What is run: frozen, validated values, and the keys under which their results are kept."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args

from benchmarks.specs import (
    AttackLossName,
    AttackSpec,
    ConfigError,
    Hardening,
    LossSpec,
    SplitName,
    UnitsName,
    as_floats,
    did_you_mean,
    expect_one_of,
)

__all__ = [
    "AttackLossName",
    "AttackSpec",
    "ConfigError",
    "Grid",
    "Hardening",
    "LossSpec",
    "Recipe",
    "RunSpec",
    "SplitName",
    "UnitsName",
    "canonical",
    "did_you_mean",
]

# Part of every key. Raise it when the meaning or the default of a field changes, so that no old result passes for a
# new one.
SPEC_VERSION = 1

DeviceName = Literal["cpu", "gpu"]
ModelName = Literal["small-cnn", "lenet", "resnet"]
OptimizerName = Literal["sgd", "adam"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on a data set, whatever the loss."""

    model: ModelName
    """The architecture; see benchmarks/models.py."""
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images per step; the last batch of an epoch may be smaller."""
    lr: float
    """Learning rate."""
    lr_drops: tuple[tuple[int, float], ...] = ()
    """Pairs (epoch, factor): from that epoch on the learning rate is lr times the factor."""
    optimizer: OptimizerName = "sgd"
    """Plain SGD, or Adam with torch's defaults."""
    momentum: float = 0.0
    """Of SGD."""
    l2: float = 0.0
    """The penalty l2 * sum of squares of the convolutions' kernels is part of the objective."""
    blocks: int = 1
    """n of the ResNet-6n+2; of no meaning to other models."""
    subtract_pixel_mean: bool = False
    """Whether the network's first step subtracts the training images' mean, pixel by pixel."""
    input_scale: float = 1.0
    """The network is given images in [0, input_scale]: 255 for pixels as they are stored."""
    validation_size: int = 5000
    """Images held out of the training part; they are never trained on."""
    split_seed: int = 2019
    """Draws the validation images, and the test images of data sets without an official test part."""
    threads: int = 1
    """Of torch on the CPU. A part of the recipe because sums, and so results, are rounded by how they are divided."""
    device: DeviceName = "cpu"
    """Where to train and to attack, in ART's words. A part of the recipe because each rounds in its own way."""
    curve_every: int = 0
    """Attack the network after every so many epochs, for Fig. 1; 0 for never."""
    curve_attacks: tuple[AttackSpec, ...] = ()
    """The attacks then made."""

    def __post_init__(self) -> None:
        as_floats(self, "lr", "momentum", "l2", "input_scale")
        # In one order, so that the same drops have one key.
        drops = sorted((int(start), float(factor)) for start, factor in self.lr_drops)
        object.__setattr__(self, "lr_drops", tuple(drops))
        if len(dict(drops)) != len(drops) or any(start < 0 or not 0 < factor < math.inf for start, factor in drops):
            raise ConfigError(f"expected lr_drops to be pairs of distinct epochs and factors above 0, but got {drops}")
        expect_one_of("model", self.model, get_args(ModelName))
        expect_one_of("optimizer", self.optimizer, get_args(OptimizerName))
        expect_one_of("device", self.device, get_args(DeviceName))
        for name in ("epochs", "batch_size", "blocks", "validation_size", "threads", "lr", "input_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"expected {name} above 0, but got {getattr(self, name)}")
        for name in ("momentum", "l2", "split_seed", "curve_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"expected {name} to be at least 0, but got {getattr(self, name)}")
        for field in fields(self):
            if field.type is int and not isinstance(getattr(self, field.name), int):
                raise ConfigError(f"expected {field.name} to be a whole number, but got {getattr(self, field.name)}")
        if not isinstance(self.subtract_pixel_mean, bool):
            raise ConfigError(f"expected subtract_pixel_mean to be True or False, but got {self.subtract_pixel_mean!r}")
        if not isinstance(self.curve_attacks, tuple) or len(set(self.curve_attacks)) != len(self.curve_attacks):
            raise ConfigError(f"expected curve_attacks to be a tuple of distinct attacks, but got {self.curve_attacks}")
        if bool(self.curve_every) != bool(self.curve_attacks):
            raise ConfigError(
                "expected curve_every and curve_attacks together, "
                f"but got {self.curve_every} and {[attack.key() for attack in self.curve_attacks]}"
            )

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        factors = [factor for start, factor in self.lr_drops if epoch >= start]
        return self.lr * (factors[-1] if factors else 1.0)


@dataclass(frozen=True)
class RunSpec:
    """One training: a data set, a recipe, a loss and a seed."""

    dataset: str
    recipe: Recipe
    loss: LossSpec
    seed: int

    def __post_init__(self) -> None:
        if type(self.seed) is not int or self.seed < 0:
            raise ConfigError(f"expected seed to be a whole number of at least 0, but got {self.seed!r}")

    def key(self) -> str:
        """16 hexadecimal digits that name this run wherever it is done: a hash of its canonical JSON."""
        text = json.dumps({"version": SPEC_VERSION, "run": canonical(self)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def source(self, seed: int) -> "RunSpec":
        """The run that an attack's source of this seed names: plain cross-entropy, and else as this one."""
        return replace(self, loss=LossSpec("ce"), seed=seed)

    def __str__(self) -> str:
        return f"{self.dataset}, {self.loss}, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """A declared set of evaluations: every loss and seed on every data set, each under every attack."""

    name: str
    recipes: tuple[tuple[str, Recipe], ...]
    """Pairs (data set, recipe)."""
    losses: tuple[LossSpec, ...]
    seeds: tuple[int, ...]
    attacks: tuple[AttackSpec, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9]([\w.-]*\w)?", self.name):
            raise ConfigError(
                f"expected a grid's name in letters, digits, dots, dashes and underscores, but got {self.name!r}"
            )
        datasets = [dataset for dataset, _ in self.recipes]
        if len(set(datasets)) != len(datasets):
            raise ConfigError(f"expected one recipe per data set in grid {self.name}, but got {datasets}")
        for field in fields(self)[1:]:
            values: tuple[Any, ...] = getattr(self, field.name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"expected {field.name} of grid {self.name} to be distinct and not empty: {values}")

        if len({str(loss) for loss in self.losses}) != len(self.losses):
            named = [str(loss) for loss in self.losses]
            raise ConfigError(f"expected losses of grid {self.name} that their names tell apart, but got {named}")
        sources = {attack.source for attack in self.attacks} & set(self.seeds)
        if sources:
            raise ConfigError(f"expected sources that grid {self.name} does not attack, but got the seeds {sources}")

    def runs(self) -> list[RunSpec]:
        """All trainings, ordered so that the losses of one seed stand together."""
        return [
            RunSpec(dataset, recipe, loss, seed)
            for dataset, recipe in self.recipes
            for seed in self.seeds
            for loss in self.losses
        ]


def canonical(spec: Any) -> Any:
    """
    A spec as plain values, without the fields that are at their default.

    So a field that is added later, with the old behaviour as its default, leaves every key as it was.
    """
    if is_dataclass(spec):
        values = ((field, getattr(spec, field.name)) for field in fields(spec))
        return {field.name: canonical(value) for field, value in values if value != field.default}
    return [canonical(value) for value in spec] if isinstance(spec, tuple) else spec
