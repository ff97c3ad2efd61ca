"""art_hrloss.classifier: HRClassifier and attack_view, on real digits."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import art.config
import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod
from art.defences.preprocessor import FeatureSqueezing, SpatialSmoothing
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_hrloss import HRClassifier, HRLoss, attack_view, hr_loss

ROOT = Path(__file__).parents[1]


@pytest.fixture
def batch(digits):
    """40 images, float32, and their labels, int64."""
    return digits.x_test[:40].copy(), digits.y_test[:40].copy()


@pytest.fixture
def halfway(hr_classifier, batch):
    """The images halfway through an attack, where the network is right on some and wrong on others."""
    x, y = batch
    return FastGradientMethod(hr_classifier(), eps=0.1).generate(x, y), y


class PerExample(nn.Module):
    """A loss without a reduction: the cross-entropy of each example, from one-hot labels."""

    def forward(self, logits, labels):
        return -(labels * logits.log_softmax(1)).sum(1)


class Scalar(nn.Module):
    """A loss without a reduction that couples the examples, whatever one asks for."""

    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels)


class Raising(nn.Module):
    """A network, or a loss, that fails."""

    def forward(self, *_):
        raise ArithmeticError("this module fails")


class MixedModes(nn.Module):
    """A network in training whose batch statistics are frozen, as in fine-tuning."""

    def __init__(self, head=None):
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.head = nn.Linear(4 * 6 * 6, 10) if head is None else head
        self.train()
        self.norm.eval()

    def forward(self, x):
        return self.head(self.dropout(self.norm(self.conv(x)).relu()).flatten(1))


class Normalised(nn.Module):
    """The network with the normalisation in it."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.network, self.mean, self.std = network, torch.as_tensor(mean), torch.as_tensor(std)

    def forward(self, x):
        return self.network((x - self.mean) / self.std)


class Recurrent(nn.Module):
    """An LSTM that reads the image row by row."""

    def __init__(self, layers=1, dropout=0.0):
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=layers, dropout=dropout, batch_first=True)
        self.norm, self.dropout, self.head = nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.dropout(self.norm(self.lstm(x.squeeze(1))[0][:, -1])))


def seeded(build, *args, **options):
    torch.manual_seed(0)
    return build(*args, **options)


def modes(network):
    return [module.training for module in network.modules()]


def one_hot(y, dtype=np.float32):
    return np.eye(10, dtype=dtype)[y]


def as_dtype(x, dtype):
    """The digits in a dtype, exactly: their own whole numbers 0 to 16, black and white, or sixteenths in [0, 1]."""
    if dtype is bool:
        return x > 0.5
    return (16 * x if np.issubdtype(dtype, np.integer) else x).astype(dtype)


def per_example_hr(logits, y):
    return hr_loss(logits, torch.as_tensor(y), reduction="none")


def autograd_gradient(network, x, value):
    """The gradient of the sum of value(network(x)) by x, in plain PyTorch and in the network's dtype."""
    dtype = next(network.parameters()).dtype
    images = torch.tensor(np.asarray(x)).to(dtype).requires_grad_()
    return torch.autograd.grad(value(network(images)).sum(), images)[0].numpy()


def relative_error(actual, expected):
    """The largest error of any example, relative to the largest element of that example's own gradient."""
    assert actual.shape == expected.shape
    actual, expected = (np.asarray(part, dtype=np.float64).reshape(len(part), -1) for part in (actual, expected))
    error, size = np.abs(actual - expected).max(1), np.abs(expected).max(1)
    assert (error[size == 0] == 0).all()
    return (error[size > 0] / size[size > 0]).max()


# ------------------------------------------------------------------------------------------------ loss_gradient: values


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda y: y, id="indices"),
        pytest.param(lambda y: y.astype(np.uint8), id="indices-uint8"),
        pytest.param(lambda y: y.astype(np.float32), id="indices-float32"),
        pytest.param(lambda y: y[:, None], id="column"),
        pytest.param(one_hot, id="one-hot-float32"),
        pytest.param(lambda y: one_hot(y, np.float64), id="one-hot-float64"),
        pytest.param(lambda y: one_hot(y, np.int64), id="one-hot-int64"),
        pytest.param(lambda y: one_hot(y, bool), id="one-hot-bool"),
    ],
)
@pytest.mark.parametrize("tensors", [False, True], ids=["arrays", "tensors"])
def test_gradient_is_that_of_the_summed_per_example_loss(hr_classifier, network, batch, form, tensors):
    x, y = batch
    expected = autograd_gradient(network, x, lambda logits: per_example_hr(logits, y))
    if tensors:
        gradient = hr_classifier().loss_gradient(torch.tensor(x), torch.tensor(form(y)))
        assert isinstance(gradient, torch.Tensor)
        gradient = gradient.numpy()
    else:
        gradient = hr_classifier().loss_gradient(x, form(y))
        assert isinstance(gradient, np.ndarray)
    assert gradient.dtype == np.float32
    assert relative_error(gradient, expected) < 1e-5


def test_gradient_for_probability_labels(hr_classifier, network, batch):
    x, _ = batch
    labels = np.random.default_rng(0).dirichlet(np.ones(10), len(x))
    expected = autograd_gradient(network, x, lambda logits: per_example_hr(logits, torch.tensor(labels).float()))
    assert relative_error(hr_classifier().loss_gradient(x, labels), expected) < 1e-5


