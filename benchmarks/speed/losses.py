"""Part "loss": time and memory of the HR loss and cross-entropy, forward and backward, and of training steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from art_hrloss import HRLoss
from benchmarks import models
from benchmarks.execution import available_cpus, threads
from benchmarks.report.markup import Table
from benchmarks.speed.measuring import (
    RATIO,
    SECONDS,
    Reading,
    Settings,
    entry,
    interleaved,
    peak_bytes,
    reading,
    tabulated,
    timed_readings,
)
from benchmarks.speed.subjects import LENET, NETWORKS, RESNET, SMALL_CNN

Loss = Callable[[Tensor, Tensor], Tensor]

ALPHA = 1.6
MEMORY, SHARE = "peak memory / logits", "share of the copy bandwidth"
CE, HR, PLAIN, EACH = "CE, eager", "HR, eager", "HR, plain", "HR, per example"
CE_COMPILED, HR_COMPILED = "CE, compiled", "HR, compiled"
COPY = "copy"
ORDER = (CE, HR, EACH, PLAIN, CE_COMPILED, HR_COMPILED, COPY)
AGAINST = {HR: (CE,), PLAIN: (CE,), EACH: (CE,), CE_COMPILED: (CE,), HR_COMPILED: (CE, CE_COMPILED)}
NOTES = (
    "Time of the loss and its gradient with respect to normally distributed logits, float32 unless another type is "
    "named. HR is HRLoss, CE is CrossEntropyLoss; both have the options of the case: hard (class indices), smoothing "
    "(label smoothing of 0.1), soft (probabilities as labels), weights (a weight per class). HR, per example: the sum "
    'of the losses with reduction "none", which attacks differentiate. HR, plain: the same loss as HR in five lines of '
    "torch functions. compiled: compiled by torch.compile before the timing. Columns with /: the time divided by that "
    "of the contender in the header.",
    "A training step is the forward and backward pass of the network and the loss, and a step of SGD.",
    "peak memory / logits: the largest amount of memory that is allocated at the same time, without logits and labels, "
    "divided by the size of the logits. The gradient alone has 1.",
)
# On a GPU the loss is limited by memory bandwidth, so its time is compared with that of a copy of the logits.
SHARE_NOTE = (
    "share of the copy bandwidth: the time of a copy of the logits on the device divided by the time of the contender, "
    "in the same round. A loss and its gradient read and write at least as much memory as the copy, so 1 is the limit. "
    "Times below 0.1 ms are dominated by kernel launches."
)
# Shapes of the images of noise for the timing of a network's training step.
IMAGE_SHAPES = {SMALL_CNN: (1, 8, 8), LENET: (1, 28, 28), RESNET: (3, 32, 32)}


@dataclass(frozen=True)
class Workload:
    """Logits of a shape, with a kind of labels and options for both losses."""

    shape: tuple[int, ...]
    kind: str = "hard"
    """"hard", "smoothing", "soft" or "weights"."""
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"{self.kind} {self.shape}" + ("" if self.dtype == torch.float32 else f", {str(self.dtype)[6:]}")

    def options(self, device: torch.device) -> dict[str, Any]:
        """Return the options of both losses."""
        if self.kind == "smoothing":
            return {"label_smoothing": 0.1}
        return {"weight": torch.linspace(0.5, 1.5, self.shape[1], device=device)} if self.kind == "weights" else {}

    def example(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return normally distributed logits that require gradients, and labels, the same in every call."""
        generator = torch.Generator(device).manual_seed(0)
        logits = torch.randn(self.shape, generator=generator, device=device, dtype=self.dtype).requires_grad_()
        if self.kind == "soft":
            return logits, torch.randn(self.shape, generator=generator, device=device).softmax(1)
        sizes = self.shape[:1] + self.shape[2:]
        return logits, torch.randint(self.shape[1], sizes, generator=generator, device=device)


HARD = (Workload((4096, 10)), Workload((4096, 1000)), Workload((256, 50_000)))
OTHERS = (
    *(Workload(shape, kind) for kind in ("smoothing", "soft", "weights") for shape in ((256, 1000), (1024, 32_000))),
    Workload((4, 2, 512, 512)),
    Workload((8, 21, 128, 128)),
)
LARGE = (Workload((256, 50_000)), Workload((8192, 128_256)))
ON_GPU = (
    *(Workload(shape) for shape in ((128, 10), (4096, 10), (4096, 1000))),
    *(replace(workload, dtype=dtype) for workload in LARGE for dtype in (torch.float32, torch.bfloat16)),
)


def eager(workload: Workload, device: torch.device) -> dict[str, Loss]:
    """Return the losses in torch's eager mode; plain and per example only for class indices without options."""
    options = workload.options(device)
    losses: dict[str, Loss] = {CE: nn.CrossEntropyLoss(**options), HR: HRLoss(ALPHA, **options)}
    if workload.kind == "hard" and len(workload.shape) == 2:
        each = HRLoss(ALPHA, reduction="none")
        losses |= {PLAIN: plain_hr, EACH: lambda logits, target: each(logits, target).sum()}
    return losses


def compiled(workload: Workload, device: torch.device) -> dict[str, Loss]:
    """Return the losses under torch.compile, which compiles them at their first call, for its shapes and threads."""
    torch.compiler.reset()
    losses = eager(workload, device)
    return {name: torch.compile(losses[base], dynamic=False) for name, base in ((CE_COMPILED, CE), (HR_COMPILED, HR))}


