"""Specifications of experiments: frozen, validated dataclasses, and the keys under which results are stored."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from benchmarks.references import ConfigError, Reference, refer
from benchmarks.validation import Spec, check

__all__ = ["AttackSpec", "ConfigError", "Grid", "Hardening", "LossSpec", "Recipe", "Reference", "RunSpec", "canonical"]

# The default folder of the data sets.
DATA_DIR = Path("~/.cache/art_hrloss")
# Part of every key. Increment it when a field changes its meaning or its default: otherwise an old result would be
# read as the result of a new specification.
SPEC_VERSION = 1
AttackName = Literal["none", "fgm", "pgd", "apgd", "square", "transfer", "worst-case", "diagnostics"]
AttackLossName = Literal["ce", "hr", "margin", "dlr", "torch-ce", "clipped-ce", "clipped-hr"]
HardeningName = Literal["noise", "madry", "trades"]
SplitName = Literal["test", "validation"]
UnitsName = Literal["range", "data"]

# Iterative attacks; attacks that maximise one loss; attacks that can use adversarial images of a source network.
ITERATIVE = ("pgd", "apgd", "square", "transfer", "worst-case", "diagnostics")
DRIVEN_BY_A_LOSS = ("fgm", "pgd", "apgd", "diagnostics")
WITH_SOURCE = ("transfer", "worst-case")
# Versions of attacks whose algorithm has changed. They are part of the key, so that old records are not reused.
ATTACK_VERSIONS = {"square": "2", "worst-case": "2"}


@dataclass(frozen=True)
class Hardening(Spec):
    """Defence that is applied during training: noisy or adversarial images."""

    name: HardeningName
    """Uniform noise in each pixel; adversarial training with PGD (Madry et al. 2018); or TRADES (Zhang et al. 2019),
    which adds a divergence between the predictions at clean and at adversarial images to the loss."""
    eps: float
    """Maximum change of a pixel, as a share of the pixel range."""
    steps: int = 0
    """Steps of PGD; 0 for noise."""
    beta: float = 0.0
    """Weight of the divergence of TRADES; 0 for the other defences."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name, eps, steps, beta = self.name, self.eps, self.steps, self.beta
        check(
            (0 < eps <= 1, f"eps above 0 and at most 1 for the defence {name}", eps),
            ((steps > 0) == (name != "noise"), "steps above 0 for madry and trades, and 0 for noise", steps),
            ((beta > 0) == (name == "trades"), "beta above 0 for trades, and 0 for madry and noise", beta),
        )

    def __str__(self) -> str:
        name = {"noise": "noise", "madry": "Madry", "trades": "TRADES"}[self.name]
        return f"{name} {self.eps:g}" + (f", beta {self.beta:g}" if self.beta else "")


