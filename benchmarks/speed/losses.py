"""Part "loss": forward and backward of the HR loss beside cross-entropy, in time and memory."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from art_hrloss import HRLoss
from benchmarks.executors import available_cpus
from benchmarks.reporting.markup import Table
from benchmarks.runner import threads
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

SIZES = ((128, 10), (4096, 10), (4096, 1000), (256, 50_000))
QUICK_SIZES = ((16, 10), (32, 100))
ALPHA = 1.6
CE, HR, PLAIN, EACH = "CE, eager", "HR, eager", "HR, plain", "HR, per example"
CE_COMPILED, HR_COMPILED = "CE, compiled", "HR, compiled"
AGAINST = {
    HR: (CE,),
    PLAIN: (CE,),
    EACH: (CE,),
    CE_COMPILED: (CE,),
    HR_COMPILED: (CE, CE_COMPILED),
}
NOTES = (
    'Forward and the gradient by the logits, which are normal, float32. HR is HRLoss(alpha=1.6, reduction="batch"); '
    '"per example" is what attacks differentiate, the sum over reduction "none"; "plain" is the same loss as HR, '
    "written down from torch's functions in five lines. Compiled is by torch.compile, before the timing.",
    "Peak memory is what is allocated at once beyond logits and labels, the gradient included, in units of the logits' "
    "size.",
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


def eager() -> dict[str, Loss]:
    """The losses as torch runs them, line by line."""
    each = summed(HRLoss(alpha=ALPHA, reduction="none"))
    return {CE: nn.CrossEntropyLoss(), HR: HRLoss(alpha=ALPHA), PLAIN: plain_hr, EACH: each}


def compiled() -> dict[str, Loss]:
    """The losses under torch.compile, compiled at their first call, for its shapes and number of threads."""
    torch.compiler.reset()
    return {
        CE_COMPILED: torch.compile(nn.CrossEntropyLoss(), dynamic=False),
        HR_COMPILED: torch.compile(HRLoss(alpha=ALPHA), dynamic=False),
    }


def example(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Normal logits of this shape, that require gradients, and class indices, the same each time."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, generator=generator).to(device).requires_grad_()
    return logits, torch.randint(size[1], size[:1], generator=generator).to(device)


def step(loss: Loss, logits: Tensor, target: Tensor) -> Callable[..., Tensor]:
    """A call, with the number of the round or without, that gives the gradient by the logits."""

    def gradient(_: int = 0) -> Tensor:
        (by_logits,) = torch.autograd.grad(loss(logits, target), logits)
        return by_logits

    return gradient


def measure(size: tuple[int, int], place: Place, settings: Settings) -> list[Reading]:
    """
    Time and memory of every loss on logits of this size; what cannot be compiled here is a reading that says so.

    :param size: Examples and classes.
    """
    case = f"({size[0]}, {size[1]}), {place}"
    logits, target = example(size, place.device)
    with threads(place.threads):
        calls = {name: step(loss, logits, target) for name, loss in eager().items()}
        readings = []
        for name, loss in compiled().items():
            call = step(loss, logits, target)
            try:
                call()
            except Exception as error:  # whatever a compiler that is missing or damaged may raise
                note = f"fails: {type(error).__name__}"
                readings.append(Reading(case, name, SECONDS, None, note=note))
            else:
                calls[name] = call
        times = interleaved(
            calls,
            device=place.device,
            rounds=5 if settings.quick else 40,
            seconds=settings.seconds / 4,
            sample=0.001 if settings.quick else 0.005,
        )
        size_in_bytes = logits.numel() * logits.element_size()
        for name, call in calls.items():
            peak = peak_bytes(call, place.device) / size_in_bytes
            readings.append(Reading(case, name, MEMORY, one(peak)))
    readings += timed_readings(case, times, AGAINST)
    return readings + _bandwidth(case, times, 2 * size_in_bytes, place.device)


def _bandwidth(case: str, times: Mapping[str, Sequence[float]], moved: int, device: torch.device) -> list[Reading]:
    """On a GPU, the time that must go by for the logits to be read and the gradient written, as a share of it."""
    if device.type != "cuda":
        return []
    limit = moved / copy_bandwidth(device)
    return [Reading(case, name, BANDWIDTH, spread([limit / t for t in taken])) for name, taken in times.items()]


def cases(settings: Settings) -> list[Case]:
    """Every size in every place: the CPU with one thread and with all, and the GPU if there is one."""
    places = []
    for device in settings.devices:
        numbers = sorted({1, available_cpus()}) if device.type == "cpu" else [1]
        places += [Place(device, number) for number in numbers]
    return [
        Case(f"{size} on {place}", partial(measure, size, place, settings))
        for place in places
        for size in (QUICK_SIZES if settings.quick else SIZES)
    ]


def findings(readings: Sequence[Reading]) -> Findings:
    """One table, a section per size and place; the share of the bandwidth where a GPU was measured."""
    columns = [("ms", SECONDS, "", 1e3), (f"/ {CE}", RATIO, CE, 1.0), (f"/ {CE_COMPILED}", RATIO, CE_COMPILED, 1.0)]
    columns.append((MEMORY, MEMORY, "", 1.0))
    notes: tuple[str, ...] = NOTES
    if any(reading.quantity == BANDWIDTH for reading in readings):
        columns.append(("of the bandwidth", BANDWIDTH, "", 1.0))
        notes = (OF_BANDWIDTH, *NOTES)
    rows = []
    for case in dict.fromkeys(reading.case for reading in readings):
        for i, name in enumerate((CE, HR, EACH, PLAIN, CE_COMPILED, HR_COMPILED)):
            entries = (shown(find(readings, case, name, what, to), factor) for _, what, to, factor in columns)
            rows.append(("" if i else case, name, *entries))
    header = ("logits", "contender", *(name for name, *_ in columns))
    return Findings([Table("The HR loss beside cross-entropy, forward and backward", header, tuple(rows), notes)])


LOSS = Part("loss", 2, cases, findings)
