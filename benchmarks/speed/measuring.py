"""Measurement of the time and memory of contenders, in turn, so that other load on the machine affects all alike."""

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
# The least seconds of a sample: a faster contender is called repeatedly, because single calls are too short to time.
SAMPLE = 0.005
HOW = (
    "The contenders are timed in turn, once per round, and ratios are computed within a round. Entries: the median "
    "over the rounds with [lower quartile, upper quartile]."
)

# A function that is called with the index of the round.
Call = Callable[[int], Any]
# One measured quantity of one contender, by COLUMNS; with this long format, all parts have the same frame.
Reading = dict[str, Any]
COLUMNS = ["case", "x", "contender", "quantity", "against", "median", "lower", "upper", "n", "note"]


@dataclass(frozen=True)
class Settings:
    """Amount of measurement, and the device."""

    data_dir: Path
    """Folder of the data sets."""
    quick: bool = False
    """True for small sizes and one round, as a test; the timings are not reliable."""
    seconds: float = 20.0
    """Time limit for the rounds of one case; there are at least three rounds."""
    device: torch.device = CPU
    """Device of the loss, the attacks and training."""

    @property
    def device_name(self) -> Literal["cpu", "gpu"]:
        """The device's name in ART and in recipes."""
        return "cpu" if self.device.type == "cpu" else "gpu"

    def few(self, sizes: Sequence[Any]) -> Sequence[Any]:
        """Return the sizes to measure: all, or the first two."""
        return sizes[:2] if self.quick else sizes


