"""What is run: frozen, validated values, and the keys under which their results are kept."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import product
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from benchmarks.references import EXAMPLE, ConfigError, Reference, did_you_mean, refer

__all__ = ["AttackSpec", "ConfigError", "Grid", "Hardening", "LossSpec", "Recipe", "Reference", "RunSpec", "canonical"]

# Where data sets are looked for, unless another folder is given.
DATA_DIR = Path("~/.cache/art_hrloss")
# Part of every key: raise it when a field changes its meaning or default, so that no old result passes for a new one.
SPEC_VERSION = 1
AttackName = Literal["none", "fgm", "pgd", "apgd", "square", "transfer", "worst-case", "diagnostics"]
AttackLossName = Literal["ce", "hr", "margin", "dlr", "torch-ce", "clipped-ce", "clipped-hr"]
HardeningName = Literal["noise", "madry", "trades"]
SplitName = Literal["test", "validation"]
UnitsName = Literal["range", "data"]

# Attacks that go in steps; those along one loss, and those that may take images made on another network.
IN_STEPS = ("pgd", "apgd", "square", "transfer", "worst-case", "diagnostics")
ALONG_A_LOSS = ("fgm", "pgd", "apgd", "diagnostics")
FROM_ELSEWHERE = ("transfer", "worst-case")
# Attacks that once were others under the same name: a part of their keys.
EDITIONS = {"square": "2", "worst-case": "2"}


@dataclass(frozen=True)
class _Spec:
    def __post_init__(self) -> None:
        """Hold every field against its type; a whole number becomes the float that is meant: 1 and 1.0 have one key."""
        for field in fields(self):
            kinds, value = (field.type, *get_args(field.type)), getattr(self, field.name)
            if value is None and NoneType in kinds:
                continue
            what = type(self).__name__.removesuffix("Spec").lower() if field.name == "name" else field.name
            known = [name for kind in kinds if get_origin(kind) is Literal for name in get_args(kind)]
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
            if known and str in kinds and isinstance(value, str) and ":" in value:
                object.__setattr__(self, field.name, refer(value))
            elif known and value not in known:
                advice = did_you_mean(value, known) or f": one of your own is {EXAMPLE}" * (str in kinds)
                raise ConfigError(f"expected {what} to be one of {known}, but got {value!r}{advice}")
            elif float in kinds:
                _check((number, f"{what} to be a finite number of at least 0", repr(value)))
                object.__setattr__(self, field.name, float(value))
            elif int in kinds:
                _check((number and type(value) is int, f"{what} to be a whole number of at least 0", repr(value)))


@dataclass(frozen=True)
class Hardening(_Spec):
    """What a network is trained on beside, or in place of, the images as they are."""

    name: HardeningName
    """Noise, uniform in every pixel; adversarial images of projected gradient descent (Madry et al. 2018); or the
    images with a term that holds adversarial ones to the same prediction (TRADES, Zhang et al. 2019)."""
    eps: float
    """Largest change of a pixel, as a share of its range."""
    steps: int = 0
    """Of projected gradient descent; 0 for noise."""
    beta: float = 0.0
    """What TRADES multiplies its term by; 0 for the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps, beta = self.steps, self.beta
        _check(
            (0 < self.eps <= 1, f"eps above 0 and at most 1 for the hardening {self.name}", self.eps),
            ((steps > 0) == (self.name != "noise"), "steps above 0 for adversarial images, and 0 for noise", steps),
            ((beta > 0) == (self.name == "trades"), "beta above 0 for trades, and 0 for the others", beta),
        )

    def __str__(self) -> str:
        name = {"noise": "noise", "madry": "Madry", "trades": "TRADES"}[self.name]
        return f"{name} {self.eps:g}" + (f", beta {self.beta:g}" if self.beta else "")


