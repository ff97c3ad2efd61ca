"""Tests of art_hrloss._preconditions: invalid images, labels and networks, and the absence of side effects."""

import copy
import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from testing.networks import noisy
from torch import nn

from art_hrloss import error_bounds, gradient_masking_report, worst_case
from art_hrloss._preconditions import checked_evaluation

VERDICTS = {
    "checked_evaluation": checked_evaluation,
    "worst_case": lambda classifier, x, y: worst_case(classifier, x, y, eps=0.1, attacks={}),
    "error_bounds": error_bounds,
    "gradient_masking_report": lambda classifier, x, y: gradient_masking_report(
        classifier, x, y, eps=0.1, max_iter=1, square_iter=0, noise_draws=1
    ),
}


class NaNForBrightImages(nn.Module):
    """A network whose logits are NaN for some images."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        bright = x.flatten(1).sum(1, keepdim=True) > 20
        return torch.where(bright, torch.nan, self.network(x))


def diverged(network):
    """Return the network as after a training that diverged."""
    nn.init.constant_(network.fc2.bias, torch.nan)
    return network


def with_value(x, value):
    x = x.copy()
    x[3, 0, 0, 0] = value
    return x


IMAGES = {
    "NaN": (lambda x: with_value(x, np.nan), "finite"),
    "infinity": (lambda x: with_value(x, np.inf), "finite"),
    "too large for float32": (lambda x: with_value(x.astype(np.float64), 1e300), "finite"),
    "0 to 255": (lambda x: 255 * x, "clip_values.*1/255"),
    "uint8": (lambda x: (255 * x).astype(np.uint8), "clip_values.*1/255"),
    "one pixel at -0.3": (lambda x: with_value(x, -0.3), "clip_values"),
    "one pixel at 1.001": (lambda x: with_value(x, 1.001), "clip_values"),
    "none": (lambda x: x[:0], "at least one image"),
    "one number": (lambda x: np.float32(0.5), "at least one image"),
    "strings": (lambda x: x.astype(str), "array of real numbers"),
}
NETWORKS = {
    "normalised by the batch": (
        lambda network: nn.Sequential(network, nn.BatchNorm1d(10, affine=False, track_running_stats=False)),
        "batch statistics",
    ),
    "NaN for some images": (NaNForBrightImages, "finite logits"),
    "NaN for all images": (diverged, "finite logits.* 40 of 40"),
    "softmax": (lambda network: nn.Sequential(network, nn.Softmax(1)), "softmax"),
    "random": (lambda network: noisy(network, 0.1), "deterministic"),
    "one output less": (lambda network: nn.Sequential(network, nn.Linear(10, 9)), "one logit per class"),
    "one output": (lambda network: nn.Sequential(network, nn.Linear(10, 1)), "second output"),
    "one number per image": (lambda network: nn.Sequential(network, nn.Linear(10, 1), nn.Flatten(0)), "second output"),
}


@pytest.mark.parametrize(("images", "keyword"), IMAGES.values(), ids=IMAGES)
def test_invalid_images_raise_an_error(hr_classifier, batch, images, keyword):
    x, y = batch
    for verdict in VERDICTS.values():
        with pytest.raises(ValueError, match=rf"expected .*{keyword}"):
            verdict(hr_classifier(), images(x), y[: np.size(images(x)) // 64])


@pytest.mark.parametrize(("build", "keyword"), NETWORKS.values(), ids=NETWORKS)
def test_invalid_networks_raise_an_error(hr_classifier, art_classifier, network, batch, build, keyword):
    x, y = batch
    classes = 2 if keyword == "second output" else 10
    for make, verdict in itertools.product((hr_classifier, art_classifier), VERDICTS.values()):
        with pytest.raises(ValueError, match=rf"expected .*{keyword}"):
            verdict(make(network=build(network), nb_classes=classes), x, y % classes)


@pytest.mark.parametrize("verdict", VERDICTS.values(), ids=VERDICTS)
def test_clip_values_of_each_pixel(hr_classifier, batch, verdict):
    x, y = batch
    low, high = np.zeros((1, 8, 8), np.float32), np.maximum(x.max(0), 0.5)
    verdict(hr_classifier(clip_values=(low, high)), x, y)
    high[0, 4, 4] = x[:, 0, 4, 4].max() - 0.1
    with pytest.raises(ValueError, match="clip_values"):
        verdict(hr_classifier(clip_values=(low, high)), x, y)


def test_rounding_above_the_clip_values_is_accepted(hr_classifier, batch):
    """Scaling to [0, 1] in float32 may exceed 1 by rounding. Without clip_values all finite images are accepted."""
    x, y = batch
    images = checked_evaluation(hr_classifier(), with_value(x, np.nextafter(np.float32(1), np.float32(2))), y).images
    assert images.max() > 1
    checked_evaluation(hr_classifier(clip_values=None), 255 * x, y)


@pytest.mark.parametrize(
    "form",
    [
        np.asfortranarray,
        lambda x: x.astype(np.float64),
        lambda x: x.astype(">f4"),
        lambda x: x.tolist(),
        lambda x: torch.tensor(x).bfloat16(),
        lambda x: torch.tensor(x, requires_grad=True),
    ],
    ids=["Fortran", "float64", "big-endian", "list", "bfloat16 tensor", "tensor that requires gradients"],
)
def test_images_labels_and_logits_of_a_valid_evaluation(hr_classifier, batch, form):
    """The pixels of the digits are sixteenths, which bfloat16 represents exactly."""
    x, y = batch
    classifier = hr_classifier()
    evaluation = checked_evaluation(classifier, form(x), np.eye(10)[y], batch_size=7)
    assert [part.dtype for part in evaluation] == [np.float32, np.int64, np.float32]
    np.testing.assert_array_equal(evaluation.images, x)
    np.testing.assert_array_equal(evaluation.labels, y)
    np.testing.assert_array_equal(evaluation.logits, classifier.predict(x, batch_size=7))


@pytest.mark.parametrize(
    "build", [nn.Sequential, NETWORKS["random"][0], NaNForBrightImages], ids=["sound", "random", "NaN"]
)
def test_checks_do_not_modify_the_classifier(hr_classifier, network, batch, build):
    x, y = batch
    norm = nn.BatchNorm2d(1)
    network = nn.Sequential(norm, nn.Dropout(0.5), build(network)).train()
    norm.eval()
    modes = [module.training for module in network.modules()]
    state, images = copy.deepcopy(network.state_dict()), x.copy()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    for verdict in VERDICTS.values():
        with nullcontext() if build is nn.Sequential else pytest.raises(ValueError, match="expected"):
            verdict(hr_classifier(network=network), x, y)
    assert [module.training for module in network.modules()] == modes
    assert all(bool((parameter.grad == 1).all()) for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])
    np.testing.assert_array_equal(x, images)


def test_a_classifier_that_is_not_for_pytorch_raises_an_error(network, batch):
    with pytest.raises(TypeError, match="PyTorchClassifier"):
        checked_evaluation(network, *batch)
    with pytest.raises(TypeError, match="PyTorchClassifier"):
        worst_case(network, *batch, eps=0.1)
