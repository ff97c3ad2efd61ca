"""Networks: shapes, sizes, seeds and normalisation; training and attack losses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import data, models
from benchmarks.config import LossSpec, Recipe
from benchmarks.data import Dataset
from benchmarks.losses import attack_loss, training_loss

RECIPE = Recipe(model="lenet", epochs=1, batch_size=1, lr=1.0)
RESNET = replace(RECIPE, model="resnet", subtract_pixel_mean=True)
CASES = [
    # parameters: counted by hand from the layers' sizes
    pytest.param(RECIPE, (1, 28, 28), 20 * 26 + 50 * 501 + 500 * 801 + 10 * 501, id="lenet"),
    pytest.param(replace(RECIPE, model="small-cnn"), (1, 8, 8), 20 * 10 + 50 * 181 + 100 * 201 + 10 * 101, id="small"),
    pytest.param(
        RESNET,
        (3, 32, 32),
        (16 * 28 + 32)
        + (2 * 16 * 145 + 2 * 32)
        + (32 * 145 + 32 * 289 + 2 * 64 + 32 * 17)
        + (64 * 289 + 64 * 577 + 2 * 128 + 64 * 33)
        + 10 * 65,
        id="resnet-8",
    ),
    pytest.param(
        replace(RESNET, blocks=2),
        (3, 32, 32),
        # Each further block has two convolutions of the same width, each with batch normalisation.
        (16 * 28 + 32)
        + (4 * 16 * 145 + 4 * 32)
        + (32 * 145 + 3 * 32 * 289 + 4 * 64 + 32 * 17)
        + (64 * 289 + 3 * 64 * 577 + 4 * 128 + 64 * 33)
        + 10 * 65,
        id="resnet-14",
    ),
    pytest.param(
        replace(RESNET, model="resnet-v2"),
        (3, 32, 32),
        (16 * 28 + 32)
        + (16 * 17 + 32 + 16 * 145 + 32 + 2 * 64 * 17)
        + (128 + 64 * 65 + 128 + 64 * 577 + 128 + 2 * 128 * 65)
        + (256 + 128 * 129 + 256 + 128 * 1153 + 256 + 2 * 256 * 129)
        + 512
        + 10 * 257,
        id="resnet-11, version 2",
    ),
]

SMALL = replace(RECIPE, model="small-cnn")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits", data_dir=Path("none"), validation_size=180)


@pytest.mark.parametrize(("recipe", "shape", "parameters"), CASES)
def test_the_number_of_parameters_and_the_shape_of_the_logits(
    recipe: Recipe, shape: tuple[int, int, int], parameters: int
) -> None:
    model = models.build(recipe, image_shape=shape, classes=10, seed=0)
    assert model(torch.rand(2, *shape)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("recipe", "shape", "parameters"), CASES)
def test_the_weights_depend_only_on_the_seed(recipe: Recipe, shape: tuple[int, int, int], parameters: int) -> None:
    before = torch.random.get_rng_state()
    first, second, other = (models.build(recipe, image_shape=shape, classes=10, seed=s) for s in (7, 7, 8))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_resnet_layers_are_6n_plus_2() -> None:
    for blocks in (1, 3):
        network = models.resnet(3, 10, blocks=blocks)
        weighted = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        shortcuts = [m for m in weighted if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
        assert len(weighted) - len(shortcuts) == 6 * blocks + 2
        assert len(shortcuts) == 2


def test_resnet_version_2_has_9n_plus_2_layers_and_blocks_that_end_with_a_sum() -> None:
    for blocks in (1, 2):
        network = models.resnet_v2(3, 10, blocks=blocks)
        weighted = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        bottlenecks = [m for m in network if isinstance(m, models.Bottleneck)]
        shortcuts = [m for m in bottlenecks if isinstance(m.shortcut, nn.Conv2d)]
        assert (len(weighted) - len(shortcuts), len(shortcuts)) == (9 * blocks + 2, 3)
        features = torch.randn(2, 16, 8, 8)
        (first, *_) = bottlenecks
        assert torch.equal(first(features), first.residual(features) + first.shortcut(features))
        assert isinstance(first.residual[0], nn.Conv2d)
        assert all(isinstance(block.residual[0], nn.BatchNorm2d) for block in bottlenecks[1:])


def pixel_mean(model: nn.Module) -> models.PixelMean:
    (module,) = (module for module in model.modules() if isinstance(module, models.PixelMean))
    return module


def gradient_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of cross-entropy with respect to the images."""
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad(attack_loss("ce")(model(leaf), labels).sum(), leaf)[0]


def test_the_mean_is_subtracted_inside_the_network() -> None:
    model = models.build(RESNET, image_shape=(3, 32, 32), classes=10, seed=0).eval()
    images = torch.rand(2, 3, 32, 32)
    plain = model(images)
    pixel_mean(model).mean.fill_(0.25)
    torch.testing.assert_close(model(images + 0.25), plain, rtol=1e-4, atol=1e-5)