def test_gradient_does_not_depend_on_alpha(hr_classifier, batch):
    """For class indices the loss of one example is H(q) - log q_y, whatever alpha is."""
    gradients = [hr_classifier(HRLoss(alpha)).loss_gradient(*batch) for alpha in (1.0, 1.6, 10.0)]
    assert relative_error(gradients[1], gradients[0]) < 1e-6
    assert relative_error(gradients[2], gradients[0]) < 1e-6


@pytest.mark.parametrize("size", [1, 7, 40])
def test_gradient_is_the_same_at_every_batch_size(hr_classifier, network, halfway, size):
    """
    Bit for bit, for a float64 network whose gradients are rounded to the images' float32. In a float32 network they
    agree to its own rounding only, because the matrix products take other kernels for other batch sizes.
    """
    x, y = halfway
    for net, tolerance in [(copy.deepcopy(network).double(), 0.0), (network, 1e-4)]:
        classifier = hr_classifier(network=net)
        together = classifier.loss_gradient(x, y)
        parts = [classifier.loss_gradient(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
        assert relative_error(np.concatenate(parts), together) <= tolerance


def test_gradient_is_the_same_in_every_order_and_among_duplicates(hr_classifier, network, halfway):
    x, y = halfway
    classifier = hr_classifier(network=network.double())
    expected = classifier.loss_gradient(x, y)
    order = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_array_equal(classifier.loss_gradient(x[order], y[order]), expected[order])
    repeated = np.repeat(order, 3)
    np.testing.assert_array_equal(classifier.loss_gradient(x[repeated], y[repeated]), expected[repeated])


def test_the_batch_loss_in_a_plain_classifier_couples_the_images(art_classifier, hr_classifier, halfway):
    """Why HRClassifier is there: eq. (3) of a batch turns round the gradients of the images that are still right."""
    x, y = halfway

    def changed_signs(classifier):
        labels = one_hot(y)
        alone = np.concatenate([classifier.loss_gradient(x[i : i + 1], labels[i : i + 1]) for i in range(len(x))])
        return (np.sign(alone) != np.sign(classifier.loss_gradient(x, labels))).mean()

    assert changed_signs(art_classifier()) > 0.1
    assert changed_signs(hr_classifier()) < 1e-3


@pytest.mark.parametrize(
    ("dtype", "gradient_dtype"),
    [
        pytest.param(np.float16, np.float16, id="float16"),
        pytest.param(np.float32, np.float32, id="float32"),
        pytest.param(np.float64, np.float64, id="float64"),
        pytest.param(np.uint8, np.float32, id="uint8"),
        pytest.param(np.int64, np.float32, id="int64"),
        pytest.param(bool, np.float32, id="bool"),
    ],
)
@pytest.mark.parametrize("tensors", [False, True], ids=["arrays", "tensors"])
def test_images_of_any_real_dtype(hr_classifier, network, batch, dtype, gradient_dtype, tensors):
    x, y = batch
    images, network = as_dtype(x, dtype), Normalised(network, 0.0, 16.0 if np.issubdtype(dtype, np.integer) else 1.0)
    expected = autograd_gradient(network, images, lambda logits: per_example_hr(logits, y)).astype(gradient_dtype)
    gradient = hr_classifier(network=network).loss_gradient(torch.tensor(images) if tensors else images, y)
    gradient = gradient.numpy() if tensors else gradient
    assert gradient.dtype == gradient_dtype
    assert relative_error(gradient, expected) < (2e-3 if gradient_dtype is np.float16 else 1e-5)


def test_float64_network(hr_classifier, network, batch):
    """The whole way in float64: float32 anywhere on it would show at 1e-7."""
    x, y = batch
    x = x.astype(np.float64) + np.random.default_rng(0).uniform(0, 0.1, x.shape)
    classifier = hr_classifier(network=network.double())
    expected = autograd_gradient(network, x, lambda logits: per_example_hr(logits, y))
    assert relative_error(classifier.loss_gradient(x, y), expected) < 1e-12
    assert relative_error(classifier.loss_gradient(torch.tensor(x), torch.tensor(y)).numpy(), expected) < 1e-12
    with torch.no_grad():
        losses = per_example_hr(network(torch.tensor(x)), y).numpy()
    assert classifier.compute_loss(x, y).dtype == np.float64
    np.testing.assert_allclose(classifier.compute_loss(x, y), losses, rtol=1e-12)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        pytest.param(nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum"), id="cross-entropy"),
        pytest.param(
            nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, 10), label_smoothing=0.1),
            nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, 10), label_smoothing=0.1, reduction="sum"),
            id="cross-entropy-weighted-smoothed",
        ),
        pytest.param(nn.MultiMarginLoss(), nn.MultiMarginLoss(reduction="sum"), id="multi-margin"),
        pytest.param(PerExample(), nn.CrossEntropyLoss(reduction="sum"), id="module-without-reduction"),
    ],
)
def test_attack_losses_of_other_kinds(hr_classifier, network, halfway, loss, reference):
    x, y = halfway
    expected = autograd_gradient(network, x, lambda logits: reference(logits, torch.tensor(y)))
    for labels in (y, one_hot(y)):
        assert relative_error(hr_classifier(attack_loss=loss).loss_gradient(x, labels), expected) < 1e-5


def test_attack_loss_on_log_probabilities(hr_classifier, network, halfway):
    x, y = halfway
    network = nn.Sequential(network, nn.LogSoftmax(1))
    expected = autograd_gradient(network, x, lambda log_q: nn.functional.nll_loss(log_q, torch.tensor(y)) * len(y))
    assert relative_error(hr_classifier(nn.NLLLoss(), network=network).loss_gradient(x, y), expected) < 1e-5


