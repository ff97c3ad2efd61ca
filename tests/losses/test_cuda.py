"""Tests of the loss that need CUDA; test_kernels.py compares the results of the kernels, also on CUDA."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from testing.losses import REDUCTIONS, compiler
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torch.profiler import ProfilerActivity, profile

from art_hrloss import HRLoss, hr_loss

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
SIZES = [(128, 10), (4096, 10), (512, 1000), (8, 50000), (4, 19, 16, 16), (300, 2)]
KINDS: list[dict[str, Any]] = [{}, {"weight": True}, {"ignore_index": 1}, {"label_smoothing": 0.1}, {"soft": True}]
Loss = Callable[..., Tensor]


def case(size: tuple[int, ...], dtype: torch.dtype = torch.float32, *, weight: bool = False, soft: bool = False,
         **options: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:  # fmt: skip
    """Return logits, labels and options on the device."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(size, generator=generator) * 5).to(DEVICE, dtype)
    labels = torch.randint(size[1], (size[0], *size[2:]), generator=generator).to(DEVICE)
    if weight:
        options["weight"] = torch.rand(size[1], generator=generator).to(DEVICE)
    return logits, one_hot(labels, size[1]).movedim(-1, 1).to(dtype) if soft else labels, options


def gradient_of(loss: Loss, logits: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the loss and the gradient of its sum."""
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, labels, **options)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def agree(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    """Assert that loss and gradient equal those of float64, up to the rounding of the computation and of the result."""
    computed = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual[0].cpu().double(), expected[0].cpu().double(), rtol=computed, atol=computed)
    returned = max(2 * torch.finfo(dtype).eps, 10 * computed)
    smallest = 6e-8 if dtype == torch.float16 else 0.0  # the smallest number of the dtype
    atol = returned * expected[1].abs().max().item() + smallest
    torch.testing.assert_close(actual[1].cpu().double(), expected[1].cpu().double(), rtol=returned, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_loss_and_gradient_equal_those_of_float64_on_a_cpu(kind: dict[str, Any], dtype: torch.dtype) -> None:
    for size in SIZES:
        logits, labels, options = case(size, dtype, **kind)
        moved = {name: each.cpu().double() if isinstance(each, Tensor) else each for name, each in options.items()}
        for reduction in REDUCTIONS:
            expected = gradient_of(hr_loss, logits.cpu().double(), labels.cpu(), reduction=reduction, **moved)
            agree(gradient_of(hr_loss, logits, labels, reduction=reduction, **options), expected, dtype)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_loss_does_not_wait_for_the_device(kind: dict[str, Any]) -> None:
    for size in SIZES:
        logits, labels, options = case(size, **kind)
        gradient_of(hr_loss, logits, labels, **options)  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for reduction in REDUCTIONS:
                gradient_of(hr_loss, logits, labels, reduction=reduction, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_graph_that_is_captured_once_is_replayed_for_other_logits(reduction: str) -> None:
    for size in SIZES:
        logits, labels, options = case(size, reduction=reduction)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            gradient_of(hr_loss, logits, labels, **options)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = gradient_of(hr_loss, logits, labels, **options)
        logits.copy_(logits.flip(0))
        graph.replay()
        for actual, expected in zip(recorded, gradient_of(hr_loss, logits, labels, **options), strict=True):
            assert torch.equal(actual, expected)


def test_the_same_numbers_give_the_same_sums_on_every_stream() -> None:
    for size in SIZES:
        logits, labels, _ = case(size)
        first = gradient_of(hr_loss, logits, labels)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            second = gradient_of(hr_loss, logits, labels)
        torch.cuda.current_stream().wait_stream(side)
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_under_autocast_the_loss_is_float32(dtype: torch.dtype) -> None:
    features, labels, _ = case((64, 10))
    layer = torch.nn.Linear(10, 10, device=DEVICE)
    with torch.autocast(DEVICE, dtype=dtype):
        logits = layer(features)
        loss = HRLoss()(logits, labels)
    loss.backward()
    assert (logits.dtype, loss.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(loss, hr_loss(logits.detach().float(), labels))
    assert layer.weight.grad.isfinite().all()


def kernels_of(run: Callable[[], Any]) -> list[str]:
    """Return the names of the kernels that run, except those that fill or copy tensors."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    on_device = [event.name for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return [name for name in on_device if "Memset" not in name and "FillFunctor" not in name]


def test_the_loss_is_two_or_three_kernels() -> None:
    for size, most in (((128, 10), 2), ((4096, 10), 3), ((512, 1000), 3), ((8, 50000), 3), ((4, 19, 16, 16), 3)):
        logits, labels, _ = case(size)
        leaf = logits.requires_grad_()

        def run(leaf: Tensor = leaf, labels: Tensor = labels) -> None:
            hr_loss(leaf, labels).backward()

        run()
        leaf.grad = None
        names = kernels_of(run)
        assert len(names) <= most, names
        with torch.no_grad():
            assert len(kernels_of(lambda leaf=leaf, labels=labels: hr_loss(leaf, labels))) <= most - 1


@compiler
@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"reduction": "sum"}, {"weight": True}], ids=str)
def test_the_compiled_loss_launches_the_same_kernels(options: dict[str, Any]) -> None:
    for size in ((128, 10), (512, 1000), (8, 50000), (4, 19, 16, 16)):
        torch.compiler.reset()
        logits, labels, chosen = case(size, **options)
        loss = HRLoss(**chosen)
        compiled = torch.compile(loss, fullgraph=True)
        expected = gradient_of(loss, logits, labels)
        agree(gradient_of(compiled, logits, labels), expected, torch.float32)
        names = kernels_of(lambda logits=logits, labels=labels, run=compiled: gradient_of(run, logits, labels))
        expected_kernels = ("rows_kernel", "join_kernel", "gradient_kernel")
        assert sum(any(kernel in name for kernel in expected_kernels) for name in names) <= 3, names
        assert len(names) <= 5, names


