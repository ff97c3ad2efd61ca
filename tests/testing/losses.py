"""Batches, labels and options of the loss, and comparisons with expected values and derivatives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from art_hrloss import hr_loss

ALPHAS = [0.5, 1.0, 1 + 1e-12, 1 + 1e-6, 1.6, 2.0, 3.0, 50.0]
REDUCTIONS = ["batch", "mean", "sum", "none"]
CLASSES = 5
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0], dtype=torch.float64)  # a class of weight 0 must have no effect
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight": {"weight": WEIGHT},
    "smoothing": {"label_smoothing": 0.1},
    "ignore": {"ignore_index": 1},
    "all": {"weight": WEIGHT, "label_smoothing": 0.1, "ignore_index": 1},
}
TARGETS = ["indices", "one-hot", "probabilities"]
# Warning of torch at the first use of forward mode.
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
# Warning of torch 2.8's compiler for every autograd.Function.
compiler = pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning")
# exp(-m) turns the rounding of a margin m into a relative error of m eps, and m is at most 745 before exp underflows in
# float64, 103 in float32: 8e-14 and 6e-6. Below its smallest normal number float32 has no relative precision, and
# below 1e-80 the 100 digits of the oracle cannot distinguish -log(1 - loss) from 0.
RTOL = {torch.float64: 1e-12, torch.float32: 1e-5}
ATOL = {torch.float64: 1e-80, torch.float32: 1e-36}


def close(actual: Tensor, expected: Any, rtol: float | None = None, atol: float | None = None) -> None:
    """Assert that `actual` equals `expected` up to the precision of its dtype; NaN is never equal."""
    rtol = RTOL[actual.dtype] if rtol is None else rtol
    atol = ATOL[actual.dtype] if atol is None else atol
    expected = torch.as_tensor(np.asarray(expected.detach() if isinstance(expected, Tensor) else expected))
    torch.testing.assert_close(actual.detach().double(), expected.double(), rtol=rtol, atol=atol)


def batch(n: int = 7, classes: int = CLASSES, scale: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return float64 logits that float32 represents exactly, so that both have the same expected value, and labels."""
    random = np.random.default_rng([seed, n, classes])
    logits = torch.from_numpy(random.normal(scale=scale, size=(n, classes)))
    return logits.float().double(), torch.from_numpy(random.integers(classes, size=n))


def as_target(kind: str, labels: Tensor, classes: int = CLASSES) -> Tensor:
    """Return the labels as class indices, as integer one-hot rows, or as probabilities, some of which are 0."""
    if kind == "indices":
        return labels
    if kind == "one-hot":
        return one_hot(labels, classes)
    random = np.random.default_rng(len(labels))
    soft = torch.from_numpy(random.dirichlet(np.ones(classes), size=len(labels))) + one_hot(labels, classes)
    soft[soft < 0.1] = 0.0
    return soft / soft.sum(1, keepdim=True)


def value_and_gradient(logits: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the loss, and the gradient of its sum by the logits."""
    logits = logits.detach().requires_grad_()
    value = hr_loss(logits, target, **options)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def check_derivatives(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Compare reverse mode, reverse mode under vmap, forward mode and second derivatives with finite differences."""
    inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    # fast_mode compares random projections of the Jacobians instead of each entry.
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