def test_attack_loss_of_a_binary_network_with_one_output(hr_classifier, batch):
    x, digit = batch
    y = (digit % 2).astype(np.int64)
    network = seeded(nn.Sequential, nn.Flatten(), nn.Linear(64, 1))
    classifier = hr_classifier(nn.BCEWithLogitsLoss(), network=network, nb_classes=2)
    target = torch.tensor(y[:, None]).float()
    expected = autograd_gradient(
        network, x, lambda logits: nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    )
    for labels in (y, y[:, None], np.eye(2)[y]):
        assert relative_error(classifier.loss_gradient(x, labels), expected) < 1e-5


@pytest.mark.parametrize("method", ["loss_gradient", "compute_loss"])
def test_attack_loss_that_gives_one_value_for_the_batch(hr_classifier, batch, method):
    classifier = hr_classifier(attack_loss=Scalar())
    with pytest.raises(ValueError, match=r"expected Scalar to give one value per example, shape \(40,\)"):
        getattr(classifier, method)(*batch)


# --------------------------------------------------------------------------------------- loss_gradient: what it leaves


@pytest.mark.parametrize("method", ["loss_gradient", "compute_loss"])
def test_gradients_of_the_parameters_are_neither_computed_nor_touched(hr_classifier, network, batch, method):
    computed = []
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
        parameter.register_hook(computed.append)
    kept = [parameter.grad for parameter in network.parameters()]

    getattr(hr_classifier(network=network), method)(*batch)

    assert computed == []
    for parameter, gradient in zip(network.parameters(), kept, strict=True):
        assert parameter.grad is gradient
        assert bool((gradient == 7.0).all())
    # The hooks are alive: an ordinary backward pass calls every one.
    network(torch.tensor(batch[0])).sum().backward()
    assert len(computed) == len(kept)


def test_works_on_frozen_parameters(hr_classifier, network, batch):
    expected = hr_classifier().loss_gradient(*batch)
    np.testing.assert_array_equal(hr_classifier(network=network.requires_grad_(False)).loss_gradient(*batch), expected)


def test_works_under_no_grad(hr_classifier, batch):
    classifier = hr_classifier()
    expected = classifier.loss_gradient(*batch)
    with torch.no_grad():
        np.testing.assert_array_equal(classifier.loss_gradient(*batch), expected)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("attack_loss", [None, PerExample()], ids=["hr", "module-without-reduction"])
@pytest.mark.parametrize("form", [lambda y: y, one_hot], ids=["indices", "one-hot"])
def test_takes_tensors_made_in_inference_mode(hr_classifier, batch, form, attack_loss):
    """As ART's loss_gradient does: such tensors come out of any prediction code that uses inference_mode."""
    with torch.inference_mode():
        x, y = torch.tensor(batch[0]), torch.tensor(form(batch[1]))
    classifier = hr_classifier(attack_loss=attack_loss)
    np.testing.assert_array_equal(classifier.loss_gradient(x, y).numpy(), classifier.loss_gradient(*batch))


def test_the_images_and_labels_given_are_left_alone(hr_classifier, batch):
    x, y = batch
    plain, differentiable, labels = torch.tensor(x), torch.tensor(x, requires_grad=True), torch.tensor(one_hot(y))
    arrays, indices = x.copy(), y.copy()
    for classifier in (hr_classifier(), hr_classifier(preprocessing=None), hr_classifier(preprocessing=(0.3, 0.5))):
        for images, given in ((plain, labels), (differentiable, labels), (arrays, indices)):
            classifier.loss_gradient(images, given)
            classifier.compute_loss(images, given)
    assert (plain.requires_grad, differentiable.requires_grad) == (False, True)
    assert differentiable.grad is None
    for images in (plain, differentiable.detach(), arrays):
        np.testing.assert_array_equal(images, x)
    np.testing.assert_array_equal(labels, one_hot(y))
    np.testing.assert_array_equal(indices, y)


@pytest.mark.parametrize("method", ["loss_gradient", "compute_loss"])
def test_runs_in_evaluation_mode_and_restores_the_mode_of_each_module(hr_classifier, batch, method):
    network = seeded(MixedModes)
    statistics = network.norm.running_mean.clone()
    before = modes(network)
    assert len(set(before)) == 2
    expected = getattr(hr_classifier(network=copy.deepcopy(network).eval()), method)(*batch)
    np.testing.assert_array_equal(getattr(hr_classifier(network=network), method)(*batch), expected)
    assert modes(network) == before
    assert torch.equal(network.norm.running_mean, statistics)


@pytest.mark.parametrize("method", ["loss_gradient", "compute_loss"])
@pytest.mark.parametrize(
    ("head", "attack_loss", "label", "error"),
    [
        pytest.param(Raising(), None, 3, ArithmeticError, id="network-fails"),
        pytest.param(None, Raising(), 3, ArithmeticError, id="loss-fails"),
        pytest.param(None, Scalar(), 3, ValueError, id="loss-is-a-scalar"),
        pytest.param(None, None, 10, ValueError, id="label-is-wrong"),
    ],
)
def test_everything_is_restored_after_an_exception(hr_classifier, batch, method, head, attack_loss, label, error):
    network = seeded(MixedModes, head)
    before = modes(network)
    loss = HRLoss()
    classifier = hr_classifier(
        loss, network=network, attack_loss=attack_loss, optimizer=torch.optim.SGD(network.conv.parameters())
    )
    with pytest.raises(error):
        getattr(classifier, method)(batch[0], np.full(40, label))
    assert modes(network) == before
    assert loss.reduction == "batch"
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batch", "median"])
def test_the_loss_keeps_its_reduction(hr_classifier, batch, reduction):
    loss = HRLoss()
    classifier = hr_classifier(loss)
    classifier.loss_gradient(*batch)
    if reduction == "median":
        with pytest.raises(ValueError, match="expected reduction to be one of"):
            classifier.compute_loss(*batch, reduction=reduction)
    else:
        classifier.compute_loss(*batch, reduction=reduction)
    assert classifier.loss is loss
    assert classifier.attack_loss is loss
    assert loss.reduction == "batch"


