"""Time and memory of contenders, taken in turn so that what disturbs the machine disturbs all alike, as readings."""

import json
import os
import tempfile
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from art_hrloss import seeded
from benchmarks.execution import threads
from benchmarks.report.markup import Table

SECONDS, RATIO = "seconds", "ratio"
CPU = torch.device("cpu")
# Seconds that a contender is called for in a round, again and again if it is quicker.
SAMPLE = 0.005
HOW = (
    "Contenders are timed in turn, each once in a round, so that a ratio is taken within a round; entries are medians "
    "over the rounds with [quartiles]."
)

# Called with the number of the round.
Call = Callable[[int], Any]
# One measured quantity of one contender, by COLUMNS; in this long form one frame does for all parts.
Reading = dict[str, Any]
COLUMNS = ["case", "x", "contender", "quantity", "against", "median", "lower", "upper", "n", "note"]


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    data_dir: Path
    """Folder of the data sets."""
    quick: bool = False
    """Small sizes and one round, to see that all works; the timings say little."""
    seconds: float = 20.0
    """For the rounds of one case; there are three at least, however long they take."""
    device: torch.device = CPU
    """Where the loss is computed, and where networks are attacked and trained."""

    @property
    def device_name(self) -> Literal["cpu", "gpu"]:
        """The device in ART's words and those of recipes."""
        return "cpu" if self.device.type == "cpu" else "gpu"

    def few(self, sizes: Sequence[Any]) -> Sequence[Any]:
        """Return the sizes to measure: all, or the first two."""
        return sizes[:2] if self.quick else sizes


def at(name: str, device: torch.device) -> str:
    """Return the name of a case, with the device where it is not the CPU."""
    return name if device.type == "cpu" else f"{name}, {device.type}"


def interleaved(
    calls: Mapping[str, Call],
    settings: Settings,
    *,
    rounds: int,
    share: float = 1.0,
    least: int = 3,
    warm: bool = True,
    cores: int = 1,
) -> dict[str, list[float]]:
    """
    Time contenders round by round, each once in a round, another one first in each.

    :param calls: What to time, by contender.
    :param settings: How long at most; a single round if it is to be quick; and where they compute: what they leave in a
        GPU's queue is waited for.
    :param rounds: At most so many,
    :param share: and none begun after this share of the seconds, warming up not counted,
    :param least: unless there are fewer than this.
    :param warm: Whether to call each before the first round, which also shows how often it fits into SAMPLE; without it
           each is called once.
    :param cores: Threads of torch on the CPU.
    :return: Seconds per call, one per round, by contender.
    """
    device = settings.device
    with threads(cores), seeded(0):
        repeats = {name: _repeats(call, device) if warm else 1 for name, call in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        begun = time.perf_counter()
        for i in range(1 if settings.quick else rounds):
            if i >= least and time.perf_counter() - begun > share * settings.seconds:
                break
            first = i % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(_timed(calls[name], i, repeats[name], device))
    return times


def _repeats(call: Call, device: torch.device) -> int:
    """Return how many calls fill a sample, from one after the first, in which much is made ready."""
    if _timed(call, 0, 1, device) > 20 * SAMPLE:
        return 1
    warm = min(_timed(call, 0, 1, device) for _ in range(3))
    return max(1, int(np.ceil(SAMPLE / max(warm, 1e-9))))


def _timed(call: Call, index: int, repeats: int, device: torch.device) -> float:
    """Return seconds per call; nothing is collected meanwhile."""
    clock = _clock_of_the_gpu if device.type == "cuda" else time.perf_counter
    return timeit.Timer(partial(call, index), timer=clock).timeit(repeats) / repeats


def _clock_of_the_gpu() -> float:
    torch.cuda.synchronize()  # what is in its queue belongs to what came before
    return time.perf_counter()


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """
    Return the most bytes that torch had allocated at once during a call, beyond those allocated before it.

    What it returns is counted. On the CPU every allocation and release of torch is followed by its profiler. What
    others allocate, such as a compiler's code, is not seen.

    :param call: What to follow; call it once before, so that nothing is made ready in it.
    :param device: Where it allocates.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # else what is allocated may lie in blocks that are larger
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes on the screen that it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    # The highest running sum of allocations and releases; releases of what is older than the trace do not count.
    alive: dict[int, int] = {}
    total = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda event: float(event["ts"])):
        size, address = int(event["args"]["Bytes"]), int(event["args"]["Addr"])
        if size >= 0:
            alive[address] = size
        total += size if size >= 0 else -alive.pop(address, 0)
        peak = max(peak, total)
    return peak


def reading(
    case: str,
    contender: str,
    quantity: str,
    values: Sequence[float],
    against: str = "",
    *,
    x: float | None = None,
    note: str = "",
) -> Reading:
    """
    Return a quantity's median and quartiles, between which values are interpolated linearly.

    :param values: One per round; none where it could not be measured.
    :param against: Of a ratio or a difference: the other contender.
    :param x: What grows, where something does.
    :param note: Why there is no value, or what is to be known of the one that there is.
    :raises ValueError: If a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError(f"expected finite values of {case}, {contender}, but got {list(values)}")
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75)) if len(values) else (None,) * 3
    stated = case, x, contender, quantity, against, median, lower, upper, len(values) or None, note
    return dict(zip(COLUMNS, stated, strict=True))


