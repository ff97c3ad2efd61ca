"""Base of the compatibility cases: forms of the digits with a network for each, and classifiers that record calls."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_hrloss import HRClassifier, HRLoss
from benchmarks import data, models
from benchmarks.training import train_epoch

CLASSES = 10
# Names for direct calls of the network, not through the classifier: with and without a gradient by the images.
NETWORK_GRADIENTS, NETWORK = "gradients of the network", "the network"
Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Network(nn.Module):
    """Layers with an adapter before and after them; not an nn.Sequential, which ART treats differently."""

    def __init__(self, layers: nn.Module, form: "Form") -> None:
        super().__init__()
        self.layers, self.form = layers, form

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits after the form's `finish`, shape ``(n, classes)``."""
        return self.form.finish(self.layers(self.form.adapt(images)))


def _same(values: Any) -> Any:
    return values


@dataclass(frozen=True)
class Form:
    """
    Form of the digits for attacks that do not support 8 x 8 grey images, with the network for this form.

    :param shape: The shape of one image.
    :param present: A function from images of shape ``(n, 1, 8, 8)`` to this form.
    :param adapt: The inverse, in torch, as the first layer of the network.
    :param finish: A function of the logits, as the last layer of the network.
    :param classes: The number of classes; only digits below it are used.
    :param sequential: True if the network is an nn.Sequential.
    :param channels_first: ART's option of this name.
    """

    shape: tuple[int, ...] = (1, 8, 8)
    present: Callable[[Images], Images] = _same
    adapt: Callable[[Tensor], Tensor] = _same
    finish: Callable[[Tensor], Tensor] = _same
    classes: int = CLASSES
    sequential: bool = False
    channels_first: bool = True

    def network(self, layers: nn.Sequential) -> nn.Module:
        """Return a network for this form with a copy of the layers."""
        layers = copy.deepcopy(layers)
        return layers if self.sequential else Network(layers, self)


PLAIN = Form()
SEQUENTIAL = Form(sequential=True)
TWO_CLASSES = Form(finish=lambda logits: logits[:, :2], classes=2)
PROBABILITIES = Form(finish=partial(torch.softmax, dim=1))
COLUMNS = Form(shape=(64,), present=lambda x: x.reshape(-1, 64), adapt=lambda x: x.reshape(-1, 1, 8, 8))
COLOUR = Form(shape=(3, 8, 8), present=lambda x: x.repeat(3, axis=1), adapt=lambda x: x.mean(1, keepdim=True))
CHANNELS_LAST = Form(
    shape=(8, 8, 3),
    present=lambda x: x.repeat(3, axis=1).transpose(0, 2, 3, 1),
    adapt=lambda x: x.permute(0, 3, 1, 2).mean(1, keepdim=True),
    channels_first=False,
)
VIDEO = Form(  # four frames, the channels last
    shape=(4, 8, 8, 1),
    present=lambda x: x[:, np.newaxis].transpose(0, 1, 3, 4, 2).repeat(4, axis=1),
    adapt=lambda x: x.mean(1).permute(0, 3, 1, 2),
    channels_first=False,
)


@dataclass(frozen=True, eq=False)
class Subject:
    """Digits, as images of shape ``(n, 1, 8, 8)`` in [0, 1] with their labels, and a small CNN's layers."""

    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    trained: nn.Sequential
    untrained: nn.Sequential


