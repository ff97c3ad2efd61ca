"""Context managers that restore global state: modules' training modes, and the seeds of random generators."""

import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch.nn import Module, RNNBase


@contextmanager
def restored(objects: Iterable[object], name: str) -> Iterator[None]:
    """Restore an attribute of each object at the end of the context."""
    values = [(item, getattr(item, name)) for item in objects]
    try:
        yield
    finally:
        for item, value in values:
            # An assignment to a module goes through Module.__setattr__, which is slow for networks of many layers.
            if getattr(item, name) is not value:
                setattr(item, name, value)


def modes_kept(*networks: Module) -> AbstractContextManager[None]:
    """Restore each module's training or evaluation mode at the end of the context: ART's `predict` changes it."""
    return restored((module for network in networks for module in network.modules()), "training")


def gradients_kept(*networks: Module) -> AbstractContextManager[None]:
    """Restore the gradients of all parameters at the end of the context: ART's `loss_gradient` overwrites them."""
    return restored((parameter for network in networks for parameter in network.parameters()), "grad")


@contextmanager
def in_mode(network: Module, training_mode: bool, *, backward: bool) -> Iterator[None]:
    """
    Put a network in training or evaluation mode, and restore the mode of each module at the end of the context.

    :param training_mode: True for training mode, False for evaluation mode.
    :param backward: Whether gradients are computed within the context.
    """
    recurrent = [module for module in network.modules() if isinstance(module, RNNBase)]
    with modes_kept(network), restored(recurrent, "dropout"):
        if any(module.training != training_mode for module in network.modules()):
            network.train(training_mode)
        if backward and not training_mode:
            # cuDNN has no backward pass of recurrent layers in evaluation mode. In these layers training mode only
            # activates dropout, so training mode with dropout 0 is equivalent to evaluation mode.
            for module in recurrent:
                module.training, module.dropout = True, 0.0
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """
    Seed the global random generators of Python, NumPy and torch, and restore their states at the end of the context.

    ART draws from these generators when it shuffles in `fit` and when an attack starts at a random point.

    :param seed: The seed of all three generators, a whole number from 0 to 2**32 - 1.
    :raises ValueError: If the seed is out of its range.

    >>> import torch
    >>> from art_hrloss import seeded
    >>> with seeded(0):
    ...     first = torch.rand(2)
    >>> with seeded(0):
    ...     bool((torch.rand(2) == first).all())
    True
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  # ART uses the global generator
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