@dataclass(frozen=True)
class LossSpec(_Spec):
    """What is minimised: cross-entropy, the HR loss with its alpha, or a user's own loss; and on which images."""

    name: Literal["ce", "hr"] | str
    """Cross-entropy, the HR loss, or a reference to what returns a module from logits and class indices to a scalar."""
    alpha: float | None = None
    label_smoothing: float = 0.0
    """The share of a label that all classes have in common."""
    margin: float = 0.0
    """If above 0, a trained network's logits are scaled to this median margin on the validation images."""
    hardening: Hardening | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        name, alpha, smoothing, own = self.name, self.alpha, self.label_smoothing, isinstance(self.name, Reference)
        _check(
            ((alpha is not None) == (name == "hr"), "an alpha for the loss hr and for no other", f"{name}, {alpha}"),
            (alpha != 0, "alpha above 0", alpha),
            (smoothing < 1, "label_smoothing from 0 to below 1", smoothing),
            (not (own and smoothing), f"no label_smoothing for {name}, which has its own parameters", smoothing),
            (isinstance(self.hardening, Hardening | None), "hardening to be a Hardening or None", repr(self.hardening)),
        )

    @property
    def plain(self) -> bool:
        """Whether there is nothing but the loss."""
        return not self.label_smoothing and not self.margin and self.hardening is None

    def __str__(self) -> str:
        name = self.name.label if isinstance(self.name, Reference) else self.name.upper()
        parts = [name if self.alpha is None else f"{name}({self.alpha:g})"]
        parts += [f"smoothing {self.label_smoothing:g}"] if self.label_smoothing else []
        parts += [f"margin {self.margin:g}"] if self.margin else []
        return ", ".join([*parts, str(self.hardening)] if self.hardening else parts)


