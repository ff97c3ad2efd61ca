"""Networks around a network, to attack and to diagnose."""

from torch import nn


class Scaled(nn.Module):
    """The logits multiplied: the same predictions, and cross-entropy saturates."""

    def __init__(self, network, factor):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x):
        return self.factor * self.network(x)