def test_training_mode_uses_dropout(hr_classifier, batch):
    x, y = batch
    network = seeded(nn.Sequential, nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)).eval()
    classifier = hr_classifier(network=network)
    evaluation = classifier.loss_gradient(x, y)
    torch.manual_seed(1)
    training = classifier.loss_gradient(x, y, training_mode=True)
    assert modes(network) == [False] * 4
    # The same dropped pixels in plain PyTorch: they have gradient 0, unlike in evaluation mode.
    torch.manual_seed(1)
    expected = autograd_gradient(network.train(), x, lambda logits: per_example_hr(logits, y))
    assert relative_error(training, expected) < 1e-5
    assert 0.4 < (training == 0).mean() < 0.6
    assert (evaluation == 0).mean() < 0.01


def test_recurrent_network(hr_classifier, batch):
    """cuDNN runs an RNN backwards in training mode only; all that differs between the modes must stay frozen."""
    x, y = batch
    network = seeded(Recurrent)
    network(torch.tensor(x))  # gives BatchNorm statistics that differ from the batch's
    expected = autograd_gradient(network.eval(), x, lambda logits: per_example_hr(logits, y))
    statistics = network.norm.running_mean.clone()
    assert relative_error(hr_classifier(network=network).loss_gradient(x, y), expected) < 1e-5
    assert modes(network) == [False] * 5
    assert torch.equal(network.norm.running_mean, statistics)


@pytest.mark.parametrize("method", ["loss_gradient", "compute_loss"])
def test_recurrent_network_with_dropout_between_its_layers(hr_classifier, batch, method):
    """That dropout is inside nn.LSTM, not a module of its own. Evaluation mode must switch it off all the same."""
    x, y = batch
    network = seeded(Recurrent, layers=2, dropout=0.5).eval()
    actual = getattr(hr_classifier(network=network), method)(x, y)
    if method == "loss_gradient":
        expected = autograd_gradient(network, x, lambda logits: per_example_hr(logits, y))
    else:
        with torch.no_grad():
            expected = per_example_hr(network(torch.tensor(x)), y).numpy()
    assert relative_error(actual, expected) < 1e-5
    assert network.lstm.dropout == 0.5


# ------------------------------------------------------------------------------------------------------- wrong labels


@pytest.mark.parametrize("method", ["loss_gradient", "compute_loss"])
@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(np.full(40, -1), id="negative"),
        pytest.param(np.full(40, -100), id="ignore-index"),
        pytest.param(np.full(40, 10), id="too-large"),
        pytest.param(np.full(40, 0.5), id="fractional"),
        pytest.param(np.full(40, np.nan), id="nan"),
        pytest.param(np.full((40, 10), np.nan), id="nan-rows"),
        pytest.param(np.eye(40, 10), id="rows-of-0"),
        pytest.param(2 * np.eye(10)[np.zeros(40, int)] - 0.1, id="negative-rows"),
        pytest.param(np.zeros((40, 9)), id="nine-classes"),
        pytest.param(np.zeros((40, 10, 1)), id="three-dimensions"),
        pytest.param(np.array(3), id="a-single-number"),
        pytest.param(np.zeros(39, dtype=int), id="one-too-few"),
        pytest.param(np.zeros(1, dtype=int), id="one-for-all"),
    ],
)
def test_wrong_labels_are_refused_before_anything_runs(hr_classifier, batch, method, labels):
    """With a loss that would broadcast a single label over all the images."""
    network = seeded(MixedModes)
    before, runs = modes(network), []
    network.register_forward_hook(lambda *_: runs.append(1))
    classifier = hr_classifier(network=network, attack_loss=PerExample())
    with pytest.raises(ValueError, match="expected"):
        getattr(classifier, method)(batch[0], labels)
    assert runs == []
    assert modes(network) == before


# -------------------------------------------------------------------------------------------------------- compute_loss


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batch"])
@pytest.mark.parametrize("tensors", [False, True], ids=["arrays", "tensors"])
def test_compute_loss(hr_classifier, network, halfway, reduction, batch_size, tensors):
    x, y = halfway
    with torch.no_grad():
        expected = hr_loss(network(torch.tensor(x)), torch.tensor(y), reduction=reduction).numpy()
    if tensors:
        x, y = torch.tensor(x), torch.tensor(y)
    loss = hr_classifier().compute_loss(x, y, reduction, batch_size=batch_size)
    assert isinstance(loss, torch.Tensor if tensors else np.ndarray)
    assert loss.shape == ((40,) if reduction == "none" else ())
    np.testing.assert_allclose(np.asarray(loss), expected, rtol=1e-4)


