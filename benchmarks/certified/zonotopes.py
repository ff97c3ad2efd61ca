"""
Certified accuracy in L-infinity by zonotopes: DeepZ (Singh et al. 2018), as in ART, with max-pooling.

ART's PytorchDeepZ supports convolutions, linear layers and ReLU. This module uses ART's layers for the first two. Its
ReLU has the same relaxation as ART's with less memory: ART stores a row of the size of the layer for each error term,
this module stores one number for an error term of a single neuron. At eps 0.001 the LeNet of MNIST took 5.8 s and
3.5 GB per image with ART's ReLU, and 1.3 s and 1.7 GB with this one, of which the program itself has 1 GB. Max-pooling
is max(a, b) = b + relu(a - b), which is exact, so the certified network is the trained network itself.

Zonotopes were chosen because they are tighter than intervals: on the digits' network, at eps 0.01, 0.02 and 0.05, they
certify 0.85, 0.70 and 0.40 of the images, and intervals (ART's IBP) certify 0.30, 0.00 and 0.00. The dual bound of Wong
and Kolter (convex_adversarial) has the same relaxation of ReLU and no max-pooling; it took twice the time and was
slightly looser.
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
    """
    Set of the values centre + sum_i e_i terms_i + e box, for all e_i and e in [-1, 1].

    The e_i are shared by all neurons, which keeps their correlations; e is independent for each neuron.
    """

    terms: Tensor
    """The centre and k error terms that neurons share, shape ``(1 + k, ...)``."""
    box: Tensor
    """One more error term per neuron, which no other neuron shares, shape ``(...)``."""

    @property
    def radius(self) -> Tensor:
        """The largest distance of each neuron's value from the centre."""
        return self.terms[1:].abs().sum(0) + self.box

    def expanded(self) -> Tensor:
        """Return the same set with all error terms as rows, which is ART's form."""
        rows = torch.diag(self.box.flatten())[self.box.flatten() > 0]
        return torch.cat([self.terms, rows.view(-1, *self.box.shape)])


Layer = Callable[[Zonotope], Zonotope]


class ZonotopeNetwork:
    """Trained network as a function from zonotopes to zonotopes, in float64."""

    def __init__(self, network: nn.Module) -> None:
        """
        :param network: A sequence of convolutions, ReLU, 2 x 2 max-pooling and linear layers.
        :raises ConfigError: If it has another kind of layer.
        """
        leaves = [module for module in network.modules() if not list(module.children())]
        # An empty nn.Sequential is the preprocessing of a data set without preprocessing.
        self._layers = [_converted(leaf) for leaf in leaves if not isinstance(leaf, nn.Sequential)]

    @torch.no_grad()
    def output(self, image: Tensor, eps: float) -> Tensor:
        """
        Return a zonotope, shape ``(1 + k, classes)``, that contains the logits of all images in [0, 1] within eps.

        :param image: The image in [0, 1], shape ``(C, H, W)``.
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
        Return, for each image, whether the label has the largest logit for all images in [0, 1] within eps of it.

        :param images: Images in [0, 1], shape ``(n, C, H, W)``.
        :param labels: Class indices, shape ``(n,)``.
        :param eps: The radius in L-infinity.
        """
        return np.array([self._is_certified(*pair, eps) for pair in zip(images, labels, strict=True)], dtype=bool)

    def _is_certified(self, image: Tensor, label: int, eps: float) -> bool:
        zonotope = self.output(image, eps).numpy()
        wrong_classes = (k for k in range(zonotope.shape[1]) if k != label)
        return all(ZonoBounds.certify_via_subtraction(label, k, zonotope[0], zonotope[1:]) for k in wrong_classes)


def _converted(layer: nn.Module) -> Layer:
    """Return a layer as a function of zonotopes."""
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
    supported = "Conv2d of one group, Linear, ReLU, MaxPool2d(2) and Flatten"
    raise ConfigError(f"expected a network of the layers {supported}, but got {layer}: it cannot be certified")


def _affine(converted: nn.Module, weighted: nn.Module, layer: nn.Conv2d | nn.Linear) -> Layer:
    """
    Return ART's layer with a copy of a trained layer's weights, in float64.

    :param converted: ART's layer, which has the bias.
    :param weighted: The module of ART's layer that has the weight.
    :param layer: The trained layer.
    """
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
    weighted.weight = nn.Parameter(layer.weight.detach().clone(memory_format=torch.contiguous_format))
    converted.bias = nn.Parameter(bias.clone())
    converted.double()

    def apply(zonotope: Zonotope) -> Zonotope:
        # An affine layer mixes neurons: the error terms of single neurons become shared ones.
        terms = converted(zonotope.expanded())
        return Zonotope(terms, torch.zeros_like(terms[0]))

    return apply


def relu(zonotope: Zonotope) -> Zonotope:
    """Return the zonotope with the ReLU of each neuron, by the relaxation of smallest area."""
    slope, offset = _relaxed(zonotope.terms[0], zonotope.radius)
    terms = zonotope.terms * slope
    terms[0] += offset
    return Zonotope(terms, zonotope.box * slope + offset)


def _maximum_of_pairs(zonotope: Zonotope, axis: int) -> Zonotope:
    """
    Return the maximum of each pair of neighbours along the height (0) or the width (1), as b + relu(a - b).

    A last row or column without a neighbour is dropped, as in MaxPool2d.
    """
    first, second = (
        Zonotope(*pair) for pair in zip(_pairs(zonotope.terms, axis + 2), _pairs(zonotope.box, axis + 1), strict=True)
    )
    # The shared terms of the difference subtract, so that correlation makes it tight; independent ones add.
    difference = Zonotope(first.terms - second.terms, first.box + second.box)
    slope, offset = _relaxed(difference.terms[0], difference.radius)
    # b + slope (a - b) + offset: the terms of a have the weight slope, and those of b the weight 1 - slope.
    terms = second.terms + slope * difference.terms
    terms[0] += offset
    return Zonotope(terms, slope * first.box + (1 - slope) * second.box + offset)


def _pairs(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    half = values.shape[axis] // 2
    first, second = values.narrow(axis, 0, 2 * half).unflatten(axis, (half, 2)).unbind(axis + 1)
    return first, second


def _relaxed(centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """
    Return slope and offset such that slope x <= relu(x) <= slope x + 2 offset for all x within the radius.

    If 0 is inside the interval [l, u] of a neuron, the lower line goes through 0 and the upper line through (l, 0) and
    (u, u): slope = u / (u - l), offset = -slope l / 2. Otherwise relu is linear, and the offset is 0.
    """
    lower, upper = centre - radius, centre + radius
    crossing = (lower < 0) & (upper > 0)
    slope = torch.where(crossing, upper / torch.where(crossing, upper - lower, 1), (lower >= 0).to(centre.dtype))
    return slope, torch.where(crossing, -slope * lower / 2, 0)
