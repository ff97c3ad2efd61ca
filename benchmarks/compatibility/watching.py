"""Classifiers that note which of their methods are called from outside, and how their network is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_hrloss import HRClassifier

# What goes past the classifier, straight to its network: with a gradient by the images, or without.
NETWORK_GRADIENTS = "gradients of the network"
NETWORK = "the network"


class Watched:
    """
    Put before a PyTorchClassifier: every method through which ART asks for something notes that it was called.

    Only calls from outside are noted, not those that one method makes to another. `calls` holds the methods' names,
    and NETWORK_GRADIENTS and NETWORK for what goes past them all.
    """

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """:param model: A network with a convolution, by whose forward passes it is watched."""
        self.calls: set[str] = set()
        self._inside = False
        super().__init__(model, *args, **kwargs)  # type: ignore[call-arg]  # the classifier's
        first = next(module for module in self._model.modules() if isinstance(module, nn.Conv2d))  # type: ignore[attr-defined]
        first.register_forward_hook(self._note_forward)

    def loss_gradient(self, *args: Any, **kwargs: Any) -> Any:
        """As the classifier's."""
        with self._noted("loss_gradient"):
            return super().loss_gradient(*args, **kwargs)  # type: ignore[misc]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As the classifier's."""
        with self._noted("compute_loss"):
            return super().compute_loss(*args, **kwargs)  # type: ignore[misc]

    def class_gradient(self, *args: Any, **kwargs: Any) -> Any:
        """As the classifier's."""
        with self._noted("class_gradient"):
            return super().class_gradient(*args, **kwargs)  # type: ignore[misc]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As the classifier's."""
        with self._noted("predict"):
            return super().predict(*args, **kwargs)  # type: ignore[misc]

    def get_activations(self, *args: Any, **kwargs: Any) -> Any:
        """As the classifier's."""
        with self._noted("get_activations"):
            return super().get_activations(*args, **kwargs)  # type: ignore[misc]

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As the classifier's."""
        with self._noted("fit"):
            return super().fit(*args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        if self._inside:
            yield
            return
        self.calls.add(name)
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def _note_forward(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not self._inside:
            self.calls.add(NETWORK_GRADIENTS if inputs[0].requires_grad else NETWORK)


class WatchedHRClassifier(Watched, HRClassifier):
    """An HRClassifier that notes how it is used."""


class WatchedClassifier(Watched, PyTorchClassifier):
    """ART's own classifier, noting how it is used."""