def test_compute_loss_goes_through_the_network_in_batches(hr_classifier, network, batch):
    sizes = []
    network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    hr_classifier(network=network).compute_loss(*batch, batch_size=16)
    assert sizes == [16, 16, 8]


@pytest.mark.parametrize("tensors", [False, True], ids=["arrays", "tensors"])
def test_compute_loss_builds_no_graph(hr_classifier, network, batch, tensors):
    x, y = (torch.tensor(part) for part in batch) if tensors else batch
    graphs = []
    network.register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
    loss = hr_classifier(network=network).compute_loss(x, y)
    assert graphs == [False]
    assert not (tensors and loss.requires_grad)


def test_compute_loss_is_differentiable_for_a_tensor_that_requires_gradients(hr_classifier, batch):
    classifier = hr_classifier()
    images = torch.tensor(batch[0], requires_grad=True)
    losses = classifier.compute_loss(images, torch.tensor(batch[1]), batch_size=7)
    (gradient,) = torch.autograd.grad(losses.sum(), images)
    assert relative_error(gradient.numpy(), classifier.loss_gradient(*batch)) < 1e-5
    with torch.no_grad():
        assert not classifier.compute_loss(images, torch.tensor(batch[1])).requires_grad


def test_compute_loss_is_that_of_the_attack_loss(hr_classifier, network, batch):
    x, y = batch
    with torch.no_grad():
        expected = nn.functional.cross_entropy(network(torch.tensor(x)), torch.tensor(y), reduction="none").numpy()
    for loss in (nn.CrossEntropyLoss(), PerExample()):
        classifier = hr_classifier(attack_loss=loss)
        np.testing.assert_allclose(classifier.compute_loss(x, y), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(classifier.compute_loss(x, y, "mean"), expected.mean(), rtol=1e-5)
        np.testing.assert_allclose(classifier.compute_loss(x, y, "sum"), expected.sum(), rtol=1e-5)
        with pytest.raises(ValueError, match="batch"):
            classifier.compute_loss(x, y, "batch")


def test_compute_losses(hr_classifier, batch):
    classifier = hr_classifier()
    losses = classifier.compute_losses(*batch, reduction="none")
    assert losses.keys() == {"total"}
    np.testing.assert_array_equal(losses["total"], classifier.compute_loss(*batch))


@pytest.mark.parametrize("form", [lambda y: y, one_hot], ids=["indices", "one-hot"])
def test_no_images_at_all(hr_classifier, batch, form):
    x, y = batch[0][:0], form(batch[1][:0])
    classifier = hr_classifier()
    assert classifier.loss_gradient(x, y).shape == (0, 1, 8, 8)
    assert classifier.compute_loss(x, y).shape == (0,)
    assert classifier.compute_loss(x, y, "sum") == 0.0


# ---------------------------------------------------------------------------------- predict, fit and class_gradient


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int64, bool], ids=["float64", "uint8", "int64", "bool"])
def test_predict_fit_and_class_gradient_take_images_of_any_real_dtype(hr_classifier, batch, dtype):
    x, y = batch
    images = as_dtype(x, dtype)
    same = images.astype(np.float32)
    one, other = hr_classifier(), hr_classifier()
    np.testing.assert_array_equal(one.class_gradient(images, label=3), other.class_gradient(same, label=3))
    for classifier, given in ((one, images), (other, same)):
        torch.manual_seed(0)
        classifier.fit(given, y, nb_epochs=1, batch_size=20)
    np.testing.assert_array_equal(one.predict(images), other.predict(same))
    assert not np.array_equal(one.predict(images), hr_classifier().predict(same))


@pytest.mark.parametrize("form", [lambda y: y, lambda y: y[:, None], one_hot], ids=["indices", "column", "one-hot"])
def test_fit_takes_the_loss_as_given(hr_classifier, network, batch, form):
    """One step of SGD on eq. (3) of the whole batch; attack_loss has no part in it."""
    x, y = batch
    hr_loss(network(torch.tensor(x)), torch.tensor(y)).backward()
    expected = [(parameter - 0.1 * parameter.grad).detach().numpy() for parameter in network.parameters()]
    trained = copy.deepcopy(network)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    classifier = hr_classifier(network=trained, optimizer=optimizer, attack_loss=nn.CrossEntropyLoss())
    classifier.fit(x, form(y), nb_epochs=1, batch_size=40)
    for parameter, value in zip(trained.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------- parameters: set_params, clones, views


def test_attack_loss_follows_loss_unless_it_is_given(hr_classifier):
    first, second, own = HRLoss(), HRLoss(2.0), nn.CrossEntropyLoss()
    following, fixed = hr_classifier(first), hr_classifier(first, attack_loss=own)
    assert following.attack_loss is first
    assert fixed.attack_loss is own
    for classifier in (following, fixed):
        classifier.set_params(loss=second)
        assert classifier.loss is second
    assert following.attack_loss is second
    assert fixed.attack_loss is own


def test_set_params_of_the_attack_loss(hr_classifier, batch):
    classifier = hr_classifier()
    hr = classifier.loss_gradient(*batch)
    classifier.set_params(attack_loss=nn.CrossEntropyLoss())
    np.testing.assert_array_equal(
        classifier.loss_gradient(*batch), hr_classifier(nn.CrossEntropyLoss()).loss_gradient(*batch)
    )
    classifier.set_params(attack_loss=None)
    np.testing.assert_array_equal(classifier.loss_gradient(*batch), hr)


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([nn.MSELoss(), HRLoss(), nn.MSELoss()], id="one-hot-indices-one-hot"),
        pytest.param([HRLoss(), nn.MSELoss(), nn.MultiMarginLoss(), HRLoss()], id="indices-one-hot-indices"),
    ],
)
def test_a_new_loss_is_given_labels_in_its_own_form(hr_classifier, batch, losses):
    """ART keeps the form of the first loss: MSELoss would be given class indices, MultiMarginLoss one-hot labels."""
    x, y = batch
    classifier = hr_classifier(losses[0])
    for loss in losses:
        classifier.set_params(loss=loss)
        fresh = hr_classifier(loss, network=copy.deepcopy(classifier.model))
        classifier.set_params(optimizer=torch.optim.SGD(classifier.model.parameters(), lr=1e-3))
        fresh.set_params(optimizer=torch.optim.SGD(fresh.model.parameters(), lr=1e-3))
        before = classifier.predict(x)
        for one in (classifier, fresh):
            torch.manual_seed(0)
            one.fit(x, y, nb_epochs=1)
        np.testing.assert_array_equal(classifier.predict(x), fresh.predict(x))
        assert not np.array_equal(classifier.predict(x), before)


