"""Part "loss": the HR loss beside cross-entropy, forward and backward and in training steps, in time and memory."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from art_hrloss import HRLoss
from benchmarks import models
from benchmarks.execution import available_cpus, threads
from benchmarks.report.markup import Table
from benchmarks.speed.cases import (
    BANDWIDTH,
    HOW,
    MEMORY,
    RATIO,
    SECONDS,
    Case,
    Findings,
    Part,
    Reading,
    Settings,
    find,
    one,
    shown,
    timed_readings,
)
from benchmarks.speed.memory import copy_bandwidth, peak_bytes
from benchmarks.speed.timing import interleaved, spread

Loss = Callable[[Tensor, Tensor], Tensor]

ALPHA = 1.6
CE, HR, PLAIN, EACH = "CE, eager", "HR, eager", "HR, plain", "HR, per example"
CE_COMPILED, HR_COMPILED = "CE, compiled", "HR, compiled"
AGAINST = {HR: (CE,), PLAIN: (CE,), EACH: (CE,), CE_COMPILED: (CE,), HR_COMPILED: (CE, CE_COMPILED)}
NOTES = (
    "Forward and the gradient by logits that are normal, float32. HR is HRLoss, CE CrossEntropyLoss; both with the "
    "options of the case: label smoothing of 0.1, probabilities as labels, or a weight per class. "
    '"Per example" is what attacks differentiate, the sum over reduction "none"; "plain" is the same loss as HR, in '
    "five lines of torch's functions. Compiled is by torch.compile, before the timing.",
    "A training step is the forward and backward pass of the network and of the loss, and the step of SGD.",
    "Peak memory is what is allocated together beyond logits and labels, in units of the logits: the gradient is 1.",
    HOW,
)
OF_BANDWIDTH = (
    "Of the bandwidth: the time that reading the logits and writing the gradient once must take at the speed at which "
    "the GPU copies, as a share of the time taken."
)


@dataclass(frozen=True)
class Place:
    """Where a loss is computed."""

    device: torch.device
    threads: int

    def __str__(self) -> str:
        if self.device.type != "cpu":
            return self.device.type
        return f"{self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Workload:
    """Logits of a shape, with labels of a kind and options that both losses take."""

    shape: tuple[int, ...]
    kind: str = "hard"
    """"hard", "smoothing", "soft" or "weights"."""

    def __str__(self) -> str:
        return f"{self.kind} {self.shape}"

    @property
    def options(self) -> dict[str, Any]:
        """What both losses take."""
        options: dict[str, dict[str, Any]] = {
            "smoothing": {"label_smoothing": 0.1},
            "weights": {"weight": torch.linspace(0.5, 1.5, self.shape[1])},
        }
        return options.get(self.kind, {})


HARD = (Workload((4096, 10)), Workload((4096, 1000)), Workload((256, 50_000)))
OTHERS = (
    *(Workload(shape, kind) for kind in ("smoothing", "soft", "weights") for shape in ((256, 1000), (1024, 32_000))),
    Workload((4, 2, 512, 512)),
    Workload((8, 21, 128, 128)),
)
QUICK = (*(Workload((16, 10), kind) for kind in ("hard", "smoothing", "soft", "weights")), Workload((2, 3, 4, 4)))


@dataclass(frozen=True)
class Network:
    """A network whose training step is timed, on images of noise."""

    name: str
    build: Callable[[], nn.Module] = field(compare=False)
    images: tuple[int, int, int, int]

    def __str__(self) -> str:
        return f"training step, {self.name}, batch {self.images[0]}"

    def step(self, loss: Loss, device: torch.device) -> Callable[..., Tensor]:
        """A call that trains a new network of the same weights by one step of SGD."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = self.build().to(memory_format=torch.channels_last).to(device)
            images, labels = torch.rand(self.images).to(device), torch.randint(10, self.images[:1]).to(device)
        optimizer = torch.optim.SGD(network.parameters(), 1e-3)

        def train(_: int = 0) -> Tensor:
            optimizer.zero_grad()
            value = loss(network(images), labels)
            value.backward()
            optimizer.step()
            return value

        return train


