"""Networks around a network, to attack and to diagnose."""

import torch
from torch import nn


class Scaled(nn.Module):
    """The logits multiplied: the same predictions, and cross-entropy saturates."""

    def __init__(self, network, factor):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x):
        return self.factor * self.network(x)


class Counting(nn.Module):
    """Counts the images it is asked about, and those of which it is asked for a gradient."""

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
        return self  # the copy in float64 counts as well

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


class Passes:
    """The sizes of the batches that pass forward through a network, and backward."""

    def __init__(self, network):
        self.network, self.forward, self.backward = network, [], []
        network.register_forward_hook(self._count)

    def _count(self, module, inputs, output):
        self.forward.append(len(output))
        if output.requires_grad:
            output.register_hook(lambda gradient: self.backward.append(len(gradient)))

    def clear(self):
        del self.forward[:], self.backward[:]


class DropoutAndBatchNorm(nn.Module):
    """A network whose training and evaluation modes differ."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(216, 10)
        )

    def forward(self, x):
        return self.network(x)


class InPlace(nn.Module):
    """A network that begins with a step in place."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.mul_(0.9))