def test_the_pixel_mean_is_the_mean_of_the_training_images(digits: Dataset) -> None:
    model = models.build_for(replace(SMALL, subtract_pixel_mean=True), digits)
    mean = pixel_mean(model).mean
    expected = digits.train.images.astype(np.float64).mean(0) / 255
    torch.testing.assert_close(mean, torch.from_numpy(expected).float())
    assert mean.shape == (1, 8, 8)
    assert not np.allclose(expected, digits.test.images.mean(0) / 255, atol=1e-3)
    # The mean is subtracted from the input, and it is not a trained parameter.
    plain = models.build_for(SMALL, digits)
    images, _ = digits.test.tensors(torch.device("cpu"))
    torch.testing.assert_close(model(images), plain(images - mean))
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("model", ["small-cnn", "resnet"])
@pytest.mark.parametrize("mean", [False, True], ids=["plain", "mean"])
def test_a_network_with_input_scale_255_gets_8_bit_pixels(digits: Dataset, model: str, mean: bool) -> None:
    """Images in [0, 1] with the scale give the logits of images in [0, 255] without it, with a scaled mean."""
    recipe = replace(RECIPE, model=model, subtract_pixel_mean=mean)
    plain, scaled = (models.build_for(replace(recipe, input_scale=s), digits, seed=4) for s in (1.0, 255.0))
    plain, scaled = plain.double().eval(), scaled.double().eval()
    if mean:
        pixel_mean(plain).mean.mul_(255)
    images, labels = (tensor[:40] for tensor in digits.test.tensors(torch.device("cpu")))
    images = images.double()
    with torch.no_grad():
        torch.testing.assert_close(scaled(images), plain(255 * images))
        assert not torch.allclose(scaled(images), plain(images), atol=0.1)
    gradient = gradient_of(plain, 255 * images, labels)
    assert gradient.abs().max() > 1e-6
    torch.testing.assert_close(gradient_of(scaled, images, labels), 255 * gradient)


def test_build_for_uses_the_image_shape_and_classes_of_the_data(digits: Dataset) -> None:
    ours, theirs, other = (
        models.build_for(SMALL, digits, seed=5),
        models.build(SMALL, image_shape=(1, 8, 8), classes=10, seed=5),
        models.build_for(SMALL, digits, seed=6),
    )
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
    assert not torch.equal(next(ours.parameters()), next(other.parameters()))


@pytest.mark.parametrize("name", ["small-cnn", "resnet"])
@pytest.mark.parametrize(
    "preparation", [{}, {"subtract_pixel_mean": True}, {"input_scale": 255.0}], ids=["plain", "mean", "scale"]
)
def test_a_state_dict_restores_the_trained_network(digits: Dataset, name: str, preparation: dict) -> None:
    recipe = replace(RECIPE, model=name, **preparation)
    trained, fresh = (models.build_for(recipe, digits, seed=seed) for seed in (1, 2))
    images, _ = (tensor[:40] for tensor in digits.test.tensors(torch.device("cpu")))
    trained(images)  # in training mode, which updates batch statistics
    if "subtract_pixel_mean" in preparation:
        pixel_mean(trained).mean.add_(0.1)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(trained.eval()(images), fresh.eval()(images))


def test_the_names_of_the_weights_do_not_depend_on_the_scale(digits: Dataset) -> None:
    """The weights of a network can be loaded into a network of another scale."""
    plain, scaled = (models.build_for(replace(SMALL, input_scale=scale), digits) for scale in (1.0, 255.0))
    assert list(plain.state_dict()) == list(scaled.state_dict())


def test_the_lenet_has_two_convolutions_with_relu_and_pooling_and_two_linear_layers() -> None:
    network = models.lenet((1, 8, 8), 10, small=True)
    first, second = (module for module in network if isinstance(module, nn.Conv2d))
    hidden, last = (module for module in network if isinstance(module, nn.Linear))
    features = images = torch.rand(3, 1, 8, 8)
    for convolution in (first, second):
        features = torch.max_pool2d(convolution(features).relu(), 2)
    torch.testing.assert_close(network(images), last(hidden(features.flatten(1)).relu()))


def test_the_relu_of_a_residual_block_follows_the_sum_with_the_shortcut() -> None:
    block = models.ResidualBlock(4, 4, stride=1).eval()
    # Without a residual, the output is the ReLU of the input.
    for parameter in block.residual[-1].parameters():
        nn.init.zeros_(parameter)
    features = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(features), features.relu())


def test_initial_weights_of_the_resnet_are_he_normal_and_biases_are_0() -> None:
    for module in models.resnet(3, 10, blocks=1).modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            inputs = module.weight[0].numel()
            # The standard deviation of n draws has a relative error of 1 / sqrt(2 n); four times that is allowed.
            stray = 4 / (2 * module.weight.numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=stray)
            assert not module.bias.any()


