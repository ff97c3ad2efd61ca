"""attacks._views: what a view changes of the gradients, by hand."""

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_hrloss.attacks._losses import MarginLoss
from art_hrloss.attacks._views import Normalised, doubled

OPTIONS = {"input_shape": (3,), "nb_classes": 2, "clip_values": (0.0, 1.0), "device_type": "cpu"}
X = np.array([[0.5, 1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.25, 1.0]], dtype=np.float32)
LABELS = np.array([0, 1, 1])


class HalfSquare(nn.Module):
    """The margin of class 0 is half the squared length of the image, times a factor: its gradient is the image."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        squares = self.factor * (x**2).sum(1, keepdim=True) / 2
        return torch.cat([squares, 0 * squares], 1)


@pytest.mark.parametrize("factor", [1.0, 2.0**-100, 2.0**60])
def test_the_largest_entry_of_a_normalised_gradient_is_1(factor):
    """Example by example, whatever the sign; a gradient that is 0 stays 0."""
    view = Normalised(HalfSquare(factor), nn.CrossEntropyLoss(), attack_loss=MarginLoss(), **OPTIONS)
    found = view.loss_gradient(X, LABELS)
    np.testing.assert_array_equal(found, [[-0.5, -1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.125, 0.5]])
    assert found.dtype == np.float32


def test_a_normalised_point_is_otherwise_that_of_the_network():
    view = Normalised(HalfSquare(2.0), nn.CrossEntropyLoss(), attack_loss=MarginLoss(), **OPTIONS)
    with view.attacking():
        labels = view.attack_labels(LABELS, 3)
        point, blind = (view.evaluate(torch.tensor(X), labels, gradient=asked) for asked in (True, False))
    margins = [1.25, 0.0, 5.0625]
    assert point.logits[:, 0].tolist() == margins
    assert point.losses.tolist() == blind.losses.tolist() == [-1.25, 0.0, 5.0625]
    assert blind.gradient is None


def test_doubled_has_twice_the_logits_and_their_margin():
    classifier = PyTorchClassifier(HalfSquare(1.0), nn.CrossEntropyLoss(), **OPTIONS)
    view = doubled(classifier)
    np.testing.assert_array_equal(view.predict(X), 2 * classifier.predict(X))
    np.testing.assert_array_equal(view.loss_gradient(X, LABELS), [-2 * X[0], 2 * X[1], 2 * X[2]])
