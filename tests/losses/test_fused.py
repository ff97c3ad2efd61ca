"""Tests of all computation paths of the fused loss against the reference and the paper's equations."""

import itertools
import math
from typing import Any

import pytest
import torch
from testing import oracle
from testing.comparisons import (
    INF,
    REDUCED,
    Loss,
    check,
    compare,
    hard_cases,
    of_equations,
    reference,
    value_and_gradient,
)
from testing.losses import WEIGHT, as_target, batch, close
from torch import Tensor

from art_hrloss.losses import _fused as fused
from art_hrloss.losses import _numerics as numerics
from art_hrloss.losses._functional import hr_loss

WAYS = ["in advance", "at once", "in blocks", "compiled"]
ALPHAS = [0.5, 1.0, 1 + 1e-6, 1.6, 50.0]
# Near alpha = 1 the printed formula magnifies the rounding of the logarithm; for large alpha the loss has a limit.
MORE_ALPHAS = [1e-9, 1 - 1e-7, 1 + 1e-12, 1e3, 1e12]
SIZES = [(7, 5), (11, 2), (1, 2)]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "indices": ("indices", {}),
    "smoothing": ("indices", {"label_smoothing": 0.1}),
    "soft": ("probabilities", {}),
    "one-hot": ("one-hot", {}),
    "soft and smoothing": ("probabilities", {"label_smoothing": 0.1}),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"weight": WEIGHT, "ignore_index": 1},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(params=WAYS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Select the computation path of :func:`hr_loss`."""
    if request.param != "in advance":
        monkeypatch.setattr(fused, "IN_ADVANCE", 0)
    if request.param == "in blocks":
        monkeypatch.setattr(numerics, "BLOCK", 16)
    if request.param == "compiled":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr(fused, "_TRACES_PLANS", True)  # also where the compiler of an older torch could not
    path: str = request.param
    return path


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 4000.0])
def test_values_and_gradients_equal_the_paper_equations(path: str, scale: float) -> None:
    for size, alpha in [*itertools.product(SIZES, ALPHAS), *itertools.product([(3, 3)], MORE_ALPHAS)]:
        logits, labels = batch(*size, scale=scale)
        check(logits, labels, *of_equations(size, scale, alpha), alpha=alpha)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@every_kind
def test_all_labels_options_and_reductions_equal_the_reference(path: str, kind: str, options: dict[str, Any]) -> None:
    logits, labels = batch()
    target, more = as_target(KINDS[kind][0], labels), KINDS[kind][1]
    for reduction, alpha in REDUCED:
        compare(logits, target, alpha=alpha, reduction=reduction, **options, **more)
    value = hr_loss(logits.requires_grad_(), target, **options, **more)  # type: ignore[arg-type]
    assert type(value.grad_fn).__name__ == ("_CompiledBackward" if path == "compiled" else "_FusedBackward")


@every_kind
@pytest.mark.parametrize("classes", [2, 5])
def test_dense_logits_equal_the_reference_in_all_memory_formats(path: str, classes: int, kind: str) -> None:
    logits, labels = batch(24, classes)
    target, options = as_target(KINDS[kind][0], labels, classes), KINDS[kind][1]
    for sizes, reduction in itertools.product(((24,), (2, 3, 4), (24, 1), (1, 24)), ("batch", "none")):
        shape = (*sizes, classes)
        z = logits.reshape(shape).movedim(-1, 1)
        y = target.reshape(shape[:-1]) if target.ndim == 1 else target.reshape(shape).movedim(-1, 1)
        expected, by_logits = value_and_gradient(reference, z, y, reduction=reduction, **options)
        for each in (z, z.contiguous()):
            value, gradient = value_and_gradient(hr_loss, each, y, reduction=reduction, **options)
            assert value.shape == (shape[:-1] if reduction == "none" else ())
            close(value, expected)
            close(gradient, by_logits, atol=1e-15)
    close(hr_loss(logits[0], target[0], **options), reference(logits[0], target[0], **options))


def test_logits_and_labels_need_not_be_contiguous(path: str) -> None:
    logits, labels = batch(8)
    spread = torch.empty(5, 16, dtype=torch.float64).T[::2]
    twice = labels.repeat_interleave(2)[::2]
    assert not twice.is_contiguous()
    for z in (spread.copy_(logits), logits.t().contiguous().t(), logits[:1].expand(8, -1)):
        assert not z.is_contiguous()
        expected = value_and_gradient(reference, z.contiguous(), labels)
        for actual, value in zip(value_and_gradient(hr_loss, z, twice), expected, strict=True):
            close(actual, value, atol=1e-15)


@pytest.mark.parametrize("classes", [2, 5])
def test_hard_cases_equal_the_reference(path: str, classes: int) -> None:
    for logits, labels, options in hard_cases(*batch(9, classes), classes):
        compare(logits, labels, **options)


def test_soft_labels_equal_the_reference_for_random_logits(path: str) -> None:
    logits, labels = batch(scale=1000.0)
    soft = as_target("probabilities", labels)
    for alpha, dtype in itertools.product((0.5, 1.0, 1.6, 50.0), (torch.float64, torch.float32)):
        for target, options in ((soft.to(dtype), {}), (labels, {"label_smoothing": 0.1})):
            value = hr_loss(logits.to(dtype), target, alpha=alpha, **options)
            close(value, reference(logits, target.double() if options == {} else target, alpha=alpha, **options))


def test_the_loss_of_an_absent_class_is_infinite_and_nan_stays_nan(path: str) -> None:
    for size, reduction in itertools.product(SIZES, ("batch", "none")):
        logits, labels = batch(*size)
        logits[0, -1], labels[0] = -INF, size[1] - 1
        assert hr_loss(logits, labels, reduction=reduction).max() == INF  # type: ignore[arg-type]
        logits[0, 0] = math.nan
        assert hr_loss(logits, labels).isnan()


def test_a_confident_example_keeps_full_precision(path: str) -> None:
    # If q_y rounds to 1, loss and gradient are of the order of exp(-margin), not 0.
    for margin in (20.0, 40.0, 80.0):
        logits = torch.tensor([[margin, 0.0, -1.0]])
        for target in (torch.tensor([0]), torch.tensor([[1.0, 0.0, 0.0]])):
            value, gradient = value_and_gradient(hr_loss, logits, target)
            close(value, oracle.hr_loss(logits, [0], 1.6))
            close(gradient, oracle.gradient(logits, [0], 1.6))


@pytest.mark.parametrize("classes", [2, 5])
def test_an_index_out_of_range_raises_an_error(path: str, classes: int) -> None:
    logits, labels = batch(classes=classes)
    for bad in (classes, -1, 255):
        labels[3] = bad
        with pytest.raises(RuntimeError):
            hr_loss(logits, labels)


@pytest.mark.parametrize("reduction", ["batch", "none"])
@pytest.mark.parametrize("path", WAYS[:3], indirect=True)
@every_kind
def test_second_derivatives_equal_those_of_the_reference(path: str, reduction: str, kind: str) -> None:
    logits, labels = batch(4)
    target, options = as_target(KINDS[kind][0], labels), KINDS[kind][1]

    def twice(loss: Loss) -> Tensor:
        leaf = logits.detach().requires_grad_()
        (first,) = torch.autograd.grad(
            loss(leaf, target, reduction=reduction, **options).sum(), leaf, create_graph=True
        )
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    close(twice(hr_loss), twice(reference), atol=1e-15)


@every_kind
@pytest.mark.parametrize("reduction", ["batch", "none"])
def test_batched_gradients_in_one_pass(path: str, reduction: str, kind: str) -> None:
    logits, labels = batch()
    target, options = as_target(KINDS[kind][0], labels), KINDS[kind][1]
    leaf = logits.requires_grad_()
    value = hr_loss(leaf, target, reduction=reduction, **options)  # type: ignore[arg-type]
    by = torch.linspace(-1.0, 2.0, 3 * value.numel(), dtype=torch.float64).reshape(3, *value.shape)
    (together,) = torch.autograd.grad(value, leaf, by, is_grads_batched=True, retain_graph=True)
    for each, gradient in zip(by, together, strict=True):
        close(gradient, torch.autograd.grad(value, leaf, each, retain_graph=True)[0], atol=1e-15)


@pytest.mark.parametrize("reduction", ["batch", "none"])
def test_a_retained_graph_may_be_differentiated_again(path: str, reduction: str) -> None:
    logits, labels = batch()
    leaf = logits.requires_grad_()
    value = hr_loss(leaf, labels, reduction=reduction)  # type: ignore[arg-type]
    by = torch.ones_like(value)
    (first,) = torch.autograd.grad(value, leaf, by, retain_graph=True)
    copy = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(value, leaf, by, retain_graph=True)
    assert torch.equal(second, copy)
    close(torch.autograd.grad(value, leaf, 3 * by)[0], 3 * copy)


# The graph: the tensors that it holds, and for how long


def test_no_tensor_is_held_after_backward(path: str) -> None:
    logits, labels = batch()
    leaf = logits.requires_grad_()
    loss = hr_loss(leaf * 1, labels)
    loss.backward()
    assert not [value for value in vars(loss.grad_fn).values() if isinstance(value, Tensor)]
    with pytest.raises(RuntimeError, match="already been freed"):
        _ = loss.grad_fn.saved_tensors  # type: ignore[union-attr]


@every_kind
@pytest.mark.parametrize("buffer", ["labels", "logits", "weight"])
def test_labels_modified_before_backward_raise_an_error(path: str, kind: str, buffer: str) -> None:
    logits, labels = batch()
    z, target, weight = logits.requires_grad_() * 1, as_target(KINDS[kind][0], labels).clone(), WEIGHT.clone()
    loss = hr_loss(z, target, weight=weight, **KINDS[kind][1])
    filled = {"labels": target, "logits": z, "weight": weight}[buffer]
    with torch.no_grad():
        filled.copy_(filled.flip(0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32], ids=str)
def test_labels_that_are_cast_are_copied(path: str, dtype: torch.dtype) -> None:
    # The gradient then uses the labels of the loss, not those that were written into the buffer later.
    logits, labels = batch()
    expected = value_and_gradient(hr_loss, logits, labels)[1]
    leaf, buffer = logits.requires_grad_(), labels.to(dtype)
    loss = hr_loss(leaf, buffer)
    buffer.zero_()
    assert torch.equal(torch.autograd.grad(loss, leaf)[0], expected)


# Extremes


def test_a_one_hot_row_of_any_mass_is_its_index_times_the_mass(path: str) -> None:
    logits = torch.tensor([[30.0, 0.0, 1.0]])
    for alpha, mass in itertools.product((1.1, 1.6), (0.3, 1.0, 3.0)):
        value = hr_loss(logits, torch.tensor([[mass, 0.0, 0.0]]), alpha=alpha, reduction="none")
        close(value, mass * oracle.hr_loss(logits, [0], alpha, "none"))


def test_the_loss_of_an_absent_class_is_infinite_and_of_an_unlikely_class_finite(path: str) -> None:
    soft = torch.tensor([[0.5, 0.5, 1e-12], [0.2, 0.3, 0.5]], dtype=torch.float64)
    for alpha in (1.0, 1.6):
        absent = torch.tensor([[0.0, 1.0, -INF], [0.0, 1.0, 2.0]], dtype=torch.float64)
        assert hr_loss(absent, soft, alpha=alpha) == INF
    far = torch.tensor([[0.0, 0.0, 1e25]], dtype=torch.float64)
    close(hr_loss(far, torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)), 1e25)


@pytest.mark.parametrize("kind", ["smoothing", "soft"])
def test_gradient_entries_of_a_confident_row_do_not_cancel(path: str, kind: str) -> None:
    target = torch.tensor([1]) if kind == "smoothing" else torch.tensor([[0.05, 0.95]])
    for dtype in (torch.float32, torch.float64):
        labels = target if kind == "smoothing" else target.to(dtype)
        logits = torch.tensor([[0.0, 40.0]], dtype=dtype)
        options = {"alpha": 0.5, **(KINDS[kind][1] if kind == "smoothing" else {})}
        (gradient,) = value_and_gradient(hr_loss, logits, labels, **options)[1]
        close(gradient[0], -gradient[1])
        assert gradient[1] > 4e-10
