"""What a case is: one attack or trainer of ART, one way of using it, and what came of it."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.compatibility.subjects import CLASSES, PLAIN, Form, Images, Labels, Subject
from benchmarks.compatibility.watching import Watched, WatchedClassifier, WatchedHRClassifier


@dataclass(frozen=True)
class Victim:
    """
    The classifier that a case makes: an HRClassifier, or ART's own, with these losses.

    :param loss: The loss that it is trained with, and attacked through if it is ART's own.
    :param attack_loss: The loss that an HRClassifier is attacked through.
    """

    loss: nn.Module
    attack_loss: nn.Module | None = None
    stock: bool = False

    def classifier(self, network: nn.Module, form: Form = PLAIN, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """A classifier on this network that notes how it is used."""
        options: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "cpu", "optimizer": optimizer}
        options |= {"channels_first": form.channels_first}
        if self.stock:
            return WatchedClassifier(network, self.loss, form.shape, form.classes, **options)
        return WatchedHRClassifier(
            network, self.loss, form.shape, form.classes, attack_loss=self.attack_loss, **options
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """
    What a case did.

    :param result: Adversarial images, or trained weights.
    :param before: How many of the images the network has right without it.
    :param after: The same with it.
    :param calls: What was asked of the classifier.
    """

    result: npt.NDArray[np.float32]
    before: int
    after: int
    calls: frozenset[str]


@dataclass(frozen=True)
class Case(ABC):
    """
    One row of the table that is found out by running.

    :param name: What ART exports.
    :param variant: Which of several ways of using it this is.
    :param packages: What ART imports for it without installing it.
    :param numpy: The least NumPy with which it comes out so, if not every one does.
    :param own: The objective that it brings along, if it has one.
    :param stock: Whether ART's own PyTorchClassifier can take the place of HRClassifier.
    :param note: What to know before using it.
    """

    name: str
    _: KW_ONLY
    variant: str = ""
    packages: tuple[str, ...] = ()
    numpy: str | None = None
    own: str = ""
    stock: bool = True
    note: str = ""

    @abstractmethod
    def perform(self, subject: Subject, victim: Victim) -> Outcome:
        """Run it."""


def right(network: nn.Module, images: Images, labels: Labels) -> int:
    """How many of the images the network has right."""
    with torch.no_grad():
        return int((network.eval()(torch.from_numpy(images)).argmax(1).numpy() == labels).sum())


def one_hot(labels: Labels) -> Images:
    """Labels as rows of 0 and 1."""
    return np.eye(CLASSES, dtype=np.float32)[labels]


def away(attack: Any, images: Images, labels: Labels) -> Any:
    """Adversarial images, away from the labels, which are class indices."""
    return attack.generate(images, y=labels)


@dataclass(frozen=True)
class AttackCase(Case):
    """
    An evasion attack; see :class:`Case`.

    :param options: The attack's arguments beside the classifier, or a function of the classifier that gives them.
    :param form: The form of the digits.
    :param count: How many images.
    :param generate: From attack, images and class indices to adversarial images.
    """

    options: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] = field(default_factory=dict)
    _: KW_ONLY
    form: Form = PLAIN
    count: int = 12
    generate: Callable[[Any, Images, Labels], Any] = away

    def perform(self, subject: Subject, victim: Victim) -> Outcome:
        """Attack the first test images that the network has right."""
        network = self.form.network(subject.trained)
        images, labels = self.form.present(subject.x_test), subject.y_test
        with torch.no_grad():
            predicted = network(torch.from_numpy(images)).argmax(1).numpy()
        chosen = np.flatnonzero((predicted == labels) & (labels < self.form.classes))[: self.count]
        x, y = np.ascontiguousarray(images[chosen]), labels[chosen]
        classifier: Watched = victim.classifier(network, self.form, torch.optim.Adam(network.parameters()))
        options = self.options(classifier) if callable(self.options) else self.options
        exports = importlib.import_module("art.attacks.evasion")  # not above: see measuring.hidden
        attack = getattr(exports, self.name)(classifier, **options)
        x_adv = np.asarray(self.generate(attack, x.copy(), y.copy()), dtype=np.float32)
        calls = frozenset(classifier.calls)
        return Outcome(x_adv, right(network, x, y), right(network, x_adv, y), calls)