def timed_readings(
    case: str, times: Mapping[str, Sequence[float]], against: Mapping[str, Sequence[str]], **stated: Any
) -> list[Reading]:
    """
    Return seconds and ratios as readings, each ratio taken within a round: what slows several rounds cancels.

    :param times: Seconds by contender, one per round.
    :param against: For each contender, those that it is compared with, as far as they are in `times`.
    :param stated: `x` and `note` of all of them.
    """
    readings = []
    for name, taken in times.items():
        readings.append(reading(case, name, SECONDS, taken, **stated))
        for other in against.get(name, ()):
            if other in times:
                ratios = [one / beside for one, beside in zip(taken, times[other], strict=True)]
                readings.append(reading(case, name, RATIO, ratios, other, **stated))
    return readings


def frame(readings: Sequence[Reading]) -> pd.DataFrame:
    """Return the readings as they are kept, a line each."""
    numbers = dict.fromkeys(("x", "median", "lower", "upper"), "float64")
    return pd.DataFrame(readings, columns=COLUMNS).astype({**numbers, "n": "Int64"})


Entry = Callable[[pd.DataFrame], str]


def entry(quantity: str, against: str | None = None, *, factor: float = 1.0) -> Entry:
    """
    Return what makes an entry of a table from one contender's readings: median and quartiles of a quantity.

    :param quantity: The quantity; a dash stands for one that was not measured, and the reason if it could not be.
    :param against: Of a ratio or a difference: the other contender; None for any.
    :param factor: From the quantity to the unit of the entry.
    """

    def shown(readings: pd.DataFrame) -> str:
        named = readings[(readings.quantity == quantity) & ((against is None) | (readings.against == against))]
        if named.empty:
            return "-"
        first = named.iloc[0]
        if pd.isna(first["median"]):
            return str(first.note)
        values = [factor * first[name] for name in ("median", "lower", "upper")]
        # Three digits, and more of large numbers rather than a power of ten.
        median, lower, upper = (f"{value:.0f}" if value >= 1000 else f"{value:.3g}" for value in values)
        return median if first.lower == first.upper else f"{median} [{lower}, {upper}]"

    return shown


def rounds(readings: pd.DataFrame) -> str:
    """Return how often one contender was timed, as an entry of a table."""
    number = readings.n[readings.quantity == SECONDS].max()
    return "-" if pd.isna(number) else str(number)


def tabulated(
    title: str,
    readings: pd.DataFrame,
    labels: Sequence[str],
    entries: Mapping[str, Entry],
    notes: Sequence[str],
    order: Sequence[str] = (),
) -> Table:
    """
    Return a table with a section per case and a row per contender, or per contender and x where something grows.

    :param labels: Heads of the first columns: the case, what grows if something does, and the contender.
    :param entries: What makes an entry of a contender's readings, by the head of its column.
    :param notes: Under the table, between what the readings say of their values and HOW.
    :param order: Of the contenders; by default as they were measured.
    """
    rows: list[tuple[str, ...]] = []
    for case, of_case in readings.groupby("case", sort=False):
        groups = list(of_case.groupby(["x", "contender"], sort=False, dropna=False))
        if order:
            groups.sort(key=lambda group: order.index(group[0][1]))
        for i, ((x, name), own) in enumerate(groups):
            growing = [f"{x:g}"] if len(labels) == 3 else []
            rows.append(("" if i else case, *growing, name, *(make(own) for make in entries.values())))
    remarks = readings.note[readings["median"].notna() & (readings.note != "")].unique()
    return Table(title, (*labels, *entries), tuple(rows), (*remarks, *notes, HOW))