@dataclass(frozen=True)
class AttackSpec(_Spec):
    """One attack of a trained network: which, driven by which loss, how large, and on which images."""

    name: AttackName | str
    """No attack; FGSM; projected gradient descent; Auto-PGD; the Square attack, which sees no gradients; images made on
    another network; the worst case of an ensemble of all these; no attack, but a report on masked gradients. Or a
    reference to what, called with a classifier, and with eps if that is not 0, returns an attack: see README."""
    loss: AttackLossName | None = None
    """The loss whose per-example gradient drives the attack; see benchmarks/losses.py. An ensemble has its own."""
    eps: float = 0.0
    """Largest change of a pixel, in `units`."""
    units: UnitsName = "range"
    """Of eps: the range of a pixel, or what the network is given, of which the range has the recipe's input_scale."""
    split: SplitName = "test"
    steps: int = 0
    """Steps of an iterative attack, or queries per image of the Square attack; 0 for the others."""
    images: int = 0
    """How many images of that part of the data, from its first, are attacked; 0 for all."""
    source: int | None = None
    """The seed of the network, trained alike with cross-entropy, on which images are made to be tried on this one."""
    clip: bool = True
    """Whether attacked images are kept in the range of a pixel; FGSM alone can go without."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name, loss, eps, steps, source = self.name, self.loss, self.eps, self.steps, self.source
        own, plain, of_range = isinstance(name, Reference), name == "none", self.units == "range"
        along = name in ALONG_A_LOSS or (own and loss is not None)
        _check(
            (not plain or (loss is None and not eps and of_range), "no loss, eps or units without attack", self),
            (name != "diagnostics" or of_range, "eps of a report as a share of the range", self.units),
            ((loss is not None) == along, f"{'a' if along else 'no'} loss for the attack {name}", repr(loss)),
            (eps > 0 or plain or own, f"eps above 0 for the attack {name}", eps),
            ((steps > 0) == (name in IN_STEPS), "steps above 0 for iterative attacks, and 0 for others", steps),
            (source is not None or name != "transfer", "the source of a transfer, the seed of a network", source),
            (
                self.clip is True or (self.clip is False and name == "fgm"),
                f"clip to be True for {name}",
                repr(self.clip),
            ),
            (source is None or name in FROM_ELSEWHERE, f"no source for {name}, which makes its own images", source),
        )

    def key(self) -> str:
        """A readable name, such as fgm-hr-0.1, that can name a file."""
        parts: list[str] = [] if self.split == "test" else [self.split]
        parts += [self.name.slug if isinstance(self.name, Reference) else self.name]
        parts += [EDITIONS[self.name]] if self.name in EDITIONS else []
        parts += [*([self.loss] if self.loss else []), *([repr(self.eps)] if self.eps else [])]
        parts += [self.units] if self.units != "range" else []
        parts += [f"{self.steps}-steps"] if self.steps else []
        parts += [] if self.source is None else [f"source-{self.source}"]
        parts += [] if self.clip else ["unclipped"]
        return "-".join([*parts, f"first-{self.images}"] if self.images else parts)


@dataclass(frozen=True)
class Recipe(_Spec):
    """How a network is trained on a data set, whatever the loss."""

    model: Literal["small-cnn", "lenet", "resnet", "resnet-v2"] | str
    """The architecture: see benchmarks/models.py; or a reference to what, called with image_shape, classes and seed,
    returns a module from images in [0, 1] to logits."""
    epochs: int
    batch_size: int
    """Images per step; the last batch of an epoch may be smaller."""
    lr: float
    lr_drops: tuple[tuple[int, float], ...] = ()
    """Pairs (epoch, factor): from that epoch on the learning rate is lr times the factor."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    """Of SGD; Adam has torch's defaults."""
    l2: float = 0.0
    """The penalty l2 * sum of squares of the convolutions' kernels is part of the objective."""
    blocks: int = 1
    """n of the ResNet of 6n+2 layers, of 9n+2 in version 2; of no meaning to other models."""
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
    device: Literal["cpu", "gpu"] = "cpu"
    """Where to train and to attack, in ART's words. A part of the recipe because each rounds in its own way."""
    precision: Literal["float32", "tf32"] = "float32"
    """Of products in training on a GPU: TF32 rounds their factors to 10 bits. Evaluations are in float32."""
    curve_every: int = 0
    """After how many epochs the attacks of Fig. 1 are made, each time; 0 for never."""
    curve_attacks: tuple[AttackSpec, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        # In one order, so that the same drops have one key.
        drops = sorted((int(start), float(factor)) for start, factor in self.lr_drops)
        object.__setattr__(self, "lr_drops", tuple(drops))
        above_0 = ("epochs", "batch_size", "blocks", "validation_size", "threads", "lr", "input_scale")
        sound = len(dict(drops)) == len(drops) and all(start >= 0 and 0 < factor < math.inf for start, factor in drops)
        mean, every, attacks = self.subtract_pixel_mean, self.curve_every, self.curve_attacks
        distinct = isinstance(attacks, tuple) and len(set(attacks)) == len(attacks)
        _check(
            *((getattr(self, name) > 0, f"{name} above 0", getattr(self, name)) for name in above_0),
            (sound, "lr_drops to be pairs of distinct epochs and factors above 0", drops),
            (isinstance(mean, bool), "subtract_pixel_mean to be True or False", repr(mean)),
            (distinct, "curve_attacks to be a tuple of distinct attacks", attacks),
            (self.precision == "float32" or self.device == "gpu", "precision float32 on the CPU", self.precision),
            (bool(every) == bool(attacks), "curve_every and curve_attacks together", f"{every} and {attacks}"),
        )

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        factors = [factor for start, factor in self.lr_drops if epoch >= start]
        return self.lr * (factors[-1] if factors else 1.0)


@dataclass(frozen=True)
class RunSpec(_Spec):
    """One training: a data set, a recipe, a loss and a seed."""

    dataset: str
    recipe: Recipe
    loss: LossSpec
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if ":" in self.dataset:
            object.__setattr__(self, "dataset", refer(self.dataset))
        model, margin = self.recipe.model, self.loss.margin
        _check((not (isinstance(model, Reference) and margin), f"no margin for {model}, of unknown last layer", margin))

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
    """Pairs (data set, recipe); a data set may be a reference to what returns x_train, y_train, x_test, y_test."""
    losses: tuple[LossSpec, ...]
    seeds: tuple[int, ...]
    attacks: tuple[AttackSpec, ...]

    def __post_init__(self) -> None:
        own = tuple((refer(dataset) if ":" in dataset else dataset, recipe) for dataset, recipe in self.recipes)
        object.__setattr__(self, "recipes", own)
        plain = re.fullmatch(r"[A-Za-z0-9]([\w.-]*\w)?", self.name)
        lists = {f"{field.name} of": getattr(self, field.name) for field in fields(self)[1:]}
        lists["one recipe per data set in"] = [dataset for dataset, _ in own]
        lists["names that tell losses apart in"] = [str(loss) for loss in self.losses]
        sources = {attack.source for attack in self.attacks} & set(self.seeds)
        _check(
            (plain is not None, "a grid's name in letters, digits, dots, dashes and underscores", repr(self.name)),
            *((0 < len(of) == len(set(of)), f"{what} grid {self.name}, each once", of) for what, of in lists.items()),
            (not sources, f"sources that grid {self.name} does not attack", f"the seeds {sources}"),
        )

    def runs(self) -> list[RunSpec]:
        """All trainings, ordered so that the losses of one seed stand together."""
        return [RunSpec(*pair, loss, seed) for pair, seed, loss in product(self.recipes, self.seeds, self.losses)]


def canonical(spec: Any) -> Any:
    """A spec as plain values, without fields at their default, so that one that is added later changes no key."""
    if isinstance(spec, Reference):
        return {"reference": str(spec), "code": spec.code}
    if is_dataclass(spec):
        values = ((field, getattr(spec, field.name)) for field in fields(spec))
        return {field.name: canonical(value) for field, value in values if value != field.default}
    return [canonical(value) for value in spec] if isinstance(spec, tuple) else spec


def _check(*checks: tuple[bool, str, object]) -> None:
    for right, what, came in checks:
        if not right:
            raise ConfigError(f"expected {what}, but got {came}")
