"""Every way in which the loss of class indices is computed, against the plain composition and the paper's equations."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from losses.test_functional import ATOL, WEIGHT, batch, close
from testing import oracle
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from art_hrloss.losses import _fused as fused
from art_hrloss.losses import _small_batch as small_batch
from art_hrloss.losses._functional import HRLossTerms, hr_loss, hr_loss_terms

Loss = Callable[..., Tensor]
WAYS = ["small batch", "at once", "in blocks", "traced"]
ALPHAS = [0.5, 1.0, 1 + 1e-6, 1.6, 50.0]
# Few classes lie by columns in NumPy, many by rows.
SIZES = [(7, 5), (9, 40)]
INF = math.inf


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have :func:`hr_loss` compute in one of the ways."""
    if request.param != "small batch":
        monkeypatch.setattr(small_batch, "LARGEST", 0)
    if request.param == "in blocks":
        monkeypatch.setattr(fused, "_BLOCK", 16)
    if request.param == "traced":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    way: str = request.param
    return way


def plain(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """The sum of the two terms, which are computed by torch's operations alone."""
    terms: HRLossTerms = hr_loss_terms(logits, labels, **options)
    return terms.conditional_entropy + terms.renyi_divergence


def value_and_gradient(loss: Loss, logits: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of its values each times another number."""
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, labels, **options)
    by = torch.linspace(1.0, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
    return value.detach(), torch.autograd.grad(value, leaf, by)[0]


def check(logits: Tensor, labels: Tensor, expected: Any, gradient: Any, **options: Any) -> None:
    """
    Value and gradient in both precisions, each to its own last digits.

    Entries of a gradient are sums of two terms of either sign, right to the digits of the row's greatest; and the share
    of an example in that of a batch is exp((alpha - 1) nll), of a product that is rounded.
    """
    gradient = torch.as_tensor(gradient)
    finite = logits[logits.isfinite()]
    nll = float(finite.max() - finite.min()) + math.log(logits.shape[1])
    for dtype in (torch.float64, torch.float32):
        chosen = {name: each.to(dtype) if isinstance(each, Tensor) else each for name, each in options.items()}
        value, found = value_and_gradient(hr_loss, logits.to(dtype), labels, **chosen)
        close(value, expected)
        rounding = 32 * (1 + abs(options.get("alpha", 1.6) - 1) * nll) * torch.finfo(dtype).eps
        allowed = rounding * gradient.abs().amax(1, keepdim=True) + ATOL[dtype]
        assert bool(((found - gradient).abs() <= allowed).all()), ((found - gradient).abs() / allowed).max()


def compare(logits: Tensor, labels: Tensor, **options: Any) -> None:
    """The same against the plain composition in float64."""
    check(logits, labels, *value_and_gradient(plain, logits, labels, **options), **options)


@cache
def of_equations(size: tuple[int, int], scale: float, alpha: float) -> tuple[Any, Any]:
    """Value and gradient by the paper, the same for every way."""
    logits, labels = batch(*size, scale=scale)
    return oracle.hr_loss(logits, labels, alpha), oracle.gradient(logits, labels, alpha)


def is_way(way: str, value: Tensor) -> bool:
    """Whether a loss has come about in this way, by what its node in the graph has kept."""
    found = getattr(value.grad_fn, "gradient", None) is not None
    return found == (way == "small batch")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0, 1000.0])
def test_values_and_gradients_are_those_of_the_equations(way: str, scale: float, size: tuple[int, int]) -> None:
    logits, labels = batch(*size, scale=scale)
    for alpha in ALPHAS:
        check(logits, labels, *of_equations(size, scale, alpha), alpha=alpha)


@pytest.mark.parametrize("reduction", ["batch", "mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, {"weight": WEIGHT}, {"ignore_index": 1}], ids=["plain", "weight", "ignore"])
@pytest.mark.filterwarnings("ignore:HRLoss")
def test_every_reduction_and_option_is_as_plain(way: str, options: dict[str, Any], reduction: str) -> None:
    logits, labels = batch()
    for alpha in ALPHAS:
        compare(logits, labels, alpha=alpha, reduction=reduction, **options)
    value = hr_loss(logits.requires_grad_(), labels, reduction=reduction)  # type: ignore[arg-type]
    assert is_way(way, value)


def test_shapes_are_those_of_cross_entropy(way: str) -> None:
    logits, labels = batch(24)
    for shape in ((24, 5), (2, 3, 4, 5), (6, 4, 5)):
        z, y = logits.reshape(shape).movedim(-1, 1), labels.reshape(shape[:-1])
        for reduction in ("batch", "none"):
            value, gradient = value_and_gradient(hr_loss, z, y, reduction=reduction)
            expected, expected_gradient = value_and_gradient(plain, z, y, reduction=reduction)
            assert value.shape == (y.shape if reduction == "none" else ())
            close(value, expected)
            close(gradient, expected_gradient, atol=1e-15)
    close(hr_loss(logits[0], labels[0]), plain(logits[0], labels[0]))


def test_logits_need_not_lie_in_order(way: str) -> None:
    logits, labels = batch(8)
    spread = torch.empty(5, 16, dtype=torch.float64).T[::2]
    spread.copy_(logits)
    twice = labels.repeat_interleave(2)[::2]
    assert not spread.is_contiguous()
    assert not twice.is_contiguous()
    close(value_and_gradient(hr_loss, spread, twice)[1], value_and_gradient(plain, logits, labels)[1], atol=1e-15)


@pytest.mark.parametrize("size", SIZES)
def test_equal_largest_logits_count_each(way: str, size: tuple[int, int]) -> None:
    logits, labels = batch(*size)
    logits[0] = 0.0
    logits[1, :2], labels[1] = 9.0, 1
    logits[2, 2:4], labels[2] = 9.0, 0
    compare(logits, labels)


@pytest.mark.parametrize("margin", [20.0, 40.0, 90.0])
def test_a_confident_example_loses_no_digit(way: str, margin: float) -> None:
    # Where q_y is 1 to all digits of the type, loss and gradient are of the order of exp(-margin), not 0.
    logits = torch.tensor([[margin, 0.0, -1.0]], dtype=torch.float64)
    compare(logits, torch.tensor([0]))
    assert 0 < hr_loss(logits.float(), torch.tensor([0])) < 50 * math.exp(-margin) * margin


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reduction", ["batch", "none"])
def test_impossible_classes_and_labels_are_as_plain(way: str, reduction: str, size: tuple[int, int]) -> None:
    logits, labels = batch(*size)
    logits[0, 3] = -INF
    labels[0] = 2
    compare(logits, labels, reduction=reduction)
    labels[0] = 3
    assert hr_loss(logits, labels, reduction=reduction).max() == INF  # type: ignore[arg-type]
    logits[0, 0] = math.nan
    assert hr_loss(logits, labels).isnan()


@pytest.mark.parametrize("alpha", [0.5, 1.6, 50.0])
def test_losses_of_any_size_are_as_plain(way: str, alpha: float) -> None:
    # Powers of such losses overflow, or leave nothing, unless the largest or least one is taken out first.
    logits, labels = batch(6)
    logits *= 1000
    logits[0], labels[0] = torch.tensor([1e-3, 0.0, 0.0, 0.0, -1.0]), 0
    compare(logits, labels, alpha=alpha)


def test_an_index_out_of_range_is_an_error(way: str) -> None:
    logits, labels = batch()
    for bad in (5, -1):
        labels[3] = bad
        with pytest.raises(RuntimeError):
            hr_loss(logits, labels)


@pytest.mark.parametrize("reduction", ["batch", "none"])
@pytest.mark.parametrize("way", ["small batch", "at once", "in blocks"], indirect=True)
def test_second_derivatives_are_the_plain_ones(way: str, reduction: str) -> None:
    logits, labels = batch(4)

    def twice(loss: Loss) -> Tensor:
        leaf = logits.detach().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf, labels, reduction=reduction).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    close(twice(hr_loss), twice(plain), atol=1e-15)


@pytest.mark.parametrize("reduction", ["batch", "none"])
def test_a_graph_can_be_gone_back_through_again(way: str, reduction: str) -> None:
    logits, labels = batch()
    leaf = logits.requires_grad_()
    value = hr_loss(leaf, labels, reduction=reduction)  # type: ignore[arg-type]
    by = torch.ones_like(value)
    (first,) = torch.autograd.grad(value, leaf, by, retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(value, leaf, by, retain_graph=True)
    assert torch.equal(second, kept)
    close(torch.autograd.grad(value, leaf, 3 * by)[0], 3 * kept)


def test_larger_batches_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = batch()
    monkeypatch.setattr(small_batch, "LARGEST", logits.numel())
    assert is_way("small batch", hr_loss(logits.requires_grad_(), labels))
    monkeypatch.setattr(small_batch, "LARGEST", logits.numel() - 1)
    assert is_way("at once", hr_loss(logits, labels))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("trace", [make_fx, torch.jit.trace], ids=["make_fx", "jit"])
def test_a_recorded_program_does_not_take_the_loss_for_a_constant(trace: Any) -> None:
    logits, labels = batch()
    if trace is make_fx:
        recorded = make_fx(lambda z: hr_loss(z, labels))(logits)
    else:
        recorded = torch.jit.trace(lambda z: hr_loss(z, labels), logits, check_trace=False)
    close(recorded(2 * logits), hr_loss(2 * logits, labels))