def at(name: str, device: torch.device) -> str:
    """Return the name of a case, with the device unless it is the CPU."""
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
    Time contenders round by round, each once per round, with another one first in each round.

    :param calls: The calls to time, by contender.
    :param settings: The time limit, whether to measure a single round only, and the device. On a GPU each timing waits
        until all queued work is finished.
    :param rounds: The largest number of rounds.
    :param share: The share of the time limit after which no round starts; warm-up is not counted.
    :param least: The smallest number of rounds, whatever the time limit.
    :param warm: True to call each contender before the first round, and to repeat fast calls until they fill SAMPLE;
        otherwise each is called once per round.
    :param cores: Number of threads of torch on the CPU.
    :return: Seconds per call, one per round, by contender.
    """
    device = settings.device
    with threads(cores), seeded(0):
        repeats = {name: _repeats(call, device) if warm else 1 for name, call in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        started = time.perf_counter()
        for i in range(1 if settings.quick else rounds):
            if i >= least and time.perf_counter() - started > share * settings.seconds:
                break
            # Another contender is first in each round, so that none always follows the same one.
            first = i % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(_timed(calls[name], i, repeats[name], device))
    return times


def _repeats(call: Call, device: torch.device) -> int:
    """Return the number of calls that fill a sample, measured after a first call, which is slower."""
    if _timed(call, 0, 1, device) > 20 * SAMPLE:
        return 1
    warm = min(_timed(call, 0, 1, device) for _ in range(3))
    return max(1, int(np.ceil(SAMPLE / max(warm, 1e-9))))


def _timed(call: Call, index: int, repeats: int, device: torch.device) -> float:
    """Return seconds per call, with the garbage collector off, as timeit does."""
    clock = _gpu_clock if device.type == "cuda" else time.perf_counter
    return timeit.Timer(partial(call, index), timer=clock).timeit(repeats) / repeats


def _gpu_clock() -> float:
    """Return the time once all work in the GPU's queue is finished."""
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """
    Return the peak of the bytes that torch allocates during a call, beyond those allocated before it.

    The result of the call is counted. On the CPU, torch's profiler observes every allocation and release of torch.
    Allocations by other code, such as that of a compiler, are not observed.

    :param call: The call to observe; call it once before, so that it contains no initialisation.
    :param device: The device whose memory is observed.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # otherwise an allocation may get a cached block that is larger than needed
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler prints that it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    # The maximum of the running sum of allocations and releases; releases of memory older than the trace are ignored.
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
    Return a quantity's median and quartiles, with linear interpolation.

    :param values: One value per round; empty if it could not be measured.
    :param against: For a ratio or a difference, the other contender.
    :param x: The size that varies, if there is one.
    :param note: The reason why there is no value, or a remark on the value.
    :raises ValueError: If a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError(f"expected finite values of {case}, {contender}, but got {list(values)}")
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75)) if len(values) else (None,) * 3
    fields = case, x, contender, quantity, against, median, lower, upper, len(values) or None, note
    return dict(zip(COLUMNS, fields, strict=True))


def timed_readings(
    case: str, times: Mapping[str, Sequence[float]], against: Mapping[str, Sequence[str]], **fields: Any
) -> list[Reading]:
    """
    Return seconds and ratios as readings; each ratio is of one round, so that load during several rounds cancels.

    :param times: Seconds by contender, one per round.
    :param against: For each contender, the contenders with which it is compared; those not in `times` are skipped.
    :param fields: `x` and `note` of all readings.
    """
    readings = []
    for name, seconds in times.items():
        readings.append(reading(case, name, SECONDS, seconds, **fields))
        for other in against.get(name, ()):
            if other in times:
                ratios = [a / b for a, b in zip(seconds, times[other], strict=True)]
                readings.append(reading(case, name, RATIO, ratios, other, **fields))
    return readings


def frame(readings: Sequence[Reading]) -> pd.DataFrame:
    """Return the readings as a frame with a row per reading, as they are written to CSV files."""
    numbers = dict.fromkeys(("x", "median", "lower", "upper"), "float64")
    return pd.DataFrame(readings, columns=COLUMNS).astype({**numbers, "n": "Int64"})


Entry = Callable[[pd.DataFrame], str]


def entry(quantity: str, against: str | None = None, *, factor: float = 1.0) -> Entry:
    """
    Return a function from one contender's readings to an entry of a table: median and quartiles of a quantity.

    :param quantity: The quantity. The entry is a dash if it was not measured, and the reason if it could not be.
    :param against: For a ratio or a difference, the other contender; None for any.
    :param factor: Factor from the unit of the quantity to that of the entry.
    """

    def as_text(readings: pd.DataFrame) -> str:
        matching = readings[(readings.quantity == quantity) & ((against is None) | (readings.against == against))]
        if matching.empty:
            return "-"
        first = matching.iloc[0]
        if pd.isna(first["median"]):
            return str(first.note)
        values = [factor * first[name] for name in ("median", "lower", "upper")]
        # Three significant digits; large numbers have more digits instead of a power of ten.
        median, lower, upper = (f"{value:.0f}" if value >= 1000 else f"{value:.3g}" for value in values)
        return median if first.lower == first.upper else f"{median} [{lower}, {upper}]"

    return as_text


def rounds(readings: pd.DataFrame) -> str:
    """Return the number of rounds of one contender, as an entry of a table."""
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
    Return a table with a section per case, and a row per contender or per value of x and contender.

    :param labels: Headers of the first columns: the case, the size that varies if there is one, and the contender.
    :param entries: Functions from a contender's readings to an entry, by the header of the column.
    :param notes: Notes under the table, after the notes of the readings and before HOW.
    :param order: The order of the contenders; by default that of the measurement.
    """
    rows: list[tuple[str, ...]] = []
    for case, of_case in readings.groupby("case", sort=False):
        groups = list(of_case.groupby(["x", "contender"], sort=False, dropna=False))
        if order:
            groups.sort(key=lambda group: order.index(group[0][1]))
        for i, ((x, name), of_contender) in enumerate(groups):
            size = [f"{x:g}"] if len(labels) == 3 else []
            rows.append(("" if i else case, *size, name, *(as_text(of_contender) for as_text in entries.values())))
    remarks = readings.note[readings["median"].notna() & (readings.note != "")].unique()
    return Table(title, (*labels, *entries), tuple(rows), (*remarks, *notes, HOW))
