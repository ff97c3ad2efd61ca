"""What trainers are tried with: untrained classifiers, a few digits to train them on, and how a trainer's case runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from art.estimators.certification.deep_z import PytorchDeepZ
from art.estimators.certification.interval import PyTorchIBPClassifier
from torch import Tensor, nn

from benchmarks.compatibility.cases import Case, Outcome, Victim, one_hot, right
from benchmarks.compatibility.subjects import PLAIN, Form, Subject
from benchmarks.compatibility.watching import Watched

TRAINING_IMAGES = 320
TEST_IMAGES = 100
EPOCHS = 3


class CertifiableNetwork(nn.Module):
    """Convolution, ReLU, linear: what ART's certifiers can read; they take it apart by its children."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, stride=2)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(4 * 3 * 3, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape ``(n, 10)``."""
        logits: Tensor = self.linear(self.relu(self.convolution(images)).flatten(1))
        return logits


def certifiable_network() -> CertifiableNetwork:
    """With the weights it begins with, the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CertifiableNetwork()


class WatchedDeepZ(Watched, PytorchDeepZ):
    """ART's zonotope certifier, noting how it is used."""


class WatchedIBP(Watched, PyTorchIBPClassifier):
    """ART's interval certifier, noting how it is used."""


class Bare(nn.Module):
    """A loss that is no CrossEntropyLoss to ART, which then hands it one-hot labels."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss under it."""
        value: Tensor = self.loss(logits, labels)
        return value


@dataclass(frozen=True)
class Workshop:
    """
    What a trainer is built from.

    :param subject: The digits, and the layers that every network begins with.
    :param victim: The kind of classifier and its losses.
    :param form: The form of the network.
    """

    subject: Subject
    victim: Victim
    form: Form

    def classifier(self, *, sgd: bool = False) -> Any:
        """A classifier on an untrained network; FBF sets a learning rate of its own, far too high a one for Adam."""
        network = self.form.network(self.subject.untrained)
        parameters = network.parameters()
        optimizer = torch.optim.SGD(parameters, momentum=0.9) if sgd else torch.optim.Adam(parameters, lr=0.01)
        return self.victim.classifier(network, self.form, optimizer)

    def certifier(self, kind: type, **options: Any) -> Any:
        """One of ART's certifying classifiers, with the loss."""
        network = certifiable_network()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        options |= {"clip_values": (0.0, 1.0), "device_type": "cpu", "optimizer": optimizer, "nb_classes": 10}
        return kind(network, loss=self.victim.loss, input_shape=(1, 8, 8), **options)

    def fit(self, trainer: Any, *, epochs: int = EPOCHS, **options: Any) -> Any:
        """The trainer's classifier, trained for some epochs in batches of 32."""
        options = {"batch_size": 32, **options}
        x, y = self.subject.x_train[:TRAINING_IMAGES], one_hot(self.subject.y_train[:TRAINING_IMAGES])
        trainer.fit(x, y, nb_epochs=epochs, **options)
        return trainer.classifier


@dataclass(frozen=True)
class TrainerCase(Case):
    """
    A trainer; see :class:`Case`.

    :param train: Trains a classifier and returns it.
    :param form: The form of the network.
    """

    train: Callable[[Workshop], Any] = lambda workshop: workshop.classifier()
    form: Form = PLAIN

    def perform(self, subject: Subject, victim: Victim) -> Outcome:
        """Train on some of the images, and count the test images that are right before and after."""
        x, y = subject.x_test[:TEST_IMAGES], subject.y_test[:TEST_IMAGES]
        classifier = self.train(Workshop(subject, victim, self.form))
        calls = frozenset(classifier.calls)
        untrained = self.form.network(subject.untrained) if self.stock else certifiable_network()
        weights = [parameter.detach().numpy().ravel() for parameter in classifier.model.parameters()]
        after = int((classifier.predict(x).argmax(1) == y).sum())
        return Outcome(np.concatenate(weights), right(untrained, x, y), after, calls)