def test_no_more_memory_than_cross_entropy() -> None:
    peaks = []
    for loss in (cross_entropy, hr_loss):
        logits, labels, _ = case((2048, 4096))
        gradient_of(loss, logits, labels)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradient_of(loss, logits, labels)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= peaks[0]


def test_a_label_out_of_range_is_an_assertion_on_the_device() -> None:
    # In another process, because the assertion ends its CUDA context.
    for bad in (10, -1):
        code = f"""
import torch
from art_hrloss import hr_loss
hr_loss(torch.randn(4, 10, device="{DEVICE}"), torch.tensor([0, {bad}, 2, 3], device="{DEVICE}"))
torch.cuda.synchronize()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode != 0
        assert "device-side assert" in done.stderr


def test_labels_on_another_device_raise_an_error() -> None:
    logits, labels, _ = case((8, 10))
    with pytest.raises(RuntimeError, match="device"):
        hr_loss(logits, labels.cpu())


@pytest.mark.slow
def test_more_logits_than_32_bits_count() -> None:
    examples, classes = 68000, 32768
    if torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("takes 27 GB")
    logits = torch.zeros(examples, classes, device=DEVICE)
    logits[-3:] = case((3, classes))[0]
    labels = torch.zeros(examples, dtype=torch.int64, device=DEVICE)
    value, gradient = gradient_of(hr_loss, logits, labels, reduction="none")
    last = gradient_of(hr_loss, logits[-3:], labels[-3:], reduction="none")
    assert torch.equal(value[-3:], last[0])
    assert torch.equal(gradient[-3:], last[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="wants two devices")
def test_the_kernels_run_on_the_device_of_the_logits() -> None:
    logits, labels, _ = case((64, 10))
    moved = gradient_of(hr_loss, logits.to("cuda:1"), labels.to("cuda:1"))
    assert moved[1].device == torch.device("cuda:1")
    agree(moved, gradient_of(hr_loss, logits.double(), labels), torch.float32)
