"""What a part of the measurement is: cases that give readings, and what is made of those."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from benchmarks.report.drawing import Picture
from benchmarks.report.markup import Table
from benchmarks.speed.timing import Spread, ratio, spread

SECONDS, RATIO, MEMORY, BANDWIDTH = "seconds", "ratio", "peak memory / logits", "share of bandwidth"
DIFFERENCE, APART = "largest difference", "share of pixels apart"

HOW = (
    "Contenders are timed in turn, each once in a round, so that a ratio is taken within a round; entries are medians "
    "over the rounds with [quartiles]."
)


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    data_dir: Path
    """Folder of the data sets."""
    quick: bool = False
    """Small sizes and few rounds, to see that all works; the timings say little."""
    seconds: float = 20.0
    """For the rounds of one case; there are three at least, however long they take."""

    @property
    def devices(self) -> list[torch.device]:
        """The CPU, and the GPU if torch can use one."""
        return [torch.device(name) for name in ("cpu", "cuda") if name == "cpu" or torch.cuda.is_available()]


@dataclass(frozen=True)
class Reading:
    """One measured quantity of one contender; long, so that one form does for all parts."""

    case: str
    contender: str
    quantity: str
    value: Spread | None
    """None where it could not be measured."""
    against: str = ""
    """Of a ratio or a difference: the other contender."""
    x: float | None = None
    """What grows, where something does."""
    note: str = ""
    """Why there is no value, or what is to be said of the one that there is."""


@dataclass(frozen=True)
class Case:
    """Contenders that are measured side by side."""

    name: str
    measure: Callable[[], list[Reading]]


@dataclass(frozen=True)
class Findings:
    """What is shown of a part's readings."""

    tables: Sequence[Table]
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Part:
    """A part of the measurement: a new one needs these four, and a place in `parts.PARTS`."""

    name: str
    minutes: float
    """What it takes on two cores, about."""
    cases: Callable[[Settings], Sequence[Case]]
    """What is to be measured, in order; nothing is measured yet, but data may be read and networks trained."""
    findings: Callable[[Sequence[Reading]], Findings]
    """From all readings to tables and figures."""


def timed_readings(
    case: str,
    times: Mapping[str, Sequence[float]],
    against: Mapping[str, Sequence[str]],
    *,
    x: float | None = None,
    note: str = "",
) -> list[Reading]:
    """
    Seconds and ratios as readings.

    :param times: Seconds by contender, one per round.
    :param against: For each contender, those that it is compared with, as far as they are in `times`.
    :param note: What is to be said of all of them.
    """
    readings = []
    for name, taken in times.items():
        readings.append(Reading(case, name, SECONDS, spread(taken), x=x, note=note))
        readings += [
            Reading(case, name, RATIO, ratio(times, name, other), other, x=x, note=note)
            for other in against.get(name, ())
            if other in times
        ]
    return readings


def one(value: float) -> Spread:
    """A quantity that is measured once."""
    return Spread(value, value, value, 1)


def find(readings: Sequence[Reading], case: str, contender: str, quantity: str, against: str = "") -> Reading | None:
    """The reading of this case, contender and quantity, if there is one."""
    wanted = (case, contender, quantity, against)
    found = (r for r in readings if (r.case, r.contender, r.quantity, r.against) == wanted)
    return next(found, None)


def shown(reading: Reading | None, factor: float = 1.0) -> str:
    """A reading as an entry of a table: the value in other units, a dash if there is none, or why there is none."""
    if reading is None:
        return "-"
    if reading.value is None:
        return reading.note
    value = reading.value
    return str(Spread(value.median * factor, value.lower * factor, value.upper * factor, value.n))


def remarks(readings: Sequence[Reading]) -> tuple[str, ...]:
    """What is to be said of the values, each remark once."""
    return tuple(dict.fromkeys(reading.note for reading in readings if reading.value and reading.note))


def frame(readings: Sequence[Reading]) -> pd.DataFrame:
    """The readings as they are kept: a line each, `value` as median, lower, upper and n."""
    lines = []
    for reading in readings:
        line = asdict(reading)
        value = line.pop("value") or dict.fromkeys(("median", "lower", "upper", "n"))
        lines.append(line | value)
    columns = ["case", "x", "contender", "quantity", "against", "median", "lower", "upper", "n", "note"]
    return pd.DataFrame(lines, columns=columns).astype({"n": "Int64"})
