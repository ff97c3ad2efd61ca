"""Networks, which map images in [0, 1] to logits. Normalisation is part of the network, so eps refers to its input."""

import torch
from torch import Tensor, nn

from art_hrloss._context import modes_kept
from benchmarks.config import ConfigError, Recipe
from benchmarks.data import Dataset
from benchmarks.references import Reference


def build(recipe: Recipe, *, image_shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """
    Build a network with weights drawn from a seed; they do not depend on the training loss.

    :param recipe: The recipe, which names the architecture or refers to a user's function.
    :param image_shape: Channels, height and width.
    :param classes: Number of logits.
    :param seed: Seed of the initial weights; torch's global generator is not changed.
    :return: The network; its input is a float tensor of shape ``(n, *image_shape)``.
    :raises ConfigError: If a user's function is missing, or returns no network for these images and classes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(recipe.model, Reference):
            network = recipe.model.make(nn.Module, image_shape=image_shape, classes=classes, seed=seed)
            _check_logits(network, recipe.model, image_shape, classes)
        elif recipe.model in ("resnet", "resnet-v2"):
            network = (resnet if recipe.model == "resnet" else resnet_v2)(image_shape[0], classes, blocks=recipe.blocks)
        else:
            network = lenet(image_shape, classes, small=recipe.model == "small-cnn")
    preparation: list[nn.Module] = []
    if recipe.subtract_pixel_mean:
        preparation.append(PixelMean(image_shape))
    if recipe.input_scale != 1:
        preparation.append(Scale(recipe.input_scale))
    model = nn.Sequential(nn.Sequential(*preparation), network)
    # Convolutions on the CPU are about a third faster with channels_last. A user's network may call view() on its
    # images, which fails with that memory format.
    return model if isinstance(recipe.model, Reference) else model.to(memory_format=torch.channels_last)


def build_for(recipe: Recipe, data: Dataset, *, seed: int = 0) -> nn.Module:
    """Build a network (see :func:`build`) for the images and classes of a data set, with its pixel mean if needed."""
    model = build(recipe, image_shape=data.image_shape, classes=data.classes, seed=seed)
    for module in model.modules():
        if isinstance(module, PixelMean):
            module.mean.copy_(torch.from_numpy(data.train.images.mean(0) / 255))
    return model


@torch.no_grad()
def _check_logits(network: nn.Module, reference: Reference, image_shape: tuple[int, int, int], classes: int) -> None:
    """Evaluate a user's network on two black images, and raise a ConfigError unless it returns their logits."""
    expected = f"expected {reference} to map images of shape (2, {', '.join(map(str, image_shape))}) to logits"
    try:
        with modes_kept(network):
            logits = network.eval()(torch.zeros(2, *image_shape))
    except Exception as error:  # a user's code can raise anything
        raise ConfigError(f"{expected} of shape (2, {classes}), but got {error!r}") from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (2, classes):
        raise ConfigError(f"{expected} of shape (2, {classes}), but got {shape}")


@torch.no_grad()
def scale_logits(model: nn.Module, factor: float) -> None:
    """Multiply the logits of one of these networks by a factor above 0, in its last layer, which is linear."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    last.weight.mul_(factor)
    last.bias.mul_(factor)


class Scale(nn.Module):
    """Layer that multiplies images by a factor: with 255, the network gets pixels in [0, 255]."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        """Return images of any shape, multiplied by the factor."""
        return images * self.factor


class PixelMean(nn.Module):
    """Layer that subtracts the training images' mean per pixel; the mean is a buffer, stored with the weights."""

    mean: Tensor

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(image_shape))

    def forward(self, images: Tensor) -> Tensor:
        """Return images of shape ``(n, C, H, W)``, centred."""
        return images - self.mean