def make_subject() -> Subject:
    """Load the digits, and train the small CNN for eight epochs with the HR loss; about two seconds."""
    digits = data.load("digits", data_dir=Path(), validation_size=100)
    (x, y), (x_test, y_test) = (split.tensors(torch.device("cpu")) for split in (digits.train, digits.test))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = models.lenet((1, 8, 8), CLASSES, small=True)
    assert isinstance(untrained, nn.Sequential)
    trained = copy.deepcopy(untrained)
    optimizer, order = torch.optim.Adam(trained.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    for _ in range(8):
        batches = torch.randperm(len(x), generator=order).split(64)
        train_epoch(trained, HRLoss(), optimizer, ((x[batch], y[batch]) for batch in batches))
    return Subject(x.numpy(), y.numpy(), x_test.numpy(), y_test.numpy(), trained.eval(), untrained)


class Observed:
    """
    Mixin for a PyTorchClassifier that records which of its methods are called.

    Only calls from outside are recorded, not those between its methods. `calls` contains the names of the methods, and
    NETWORK_GRADIENTS and NETWORK for direct calls of the network.
    """

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """:param model: A network with a convolution; a hook on the first one observes direct calls."""
        self.calls: set[str] = set()
        self._inside = False
        super().__init__(model, *args, **kwargs)  # type: ignore[call-arg]  # the classifier's
        first = next(module for module in self._model.modules() if isinstance(module, nn.Conv2d))  # type: ignore[attr-defined]
        first.register_forward_hook(self._note_forward)

    def _note(self, name: str, *args: Any, **kwargs: Any) -> Any:
        outside, self._inside = not self._inside, True
        if outside:
            self.calls.add(name)
        try:
            return getattr(super(), name)(*args, **kwargs)
        finally:
            self._inside = not outside

    loss_gradient = partialmethod(_note, "loss_gradient")
    compute_loss = partialmethod(_note, "compute_loss")
    class_gradient = partialmethod(_note, "class_gradient")
    predict = partialmethod(_note, "predict")
    get_activations = partialmethod(_note, "get_activations")
    fit = partialmethod(_note, "fit")

    def _note_forward(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not self._inside:
            self.calls.add(NETWORK_GRADIENTS if inputs[0].requires_grad else NETWORK)


class ObservedHRClassifier(Observed, HRClassifier):
    """HRClassifier that records which of its methods are called."""


class ObservedClassifier(Observed, PyTorchClassifier):
    """ART's PyTorchClassifier that records which of its methods are called."""


@dataclass(frozen=True)
class Victim:
    """
    Kind of the classifier in a case: an HRClassifier or ART's PyTorchClassifier, with its losses.

    :param loss: The training loss; also the attack loss of a PyTorchClassifier.
    :param attack_loss: The attack loss of an HRClassifier.
    :param stock: True for ART's PyTorchClassifier.
    """

    loss: nn.Module
    attack_loss: nn.Module | None = None
    stock: bool = False

    def classifier(self, network: nn.Module, form: Form, optimizer: torch.optim.Optimizer) -> Any:
        """Return a classifier with this network that records its calls."""
        options: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "cpu", "optimizer": optimizer}
        options |= {"channels_first": form.channels_first} | ({} if self.stock else {"attack_loss": self.attack_loss})
        kind: Any = ObservedClassifier if self.stock else ObservedHRClassifier
        return kind(network, self.loss, form.shape, form.classes, **options)


@dataclass(frozen=True, eq=False)
class Outcome:
    """
    Result of a case.

    :param result: Adversarial images, or trained weights.
    :param before: The number of correctly classified images before the attack or training.
    :param after: The same after it.
    :param calls: The recorded calls of the classifier.
    """

    result: npt.NDArray[np.float32]
    before: int
    after: int
    calls: frozenset[str]


@dataclass(frozen=True)
class Case(ABC):
    """
    Attack or trainer of ART that is run for a row of the table.

    :param name: The name of ART's class.
    :param variant: The way in which it is used, if the table has several.
    :param packages: Packages that ART imports for it but does not install.
    :param numpy: The oldest NumPy with this result, if older ones give another.
    :param objective: Its own objective, if it does not use the classifier's loss.
    :param stock: True if it also supports ART's PyTorchClassifier.
    :param note: A remark for users.
    """

    name: str
    _: KW_ONLY
    variant: str = ""
    packages: tuple[str, ...] = ()
    numpy: str | None = None
    objective: str = ""
    stock: bool = True
    note: str = ""

    @abstractmethod
    def perform(self, subject: Subject, victim: Victim) -> Outcome:
        """Run the attack or the trainer."""


def right(network: nn.Module, images: Images, labels: Labels) -> int:
    """Return the number of images that the network classifies correctly."""
    with torch.no_grad():
        return int((network.eval()(torch.from_numpy(images)).argmax(1).numpy() == labels).sum())


def one_hot(labels: Labels) -> Images:
    """Return labels as rows of 0 and 1."""
    return np.eye(CLASSES, dtype=np.float32)[labels]
