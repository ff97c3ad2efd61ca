"""Tests of attacks on tensors: the same images as for arrays, on the classifier's device, with few synchronisations."""

import copy

import numpy as np
import pytest
import torch
from testing.waits import Waits, waits_on_gpu

from art_hrloss import HRClassifier, HRLoss, attack_view
from art_hrloss.attacks import (
    AutoProjectedGradientDescent,
    FastGradientMethod,
    ProjectedGradientDescent,
    SquareAttack,
    attack_loss,
    ensemble,
    seeded,
    worst_case,
)

STEPS = {"eps": 0.15, "eps_step": 0.05, "max_iter": 6, "batch_size": 32, "verbose": False}
STARTS = {"num_random_init": 2}


def wrong(predictions, labels):
    """A user-defined criterion, for which ART's Square attack runs."""
    return predictions.argmax(1) != labels.argmax(1)


CASES = {
    "FGSM": (FastGradientMethod, {"eps": 0.15, "batch_size": 32}),
    "FGSM, attempts": (FastGradientMethod, {"eps": 0.15, "batch_size": 32, **STARTS}),
    "FGSM, norm 2": (FastGradientMethod, {"eps": 1.0, "norm": 2, "loss": "margin", "keep_first": True}),
    "FGSM, smallest": (FastGradientMethod, {"eps": 0.15, "eps_step": 0.05, "minimal": True}),
    "PGD": (ProjectedGradientDescent, STEPS),
    "PGD, attempts": (ProjectedGradientDescent, STEPS | STARTS),
    "PGD, restarts": (ProjectedGradientDescent, STEPS | {"loss": "dlr", "restarts": 2, "keep_first": True}),
    "Auto-PGD": (AutoProjectedGradientDescent, STEPS | {"loss": "ce"}),
    "Auto-PGD, keep_first": (AutoProjectedGradientDescent, STEPS | {"restarts": 2, "keep_first": True}),
    "Auto-PGD, targets": (AutoProjectedGradientDescent, STEPS | {"target_classes": 3, "keep_first": True}),
    "Square": (SquareAttack, {"eps": 0.15, "max_iter": 30, "nb_restarts": 2, "batch_size": 32, "verbose": False}),
    "Square, ART's": (SquareAttack, {"eps": 0.15, "max_iter": 30, "adv_criterion": wrong, "verbose": False}),
}
cases = pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)
gpu = pytest.mark.gpu


@pytest.fixture
def classifier_on(network, digits):
    """A function (device_type, network) that returns a classifier, by default on a copy of the trained network."""

    def build(device_type, **options):
        model = copy.deepcopy(options.pop("network", network))
        shape = digits.x_test.shape[1:]
        return HRClassifier(model, HRLoss(), shape, 10, clip_values=(0, 1), device_type=device_type, **options)

    return build


def generated_images(kind, options, classifier, x, y, **kwargs):
    with seeded(0):
        return kind(classifier, **options).generate(x, y, **kwargs)


def assert_tensors_are_attacked_as_arrays(kind, options, classifier, x, y):
    images, labels = torch.tensor(x), torch.tensor(y)
    attacked = generated_images(kind, options, classifier, images, labels)
    assert attacked.device.type == classifier.device.type
    assert (attacked.dtype, attacked.requires_grad) == (torch.float32, False)
    array = generated_images(kind, options, classifier, x, y)
    assert type(array) is np.ndarray
    np.testing.assert_array_equal(attacked.cpu().numpy(), array)
    assert (np.abs(array - x).reshape(len(x), -1).max(1) > 1e-3).mean() > 0.5
    np.testing.assert_array_equal(images.numpy(), x)
    assert labels.tolist() == y.tolist()


@cases
def test_a_tensor_gives_the_images_of_an_array(classifier_on, x, y, kind, options):
    assert_tensors_are_attacked_as_arrays(kind, options, classifier_on("cpu"), x, y)


