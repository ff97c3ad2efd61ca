"""
Certified accuracy in L-infinity, by zonotopes: DeepZ (Singh et al. 2018), as in ART, with max-pooling.

ART's PytorchDeepZ takes convolutions, linear layers and ReLU. Its layers for the first two are used here; ReLU has
ART's relaxation in another form, for ART's keeps a row of the size of the layer for each error term: at eps 0.001 the
LeNet of MNIST took 5.8 s and 3.5 GB for an image, where this takes 1.3 s and 1.7 GB, of which the program has 1 GB.
Here a term of a single neuron is a number. And max-pooling needs no other network: max(a, b) = b + relu(a - b) holds
for all a and b, so the certified network is the trained one.

Why zonotopes: on the digits' network, at eps 0.01, 0.02 and 0.05, intervals (ART's IBP) certify 0.30, 0.00 and 0.00 of
the images of which zonotopes certify 0.85, 0.70 and 0.40. The dual bound of Wong and Kolter (convex_adversarial), which
relaxes a ReLU in the same way and knows no max-pooling, took twice the time and was a little looser.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.certification.deep_z.deep_z import ZonoBounds, ZonoConv, ZonoDenseLayer
from torch import Tensor, nn

from benchmarks.config import ConfigError


class Zonotope(NamedTuple):
    """The set of all centre + sum of e_i terms_i + e box, where each e_i, and each neuron's own e, is from -1 to 1."""

    terms: Tensor
    """The centre, and k error terms, shape ``(1 + k, ...)``."""
    box: Tensor
    """One more error term for each neuron, which no other neuron shares, shape ``(...)``."""

    @property
    def radius(self) -> Tensor:
        """The largest distance of each neuron from its centre."""
        return self.terms[1:].abs().sum(0) + self.box

    def expanded(self) -> Tensor:
        """The same set with all of its error terms as rows, in ART's form."""
        rows = torch.diag(self.box.flatten())[self.box.flatten() > 0]
        return torch.cat([self.terms, rows.view(-1, *self.box.shape)])


Layer = Callable[[Zonotope], Zonotope]


class ZonotopeNetwork:
    """A network from zonotopes to zonotopes, in float64, with the weights of a trained network."""

    def __init__(self, network: nn.Module) -> None:
        """
        :param network: Convolutions, ReLU, 2 x 2 max-pooling and linear layers, one after the other.
        :raises ConfigError: If it has another layer.
        """
        leaves = [module for module in network.modules() if not list(module.children())]
        # The preparation of images that need none is an nn.Sequential without a layer.
        self._layers = [_converted(leaf) for leaf in leaves if not isinstance(leaf, nn.Sequential)]

    @torch.no_grad()
    def output(self, image: Tensor, eps: float) -> Tensor:
        """
        Return a zonotope, shape ``(1 + k, classes)``, that holds the logits of all images in [0, 1] within eps of one.

        :param image: Shape ``(C, H, W)``, in [0, 1].
        :param eps: The radius in L-infinity.
        """
        image = image.double()
        low, high = (image - eps).clamp(0, 1), (image + eps).clamp(0, 1)
        zonotope = Zonotope((low + high)[None] / 2, (high - low) / 2)
        for layer in self._layers:
            zonotope = layer(zonotope)
        return zonotope.expanded()

    def certified(self, images: Tensor, labels: npt.NDArray[np.int64], eps: float) -> npt.NDArray[np.bool_]:
        """
        Return for each image whether every image in [0, 1] within eps of it has the label's logit above all others.

        :param images: Shape ``(n, C, H, W)``, in [0, 1].
        :param labels: Class indices, shape ``(n,)``.
        :param eps: The radius in L-infinity.
        """
        return np.array([self._is_certified(*pair, eps) for pair in zip(images, labels, strict=True)], dtype=bool)

    def _is_certified(self, image: Tensor, label: int, eps: float) -> bool:
        zonotope = self.output(image, eps).numpy()
        others = (k for k in range(zonotope.shape[1]) if k != label)
        return all(ZonoBounds.certify_via_subtraction(label, k, zonotope[0], zonotope[1:]) for k in others)


