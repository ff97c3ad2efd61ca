"""
Tests of the HR loss in ART's own classifier and trainers, on real digits.

benchmarks/compatibility measures whether each attack of ART follows the loss; its tests test that table.
"""

import copy

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainer, AdversarialTrainerAWPPyTorch, AdversarialTrainerTRADESPyTorch

from art_hrloss import HRLoss, hr_loss, seeded


@pytest.fixture
def images(digits):
    return digits.x_test[:100].copy()


@pytest.fixture
def labels(digits):
    return digits.y_test[:100].copy()


class Recording(HRLoss):
    """An HR loss that records every call; its copies write to the same list."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, input, target):
        self.calls.append((self.reduction, len(input)))
        return super().forward(input, target)


def one_hot(y):
    return np.eye(10, dtype=np.float32)[y]


def accuracy(classifier, x, y):
    return (classifier.predict(x).argmax(1) == y).mean()


# ------------------------------------------------------------------------------ HRLoss in ART's own PyTorchClassifier


@pytest.mark.parametrize("form", [lambda y: y, one_hot], ids=["indices", "one-hot"])
def test_a_pytorch_classifier_trains_with_the_batch_loss(art_classifier, network, images, labels, form):
    """Return the weights after one step of SGD on eq. (3) of the batch."""
    hr_loss(network(torch.tensor(images)), torch.tensor(labels)).backward()
    expected = [(parameter - 0.1 * parameter.grad).detach().numpy() for parameter in network.parameters()]
    trained = copy.deepcopy(network)
    classifier = art_classifier(network=trained, optimizer=torch.optim.SGD(trained.parameters(), lr=0.1))
    classifier.fit(images, form(labels), nb_epochs=1, batch_size=100)
    for parameter, value in zip(trained.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_pytorch_classifier_computes_all_reductions(art_classifier, network, images, labels, reduction):
    loss = HRLoss()
    actual = art_classifier(loss).compute_loss(images, labels, reduction=reduction)
    with torch.no_grad():
        expected = hr_loss(network(torch.tensor(images)), torch.tensor(labels), reduction=reduction).numpy()
    assert actual.shape == ((100,) if reduction == "none" else ())
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert loss.reduction == "batch"


# ------------------------------------------------------------------------------------------------------- trainers


def inner_attack(classifier):
    return ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.05, max_iter=3, batch_size=128, verbose=False)


def awp(classifier, proxy):
    """AWP perturbs the weights of a second classifier, which has its own network and optimizer."""
    options = {"mode": "PGD", "gamma": 0.005, "beta": 1.0, "warmup": 1}
    return AdversarialTrainerAWPPyTorch(classifier, proxy, inner_attack(classifier), **options)


TRAINERS = {
    "AdversarialTrainer": lambda c, _: AdversarialTrainer(c, inner_attack(c), ratio=0.5),
    "TRADES": lambda c, _: AdversarialTrainerTRADESPyTorch(c, inner_attack(c), beta=1.0),
    "AWP": awp,
}


@pytest.mark.parametrize("build", TRAINERS.values(), ids=TRAINERS)
def test_a_trainer_trains_with_the_loss_unchanged(hr_classifier, network, digits, build):
    """Training minimises eq. (3) of each batch, and the images are attacked along the per-example loss."""

    def untrained(loss=None):
        torch.manual_seed(0)
        fresh = type(network)()
        return hr_classifier(loss, network=fresh, optimizer=torch.optim.Adam(fresh.parameters(), lr=0.01))

    loss = Recording()
    classifier = untrained(loss)
    with seeded(0):
        build(classifier, untrained()).fit(digits.x_train, one_hot(digits.y_train), batch_size=64, nb_epochs=4)
    full, rest = divmod(len(digits.x_train), 64)
    learned = sorted(size for reduction, size in loss.calls if reduction == "batch")
    assert learned == sorted(([64] * full + [rest]) * 4)
    assert {reduction for reduction, _ in loss.calls} == {"batch", "none"}
    assert loss.reduction == "batch"
    x, y = digits.x_test[:200], digits.y_test[:200]
    assert accuracy(classifier, x, y) > 0.5
    assert accuracy(classifier, inner_attack(classifier).generate(x, y), y) > 0.25