@pytest.mark.parametrize("tensor", ["float64", "float16", "of a graph", "mask"])
def test_tensors_of_all_kinds_give_the_images_of_arrays(classifier_on, x, y, tensor):
    kind, options = CASES["PGD"]
    classifier, images, masks = classifier_on("cpu"), torch.tensor(x), [{}, {}]
    if tensor == "mask":
        masks = [{"mask": mask} for mask in (x > 0.2, torch.tensor(x > 0.2))]
    images = images.requires_grad_() if tensor == "of a graph" else images
    images = images.to(getattr(torch, tensor)) if tensor.startswith("float") else images
    array = generated_images(kind, options, classifier, images.detach().numpy(), None, **masks[0])
    np.testing.assert_array_equal(generated_images(kind, options, classifier, images, None, **masks[1]).numpy(), array)


@pytest.mark.parametrize("kind", [FastGradientMethod, ProjectedGradientDescent, SquareAttack])
def test_invalid_tensors_raise_the_errors_of_invalid_arrays(classifier_on, x, y, kind):
    attack = kind(classifier_on("cpu"), eps=0.1)
    for images, pattern in (
        (torch.tensor(x) * 2, "to 2"),
        (torch.tensor(x)[:, 0], r"\(50, 8, 8\)"),
        (torch.tensor(x) / 0, "NaN or infinity"),
        (torch.tensor(x).to(torch.complex64), "complex64"),
    ):
        with pytest.raises(ValueError, match=pattern):
            attack.generate(images, y)


def test_fgsm_along_known_gradients_equals_fgsm(classifier_on, x, y):
    classifier = classifier_on("cpu")
    images, gradient = torch.tensor(x), classifier.loss_gradient(torch.tensor(x), y)
    before = images.clone(), gradient.clone()
    for options in ({"eps": 0.05}, {"eps": 0.2, "targeted": True}, {"eps": 1.0, "norm": 2}, {"eps": 0.1, "loss": "hr"}):
        attack = FastGradientMethod(classifier, **options)
        np.testing.assert_array_equal(attack.along(images, gradient).numpy(), attack.generate(x, y))
        assert torch.equal(images, before[0])
        assert torch.equal(gradient, before[1])
    for options in ({"minimal": True}, {"keep_first": True}, {"restarts": 1}, {"num_random_init": 1}):
        with pytest.raises(ValueError, match="random starts"):
            FastGradientMethod(classifier, **options).along(images, gradient)


def ensemble_of(classifier):
    return ensemble(classifier, eps=0.15, max_iter=5, square_iter=20, hop_skip_jump_iter=1, target_classes=2)


def assert_worst_cases_of_tensors_are_those_of_arrays(classifier, x, y):
    options = {"eps": 0.15, "attacks": ensemble_of(classifier), "verbose": False}
    results = [worst_case(classifier, images, y, **options) for images in (torch.tensor(x), x)]
    tensors, arrays = results
    assert tensors.adversarial.device.type == classifier.device.type
    assert type(arrays.adversarial) is np.ndarray
    np.testing.assert_array_equal(tensors.adversarial.cpu().numpy(), arrays.adversarial)
    assert tensors.found_by.tolist() == arrays.found_by.tolist()
    assert len(set(arrays.found_by.tolist())) > 2


def test_the_worst_case_of_a_tensor_equals_that_of_an_array(classifier_on, x, y):
    assert_worst_cases_of_tensors_are_those_of_arrays(classifier_on("cpu"), x, y)


# Synchronisations are allowed for checks of the arguments and of the labels of a batch, but not in a step.
LONG = {
    "PGD": (ProjectedGradientDescent, {}),
    "PGD, norm 2": (ProjectedGradientDescent, {"norm": 2, "decay": 0.9}),
    "Auto-PGD": (AutoProjectedGradientDescent, {"nb_random_init": 1}),
}
long = pytest.mark.parametrize(("kind", "options"), LONG.values(), ids=LONG)


