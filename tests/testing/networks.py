"""Networks for tests of attacks and reports; networks with gradient masking are in benchmarks.autoattack.masked."""

import torch
from torch import nn

from benchmarks.autoattack.masked import Around


def noisy(network, size):
    """Return a network that adds random noise to its input."""
    return Around(network, lambda x: x + size * torch.randn_like(x))


def unnormalised(network, mean, std):
    """Return a network for images that were normalised with a mean and a standard deviation."""
    return Around(network, lambda x: x * std + mean)


def in_place(network):
    """Return a network whose first operation works in place."""
    return Around(network, lambda x: x.mul_(0.9))


class Recording(Around):
    """A network that stores its input images, batch by batch."""

    def __init__(self, network):
        super().__init__(network, self._keep)
        self.inputs = []

    def _keep(self, x):
        self.inputs.append(x.detach().numpy().copy())
        return x


def nan_where_bright(network, limit):
    """Return a network with unchanged logits, but a gradient of NaN for bright images."""

    def step(x):
        bright = x.mean((1, 2, 3)) > limit
        same = x.clone()
        same[bright] = x[bright] + (x[bright] - x[bright]).abs().sqrt()
        return same

    return Around(network, step)


class Counting(nn.Module):
    """A network that counts the images of its forward and backward passes."""

    def __init__(self, network):
        super().__init__()
        self.network, self.forwards, self.backwards = network, 0, 0

    def forward(self, x):
        self.forwards += len(x)
        if x.requires_grad:
            x.register_hook(self._count)
        return self.network(x)

    def _count(self, gradient):
        self.backwards += len(gradient)

    def __deepcopy__(self, memo):
        return self  # the report's copy in float64 must be counted as well

    def double(self):
        return self


class Root(nn.Module):
    """The absolute values of an image, with a gradient of NaN where it is 0."""

    def forward(self, x):
        return (x * x).sqrt()


class Curve(nn.Module):
    """Logits (0, f(x)) of an image of one pixel: class 1 where f is above 0."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), self.f(x)], 1)


class DropoutAndBatchNorm(nn.Module):
    """A network whose training and evaluation modes differ."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(216, 10)
        )

    def forward(self, x):
        return self.network(x)
