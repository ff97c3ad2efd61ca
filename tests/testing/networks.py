"""Networks around a network, to attack and to diagnose."""

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