def test_get_params_and_set_params_are_inverse(hr_classifier, batch):
    x, y = batch
    own = nn.CrossEntropyLoss()
    classifier = hr_classifier(attack_loss=own, preprocessing=(0.3, 0.5))
    params = classifier.get_params()
    assert params["attack_loss"] is own
    assert hr_classifier().get_params()["attack_loss"] is None
    predictions, gradient = classifier.predict(x), classifier.loss_gradient(x, y)
    classifier.set_params(**params)
    assert classifier.model is params["model"]
    np.testing.assert_array_equal(classifier.predict(x), predictions)
    np.testing.assert_array_equal(classifier.loss_gradient(x, y), gradient)


@pytest.mark.parametrize("attack_loss", [None, nn.CrossEntropyLoss()], ids=["follows", "own"])
def test_clone_for_refitting(hr_classifier, batch, attack_loss):
    x, y = batch
    classifier = hr_classifier(nn.MSELoss(), attack_loss=attack_loss, preprocessing=(0.3, 0.5))
    classifier.set_params(loss=HRLoss())
    predictions = classifier.predict(x)
    torch.manual_seed(0)
    clone = classifier.clone_for_refitting()

    assert type(clone) is HRClassifier
    assert clone.loss is classifier.loss
    assert clone.get_params()["attack_loss"] is attack_loss
    assert clone.preprocessing is classifier.preprocessing
    np.testing.assert_array_equal(clone.clip_values, classifier.clip_values)
    # Labels reach the loss as class indices, as HRLoss of a new classifier would have them.
    assert clone.reduce_labels(one_hot(y)).shape == classifier.reduce_labels(one_hot(y)).shape == (40,)
    # Weights of its own, initialised anew, under an optimizer of its own.
    for new, old in zip(clone.model.parameters(), classifier.model.parameters(), strict=True):
        assert not torch.equal(new, old)
    fresh = clone.predict(x)
    clone.fit(x, y, nb_epochs=1)
    assert not np.array_equal(clone.predict(x), fresh)
    np.testing.assert_array_equal(classifier.predict(x), predictions)


def test_repr_names_the_attack_loss(hr_classifier):
    assert repr(hr_classifier()).startswith("art_hrloss.classifier.HRClassifier(model=")
    assert repr(hr_classifier()).endswith(", attack_loss=None)")
    assert repr(hr_classifier(attack_loss=HRLoss(2.0))).endswith(", attack_loss=HRLoss(alpha=2.0, reduction='batch'))")


@pytest.mark.parametrize("kind", ["hr_classifier", "art_classifier"])
def test_view_shares_the_network_and_changes_nothing(request, batch, kind):
    x, y = batch
    classifier = request.getfixturevalue(kind)(preprocessing=(0.3, 0.5))
    network, params = classifier.model.train(), classifier.get_params()
    parameters = copy.deepcopy(network.state_dict())
    loss = nn.CrossEntropyLoss()

    view = attack_view(classifier, loss)
    view.loss_gradient(x, y)
    view.compute_loss(x, y)

    assert view.model is network
    assert view.optimizer is classifier.optimizer
    assert view.loss is classifier.loss
    assert view.attack_loss is loss
    assert view.preprocessing is classifier.preprocessing
    assert (view.input_shape, view.nb_classes, view.channels_first) == ((1, 8, 8), 10, True)
    np.testing.assert_array_equal(view.clip_values, [0, 1])
    assert classifier.get_params() == params
    assert all(modes(network))
    for name, value in network.state_dict().items():
        assert torch.equal(value, parameters[name])
    # One network: what is trained through the one is seen through the other.
    before = view.predict(x)
    classifier.fit(x, y, nb_epochs=1)
    assert not np.array_equal(view.predict(x), before)
    np.testing.assert_array_equal(view.predict(x), classifier.predict(x))


def test_cross_entropy_view_has_the_gradient_of_a_plain_cross_entropy_classifier(
    hr_classifier, art_classifier, halfway
):
    """Of the sum instead of the mean. 32 images, so that the factor between the two costs no rounding."""
    x, y = (part[:32] for part in halfway)
    plain = art_classifier(nn.CrossEntropyLoss()).loss_gradient(x, one_hot(y))
    for classifier in (hr_classifier(), art_classifier()):
        np.testing.assert_array_equal(attack_view(classifier, nn.CrossEntropyLoss()).loss_gradient(x, y), plain * 32)