def lenet(image_shape: tuple[int, int, int], classes: int, *, small: bool = False) -> nn.Module:
    """
    Build the max-pool LeNet: two convolutions, each with max-pooling, and two fully connected layers.

    The form is that of the paper's appendix C. The appendix states no sizes; these are the standard LeNet's.

    :param image_shape: Channels, height and width.
    :param classes: Number of logits.
    :param small: 3 x 3 padded kernels and 100 hidden units instead of 5 x 5 and 500, for 8 x 8 images.
    :return: The network, with torch's default initialisation.
    """
    channels, height, width = image_shape
    kernel, padding, hidden = (3, 1, 100) if small else (5, 0, 500)
    shrink = kernel - 1 - 2 * padding
    height, width = (((size - shrink) // 2 - shrink) // 2 for size in (height, width))
    if min(height, width) < 1:
        raise ValueError(f"expected images large enough for a LeNet (small={small}), but got {image_shape}")
    return nn.Sequential(
        # Both operations are monotone, so pooling before the ReLU gives the same values with less work.
        nn.Conv2d(channels, 20, kernel, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, kernel, padding=padding),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(50 * height * width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def resnet(channels: int, classes: int, *, blocks: int) -> nn.Module:
    """
    Build the ResNet of 6n+2 layers for small images (He et al. 2016, section 4.2), as in Keras's CIFAR-10 example.

    Three stages of 16, 32 and 64 channels with `blocks` residual blocks each; a 1 x 1 convolution on the shortcut where
    the shape changes; He-normal weights, zero biases; global average pooling.

    :param channels: Channels of the images.
    :param classes: Number of logits.
    :param blocks: n, at least 1.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1), _batch_norm(16), nn.ReLU()]
    width = 16
    for stage, stage_width in enumerate((16, 32, 64)):
        for block in range(blocks):
            layers.append(ResidualBlock(width, stage_width, stride=2 if stage > 0 and block == 0 else 1))
            width = stage_width
    return _he_normal(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)))


def resnet_v2(channels: int, classes: int, *, blocks: int) -> nn.Module:
    """
    Build the ResNet of 9n+2 layers, version 2 (He et al. 2016b), as in Keras's CIFAR-10 example.

    Three stages of `blocks` bottlenecks with 64, 128 and 256 output channels. Batch normalisation and ReLU precede the
    convolutions, and the last block ends without them.

    :param channels: Channels of the images.
    :param classes: Number of logits.
    :param blocks: n, at least 1.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1), _batch_norm(16), nn.ReLU()]
    width, inner = 16, 16
    for stage, stage_width in enumerate((64, 128, 256)):
        for block in range(blocks):
            stride, first = 2 if stage > 0 and block == 0 else 1, stage == block == 0
            layers.append(Bottleneck(width, inner, stage_width, stride=stride, activated=first))
            width = stage_width
        inner = stage_width
    head = (_batch_norm(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return _he_normal(nn.Sequential(*layers, *head))


def _he_normal(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every layer here has a bias
    return network


class ResidualBlock(nn.Module):
    """Residual block: two 3 x 3 convolutions with batch normalisation, plus the input or its 1 x 1 convolution."""

    def __init__(self, width_in: int, width_out: int, *, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1),
            _batch_norm(width_out),
            nn.ReLU(),
            nn.Conv2d(width_out, width_out, 3, padding=1),
            _batch_norm(width_out),
        )
        same = width_in == width_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1, stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        """Return features of shape ``(n, width_out, H / stride, W / stride)``."""
        return torch.relu(self.residual(images) + self.shortcut(images))


class Bottleneck(nn.Module):
    """Bottleneck block: 1 x 1, 3 x 3 and 1 x 1 convolutions, each after normalisation and ReLU, plus the input."""

    def __init__(self, width_in: int, inner: int, width_out: int, *, stride: int, activated: bool) -> None:
        """
        :param width_in: Channels of the input.
        :param inner: Channels between the convolutions.
        :param width_out: Channels of the output.
        :param stride: Stride of the first convolution.
        :param activated: Whether the input is normalised and activated already: the first convolution then follows
            directly.
        """
        super().__init__()
        activation = [] if activated else [_batch_norm(width_in), nn.ReLU()]
        self.residual = nn.Sequential(
            *activation,
            nn.Conv2d(width_in, inner, 1, stride=stride),
            _batch_norm(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1),
            _batch_norm(inner),
            nn.ReLU(),
            nn.Conv2d(inner, width_out, 1),
        )
        same = width_in == width_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1, stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        """Return features of shape ``(n, width_out, H / stride, W / stride)``."""
        out: Tensor = self.residual(images) + self.shortcut(images)
        return out


def _batch_norm(width: int) -> nn.BatchNorm2d:
    """Return batch normalisation with Keras's constants, as in the paper: Keras's momentum 0.99 is torch's 0.01."""
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)