def _converted(layer: nn.Module) -> Layer:
    """Return a layer's counterpart for zonotopes."""
    if isinstance(layer, nn.ReLU):
        return relu
    if isinstance(layer, nn.MaxPool2d) and (layer.kernel_size, layer.stride, layer.padding) == (2, 2, 0):
        return lambda zonotope: _maximum_of_pairs(_maximum_of_pairs(zonotope, 0), 1)
    if isinstance(layer, nn.Flatten):
        return lambda zonotope: Zonotope(zonotope.terms.flatten(1), zonotope.box.flatten())
    if isinstance(layer, nn.Linear):
        dense = ZonoDenseLayer(layer.in_features, layer.out_features)
        return _affine(dense, dense, layer)
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
        sizes = layer.kernel_size, layer.stride, layer.dilation, layer.padding
        convolution = ZonoConv(layer.in_channels, layer.out_channels, *sizes)
        return _affine(convolution, convolution.conv, layer)
    known = "Conv2d of one group, Linear, ReLU, MaxPool2d(2) and Flatten"
    raise ConfigError(f"expected a network of the layers {known}, but got {layer}: these alone can be certified")


def _affine(converted: nn.Module, weighted: nn.Module, layer: nn.Conv2d | nn.Linear) -> Layer:
    """
    Return a layer of ART's with a copy of a layer's weights, in float64.

    :param converted: ART's layer, which has the bias.
    :param weighted: The part of it that has the weight.
    :param layer: The trained layer.
    """
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
    weighted.weight = nn.Parameter(layer.weight.detach().clone(memory_format=torch.contiguous_format))
    converted.bias = nn.Parameter(bias.clone())
    converted.double()

    def apply(zonotope: Zonotope) -> Zonotope:
        terms = converted(zonotope.expanded())
        return Zonotope(terms, torch.zeros_like(terms[0]))

    return apply


def relu(zonotope: Zonotope) -> Zonotope:
    """Return the zonotope of least area that holds the ReLU of each neuron."""
    slope, offset = _relaxed(zonotope.terms[0], zonotope.radius)
    terms = zonotope.terms * slope
    terms[0] += offset
    return Zonotope(terms, zonotope.box * slope + offset)


def _maximum_of_pairs(zonotope: Zonotope, axis: int) -> Zonotope:
    """
    Return the larger of each two neighbours along the height (0) or the width (1), as b + relu(a - b).

    A last row or column without a neighbour is left out.
    """
    first, second = (
        Zonotope(*pair) for pair in zip(_pairs(zonotope.terms, axis + 2), _pairs(zonotope.box, axis + 1), strict=True)
    )
    difference = Zonotope(first.terms - second.terms, first.box + second.box)
    slope, offset = _relaxed(difference.terms[0], difference.radius)
    terms = second.terms + slope * difference.terms
    terms[0] += offset
    return Zonotope(terms, slope * first.box + (1 - slope) * second.box + offset)


def _pairs(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    half = values.shape[axis] // 2
    first, second = values.narrow(axis, 0, 2 * half).unflatten(axis, (half, 2)).unbind(axis + 1)
    return first, second


def _relaxed(centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """
    Return slope and offset such that relu(x) lies from slope x to slope x + 2 offset for all x within the radius.

    For a neuron that may be on both sides of 0 the lower line goes through 0, and the upper one through both ends.
    """
    lower, upper = centre - radius, centre + radius
    crossing = (lower < 0) & (upper > 0)
    slope = torch.where(crossing, upper / torch.where(crossing, upper - lower, 1), (lower >= 0).to(centre.dtype))
    return slope, torch.where(crossing, -slope * lower / 2, 0)
