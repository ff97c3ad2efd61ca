"""
Tests of the kernels of the loss: on CUDA, and on a CPU by Triton's interpreter in a separate process.

The results are compared with the paper's equations and the reference. Tests that need CUDA are in test_cuda.py.
"""

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from testing import oracle
from testing.comparisons import INF, REDUCED, check, compare, hard_cases, of_equations, reference, value_and_gradient
from testing.losses import RTOL, WEIGHT, batch, close
from torch import Tensor
from torch.func import grad, jvp, vmap

from art_hrloss import hr_loss
from art_hrloss.losses import _fused as fused
from art_hrloss.losses import _triton as kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Tiles so small that small batches have many of them, and rows longer than a tile.
SMALL = {"TILE": 16, "LONG_TILE": 4, "WHOLE_ROW": 4, "ALONE": 4, "SIDE_BY_SIDE": 4}
# Warnings of NumPy, when the interpreter computes values that are not selected.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
by_interpreter = pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="by the interpreter only"))


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), by_interpreter])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device that the kernels support."""
    monkeypatch.setattr(kernels, "DEVICE", request.param)
    device: str = request.param
    return device


@pytest.fixture(params=["usual", "small"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Select the tile sizes, that is the part of a batch that one program of a kernel computes."""
    for name, value in SMALL.items() if request.param == "small" else ():
        monkeypatch.setattr(kernels, name, value)
    kernels._plan_of.cache_clear()
    tiles: str = request.param
    return tiles


class Through:
    """A function that computes the loss on the device for tensors on the CPU."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Return the result of :func:`hr_loss`, after checking that kernels compute it."""
        moved = {name: each.to(self.device) if isinstance(each, Tensor) else each for name, each in options.items()}
        z, y = logits.to(self.device), target.to(self.device)
        plan = fused.LossOptions(**moved)
        assert fused._kind_of_batch(z.float(), y.long(), plan) is kernels.Kernels
        return hr_loss(z, y, **moved).cpu()


@pytest.mark.slow  # slow: the interpreter runs every program of a kernel in NumPy
def test_kernels_in_the_interpreter() -> None:
    if INTERPRETED:
        pytest.skip("is run by it")
    pytest.importorskip("triton")
    if torch.__version__ < "2.14" and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of older Tritons fails with this NumPy")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "cpu", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.parametrize("scale", [0.1, 4000.0])
def test_values_and_gradients_equal_the_paper_equations(device: str, tiles: str, scale: float) -> None:
    for size, alpha in [*itertools.product([(7, 5)], (0.5, 1 + 1e-12, 1.6, 50.0)), ((5, 2), 1.0), ((5, 2), 1 + 1e-6)]:
        check(*batch(*size, scale=scale), *of_equations(size, scale, alpha), alpha=alpha, loss=Through(device))


@pytest.mark.parametrize("options", [{}, {"weight": WEIGHT, "ignore_index": 1}], ids=["plain", "all"])
def test_all_options_and_reductions_equal_the_reference(device: str, tiles: str, options: dict[str, Any]) -> None:
    for reduction, alpha in REDUCED:
        compare(*batch(), alpha=alpha, reduction=reduction, loss=Through(device), **options)


@pytest.mark.parametrize("classes", [2, 5])
def test_hard_cases_equal_the_reference(device: str, tiles: str, classes: int) -> None:
    step = 3 if (device, tiles) == ("cpu", "small") else 1  # slow: the interpreter runs in NumPy
    for logits, labels, options in itertools.islice(hard_cases(*batch(9, classes), classes), None, None, step):
        if labels.ndim == 1 and "label_smoothing" not in options:  # the kernels do not support other labels
            compare(logits, labels, loss=Through(device), **options)


def test_a_peak_that_rises_along_a_long_row_keeps_precision(device: str, tiles: str) -> None:
    logits = torch.linspace(-200.0, 9.0, 33, dtype=torch.float64).float().double().expand(4, -1)
    for z in (logits, logits.flip(1), logits.sin() * 300):
        z = z.float().double()
        compare(z, torch.tensor([0, 31, 32, 7]), loss=Through(device))


def layouts(logits: Tensor) -> Iterator[Tensor]:
    """Yield the logits (n, C) with other memory layouts."""
    yield logits.new_full((len(logits) * 2, logits.shape[1] + 3), math.nan)[::2, 1:-2].copy_(logits)
    yield logits.t().contiguous().t()
    yield logits[:1].expand(len(logits), -1)


def test_logits_in_any_memory_order_equal_the_reference(device: str, tiles: str) -> None:
    logits, labels = batch(8)
    twice = labels.repeat_interleave(2)
    for z in layouts(logits.to(device)):
        leaf = z.detach().requires_grad_()
        value = hr_loss(leaf, twice.to(device)[::2])
        expected = value_and_gradient(reference, z.cpu(), labels)
        close(value.cpu(), expected[0])
        close(torch.autograd.grad(value, leaf)[0].cpu(), expected[1], atol=1e-15)