NETWORKS = (
    Network("small CNN", lambda: models.lenet((1, 8, 8), 10, small=True), (50, 1, 8, 8)),
    Network("LeNet", lambda: models.lenet((1, 28, 28), 10), (100, 1, 28, 28)),
    Network("ResNet-8", lambda: models.resnet(3, 10, blocks=1), (128, 3, 32, 32)),
)


def example(shape: tuple[int, ...], device: torch.device, kind: str = "hard") -> tuple[Tensor, Tensor]:
    """Normal logits of this shape, that require gradients, and labels of this kind, the same each time."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).to(device).requires_grad_()
    if kind == "soft":
        return logits, torch.randn(shape, generator=generator).softmax(1).to(device)
    return logits, torch.randint(shape[1], shape[:1] + shape[2:], generator=generator).to(device)


def eager(workload: Workload = HARD[0]) -> dict[str, Loss]:
    """The losses as torch runs them, line by line; the extra forms only for plain class indices."""
    losses: dict[str, Loss] = {CE: nn.CrossEntropyLoss(**workload.options), HR: HRLoss(ALPHA, **workload.options)}
    if workload.kind == "hard" and len(workload.shape) == 2:
        losses |= {PLAIN: plain_hr, EACH: summed(HRLoss(ALPHA, reduction="none"))}
    return losses


def compiled(workload: Workload) -> dict[str, Loss]:
    """The losses under torch.compile, compiled at their first call, for its shapes and number of threads."""
    torch.compiler.reset()
    return {
        CE_COMPILED: torch.compile(nn.CrossEntropyLoss(**workload.options), dynamic=False),
        HR_COMPILED: torch.compile(HRLoss(ALPHA, **workload.options), dynamic=False),
    }


def plain_hr(logits: Tensor, target: Tensor) -> Tensor:
    """The HR loss of a batch, eq. (3), as one would write it down from torch's functions."""
    log_q = logits.log_softmax(1)
    entropy = -(log_q.exp() * log_q).sum(1).mean()
    surprise = -log_q.gather(1, target.unsqueeze(1)).squeeze(1)
    divergence = (((ALPHA - 1) * surprise).logsumexp(0) - math.log(len(target))) / (ALPHA - 1)
    return entropy + divergence


def summed(loss: nn.Module) -> Loss:
    """The sum of the values that a loss gives to the examples."""

    def total(logits: Tensor, target: Tensor) -> Tensor:
        losses: Tensor = loss(logits, target)
        return losses.sum()

    return total


def step(loss: Loss, logits: Tensor, target: Tensor) -> Callable[..., Tensor]:
    """A call, with the number of the round or without, that gives the gradient by the logits."""

    def gradient(_: int = 0) -> Tensor:
        (by_logits,) = torch.autograd.grad(loss(logits, target), logits)
        return by_logits

    return gradient


def measure(workload: Workload, place: Place, settings: Settings) -> list[Reading]:
    """Time and memory of every loss on these logits; what cannot be compiled is a reading that says so."""
    case = f"{workload}, {place}"
    logits, target = example(workload.shape, place.device, workload.kind)
    with threads(place.threads):
        losses = {name: _moved(loss, place.device) for name, loss in eager(workload).items()}
        calls = {name: step(loss, logits, target) for name, loss in losses.items()}
        readings = []
        for name, loss in compiled(workload).items():
            call = step(_moved(loss, place.device), logits, target)
            try:
                call()
            except Exception as error:  # whatever a compiler that is missing or damaged may raise
                note = f"fails: {type(error).__name__}"
                readings.append(Reading(case, name, SECONDS, None, note=note))
            else:
                calls[name] = call
        times = _timed(calls, place.device, settings)
        size_in_bytes = logits.numel() * logits.element_size()
        for name, call in calls.items():
            peak = peak_bytes(call, place.device) / size_in_bytes
            readings.append(Reading(case, name, MEMORY, one(peak)))
    readings += timed_readings(case, times, AGAINST)
    return readings + _bandwidth(case, times, 2 * size_in_bytes, place.device)


