"""Context managers that restore global state: modules' training modes, and the seeds of random generators."""

import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch.nn import Module, RNNBase


@contextmanager
def restored(objects: Iterable[object], name: str) -> Iterator[None]:
    """Restore an attribute of each object afterwards."""
    before = [(one, getattr(one, name)) for one in objects]
    try:
        yield
    finally:
        for one, value in before:
            if getattr(one, name) is not value:
                setattr(one, name, value)


def modes_kept(*networks: Module) -> AbstractContextManager[None]:
    """Restore each module's training or evaluation mode afterwards: ART's `predict` changes it."""
    return restored((module for network in networks for module in network.modules()), "training")


def gradients_kept(*networks: Module) -> AbstractContextManager[None]:
    """Restore the gradients of all parameters afterwards: ART's `loss_gradient` overwrites them."""
    return restored((parameter for network in networks for parameter in network.parameters()), "grad")


@contextmanager
def in_mode(network: Module, training_mode: bool, *, backward: bool) -> Iterator[None]:
    """
    Put a network in training or evaluation mode, and restore each module's own mode afterwards.

    :param backward: Whether gradients are computed meanwhile.
    """
    recurrent = [module for module in network.modules() if isinstance(module, RNNBase)]
    with modes_kept(network), restored(recurrent, "dropout"):
        if any(module.training != training_mode for module in network.modules()):
            network.train(training_mode)
        if backward and not training_mode:
            # cuDNN has no backward pass of recurrent layers in evaluation mode. Training mode changes their dropout
            # alone, which is therefore 0 meanwhile.
            for module in recurrent:
                module.training, module.dropout = True, 0.0
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """
    Seed the global generators of Python, NumPy and torch, and restore their states afterwards.

    ART draws from them in `fit`, which shuffles, and in its attacks, which start at random.

    >>> with seeded(0):
    ...     first = torch.rand(2)
    >>> with seeded(0):
    ...     bool((torch.rand(2) == first).all())
    True
    """
    python, state = random.getstate(), np.random.get_state()  # noqa: NPY002  # ART draws from this generator
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        random.setstate(python)
