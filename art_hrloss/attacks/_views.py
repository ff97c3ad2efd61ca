"""One network seen through other losses: views whose gradients do not saturate."""

import copy

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_hrloss.attacks._losses import DLRLoss, ExactCrossEntropy, MarginLoss
from art_hrloss.attacks._steps import like
from art_hrloss.classifier import HRClassifier, Point, attack_view, shared_options


class Normalised(HRClassifier):
    """
    A view whose gradients are divided by their largest entry.

    An attack uses nothing but their direction. ART's attacks work in float32, which rounds small gradients to 0, and
    for norms 1 and 2 AutoPGD loses the direction where the gradient is below 1e-7.
    """

    def evaluate(self, x: Tensor, labels: Tensor, *, gradient: bool = True) -> Point:
        """As inherited, but for the size of the gradients: the largest entry of each is 1."""
        point = super().evaluate(x, labels, gradient=gradient)
        if point.gradient is None:
            return point
        size = point.gradient.abs().flatten(1).amax(1)
        size = torch.where(size > 0, size, 1)
        return point._replace(gradient=point.gradient / like(size, x))


def unsaturated(classifier: PyTorchClassifier, margin: float) -> dict[str, HRClassifier]:
    """
    Views of a classifier with gradients that do not saturate, by the name of what they climb.

    :param classifier: Any PyTorchClassifier that :func:`~art_hrloss.estimator.attack_view` takes.
    :param margin: The median of the margins: the logits are divided by it for one of the views.
    """
    ce = ExactCrossEntropy()
    views = {"exact CE": attack_view(classifier, ce), "the margin": attack_view(classifier, MarginLoss())}
    if classifier.nb_classes > 2:
        views["DLR"] = attack_view(classifier, DLRLoss())
    views["CE of logits / T"] = attack_view(classifier, _Tempered(ce, max(1.0, margin)))
    return views


def in_float64(classifier: PyTorchClassifier) -> HRClassifier:
    """A view along exact cross-entropy of a copy of the network in float64, for attacks that work in float32."""
    network = copy.deepcopy(classifier.model).double()
    return Normalised(network, attack_loss=ExactCrossEntropy(), **shared_options(classifier))


def doubled(classifier: PyTorchClassifier) -> HRClassifier:
    """A view along the margin for Auto-PGD, which refuses probabilities and does the same to twice as much."""
    return HRClassifier(_Doubled(classifier.model), attack_loss=MarginLoss(), **shared_options(classifier))


class _Doubled(nn.Module):
    """A network with twice its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(n, *input_shape)`` to ``(n, M)``."""
        logits: Tensor = 2 * self.network(images)
        return logits


class _Tempered(nn.Module):
    """A loss of the logits divided by a temperature."""

    def __init__(self, loss: nn.Module, temperature: float) -> None:
        super().__init__()
        self.loss, self.temperature = loss, temperature

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits ``(n, M)`` and one-hot labels ``(n, M)`` to ``(n,)``."""
        losses: Tensor = self.loss(logits / self.temperature, labels.argmax(1))
        return losses
