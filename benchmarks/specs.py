"""One training loss, and one attack: frozen, validated values."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

AttackName = Literal["none", "fgm", "pgd", "apgd", "square", "transfer", "worst-case", "diagnostics"]
AttackLossName = Literal["ce", "hr", "margin", "dlr", "torch-ce", "clipped-ce", "clipped-hr"]
HardeningName = Literal["noise", "madry", "trades"]
LossName = Literal["ce", "hr"]
SplitName = Literal["test", "validation"]
UnitsName = Literal["range", "data"]

# Attacks that go in steps; those along one loss, and those that may take images made on another network.
IN_STEPS = ("pgd", "apgd", "square", "transfer", "worst-case", "diagnostics")
ALONG_A_LOSS = ("fgm", "pgd", "apgd", "diagnostics")
FROM_ELSEWHERE = ("transfer", "worst-case")


class ConfigError(ValueError):
    """A value that describes no experiment; says what was expected and what came."""


@dataclass(frozen=True)
class Hardening:
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
        as_floats(self, "eps", "beta")
        expect_one_of("hardening", self.name, get_args(HardeningName))
        if not 0 < self.eps <= 1:
            raise ConfigError(f"expected eps above 0 and at most 1 for the hardening {self.name}, but got {self.eps}")
        if type(self.steps) is not int or self.steps < 0 or (self.steps > 0) != (self.name != "noise"):
            raise ConfigError(f"expected steps above 0 for adversarial images, and 0 for noise, but got {self.steps!r}")
        if not 0 <= self.beta < math.inf or (self.beta > 0) != (self.name == "trades"):
            raise ConfigError(f"expected beta above 0 for trades, and 0 for the others, but got {self.beta}")

    def __str__(self) -> str:
        name = {"noise": "noise", "madry": "Madry", "trades": "TRADES"}[self.name]
        return f"{name} {self.eps:g}" + (f", beta {self.beta:g}" if self.beta else "")


@dataclass(frozen=True)
class LossSpec:
    """What is minimised: cross-entropy, or the HR loss with its alpha; and on which images."""

    name: LossName
    alpha: float | None = None
    label_smoothing: float = 0.0
    """The share of a label that all classes have in common."""
    margin: float = 0.0
    """Once trained, the logits are multiplied by what makes this the median margin of the validation images; 0 for not
    at all. A temperature: it changes no prediction."""
    hardening: Hardening | None = None

    def __post_init__(self) -> None:
        as_floats(self, "alpha", "label_smoothing", "margin")
        expect_one_of("loss", self.name, get_args(LossName))
        if (self.alpha is not None) != (self.name == "hr"):
            raise ConfigError(f"expected an alpha for the loss hr and for no other, but got {self.name}, {self.alpha}")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ConfigError(f"expected alpha above 0, but got {self.alpha}")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"expected label_smoothing from 0 to below 1, but got {self.label_smoothing}")
        if not 0 <= self.margin < math.inf:
            raise ConfigError(f"expected margin to be at least 0, but got {self.margin}")
        if not isinstance(self.hardening, Hardening | None):
            raise ConfigError(f"expected hardening to be a Hardening or None, but got {self.hardening!r}")

    @property
    def plain(self) -> bool:
        """Whether there is nothing but the loss."""
        return not self.label_smoothing and not self.margin and self.hardening is None

    def __str__(self) -> str:
        parts = [self.name.upper() if self.alpha is None else f"{self.name.upper()}({self.alpha:g})"]
        parts += [f"smoothing {self.label_smoothing:g}"] if self.label_smoothing else []
        parts += [f"margin {self.margin:g}"] if self.margin else []
        return ", ".join([*parts, str(self.hardening)] if self.hardening else parts)


@dataclass(frozen=True)
class AttackSpec:
    """One attack of a trained network: which, driven by which loss, how large, and on which images."""

    name: AttackName
    """No attack; FGSM; projected gradient descent; Auto-PGD; the Square attack, which sees no gradients; images made on
    another network; the worst case of an ensemble of all these; or, no attack, a report on masked gradients."""
    loss: AttackLossName | None = None
    """The loss whose per-example gradient drives the attack; see benchmarks/losses.py. An ensemble has its own."""
    eps: float = 0.0
    """Largest change of a pixel, in `units`."""
    units: UnitsName = "range"
    """What an eps of 1 is: "range", the whole range of a pixel; "data", one unit of what the network is given, of which
    the range has the recipe's input_scale."""
    split: SplitName = "test"
    """The part of the data set that is attacked."""
    steps: int = 0
    """Steps of an iterative attack, or queries per image of the Square attack; 0 for the others."""
    images: int = 0
    """How many images of the split, from its first, are attacked; 0 for all."""
    source: int | None = None
    """The seed of another network, trained by the same recipe with cross-entropy, on which images are made to be tried
    on this one."""

    def __post_init__(self) -> None:
        as_floats(self, "eps")
        expect_one_of("attack", self.name, get_args(AttackName))
        expect_one_of("units", self.units, get_args(UnitsName))
        expect_one_of("split", self.split, get_args(SplitName))
        if type(self.images) is not int or self.images < 0:
            raise ConfigError(f"expected images to be a whole number of at least 0, but got {self.images!r}")
        if self.name == "none" and (self.loss is not None or self.eps != 0 or self.units != "range"):
            raise ConfigError(f"expected no loss, no eps and no units where there is no attack, but got {self}")
        if self.name == "diagnostics" and self.units != "range":
            raise ConfigError(f"expected eps of a report as a share of the range, but got units {self.units!r}")
        if self.name in ALONG_A_LOSS:
            expect_one_of("the attack's loss", self.loss, get_args(AttackLossName))
        elif self.loss is not None:
            raise ConfigError(f"expected no loss for {self.name}, which is along none or all, but got {self.loss!r}")
        if self.name != "none" and not 0 < self.eps < math.inf:
            raise ConfigError(f"expected eps above 0 for the attack {self.name}, but got {self.eps}")
        if type(self.steps) is not int or (self.steps > 0) != (self.name in IN_STEPS) or self.steps < 0:
            raise ConfigError(f"expected steps above 0 for iterative attacks, and 0 for others, but got {self.steps!r}")
        self._check_source()

    def _check_source(self) -> None:
        if self.source is None and self.name == "transfer":
            raise ConfigError("expected the source of a transfer, the seed of a network, but got none")
        if self.source is not None and self.name not in FROM_ELSEWHERE:
            raise ConfigError(f"expected no source for {self.name}, which makes its own images, but got {self.source}")
        if self.source is not None and (type(self.source) is not int or self.source < 0):
            raise ConfigError(f"expected source to be a whole number of at least 0, but got {self.source!r}")

    def key(self) -> str:
        """A readable name, such as fgm-hr-0.1, that can name a file."""
        parts: list[str] = [] if self.split == "test" else [self.split]
        parts += [self.name, *([self.loss] if self.loss else []), *([repr(self.eps)] if self.eps else [])]
        parts += [self.units] if self.units != "range" else []
        parts += [f"{self.steps}-steps"] if self.steps else []
        parts += [] if self.source is None else [f"source-{self.source}"]
        return "-".join([*parts, f"first-{self.images}"] if self.images else parts)


def as_floats(spec: Any, *names: str) -> None:
    """Turn whole numbers into floats, so that 1 and 1.0 have one key."""
    for name in names:
        value = getattr(spec, name)
        object.__setattr__(spec, name, float(value) if isinstance(value, int) else value)


def expect_one_of(what: str, value: object, known: tuple[str, ...]) -> None:
    """Raise unless a value is one of those known."""
    if value not in known:
        raise ConfigError(f"expected {what} to be one of {list(known)}, but got {value!r}{did_you_mean(value, known)}")


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """
    The end of a message about an unknown name: a question for the most similar known one, or nothing.

    >>> did_you_mean("mnits", ["mnist", "svhn"]), did_you_mean("x", ["mnist", "svhn"])
    (": did you mean 'mnist'?", '')
    """
    similar = get_close_matches(str(value), list(known), n=1)
    return f": did you mean {similar[0]!r}?" if similar else ""