@pytest.mark.parametrize(
    ("classifier", "loss", "message"),
    [
        pytest.param(nn.Linear(2, 2), HRLoss(), "expected classifier to be .* but got Linear", id="network"),
        pytest.param(None, nn.functional.cross_entropy, "the attack loss to be .* but got function", id="function"),
        pytest.param(None, HRLoss, "the attack loss to be .* but got type", id="class"),
    ],
)
def test_view_of_the_wrong_thing(hr_classifier, classifier, loss, message):
    with pytest.raises(TypeError, match=message):
        attack_view(hr_classifier() if classifier is None else classifier, loss)


# ------------------------------------------------------------------------------------------------- preprocessing


class Squared(PreprocessorPyTorch):
    """A step in torch whose derivative differs from pixel to pixel."""

    params = []  # noqa: RUF012  # ART's own declaration

    def forward(self, x, y=None):
        return x.square(), y


@pytest.mark.parametrize("tensors", [False, True], ids=["arrays", "tensors"])
@pytest.mark.parametrize("arrays", [False, True], ids=["scalars", "arrays"])
def test_standardisation_follows_the_chain_rule(hr_classifier, network, digits, batch, arrays, tensors):
    x, y = batch
    mean, std = (digits.x_train.mean(0), digits.x_train.std(0) + 0.1) if arrays else (0.3, 0.7)
    classifier = hr_classifier(preprocessing=(mean, std))
    inside = Normalised(network, mean, std)
    expected = autograd_gradient(inside, x, lambda logits: per_example_hr(logits, y))
    gradient = classifier.loss_gradient(torch.tensor(x), torch.tensor(y)) if tensors else classifier.loss_gradient(x, y)
    assert relative_error(np.asarray(gradient), expected) < 1e-5
    with torch.no_grad():
        losses = per_example_hr(inside(torch.tensor(x)), y).numpy()
    np.testing.assert_allclose(classifier.compute_loss(x, y), losses, rtol=1e-4)


def test_step_in_torch_follows_the_chain_rule(hr_classifier, network, batch):
    x, y = batch
    classifier = hr_classifier(preprocessing_defences=Squared(device_type="cpu"))
    expected = autograd_gradient(network, x**2, lambda logits: per_example_hr(logits, y)) * 2 * x
    lit = x.reshape(len(x), -1).max(1) > 0  # every image has one such pixel; black ones have gradient 0
    assert lit.all()
    assert relative_error(classifier.loss_gradient(x, y), expected) < 1e-5


@pytest.mark.parametrize("preprocessing", [None, (0.3, 0.7)], ids=["alone", "standardised"])
def test_step_in_numpy_has_the_gradient_that_art_gives_it(hr_classifier, art_classifier, batch, preprocessing):
    x, y = batch
    options = {
        "preprocessing_defences": SpatialSmoothing(window_size=3, channels_first=True, clip_values=(0, 1)),
        "preprocessing": preprocessing,
    }
    plain = art_classifier(nn.CrossEntropyLoss(reduction="sum"), **options).loss_gradient(x, one_hot(y))
    view = attack_view(hr_classifier(**options), nn.CrossEntropyLoss())
    assert relative_error(view.loss_gradient(x, y), plain) < 1e-5
    # It is the step that shows: the gradient at the smoothed images is another than at the images themselves.
    assert relative_error(hr_classifier(nn.CrossEntropyLoss()).loss_gradient(x, y), plain) > 0.1


def test_step_in_numpy_that_changes_the_dtype(hr_classifier, network, batch):
    """FeatureSqueezing gives float64, which PyTorchClassifier cannot take. Its derivative counts as the identity."""
    x, y = batch
    squeezing = FeatureSqueezing(clip_values=(0, 1), bit_depth=2)
    squeezed = squeezing(x)[0]
    assert squeezed.dtype == np.float64
    classifier = hr_classifier(preprocessing_defences=squeezing)
    expected = autograd_gradient(network, squeezed, lambda logits: per_example_hr(logits, y))
    assert relative_error(classifier.loss_gradient(x, y), expected) < 1e-5
    with torch.no_grad():
        logits = network(torch.tensor(squeezed).float()).numpy()
    np.testing.assert_allclose(classifier.predict(x), logits, rtol=1e-5, atol=1e-5)
    classifier.fit(x, y, nb_epochs=1)


@pytest.mark.parametrize("preprocessing", [None, (0.3, 0.7)], ids=["alone", "standardised"])
def test_step_in_numpy_on_whole_numbers(hr_classifier, network, batch, preprocessing):
    x, y = batch
    smoothing = SpatialSmoothing(window_size=3, channels_first=True)
    network = Normalised(network, 0.0, 16.0)
    classifier = hr_classifier(network=network, preprocessing_defences=smoothing, preprocessing=preprocessing)
    images = as_dtype(x, np.uint8)
    expected = classifier.loss_gradient(images.astype(np.float32), y)
    assert relative_error(classifier.loss_gradient(images, y), expected) < 1e-5


@pytest.mark.parametrize("method", ["loss_gradient", "compute_loss"])
def test_step_in_numpy_cannot_take_tensors(hr_classifier, batch, method):
    classifier = hr_classifier(preprocessing_defences=SpatialSmoothing(channels_first=True, clip_values=(0, 1)))
    with pytest.raises(NotImplementedError, match="expected x to be a NumPy array"):
        getattr(classifier, method)(torch.tensor(batch[0]), torch.tensor(batch[1]))