def plain_hr(logits: Tensor, target: Tensor) -> Tensor:
    """Return the HR loss of a batch, eq. (3), in a straightforward implementation with torch's functions."""
    log_q = logits.log_softmax(1)
    entropy = -(log_q.exp() * log_q).sum(1).mean()
    surprise = -log_q.gather(1, target.unsqueeze(1)).squeeze(1)
    divergence = (((ALPHA - 1) * surprise).logsumexp(0) - math.log(len(target))) / (ALPHA - 1)
    return entropy + divergence


def step(loss: Loss, logits: Tensor, target: Tensor) -> Callable[..., Tensor]:
    """Return a call that computes the gradient with respect to the logits; its argument, the round, is ignored."""

    def gradient(_: int = 0) -> Tensor:
        (logits_gradient,) = torch.autograd.grad(loss(logits, target), logits)
        return logits_gradient

    return gradient


def copying(logits: Tensor) -> Callable[..., Tensor]:
    """Return a call that copies the values of the logits to another tensor; its argument, the round, is ignored."""
    values, target = logits.detach(), torch.empty_like(logits, requires_grad=False)
    return lambda _=0: target.copy_(values)


def training_step(architecture: str, loss: Loss, device: torch.device) -> Callable[..., Tensor]:
    """Return a call that trains a network by one step of SGD on noise; its initial weights are always the same."""
    _, recipe = NETWORKS[architecture]
    network = models.build(recipe, image_shape=IMAGE_SHAPES[architecture], classes=10, seed=0).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(recipe.batch_size, *IMAGE_SHAPES[architecture], generator=generator).to(device)
    labels = torch.randint(10, (recipe.batch_size,), generator=generator).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)

    def train(_: int = 0) -> Tensor:
        optimizer.zero_grad()
        value = loss(network(images), labels)
        value.backward()
        optimizer.step()
        return value

    return train


def _place(device: torch.device, cores: int) -> str:
    return f"{cores} thread{'s' * (cores > 1)}" if device.type == "cpu" else device.type


def measure(workload: Workload, cores: int, settings: Settings, *, beside_copy: bool = False) -> list[Reading]:
    """
    Return time and memory of every loss on these logits; a loss that cannot be compiled gives a reading with the error.

    :param beside_copy: True to measure the share of the bandwidth of a copy.
    """
    device = settings.device
    case, readings = f"{workload}, {_place(device, cores)}", []
    logits, target = workload.example(device)
    calls = {name: step(loss, logits, target) for name, loss in eager(workload, device).items()}
    with threads(cores):
        for name, loss in compiled(workload, device).items():
            call = step(loss, logits, target)
            try:
                call()
            except Exception as error:  # any error of a missing or damaged compiler
                readings.append(reading(case, name, SECONDS, (), note=f"fails: {type(error).__name__}"))
            else:
                calls[name] = call
        copies = {COPY: copying(logits)} if beside_copy else {}
        times = interleaved(calls | copies, settings, rounds=40, share=1 / 4, cores=cores)
        for name, call in calls.items():
            if beside_copy:
                shares = [least / taken for least, taken in zip(times[COPY], times[name], strict=True)]
                readings.append(reading(case, name, SHARE, shares, COPY))
            peak = peak_bytes(call, device) / (logits.numel() * logits.element_size())
            readings.append(reading(case, name, MEMORY, [peak]))
    return readings + timed_readings(case, times, AGAINST)


def measure_training(architecture: str, settings: Settings) -> list[Reading]:
    """Return the time of a training step with each loss, on one thread of a CPU."""
    device = settings.device
    losses: dict[str, Loss] = {CE: nn.CrossEntropyLoss(), HR: HRLoss(ALPHA), PLAIN: plain_hr}
    calls = {name: training_step(architecture, loss, device) for name, loss in losses.items()}
    times = interleaved(calls, settings, rounds=40, share=1 / 4)
    batch = NETWORKS[architecture][1].batch_size
    return timed_readings(f"training step, {architecture}, batch {batch}, {_place(device, 1)}", times, AGAINST)


def cases(settings: Settings) -> dict[str, Callable[[], list[Reading]]]:
    """
    Return the measurements, by name.

    On the CPU: training steps, every kind of labels on one thread, and class indices on all threads. On a GPU: the
    sizes at which memory bandwidth is the limit, compared with a copy, and training steps.
    """
    on_cpu = settings.device.type == "cpu"
    pairs = [(workload, 1) for workload in ((*HARD, *OTHERS) if on_cpu else ON_GPU)]
    if settings.quick:
        pairs = [(workload, 1) for workload, _ in pairs if math.prod(workload.shape) < 1e6]
    elif on_cpu and available_cpus() > 1:
        pairs += [(workload, available_cpus()) for workload in HARD]
    steps: dict[str, Callable[[], list[Reading]]] = {
        f"{architecture} ({settings.device.type})": partial(measure_training, architecture, settings)
        for architecture in settings.few(list(NETWORKS))
    }
    sizes: dict[str, Callable[[], list[Reading]]] = {
        f"{workload} on {_place(settings.device, cores)}": partial(
            measure, workload, cores, settings, beside_copy=not on_cpu
        )
        for workload, cores in pairs
    }
    return steps | sizes if on_cpu else sizes | steps


def tables(readings: pd.DataFrame) -> list[Table]:
    """Return one table, with a section per case."""
    entries = {
        "ms": entry(SECONDS, factor=1e3),
        f"/ {CE}": entry(RATIO, CE),
        f"/ {CE_COMPILED}": entry(RATIO, CE_COMPILED),
    }
    entries[MEMORY], notes = entry(MEMORY), list(NOTES)
    if (readings.quantity == SHARE).any():
        entries[SHARE] = entry(SHARE)
        notes.append(SHARE_NOTE)
    title = "The HR loss compared with cross-entropy, forward and backward"
    return [tabulated(title, readings, ("logits", "contender"), entries, notes, ORDER)]