def test_the_momentum_of_batch_statistics_is_one_hundredth_as_in_keras() -> None:
    network = models.resnet(3, 10, blocks=1).train()
    images = torch.rand(4, 3, 8, 8)
    mean = network[0](images).mean((0, 2, 3))
    network(images)
    torch.testing.assert_close(network[1].running_mean, 0.01 * mean, rtol=1e-4, atol=1e-6)
    assert network[1].eps == 1e-3


def test_images_too_small_for_the_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"large enough for a LeNet .* but got \(1, 8, 8\)"):
        models.build(RECIPE, image_shape=(1, 8, 8), classes=10, seed=0)


@pytest.mark.parametrize("margin", [5.0, 30.0, 60.0])
def test_the_gradient_of_exact_cross_entropy_is_correct_at_any_margin(margin: float) -> None:
    logits = torch.tensor([[margin, 0.0, -1.0]], requires_grad=True)
    loss = attack_loss("ce")(logits, torch.tensor([0]))
    gradient = torch.autograd.grad(loss.sum(), logits)[0].double()
    # Closed form: q_k for the other classes, and minus their sum for the true class.
    odds = torch.tensor([-margin, -margin - 1], dtype=torch.float64).exp()
    others = odds / (1 + odds.sum())
    expected = torch.cat([-others.sum(0, keepdim=True), others])[None]
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.double(), odds.sum(0, keepdim=True).log1p(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["ce", "hr"])
def test_clipped_losses_equal_the_exact_ones_until_they_saturate(name: str) -> None:
    logits = torch.tensor([[4.0, 0.0, -1.0], [15.0, 0.0, -1.0], [17.0, 0.0, -1.0]], requires_grad=True)
    labels = torch.zeros(3, dtype=torch.long)
    values, gradients = [], []
    for loss in (attack_loss(name), attack_loss(f"clipped-{name}")):
        values.append(loss(logits, labels).detach())
        gradients.append(torch.autograd.grad(loss(logits, labels).sum(), logits)[0])
    torch.testing.assert_close(values[1][0], values[0][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients[1][0], gradients[0][0], rtol=1e-5, atol=0)
    assert (gradients[1][1] != 0).any()
    assert (gradients[0][2] != 0).all()
    if name == "ce":
        assert (gradients[1][2] == 0).all()


def test_the_gradient_of_torchs_cross_entropy_loses_the_true_class_at_a_margin_of_30() -> None:
    logits = torch.tensor([[30.0, 0.0, -1.0]], requires_grad=True)
    loss = attack_loss("torch-ce")(logits, torch.tensor([0]))
    gradient = torch.autograd.grad(loss.sum(), logits)[0]
    assert gradient[0, 0] == 0
    assert (gradient[0, 1:] > 0).all()


@pytest.mark.parametrize("alpha", [1.2, 3.0])
def test_training_losses_are_means_in_nats_at_the_alpha_of_the_specification(alpha: float) -> None:
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 3
    q = logits.softmax(1)
    true = q[torch.arange(6), labels]
    torch.testing.assert_close(training_loss(LossSpec("ce"))(logits, labels), -true.log().mean())
    entropy = -(q * q.log()).sum(1).mean()
    divergence = (true ** (1 - alpha)).mean().log() / (alpha - 1)
    torch.testing.assert_close(training_loss(LossSpec("hr", alpha))(logits, labels), entropy + divergence)


def test_clipped_losses_saturate_at_a_probability_of_1e_7() -> None:
    logits = torch.tensor([[0.0, 20.0]], requires_grad=True)
    loss = attack_loss("clipped-ce")(logits, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor([1e-7]).log().neg())
    assert not torch.autograd.grad(loss.sum(), logits)[0].any()


@pytest.mark.parametrize("name", ["small-cnn", "lenet", "resnet", "resnet-v2"])
def test_scaled_logits_are_the_logits_times_the_factor(name: str) -> None:
    recipe = Recipe(model=name, epochs=1, batch_size=1, lr=0.1)
    model = models.build(recipe, image_shape=(1, 28, 28), classes=7, seed=1).eval()
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():  # no bias is 0
            parameter.add_(0.01)
        before = model(images)
        models.scale_logits(model, 2.5)
        assert torch.allclose(model(images), 2.5 * before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [None, 1.6])
def test_label_smoothing_mixes_labels_with_the_uniform_distribution(alpha: float | None) -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.3, 0.1, -2.0]], dtype=torch.float64)
    labels = torch.tensor([0, 2])
    smoothed = LossSpec("ce" if alpha is None else "hr", alpha, label_smoothing=0.3)
    mixed = 0.7 * torch.eye(3, dtype=torch.float64)[labels] + 0.1
    bare = training_loss(replace(smoothed, label_smoothing=0.0))
    assert torch.allclose(training_loss(smoothed)(logits, labels), bare(logits, mixed))
    assert not torch.allclose(bare(logits, labels), bare(logits, mixed))
