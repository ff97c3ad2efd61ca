"""A network in ART's form, the result of its evaluation at images, and the gradient by the images."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module, Sequential


class Point(NamedTuple):
    """
    Evaluation of a network at the images of a batch; its tensors are detached from the graph.

    >>> Point(torch.tensor([0.1]), torch.tensor([[2.0, 0.0]]), torch.zeros(1, 4)).slope.shape
    torch.Size([1, 4])
    """

    losses: Tensor
    """The loss of each image, shape ``(n,)``; in nats for the HR loss and cross-entropy."""
    logits: Tensor
    """Shape ``(n, M)``, float32 or float64."""
    gradient: Tensor | None
    """The gradient of each image's loss by the image, shape ``(n, *input_shape)``; None if it was not requested."""

    @property
    def slope(self) -> Tensor:
        """The gradient of an evaluation that computed it; never None."""
        assert self.gradient is not None
        return self.gradient


Observer = Callable[[Tensor, Tensor, Point], None]  # receives images, labels in the form of the loss, and the result


class Network(Module):
    """
    Wrapper of a network in ART's form: casts images to the network's dtype and logits of half precision to float32.

    ART's wrapper is a local class, which cannot be pickled, and it does not check the dtype and type of the output.
    """

    def __init__(self, model: Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs of all layers of a Sequential, or the output of another network; the logits are last."""
        if x.is_floating_point():
            x = x.to(self.dtype)
        if x.is_leaf and x.requires_grad:
            x = x.clone()  # autograd forbids in-place operations on a leaf, and the first layer may be one
        outputs = []
        # A subclass of Sequential that overrides forward may do more than calling its layers one after another.
        calls_layers = isinstance(self._model, Sequential) and type(self._model).forward is Sequential.forward
        for layer in self._model.children() if calls_layers else (self._model,):
            x = layer(x)
            outputs.append(x)
        if not isinstance(x, Tensor):
            raise TypeError(
                f"expected the network to return a tensor of logits, but got a {type(x).__name__}: wrap the network in "
                "a module whose forward returns only the logits"
            )
        # Losses and their gradients lose too much precision in half precision.
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        outputs[-1] = x[:, None] if x.ndim == 1 else x  # shape (n,) becomes (n, 1), as in ART's predict
        return outputs

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter of the network; float32 if there is none."""
        parameters = (parameter.dtype for parameter in self._model.parameters() if parameter.is_floating_point())
        return next(parameters, torch.float32)

    @property
    def get_layers(self) -> list[str]:
        """The names of the network's layers, as ART lists them."""
        return [name for name, _ in self._model.named_children()]


def check_differentiable(floating: bool, dtype: object) -> None:
    """Raise ValueError if the images are not floating-point numbers, because integers have no gradient."""
    if not floating:
        raise ValueError(
            f"expected floating-point images, but got {dtype}: with preprocessing=None they reach the network "
            "unchanged, and integers have no gradient. Convert the images to floating point"
        )


def input_gradient(losses: Tensor, images: Tensor) -> Tensor:
    """Return the gradient of the summed losses by the images; raise ValueError if the network is not differentiable."""
    gradient = torch.autograd.grad(losses.sum(), images, allow_unused=True)[0] if losses.requires_grad else None
    if gradient is None:
        raise ValueError(
            "expected a network that is differentiable by its images, but got one through which no gradient flows: use "
            "SquareAttack, or replace the step without a derivative by a differentiable approximation (BPDA)"
        )
    return gradient


def as_array(values: Tensor) -> np.ndarray:
    """Return a tensor as a NumPy array; bfloat16, which NumPy lacks, becomes float32."""
    values = values.detach().cpu()
    array: np.ndarray = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return array
