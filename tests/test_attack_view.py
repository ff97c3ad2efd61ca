"""Tests of attack_view: two classifiers on one network, and classifiers that cannot have a view."""

import copy

import numpy as np
import pytest
import torch
from art.attacks import evasion
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_hrloss import HRClassifier, HRLoss, attack_view
from art_hrloss.attacks import (
    AutoProjectedGradientDescent,
    FastGradientMethod,
    ProjectedGradientDescent,
    SquareAttack,
    ensemble,
)
from art_hrloss.classifier import as_hr_classifier


class Reversed(HRClassifier):
    """A subclass that negates the gradient of attacks."""

    def evaluate(self, x, labels, **options):
        point = super().evaluate(x, labels, **options)
        return point._replace(gradient=None if point.gradient is None else -point.gradient)


class OwnGradient(PyTorchClassifier):
    """A subclass whose gradients a view would bypass."""

    def loss_gradient(self, x, y, training_mode=False, **kwargs):
        return 0 * super().loss_gradient(x, y, training_mode, **kwargs)


class OwnLoss(HRClassifier):
    """A subclass whose losses a view would bypass."""

    def compute_loss(self, x, y, reduction="none", **kwargs):
        return 0 * super().compute_loss(x, y, reduction, **kwargs)


@pytest.mark.parametrize("kind", ["hr_classifier", "art_classifier"])
def test_a_view_shares_network_and_optimizer_and_modifies_nothing(request, batch, kind):
    x, y = batch
    classifier = request.getfixturevalue(kind)(preprocessing=(0.3, 0.5))
    network, params, loss = classifier.model.train(), classifier.get_params(), nn.CrossEntropyLoss()
    state = copy.deepcopy(network.state_dict())
    view = attack_view(classifier, loss)
    view.loss_gradient(x, y)
    view.compute_loss(x, y)

    assert view.attack_loss is loss
    for name in ("model", "optimizer", "loss", "preprocessing", "input_shape", "nb_classes", "channels_first"):
        assert getattr(view, name) is getattr(classifier, name), name
    np.testing.assert_array_equal(view.clip_values, [0, 1])
    assert classifier.get_params() == params
    assert all(module.training for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])
    # Training one classifier also trains the other.
    before = view.predict(x)
    classifier.fit(x, y, nb_epochs=1)
    assert not np.array_equal(view.predict(x), before)
    np.testing.assert_array_equal(view.predict(x), classifier.predict(x))


@pytest.mark.parametrize("kind", ["hr_classifier", "art_classifier"])
def test_the_cross_entropy_view_has_the_gradient_of_a_cross_entropy_classifier(request, art_classifier, batch, kind):
    """The gradient is that of the sum, not of the mean; the factor 32 between the two causes no rounding."""
    x, y = (part[:32] for part in batch)
    plain = art_classifier(nn.CrossEntropyLoss()).loss_gradient(x, np.eye(10, dtype=np.float32)[y])
    view = attack_view(request.getfixturevalue(kind)(), nn.CrossEntropyLoss())
    np.testing.assert_array_equal(view.loss_gradient(x, y), plain * 32)


def test_a_view_of_a_subclass_keeps_the_subclass(network, batch):
    x, y = batch
    classifier = Reversed(network, HRLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    plain = HRClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    view = attack_view(classifier, nn.CrossEntropyLoss())
    assert type(view) is Reversed
    assert as_hr_classifier(view) is view
    np.testing.assert_array_equal(view.loss_gradient(x, y), -plain.loss_gradient(x, y))
    # An attack that descends the loss, of ART or of this package, increases the confidence of the network.
    ours = ProjectedGradientDescent(view, eps=0.1, max_iter=1, loss="ce")
    for attack in (evasion.FastGradientMethod(view, eps=0.1), ours):
        assert (plain.compute_loss(attack.generate(x, y), y) <= plain.compute_loss(x, y)).mean() > 0.9


def test_as_hr_classifier_returns_the_classifier_or_a_view_along_its_loss(hr_classifier, art_classifier, batch):
    classifier = hr_classifier()
    assert as_hr_classifier(classifier) is classifier
    plain = art_classifier(nn.CrossEntropyLoss())
    view = as_hr_classifier(plain)
    assert view.attack_loss is view.loss is plain.loss
    np.testing.assert_array_equal(
        view.loss_gradient(*batch), hr_classifier(nn.CrossEntropyLoss()).loss_gradient(*batch)
    )


@pytest.mark.parametrize("kind", [OwnGradient, OwnLoss, PyTorchRandomizedSmoothing])
@pytest.mark.parametrize("view", [lambda c: attack_view(c, HRLoss()), as_hr_classifier], ids=["view", "as_hr"])
def test_a_subclass_with_overrides_that_attacks_bypass_raises_an_error(network, kind, view):
    """An attack on a view of a smoothed classifier would bypass the smoothing."""
    options = {"sample_size": 4} if kind is PyTorchRandomizedSmoothing else {}
    classifier = kind(network, HRLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu", **options)
    name = "compute_loss" if kind is OwnLoss else "loss_gradient"
    with pytest.raises(TypeError, match=rf"expected .*{name}, but got {kind.__name__}, .*evaluate"):
        view(classifier)
    attacks = FastGradientMethod, ProjectedGradientDescent, AutoProjectedGradientDescent, SquareAttack, ensemble
    for attack in attacks:
        with pytest.raises(TypeError, match=name):
            attack(classifier, eps=0.1)


@pytest.mark.parametrize("kind", ["hr_classifier", "art_classifier"])
@pytest.mark.parametrize("name", ["loss_gradient", "compute_loss"])
def test_a_classifier_with_a_replaced_method_raises_an_error(request, hr_classifier, kind, name):
    other = hr_classifier()
    for replacement in (lambda x, y, **_: None, getattr(other, name).__func__, nn.Identity()):
        classifier = request.getfixturevalue(kind)()
        setattr(classifier, name, replacement)
        for view in (lambda c: attack_view(c, HRLoss()), as_hr_classifier):
            with pytest.raises(TypeError, match=name):
                view(classifier)


@pytest.mark.parametrize("classifier", [nn.Linear(2, 2), None], ids=["network", "None"])
def test_a_view_of_an_object_other_than_a_classifier_raises_an_error(classifier):
    for view in (lambda c: attack_view(c, HRLoss()), as_hr_classifier):
        with pytest.raises(TypeError, match=rf"expected classifier to be .* but got {type(classifier).__name__}"):
            view(classifier)


def test_a_view_has_its_own_observers(hr_classifier, batch):
    classifier, seen = hr_classifier(), []
    with classifier.observed_by(lambda x, labels, point: seen.append(len(x))):
        view = attack_view(classifier, nn.CrossEntropyLoss())
        view.loss_gradient(*batch)
        assert seen == []
        with view.observed_by(lambda *_: seen.append("view")):
            classifier.loss_gradient(*batch)
    assert seen == [40]
