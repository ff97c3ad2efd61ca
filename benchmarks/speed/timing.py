"""Times of several contenders, taken in turn so that what disturbs the machine disturbs all alike."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# Called with the number of the round.
Call = Callable[[int], Any]
# Told the contender, the round, and what the call returned.
Observe = Callable[[str, int, Any], None]


@dataclass(frozen=True)
class Spread:
    """The median of a quantity over the rounds, and its quartiles."""

    median: float
    lower: float
    upper: float
    n: int
    """Rounds."""

    def __str__(self) -> str:
        # Three digits, and more of large numbers rather than a power of ten.
        median, lower, upper = (
            f"{value:.0f}" if value >= 1000 else f"{value:.3g}" for value in (self.median, self.lower, self.upper)
        )
        return median if self.n == 1 else f"{median} [{lower}, {upper}]"


def spread(values: Sequence[float]) -> Spread:
    """
    Median and quartiles, between which values are interpolated linearly.

    :raises ValueError: If there is no value, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"expected at least one value, all finite, but got {list(values)}")
    lower, median, upper = np.quantile(array, (0.25, 0.5, 0.75))
    return Spread(float(median), float(lower), float(upper), array.size)


def ratio(times: Mapping[str, Sequence[float]], contender: str, against: str) -> Spread:
    """
    The spread of the ratios of two contenders' times, each taken within one round.

    What slows the machine for longer than a round is in both, and cancels.

    :param times: Seconds by contender, one per round.
    """
    return spread([one / other for one, other in zip(times[contender], times[against], strict=True)])


def interleaved(
    calls: Mapping[str, Call],
    *,
    device: torch.device,
    rounds: int,
    seconds: float,
    least: int = 3,
    sample: float = 0.005,
    warm: bool = True,
    observe: Observe | None = None,
) -> dict[str, list[float]]:
    """
    Time contenders round by round, each once in a round, another one first in each.

    :param calls: What to time, by contender.
    :param device: Where they compute; what they leave in its queue is waited for.
    :param rounds: At most so many,
    :param seconds: and none begun after so long, warming up not counted,
    :param least: unless there are fewer than this.
    :param sample: Seconds that a contender is called for in a round, again and again if it is quicker.
    :param warm: Whether to call each before the first round, which then also tells how often it fits into a sample;
           without it each is called once.
    :param observe: Told of what each last call of a round returned.
    :return: Seconds per call, one per round, by contender.
    """
    repeats = {name: _repeats(call, device, sample) if warm else 1 for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    begun = time.perf_counter()
    for i in range(rounds):
        if i >= least and time.perf_counter() - begun > seconds:
            break
        first = i % len(names)
        for name in names[first:] + names[:first]:
            taken, result = _timed(calls[name], i, repeats[name], device)
            times[name].append(taken)
            if observe is not None:
                observe(name, i, result)
    return times


def _repeats(call: Call, device: torch.device, sample: float) -> int:
    """How many calls fill a sample, from one after the first, in which much is made ready."""
    first, _ = _timed(call, 0, 1, device)
    if first > 20 * sample:
        return 1
    warm = min(_timed(call, 0, 1, device)[0] for _ in range(3))
    return max(1, int(np.ceil(sample / max(warm, 1e-9))))


def _timed(call: Call, index: int, repeats: int, device: torch.device) -> tuple[float, Any]:
    """Seconds per call, and what the last one returned; nothing is collected meanwhile."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _by_events(call, index, repeats, device) if device.type == "cuda" else _by_clock(call, index, repeats)
    finally:
        if collecting:
            gc.enable()


def _by_clock(call: Call, index: int, repeats: int) -> tuple[float, Any]:
    result = None
    begun = time.perf_counter()
    for _ in range(repeats):
        result = call(index)
    return (time.perf_counter() - begun) / repeats, result


def _by_events(call: Call, index: int, repeats: int, device: torch.device) -> tuple[float, Any]:
    """By the GPU's own clock, from when it is idle to when it is done."""
    result = None
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    for _ in range(repeats):
        result = call(index)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / repeats, result
