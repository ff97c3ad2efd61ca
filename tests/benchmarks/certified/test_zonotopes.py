"""Zonotope certificates, compared with closed forms, ART's DeepZ, random samples and adversarial examples."""

import numpy as np
import pytest
import torch
from art.estimators.certification.deep_z import PytorchDeepZ
from torch import Tensor, nn

from art_hrloss import HRClassifier, ensemble, worst_case
from benchmarks import models
from benchmarks.certified.zonotopes import Zonotope, ZonotopeNetwork, _maximum_of_pairs, relu
from benchmarks.config import ConfigError
from benchmarks.recipes import DIGITS


@pytest.fixture(scope="module")
def network(digits) -> nn.Module:
    """Return the digits' LeNet after 6 epochs of cross-entropy, in evaluation mode."""
    trained = models.build(DIGITS, image_shape=(1, 8, 8), classes=10, seed=0)
    optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)
    images, labels = torch.tensor(digits.x_train), torch.tensor(digits.y_train)
    order = torch.Generator().manual_seed(0)
    for _ in range(6):
        for batch in torch.randperm(len(images), generator=order).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(trained(images[batch]), labels[batch]).backward()
            optimizer.step()
    return trained.eval()


def logits_in_float64(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits = network.double()(images.double())
    network.float()
    return logits


def expect_same_logits(network: nn.Module, images: Tensor) -> None:
    zonotopes = [ZonotopeNetwork(network).output(image, eps=0.0) for image in images]
    assert all(len(zonotope) == 1 for zonotope in zonotopes)  # a single point each
    logits = torch.cat(zonotopes)
    torch.testing.assert_close(logits, logits_in_float64(network, images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shape", "small"), [((1, 8, 8), True), ((1, 28, 28), False), ((3, 33, 30), False)])
def test_the_certified_network_has_the_logits_of_a_lenet(shape: tuple[int, int, int], small: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expect_same_logits(models.lenet(shape, 10, small=small), torch.rand(3, *shape))


def test_the_certified_network_has_the_logits_of_a_trained_network(network: nn.Module, digits) -> None:
    expect_same_logits(network, torch.tensor(digits.x_test[:20]))


def test_a_linear_network_is_certified_exactly_if_its_margin_exceeds_the_largest_change_within_eps() -> None:
    """The largest change of a difference of logits is a sum over pixels of the larger of two products."""
    generator = np.random.default_rng(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Linear(16, 4)
    images = generator.random((300, 1, 4, 4)).astype(np.float32)
    images[:50] = images[:50].round()  # pixels of 0 and 1: half of the box is outside of [0, 1]
    weight, bias = (p.detach().double().numpy() for p in (linear.weight, linear.bias))
    flat, eps = images.reshape(300, 16).astype(np.float64), 0.05
    logits = flat @ weight.T + bias
    labels = logits.argmax(1)
    low, high = (flat - eps).clip(0, 1) - flat, (flat + eps).clip(0, 1) - flat
    difference = weight[None] - weight[labels][:, None]  # of each class to the label
    gained = np.maximum(difference * low[:, None], difference * high[:, None]).sum(2)
    worst = logits + gained - logits.max(1, keepdims=True)
    worst[np.arange(300), labels] = -np.inf
    expected = worst.max(1) < 0
    interior = np.abs(difference).sum(2) * eps
    inside = ((flat > eps) & (flat < 1 - eps)).all(1)
    np.testing.assert_allclose(gained[inside], interior[inside])  # eps times the L1 norm
    certified = ZonotopeNetwork(nn.Sequential(nn.Flatten(), linear)).certified(torch.tensor(images), labels, eps)
    assert 30 < expected.sum() < 270
    np.testing.assert_array_equal(certified, expected)


class WithoutPooling(nn.Module):
    """Network that ART's DeepZ supports: convolutions, ReLU and linear layers, flattened without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_relu = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU()
        self.second, self.second_relu = nn.Conv2d(4, 8, 3, bias=True), nn.ReLU()
        self.third, self.third_relu = nn.Linear(32, 12), nn.ReLU()
        self.last = nn.Linear(12, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.second_relu(self.second(self.first_relu(self.first(images))))
        return self.last(self.third_relu(self.third(features.flatten(1))))


def box(image: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the zonotope of the images in [0, 1] within eps; ART's own clipping fails under NumPy 2.4."""
    low, high = (image.astype(np.float64) - eps).clip(0, 1), (image.astype(np.float64) + eps).clip(0, 1)
    return ((low + high) / 2)[np.newaxis], np.diag((high - low).flatten() / 2).reshape(-1, *image.shape)


def test_bounds_agree_with_those_of_arts_deepz_on_a_network_that_it_supports(digits) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = WithoutPooling()
    parts = list(network.children())
    ours = ZonotopeNetwork(nn.Sequential(*parts[:4], nn.Flatten(), *parts[4:]))
    with pytest.warns(UserWarning, match="dense layers before convolutional"):
        arts = PytorchDeepZ(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu", concrete_to_zonotope=box)
    crossing = 0
    for eps in (0.01, 0.1):
        centres, terms = arts.predict_zonotopes(digits.x_test[:5].copy(), eps)
        for image, centre, errors in zip(digits.x_test[:5], centres, terms, strict=True):
            zonotope = ours.output(torch.tensor(image), eps)
            crossing += len(zonotope) > 1 + 64
            np.testing.assert_allclose(zonotope[0], centre[0], atol=1e-5)
            np.testing.assert_allclose(zonotope[1:].abs().sum(0), np.abs(errors).sum(0), atol=1e-5)
    assert crossing >= 5  # otherwise no ReLU was relaxed


@pytest.mark.parametrize("step", ["relu", 0, 1])
def test_relaxations_contain_every_point_with_the_same_shared_error_terms(step: str | int) -> None:
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1

    zonotope = Zonotope(uniform(6, 3, 8, 8) * torch.linspace(2, 0.1, 6).view(-1, 1, 1, 1), uniform(3, 8, 8).abs() / 4)
    zonotope.box[0] = 0
    result = relu(zonotope) if step == "relu" else _maximum_of_pairs(zonotope, step)
    largest = torch.zeros_like(result.box)
    for i in range(500):
        shared, separate = uniform(5), uniform(3, 8, 8)
        if i % 2:
            shared, separate = shared.sign(), separate.sign()
        point = zonotope.terms[0] + (shared.view(-1, 1, 1, 1) * zonotope.terms[1:]).sum(0) + separate * zonotope.box
        if step == "relu":
            value = point.relu()
        else:
            value = nn.functional.max_pool2d(point[None], (2, 1) if step == 0 else (1, 2))[0]
        centre = result.terms[0] + (shared.view(-1, 1, 1, 1) * result.terms[1:]).sum(0)
        assert ((value - centre).abs() <= result.box + 1e-12).all()
        largest = torch.maximum(largest, (value - centre).abs())
    assert (largest > 0.5 * result.box).double().mean() > 0.5  # the relaxation is not much wider than necessary


def test_the_relu_of_a_neuron_that_is_never_above_0_is_exactly_0() -> None:
    """The upper bound of this neuron is exactly 0, a case in which ART's ZonoReLU returns its input."""
    never = Zonotope(torch.tensor([[-1.0], [1.0]]), torch.zeros(1))
    assert not relu(never).terms.any()
    assert not relu(never).box.any()


def test_no_sample_and_no_adversarial_example_within_eps_of_a_certified_image_is_misclassified(
    network: nn.Module, digits
) -> None:
    images, labels = digits.x_test[:30], digits.y_test[:30]
    zonotopes, eps = ZonotopeNetwork(network), 0.03
    certified = zonotopes.certified(torch.tensor(images), labels, eps)
    assert 5 < certified.sum() < 28
    classifier = HRClassifier(
        network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu", optimizer=None
    )
    attacks = ensemble(classifier, eps=eps, max_iter=10, square_iter=50)
    attacked = worst_case(classifier, images, labels, eps=eps, attacks=attacks, verbose=False)
    assert not (certified & ~attacked.robust).any()
    generator = np.random.default_rng(0)
    for image, label, holds in zip(images, labels, certified, strict=True):
        noise = generator.uniform(-eps, eps, (100, 1, 8, 8))
        noise[50:] = np.sign(noise[50:]) * eps
        logits = logits_in_float64(network, torch.tensor((image + noise).clip(0, 1)))
        zonotope = zonotopes.output(torch.tensor(image), eps)
        assert ((logits - zonotope[0]).abs() <= zonotope[1:].abs().sum(0) + 1e-9).all()
        if holds:
            assert (logits.argmax(1) == label).all()


def test_more_images_are_certified_at_a_smaller_eps(network: nn.Module, digits) -> None:
    zonotopes, images = ZonotopeNetwork(network), torch.tensor(digits.x_test[:20])
    shares = [zonotopes.certified(images, digits.y_test[:20], eps).mean() for eps in (0.001, 0.02, 0.1)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.7
    assert shares[-1] < 0.2


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.MaxPool2d(3), nn.Conv2d(2, 2, 1, groups=2), nn.BatchNorm2d(1)])
def test_a_layer_that_cannot_be_certified_is_named(layer: nn.Module) -> None:
    with pytest.raises(ConfigError, match=type(layer).__name__):
        ZonotopeNetwork(nn.Sequential(nn.Conv2d(1, 2, 1), layer))