def measure_training(network: Network, device: torch.device, settings: Settings) -> list[Reading]:
    """Time of a training step with each loss, on one thread of a CPU."""
    with threads(1):
        losses: dict[str, Loss] = {CE: nn.CrossEntropyLoss(), HR: HRLoss(ALPHA), PLAIN: plain_hr}
        times = _timed({name: network.step(loss, device) for name, loss in losses.items()}, device, settings)
    return timed_readings(f"{network}, {Place(device, 1)}", times, AGAINST)


def _moved(loss: Loss, device: torch.device) -> Loss:
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def _timed(
    calls: Mapping[str, Callable[..., Tensor]], device: torch.device, settings: Settings
) -> dict[str, list[float]]:
    return interleaved(
        calls,
        device=device,
        rounds=5 if settings.quick else 40,
        seconds=settings.seconds / 4,
        sample=0.001 if settings.quick else 0.005,
    )


def _bandwidth(case: str, times: Mapping[str, Sequence[float]], moved: int, device: torch.device) -> list[Reading]:
    """On a GPU, the time that must go by for the logits to be read and the gradient written, as a share of it."""
    if device.type != "cuda":
        return []
    limit = moved / copy_bandwidth(device)
    return [Reading(case, name, BANDWIDTH, spread([limit / t for t in taken])) for name, taken in times.items()]


def cases(settings: Settings) -> list[Case]:
    """Training steps and every kind of labels on one thread, plain class indices on all threads too, and on the GPU."""
    found = []
    for device in settings.devices:
        networks = NETWORKS[:1] if settings.quick else NETWORKS
        found += [Case(f"{n} ({device.type})", partial(measure_training, n, device, settings)) for n in networks]
        pairs = [(workload, 1) for workload in (QUICK if settings.quick else (*HARD, *OTHERS))]
        if device.type == "cpu" and not settings.quick and available_cpus() > 1:
            pairs += [(workload, available_cpus()) for workload in HARD]
        places = [(workload, Place(device, number)) for workload, number in pairs]
        found += [
            Case(f"{workload} on {place}", partial(measure, workload, place, settings)) for workload, place in places
        ]
    return found


def findings(readings: Sequence[Reading]) -> Findings:
    """One table, a section per case; the share of the bandwidth where a GPU was measured."""
    columns = [("ms", SECONDS, "", 1e3), (f"/ {CE}", RATIO, CE, 1.0), (f"/ {CE_COMPILED}", RATIO, CE_COMPILED, 1.0)]
    columns.append((MEMORY, MEMORY, "", 1.0))
    notes: tuple[str, ...] = NOTES
    if any(reading.quantity == BANDWIDTH for reading in readings):
        columns.append(("of the bandwidth", BANDWIDTH, "", 1.0))
        notes = (OF_BANDWIDTH, *NOTES)
    rows = []
    for case in dict.fromkeys(reading.case for reading in readings):
        measured = {reading.contender for reading in readings if reading.case == case}
        names = [name for name in (CE, HR, EACH, PLAIN, CE_COMPILED, HR_COMPILED) if name in measured]
        for i, name in enumerate(names):
            entries = (shown(find(readings, case, name, what, to), factor) for _, what, to, factor in columns)
            rows.append(("" if i else case, name, *entries))
    header = ("logits", "contender", *(name for name, *_ in columns))
    return Findings([Table("The HR loss beside cross-entropy, forward and backward", header, tuple(rows), notes)])


LOSS = Part("loss", 12, cases, findings)