# -------------------------------------------------------------------------------------------- pickles and processes


@pytest.fixture
def art_data(tmp_path, monkeypatch):
    """ART's data folder, moved to an empty one."""
    folder = tmp_path / "art-data"
    folder.mkdir()
    monkeypatch.setattr(art.config, "ART_DATA_PATH", str(folder))
    return folder


@pytest.fixture
def sequential(hr_classifier, batch):
    """A classifier of torch's own modules, so that any process can unpickle it, with some training behind it."""
    network = seeded(nn.Sequential, nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    classifier = hr_classifier(network=network, attack_loss=nn.CrossEntropyLoss(), preprocessing=(0.3, 0.7))
    classifier.fit(*batch, nb_epochs=1)
    return classifier


def python(*arguments, **environment):
    """Run a fresh interpreter in which warnings are errors."""
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_plain_pickles_need_files_in_arts_data_folder(art_classifier, sequential, art_data):
    """What HRClassifier spares its users; and the next tests look in the right place."""
    pickle.dumps(art_classifier(network=sequential.model))
    assert list(art_data.iterdir())


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(lambda one: pickle.loads(pickle.dumps(one)), id="pickle"),
        pytest.param(copy.deepcopy, id="deepcopy"),
    ],
)
def test_copies_are_equal_and_independent(sequential, batch, art_data, copied):
    x, y = batch
    predictions, gradient = sequential.predict(x), sequential.loss_gradient(x, y)
    sequential.model.train()
    other = copied(sequential)

    assert list(art_data.iterdir()) == []
    assert other.model.training
    np.testing.assert_array_equal(other.predict(x), predictions)
    np.testing.assert_array_equal(other.loss_gradient(x, y), gradient)
    assert type(other.attack_loss) is nn.CrossEntropyLoss
    # The optimizer holds the parameters of the copy, and Adam's moments for them.
    held = {id(parameter) for group in other.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in other.model.parameters()}
    assert {id(parameter) for parameter in other.optimizer.state} == held
    for one in (other, sequential):
        torch.manual_seed(0)
        one.fit(x, y, nb_epochs=1)
        assert not np.array_equal(one.predict(x), predictions)
        if one is other:
            np.testing.assert_array_equal(sequential.predict(x), predictions)
    np.testing.assert_array_equal(other.predict(x), sequential.predict(x))


UNPICKLE = """
import pickle, sys
import art.config, numpy as np
folder, empty = sys.argv[1:]
art.config.ART_DATA_PATH = empty
with open(folder + "/classifier", "rb") as file:
    classifier = pickle.load(file)
images, labels = np.load(folder + "/images.npy"), np.load(folder + "/labels.npy")
np.save(folder + "/predictions.npy", classifier.predict(images))
np.save(folder + "/gradient.npy", classifier.loss_gradient(images, labels))
"""


def test_pickle_in_a_fresh_process(sequential, batch, tmp_path, art_data):
    (tmp_path / "classifier").write_bytes(pickle.dumps(sequential))
    np.save(tmp_path / "images.npy", batch[0])
    np.save(tmp_path / "labels.npy", batch[1])
    python("-c", UNPICKLE, tmp_path, art_data)
    # Another process may take another number of threads and, with it, another order of summation.
    np.testing.assert_allclose(
        np.load(tmp_path / "predictions.npy"), sequential.predict(batch[0]), rtol=1e-5, atol=1e-6
    )
    assert relative_error(np.load(tmp_path / "gradient.npy"), sequential.loss_gradient(*batch)) < 1e-5
    assert list(art_data.iterdir()) == []


READ_ONLY = """
import numpy as np, torch
from art_hrloss import HRClassifier, HRLoss
classifier = HRClassifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), HRLoss(), (1, 8, 8), 10)
images, labels = np.full((5, 1, 8, 8), 0.5, dtype=np.float32), np.arange(5)
for array in (images, labels):
    array.setflags(write=False)
classifier.loss_gradient(images, labels)
classifier.compute_loss(images, labels)
"""


def test_read_only_arrays(tmp_path):
    """As np.load(..., mmap_mode="r") gives them. In a process of its own, because PyTorch warns once in each."""
    python("-c", READ_ONLY)


def test_an_attack_loss_that_is_none_is_refused_at_once(hr_classifier):
    classifier = hr_classifier()
    for refused in (lambda: hr_classifier(attack_loss="ce"), lambda: classifier.set_params(attack_loss=HRLoss)):
        with pytest.raises(TypeError, match=r"expected the attack loss to be a torch\.nn\.Module, but got"):
            refused()
    with pytest.raises(TypeError, match="but got NoneType"):
        attack_view(classifier, None)
    before = classifier.model
    with pytest.raises(TypeError, match="but got str"):
        classifier.set_params(model=nn.Linear(2, 2), attack_loss="ce")
    assert classifier.model is before


def test_no_view_of_a_classifier_with_gradients_of_its_own(network):
    """Through a view of a smoothed classifier one would attack the network without its smoothing."""
    smoothed = PyTorchRandomizedSmoothing(network, HRLoss(), (1, 8, 8), 10, sample_size=4)
    with pytest.raises(TypeError, match="ART's own loss_gradient, but got PyTorchRandomizedSmoothing's"):
        attack_view(smoothed, HRLoss())


def test_is_a_pytorch_classifier(hr_classifier):
    """ART's attacks and trainers ask."""
    assert isinstance(hr_classifier(), PyTorchClassifier)