@dataclass(frozen=True)
class LossSpec(Spec):
    """Training loss: cross-entropy, the HR loss or a user's loss; with label smoothing, margin scaling or a defence."""

    name: Literal["ce", "hr"] | str
    """Cross-entropy, the HR loss, or a reference to a function that returns a module (logits, labels) -> scalar."""
    alpha: float | None = None
    """Renyi order of the HR loss; None for other losses."""
    label_smoothing: float = 0.0
    """Share of the label's probability that is distributed uniformly over all classes."""
    margin: float = 0.0
    """If above 0, the logits of the trained network are scaled to this median margin on the validation images."""
    hardening: Hardening | None = None
    """Defence that is applied during training; None for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name, alpha, smoothing = self.name, self.alpha, self.label_smoothing
        smoothable = not isinstance(name, Reference) or not smoothing
        check(
            ((alpha is not None) == (name == "hr"), "an alpha for the loss hr and for no other", f"{name}, {alpha}"),
            (alpha != 0, "alpha above 0", alpha),
            (smoothing < 1, "label_smoothing from 0 to below 1", smoothing),
            (smoothable, f"no label_smoothing for the user's loss {name}", smoothing),
            (isinstance(self.hardening, Hardening | None), "hardening to be a Hardening or None", repr(self.hardening)),
        )

    @property
    def plain(self) -> bool:
        """True for a loss without label smoothing, margin scaling or a defence."""
        return not self.label_smoothing and not self.margin and self.hardening is None

    def __str__(self) -> str:
        name = self.name.label if isinstance(self.name, Reference) else self.name.upper()
        labels = [name if self.alpha is None else f"{name}({self.alpha:g})"]
        labels += [f"smoothing {self.label_smoothing:g}"] if self.label_smoothing else []
        labels += [f"margin {self.margin:g}"] if self.margin else []
        return ", ".join([*labels, str(self.hardening)] if self.hardening else labels)


@dataclass(frozen=True)
class AttackSpec(Spec):
    """Attack on a trained network: its name, its loss, its size and the images that it attacks."""

    name: AttackName | str
    """No attack; FGSM; PGD; Auto-PGD; the score-based Square attack; adversarial images of a source network; the worst
    case over an ensemble; or a report on gradient masking, which is no attack. Or a reference to a function that
    returns an attack: it is called with a classifier, and with eps unless eps is 0."""
    loss: AttackLossName | None = None
    """Loss whose per-example gradient drives the attack: see benchmarks/losses.py. An ensemble defines its losses."""
    eps: float = 0.0
    """Maximum change of a pixel, in `units`."""
    units: UnitsName = "range"
    """Unit of eps: the pixel range, or the unit of the network's input, whose range is the recipe's input_scale."""
    split: SplitName = "test"
    """Part of the data set that is attacked."""
    steps: int = 0
    """Steps of an iterative attack, or queries per image of the Square attack; 0 for other attacks."""
    images: int = 0
    """Number of images that are attacked, from the first; 0 for all."""
    source: int | None = None
    """Seed of the source network of a transfer attack: a network of the same recipe, trained with cross-entropy."""
    clip: bool = True
    """Whether adversarial images are clipped to the pixel range; only FGSM supports False."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name, loss, eps, steps, source = self.name, self.loss, self.eps, self.steps, self.source
        is_reference, is_clean, in_range = isinstance(name, Reference), name == "none", self.units == "range"
        needs_loss = name in DRIVEN_BY_A_LOSS or (is_reference and loss is not None)
        clip_allowed = self.clip is True or (self.clip is False and name == "fgm")
        check(
            (not is_clean or (loss is None and not eps and in_range), "no loss, eps or units without attack", self),
            (name != "diagnostics" or in_range, "units to be range for the attack diagnostics", self.units),
            ((loss is not None) == needs_loss, f"{'a' if needs_loss else 'no'} loss for the attack {name}", repr(loss)),
            (eps > 0 or is_clean or is_reference, f"eps above 0 for the attack {name}", eps),
            ((steps > 0) == (name in ITERATIVE), "steps above 0 for iterative attacks, and 0 for others", steps),
            (source is not None or name != "transfer", "a source, a network's seed, for the attack transfer", source),
            (clip_allowed, f"clip to be True for the attack {name}", repr(self.clip)),
            (source is None or name in WITH_SOURCE, f"no source for the attack {name}", source),
        )

    def key(self) -> str:
        """Return a readable file name without suffix, such as fgm-hr-0.1."""
        elements: list[str] = [] if self.split == "test" else [self.split]
        elements += [self.name.slug if isinstance(self.name, Reference) else self.name]
        elements += [ATTACK_VERSIONS[self.name]] if self.name in ATTACK_VERSIONS else []
        elements += [*([self.loss] if self.loss else []), *([repr(self.eps)] if self.eps else [])]
        elements += [self.units] if self.units != "range" else []
        elements += [f"{self.steps}-steps"] if self.steps else []
        elements += [] if self.source is None else [f"source-{self.source}"]
        elements += [] if self.clip else ["unclipped"]
        return "-".join([*elements, f"first-{self.images}"] if self.images else elements)


