"""Comparisons of loss and gradient with the reference and the paper's equations, and numerically hard batches."""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from testing import oracle
from testing.losses import ATOL, REDUCTIONS, WEIGHT, as_target, batch, close
from torch import Tensor
from torch.nn.functional import one_hot

from art_hrloss.losses._functional import HRLossTerms, hr_loss, hr_loss_terms

Loss = Callable[..., Tensor]
INF = math.inf
REDUCED = [
    *itertools.product(["batch"], (0.5, 1.0, 1.6, 50.0)),
    ("mean", 1.6),
    ("sum", 0.5),
    ("none", 1.0),
    ("none", 50.0),
]


def reference(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """Return the sum of the two terms, which the reference computes."""
    terms: HRLossTerms = hr_loss_terms(logits, labels, **options)
    return terms.conditional_entropy + terms.renyi_divergence


def value_and_gradient(loss: Loss, logits: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the loss, and the gradient of a weighted sum of its values."""
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, labels, **options)
    by = torch.linspace(1.0, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
    return value.detach(), torch.autograd.grad(value, leaf, by)[0]


def check(
    logits: Tensor, labels: Tensor, expected: Any, gradient: Any, *, loss: Loss = hr_loss, **options: Any
) -> None:
    """
    Compare value and gradient with the expected ones in float64 and float32, up to the rounding of each dtype.

    Entries of a gradient are sums of two terms of either sign, precise relative to the largest entry of the row. The
    share of an example in the gradient of a batch is exp((alpha - 1) nll), and this product is rounded.
    """
    gradient = torch.as_tensor(gradient)
    finite = logits[logits.isfinite()]
    nll = float(finite.max() - finite.min()) + math.log(logits.shape[1])
    for dtype in (torch.float64, torch.float32):
        chosen = {name: each.to(dtype) if isinstance(each, Tensor) else each for name, each in options.items()}
        value, actual = value_and_gradient(loss, logits.to(dtype), labels, **chosen)
        close(value, expected)
        rounding = 32 * (1 + abs(options.get("alpha", 1.6) - 1) * nll) * torch.finfo(dtype).eps
        allowed = rounding * gradient.abs().amax(1, keepdim=True) + ATOL[dtype]
        assert bool(((actual - gradient).abs() <= allowed).all()), ((actual - gradient).abs() / allowed).max()


def compare(logits: Tensor, labels: Tensor, *, loss: Loss = hr_loss, **options: Any) -> None:
    """Compare value and gradient with the reference in float64."""
    check(logits, labels, *value_and_gradient(reference, logits, labels, **options), loss=loss, **options)


@cache
def of_equations(size: tuple[int, int], scale: float, alpha: float) -> tuple[Any, Any]:
    """Return value and gradient from the paper's equations; cached, because all computation paths share them."""
    logits, labels = batch(*size, scale=scale)
    return oracle.hr_loss(logits, labels, alpha), oracle.gradient(logits, labels, alpha)


def hard_cases(logits: Tensor, labels: Tensor, classes: int) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Yield batches, with options, for which a careless implementation loses digits or returns NaN."""
    weight, soft = WEIGHT[:classes], as_target("probabilities", labels, classes)
    for reduction, alpha in REDUCED:
        for options in ({"weight": weight}, {"weight": weight, "ignore_index": 1}):
            yield logits, labels, {"alpha": alpha, "reduction": reduction, **options}
    ignored = labels.clone()
    ignored[[1, 4]] = -100
    yield from ((logits, ignored, {"reduction": reduction}) for reduction in REDUCTIONS)
    ties, first = logits.clone(), labels.clone()
    ties[0], ties[1, :2], first[1] = 0.0, 9.0, 1
    yield ties, first, {}
    yield torch.zeros_like(logits), labels, {}
    # Exponentials of such losses overflow or underflow unless the largest or smallest one is factored out.
    large = 1000 * logits
    large[0], first[0] = torch.linspace(1e-3, -1, classes, dtype=torch.float64), 0
    for alpha in (0.5, 1.6, 50.0):
        yield large, first, {"alpha": alpha}
    absent = logits.clone()
    absent[0, -1], first[0] = -INF, 0
    yield from (
        (absent, first, {"reduction": reduction, "weight": each})
        for reduction in ("batch", "none")
        for each in (None, 1e9 * weight)
    )
    heavy = 1e9 * weight
    heavy[-1] = 0.0  # smoothed labels give a share to every class with a weight
    yield absent, first, {"label_smoothing": 0.1, "weight": heavy, "reduction": "sum"}
    # Below alpha = 1 the batch has a finite loss and gradient despite a label on an absent class.
    impossible = first.index_fill(0, torch.tensor([0]), classes - 1)
    yield from ((absent, each, {"alpha": alpha}) for alpha in (0.3, 0.95) for each in (impossible, one_hot(impossible)))
    for mass, alpha in itertools.product((1e-10, 1.01, 3.0), (0.5, 1.0, 50.0)):
        yield logits, soft * mass, {"alpha": alpha, "label_smoothing": 0.1 * (mass > 1)}
        yield logits, labels, {"alpha": alpha, "label_smoothing": 0.1, "weight": weight * mass}
    # The powers of all probabilities underflow in float32: of flat ones at a large alpha, and of tiny masses.
    flat, spread = batch(2, 10, scale=0.1)[0], batch(2, 10)[0]
    yield flat, torch.full_like(flat, 0.1), {"alpha": 50.0}
    # Not of flat logits: the gradient of the entropy cancels there, to less than the rounding of its operands.
    yield spread, torch.full_like(spread, 1e-25), {}
