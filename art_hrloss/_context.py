"""A network in training or evaluation mode for a while, and each of its modules back in its own afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn import Module, RNNBase


@contextmanager
def modes_kept(*networks: Module) -> Iterator[None]:
    """Every module of the networks back in its own mode afterwards: ART's predict leaves them in evaluation mode."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training


@contextmanager
def in_mode(network: Module, training_mode: bool, *, backward: bool) -> Iterator[None]:
    """
    The network in the given mode, and each of its modules back in its own afterwards, whatever happens.

    :param backward: Whether gradients are taken meanwhile.
    """
    recurrent = [(module, module.dropout) for module in network.modules() if isinstance(module, RNNBase)]
    with modes_kept(network):
        try:
            if any(module.training != training_mode for module in network.modules()):
                network.train(training_mode)
            if backward and not training_mode:
                # cuDNN runs these backwards in training mode only; what that mode changes in them is their dropout.
                for module, _ in recurrent:
                    module.training, module.dropout = True, 0.0
            yield
        finally:
            for module, dropout in recurrent:
                module.dropout = dropout