@dataclass(frozen=True)
class Recipe(Spec):
    """Training recipe of a data set: architecture, optimizer and schedule, for any loss."""

    model: Literal["small-cnn", "lenet", "resnet", "resnet-v2"] | str
    """Architecture, see benchmarks/models.py; or a reference to a function that returns a module, which maps images in
    [0, 1] to logits. It is called with image_shape, classes and seed."""
    epochs: int
    batch_size: int
    """Images per step; the last batch of an epoch may be smaller."""
    lr: float
    lr_drops: tuple[tuple[int, float], ...] = ()
    """Pairs (epoch, factor): from this epoch, counted from 0, the learning rate is lr times the factor."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    """Momentum of SGD; Adam uses torch's defaults."""
    l2: float = 0.0
    """Weight of the L2 penalty, the sum of squares of the convolutions' kernels."""
    blocks: int = 1
    """n of a ResNet of 6n+2 layers, or 9n+2 layers for version 2; other models ignore it."""
    subtract_pixel_mean: bool = False
    """Whether the network subtracts the training images' mean, per pixel, from its input."""
    input_scale: float = 1.0
    """Upper end of the input range: the network's input is in [0, input_scale]; 255 for unscaled 8-bit pixels."""
    validation_size: int = 5000
    """Number of training images that are held out for validation."""
    split_seed: int = 2019
    """Seed of the draw of validation images, and of test images where a data set has no official test part."""
    threads: int = 1
    """Number of torch's CPU threads. It is part of the recipe because it changes the rounding of sums."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Device for training and attacks, in ART's terms. It is part of the recipe because devices round differently."""
    precision: Literal["float32", "tf32"] = "float32"
    """Precision of products in training on a GPU: TF32 rounds factors to 10 bits. Evaluations always use float32."""
    curve_every: int = 0
    """Interval, in epochs, of the evaluations for Fig. 1; 0 for none."""
    curve_attacks: tuple[AttackSpec, ...] = ()
    """Attacks of the evaluations for Fig. 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Sorted, so that the same drops in another order have the same key.
        drops = sorted((int(start), float(factor)) for start, factor in self.lr_drops)
        object.__setattr__(self, "lr_drops", tuple(drops))
        above_0 = ("epochs", "batch_size", "blocks", "validation_size", "threads", "lr", "input_scale")
        valid = len(dict(drops)) == len(drops) and all(start >= 0 and 0 < factor < math.inf for start, factor in drops)
        mean, every, attacks = self.subtract_pixel_mean, self.curve_every, self.curve_attacks
        distinct = isinstance(attacks, tuple) and len(set(attacks)) == len(attacks)
        check(
            *((getattr(self, name) > 0, f"{name} above 0", getattr(self, name)) for name in above_0),
            (valid, "lr_drops to be pairs of distinct epochs and factors above 0", drops),
            (isinstance(mean, bool), "subtract_pixel_mean to be True or False", repr(mean)),
            (distinct, "curve_attacks to be a tuple of distinct attacks", attacks),
            (self.precision == "float32" or self.device == "gpu", "precision float32 on the CPU", self.precision),
            (bool(every) == bool(attacks), "curve_every and curve_attacks together", f"{every} and {attacks}"),
        )

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        factors = [factor for start, factor in self.lr_drops if epoch >= start]
        return self.lr * (factors[-1] if factors else 1.0)


@dataclass(frozen=True)
class RunSpec(Spec):
    """Training run: a data set, a recipe, a loss and a seed."""

    dataset: str
    recipe: Recipe
    loss: LossSpec
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if ":" in self.dataset:
            object.__setattr__(self, "dataset", refer(self.dataset))
        model, margin = self.recipe.model, self.loss.margin
        # Margin scaling multiplies the last layer, which is known for the project's architectures only.
        check((not (isinstance(model, Reference) and margin), f"no margin for the user's model {model}", margin))

    def key(self) -> str:
        """Return 16 hexadecimal digits that identify the run on every machine: a hash of its canonical JSON."""
        text = json.dumps({"version": SPEC_VERSION, "run": canonical(self)}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def source(self, seed: int) -> "RunSpec":
        """Return the run of a transfer attack's source network: this run with plain cross-entropy and another seed."""
        return replace(self, loss=LossSpec("ce"), seed=seed)

    def __str__(self) -> str:
        return f"{self.dataset}, {self.loss}, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """Declared product of evaluations: every data set, loss and seed under every attack."""

    name: str
    recipes: tuple[tuple[str, Recipe], ...]
    """Pairs (data set, recipe). A data set may be a reference to a function that returns x_train, y_train, x_test and
    y_test."""
    losses: tuple[LossSpec, ...]
    seeds: tuple[int, ...]
    attacks: tuple[AttackSpec, ...]

    def __post_init__(self) -> None:
        resolved = tuple((refer(dataset) if ":" in dataset else dataset, recipe) for dataset, recipe in self.recipes)
        object.__setattr__(self, "recipes", resolved)
        valid_name = re.fullmatch(r"[A-Za-z0-9]([\w.-]*\w)?", self.name)
        lists = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        lists["data sets"] = [dataset for dataset, _ in resolved]
        lists["names of losses"] = [str(loss) for loss in self.losses]
        # A network must not be the source of a transfer attack on itself.
        sources = {attack.source for attack in self.attacks} & set(self.seeds)
        check((valid_name is not None, "a grid's name of letters, digits, dots, dashes, underscores", repr(self.name)))
        for label, values in lists.items():
            distinct = 0 < len(values) == len(set(values))
            check((distinct, f"distinct {label}, at least one, in grid {self.name}", values))
        check((not sources, f"sources that are not seeds of grid {self.name}", f"the seeds {sources}"))

    def runs(self) -> list[RunSpec]:
        """Return all runs, in an order in which the losses of one seed are adjacent."""
        return [RunSpec(*pair, loss, seed) for pair, seed, loss in product(self.recipes, self.seeds, self.losses)]


def canonical(spec: Any) -> Any:
    """Return a spec as plain values, without fields at their default: a new field with a default changes no key."""
    if isinstance(spec, Reference):
        return {"reference": str(spec), "code": spec.code}
    if is_dataclass(spec):
        values = ((field, getattr(spec, field.name)) for field in fields(spec))
        return {field.name: canonical(value) for field, value in values if value != field.default}
    return [canonical(value) for value in spec] if isinstance(spec, tuple) else spec