@long
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_steps_do_not_synchronise(classifier_on, x, y, kind, options, loss):
    classifier, counts = classifier_on("cpu"), []
    for max_iter in (2, 9):
        attack = kind(classifier, loss=loss, **STEPS | options | {"max_iter": max_iter, "batch_size": 100})
        with Waits() as waits:
            attack.generate(torch.tensor(x), torch.tensor(y))
        counts.append(len(waits.names))
    # As ART's, Auto-PGD ends if all losses are 0, which needs a synchronisation after every step but the first.
    assert counts[1] - counts[0] == (7 if kind is AutoProjectedGradientDescent else 0)
    assert counts[0] > 5


# ------------------------------------------------------------------------------------------------------------ on a GPU


@pytest.fixture
def plain_convolutions():
    """Convolutions as matrix products, which are deterministic, and exactly 0 on a GPU where they are on the CPU."""
    with torch.backends.cudnn.flags(enabled=False):
        yield


@gpu
@cases
def test_a_tensor_on_a_gpu_gives_the_images_of_an_array_and_stays_there(
    classifier_on, plain_convolutions, x, y, kind, options
):
    assert_tensors_are_attacked_as_arrays(kind, options, classifier_on("gpu"), x, y)
    attacked = generated_images(
        kind, options, classifier_on("gpu"), torch.tensor(x, device="cuda"), torch.tensor(y, device="cuda")
    )
    np.testing.assert_array_equal(attacked.cpu().numpy(), generated_images(kind, options, classifier_on("gpu"), x, y))


@gpu
def test_the_worst_case_of_a_tensor_on_a_gpu_equals_that_of_an_array(classifier_on, plain_convolutions, x, y):
    assert_worst_cases_of_tensors_are_those_of_arrays(classifier_on("gpu"), x, y)


@gpu
@pytest.mark.parametrize(
    "name", ["FGSM", "FGSM, norm 2", "PGD", "PGD, attempts", "Auto-PGD", "Auto-PGD, targets", "Square"]
)
def test_attacks_of_a_float64_network_are_the_same_on_a_gpu(classifier_on, network, plain_convolutions, x, y, name):
    kind, options = CASES[name]
    double = copy.deepcopy(network).double()
    on_cpu, on_gpu = (
        generated_images(kind, options, classifier_on(device, network=double), x, y) for device in ("cpu", "gpu")
    )
    # Images are float32. If a gradient near 0 has another sign on the other device, the image may differ.
    same = np.isclose(on_gpu, on_cpu, rtol=0, atol=1e-6).reshape(len(x), -1).all(1)
    assert same.mean() >= 0.95
    predicted = [classifier_on("cpu", network=double).predict(images).argmax(1) for images in (on_cpu, on_gpu)]
    assert (predicted[0] != predicted[1]).sum() <= 1


@gpu
@pytest.mark.parametrize("loss", ["ce", "hr", "margin", "dlr"])
def test_fgsm_in_float32_differs_on_a_gpu_only_for_uncertain_gradient_signs(
    classifier_on, plain_convolutions, x, y, loss
):
    on_cpu, on_gpu = (
        generated_images(FastGradientMethod, {"eps": 0.15, "loss": loss}, classifier_on(device), x, y)
        for device in ("cpu", "gpu")
    )
    gradient = np.abs(attack_view(classifier_on("cpu"), attack_loss(loss)).loss_gradient(x, y)).reshape(len(x), -1)
    certain = gradient > 1e-4 * gradient.max(1, keepdims=True)
    assert certain.mean() > 0.8
    assert (np.abs(on_gpu - on_cpu).reshape(len(x), -1)[certain] < 1e-6).all()


@gpu
@long
@pytest.mark.parametrize("loss", ["ce", "margin", "hr"])
def test_steps_on_a_gpu_do_not_synchronise(classifier_on, x, y, kind, options, loss):
    classifier, counts = classifier_on("gpu"), []
    images, labels = torch.tensor(x, device="cuda"), torch.tensor(y, device="cuda")
    for max_iter in (2, 2, 9):  # the first call sets up libraries, which is not counted
        attack = kind(classifier, loss=loss, **STEPS | options | {"max_iter": max_iter, "batch_size": 100})
        counts.append(waits_on_gpu(lambda attack=attack: attack.generate(images, labels)))
    assert counts[2] - counts[1] == (7 if kind is AutoProjectedGradientDescent else 0)