@pytest.mark.parametrize("classes", [2, 5])
def test_dense_logits_equal_the_reference_in_all_memory_formats(device: str, tiles: str, classes: int) -> None:
    logits, labels = batch(24, classes)
    for sizes, reduction in itertools.product(((2, 3, 4), (1, 24)), ("batch", "none")):
        z = logits.reshape(*sizes, classes).movedim(-1, 1)
        expected = value_and_gradient(reference, z, labels.reshape(sizes), reduction=reduction)
        for each in (z, z.contiguous()):
            leaf = torch.empty_like(each, device=device).copy_(each).requires_grad_()
            value = hr_loss(leaf, labels.reshape(sizes).to(device), reduction=reduction)
            by = torch.linspace(1.0, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape).to(device)
            (gradient,) = torch.autograd.grad(value, leaf, by)
            along = [(size, *steps) for size, *steps in zip(leaf.shape, leaf.stride(), gradient.stride(), strict=True)]
            assert all(step == of_leaf for size, of_leaf, step in along if size > 1)
            close(value.cpu(), expected[0])
            close(gradient.cpu(), expected[1], atol=1e-15)
    close(Through(device)(logits[0], labels[0]), reference(logits[0], labels[0]))


def test_half_precisions_are_computed_in_float32(device: str, tiles: str) -> None:
    logits, labels = batch()
    for dtype in (torch.float16, torch.bfloat16):
        value, gradient = value_and_gradient(Through(device), logits.to(dtype), labels)
        expected, by_logits = value_and_gradient(Through(device), logits.to(dtype).float(), labels)
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)
        assert torch.equal(gradient, by_logits.to(dtype))


def test_infinity_and_nan_are_preserved(device: str, tiles: str) -> None:
    for reduction, number in itertools.product(("batch", "none"), (math.nan, INF)):
        logits, labels = batch()
        logits[0, -1], labels[0] = -INF, 4
        assert Through(device)(logits, labels, reduction=reduction).max() == INF
        logits[0, 0] = number
        assert Through(device)(logits, labels, reduction=reduction).flatten()[0].isnan()
    logits[0] = -INF
    assert Through(device)(logits, labels).isnan()


def test_a_batch_without_mass_is_nan_with_gradient_zero(device: str, tiles: str) -> None:
    logits, labels = batch()
    for reduction in ("batch", "mean"):
        ways = ({"weight": torch.zeros(5, dtype=torch.float64)}, labels), ({}, torch.full_like(labels, -100))
        for options, target in ways:
            value, gradient = value_and_gradient(Through(device), logits, target, reduction=reduction, **options)
            assert value.isnan()
            assert (gradient == 0).all()


def test_a_confident_example_keeps_full_precision(device: str) -> None:
    for margin in (20.0, 40.0, 80.0):
        logits = torch.tensor([[margin, 0.0, -1.0]])
        value, gradient = value_and_gradient(Through(device), logits, torch.tensor([0]))
        close(value, oracle.hr_loss(logits, [0], 1.6))
        close(gradient, oracle.gradient(logits, [0], 1.6))


def test_weights_of_any_scale_equal_the_reference(device: str, tiles: str) -> None:
    logits, labels = batch(9, scale=30.0)
    for scale, alpha in ((1e-30, 1.6), (1e30, 50.0)):
        compare(logits, labels, alpha=alpha, weight=WEIGHT * scale, loss=Through(device))


@pytest.mark.parametrize("reduction", ["batch", "none"])
def test_all_kinds_of_derivatives_equal_the_reference(device: str, reduction: str) -> None:
    logits, labels = batch(4)
    z, y = logits.to(device).requires_grad_(), labels.to(device)
    value = hr_loss(z, y, reduction=reduction)  # type: ignore[arg-type]
    by = torch.linspace(-1.0, 2.0, 3 * value.numel(), dtype=torch.float64).reshape(3, *value.shape).to(device)
    (together,) = torch.autograd.grad(value, z, by, is_grads_batched=True, retain_graph=True)
    for each, gradient in zip(by, together, strict=True):
        close(gradient.cpu(), torch.autograd.grad(value, z, each, retain_graph=True)[0].cpu(), atol=1e-15)
    (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), z)
    leaf = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(reference(leaf, labels, reduction=reduction).sum(), leaf, create_graph=True)
    close(first.cpu(), expected, atol=1e-15)
    close(second.cpu(), torch.autograd.grad(expected.square().sum(), leaf)[0], atol=1e-15)
    each = vmap(grad(lambda z, y: hr_loss(z, y, reduction="sum")))(z.detach(), y)
    close(each.cpu(), value_and_gradient(reference, logits, labels, reduction="sum")[1], atol=1e-15)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_directional_derivatives_equal_those_of_the_reference(device: str) -> None:
    logits, labels = batch(4)
    z, y = logits.to(device), labels.to(device)
    along = jvp(lambda z: hr_loss(z, y), (z,), (z.cos(),))[1]
    close(along.cpu(), (value_and_gradient(reference, logits, labels)[1] * logits.cos()).sum())


def test_one_class_is_certain(device: str) -> None:
    value, gradient = value_and_gradient(Through(device), torch.tensor([[3.0], [-1.0]]), torch.tensor([0, 0]))
    assert value == 0
    assert (gradient == 0).all()


def test_float32_results_have_float32_precision(device: str) -> None:
    logits, labels = batch(64, 300, scale=5.0)
    close(Through(device)(logits.float(), labels), reference(logits, labels), rtol=RTOL[torch.float32] / 10)
