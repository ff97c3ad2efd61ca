"""Tests of the loss with real gloo processes, in comparison with one process that has the joint batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from art_hrloss.losses._functional import hr_loss, hr_loss_terms
from art_hrloss.losses._module import HRLoss

CLASSES, PIXELS = 5, 3
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
# The number of examples of each process: uneven, and in the last case one process has none.
PARTS = {2: ((5, 2), (0, 4)), 3: ((5, 2, 4), (1, 1, 9), (3, 0, 4))}
CASES: dict[str, dict[str, Any]] = {
    "paper": {},
    "limit": {"alpha": 1.0},
    "below one": {"alpha": 0.5},
    "near one": {"alpha": 1 + 1e-6},
    "steep": {"alpha": 50.0},
    "mean": {"reduction": "mean"},
    "each": {"reduction": "none"},
    "weight": {"weight": WEIGHT},
    "ignore": {"ignore_index": 1},
    "smoothing": {"label_smoothing": 0.1, "weight": WEIGHT},
}


def part(batch: tuple[Tensor, Tensor], sizes: tuple[int, ...], rank: int) -> tuple[Tensor, Tensor]:
    """Return the part of a joint batch of one process."""
    logits, labels = (tensor.split(sizes)[rank] for tensor in batch)
    return logits, labels


def joint_batch(sizes: tuple[int, ...], scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the joint batch of all processes, equal in each process."""
    generator = torch.Generator().manual_seed(len(sizes))
    logits = torch.randn(sum(sizes), CLASSES, generator=generator, dtype=torch.float64) * scale
    return logits.to(dtype), torch.randint(CLASSES, (sum(sizes),), generator=generator)


def network() -> nn.Linear:
    """Return a network with the same weights in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(PIXELS, CLASSES).double()


def images(n: int) -> tuple[Tensor, Tensor]:
    """Return the images and labels of a joint batch for the network."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(n, PIXELS, generator=generator, dtype=torch.float64)
    return pixels, torch.randint(CLASSES, (n,), generator=generator)


def every_case(world: int) -> list[tuple[str, tuple[int, ...], float, torch.dtype]]:
    """Yield the cases: the name of the options, the sizes of the parts, the scale of the logits, and the dtype."""
    ways = [(1.0, torch.float32), (100.0, torch.float64), (100.0, torch.float32)][: 2 if world == 2 else 3]
    return [(name, sizes, *case) for name in CASES for sizes, case in zip(PARTS[world], ways, strict=True)]


def value_and_gradient(logits: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Return the loss, and the gradient of its sum."""
    leaf = logits.detach().requires_grad_()
    value = hr_loss(leaf, labels, **options)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def ddp_gradients(loss: nn.Module, group: dist.ProcessGroup, sizes: tuple[int, ...]) -> list[Tensor]:
    """Return the gradients of the parameters after DistributedDataParallel has averaged them."""
    model = DistributedDataParallel(network(), process_group=group)
    pixels, labels = part(images(sum(sizes)), sizes, dist.get_rank(group))
    loss(model(pixels), labels).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def process(rank: int, folder: str) -> None:
    """Run one of three processes; two of them also form a group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=3)
    two = dist.new_group([0, 1])
    results: dict[Any, Any] = {}
    for group, world in ((dist.group.WORLD, 3), (two, 2)):
        if rank >= world:
            continue
        for name, sizes, scale, dtype in every_case(world):
            options = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in CASES[name].items()}
            local = part(joint_batch(sizes, scale, dtype), sizes, rank)
            results[world, name, sizes, scale, dtype] = value_and_gradient(*local, process_group=group, **options)
        results[world, "ddp"] = ddp_gradients(HRLoss(process_group=group), group, PARTS[world][0])
        results[world, "ddp, own"] = ddp_gradients(HRLoss(), group, PARTS[world][0])
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """The results of each process."""
    folder = tmp_path_factory.mktemp("processes")
    # The fork server imports the modules once for all three processes.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([process.__module__])
    torch.multiprocessing.start_processes(process, args=(str(folder),), nprocs=3, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(3)]


@pytest.mark.parametrize("world", [2, 3])
def test_values_and_gradients_equal_those_of_one_process(results: list[dict[Any, Any]], world: int) -> None:
    for name, sizes, scale, dtype in every_case(world):
        # The expected values are computed from the float32 logits, so that their rounding has no effect.
        logits, labels = joint_batch(sizes, scale, dtype)
        value, gradient = value_and_gradient(logits.double(), labels, **CASES[name])
        parts = [results[rank][world, name, sizes, scale, dtype] for rank in range(world)]
        each = CASES[name].get("reduction") == "none"
        for rank, (local, _) in enumerate(parts):
            expected = value.split(sizes)[rank] if each else value
            torch.testing.assert_close(local.double(), expected, rtol=RTOL[dtype], atol=1e-12)
        joint = torch.cat([local for _, local in parts]).double() / (1 if each else world)
        # The share of an example in the gradient is exp((alpha - 1) nll), and the product is rounded.
        rounding = RTOL[dtype] * max(1.0, (CASES[name].get("alpha", 1.6) - 1) * scale)
        torch.testing.assert_close(joint, gradient, rtol=rounding, atol=rounding)


RTOL = {torch.float64: 1e-12, torch.float32: 1e-6}


@pytest.mark.parametrize("world", [2, 3])
def test_data_parallel_training_has_the_gradient_of_the_joint_batch(results: list[dict[Any, Any]], world: int) -> None:
    model, (pixels, labels) = network(), images(sum(PARTS[world][0]))
    HRLoss()(model(pixels), labels).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    for rank in range(world):
        torch.testing.assert_close(results[rank][world, "ddp"], expected, rtol=1e-12, atol=1e-15)
    # Without the group the loss differs by far more than rounding.
    apart = (results[0][world, "ddp, own"][0] - expected[0]).abs().max() / expected[0].abs().max()  # type: ignore[union-attr]
    assert apart > 0.01


def test_a_group_of_one_process_and_invalid_options_with_a_group(tmp_path: Path) -> None:
    logits, labels = joint_batch((6,), 1.0, torch.float64)
    weight, pattern = WEIGHT.clone().requires_grad_(), "'batch', 'mean' or 'none' with a process group, but got 'sum'"
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        group = dist.group.WORLD
        local = hr_loss_terms(logits, labels, process_group=group)
        assert "process_group=" in repr(HRLoss(process_group=group))
        for loss in (lambda **options: hr_loss(logits, labels, **options), HRLoss):
            with pytest.raises(ValueError, match=pattern):
                loss(reduction="sum", process_group=group)
        with pytest.raises(ValueError, match="requires_grad"):
            hr_loss(logits, labels, weight=weight, process_group=group)
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(tuple(local), tuple(hr_loss_terms(logits, labels)), rtol=1e-12, atol=0)
    with pytest.raises(TypeError, match=r"ProcessGroup .* but got str"):
        hr_loss(logits, labels, process_group="world")  # type: ignore[arg-type]
