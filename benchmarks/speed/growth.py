"""How the cost of the loss, of attacks and of training grows: part "growth", and the end of part "training"."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

import art_hrloss.attacks
from art_hrloss import HRLoss
from benchmarks.config import AttackSpec, RunSpec
from benchmarks.execution import Job, available_cpus, load_data, local, run_all
from benchmarks.protocols import CE, HR
from benchmarks.recipes import DIGITS
from benchmarks.report import drawing
from benchmarks.report.markup import Table
from benchmarks.speed import attacks, losses, training
from benchmarks.speed.measuring import (
    RATIO,
    SECONDS,
    Call,
    Reading,
    Settings,
    at,
    entry,
    interleaved,
    tabulated,
    timed_readings,
)
from benchmarks.speed.subjects import AttackKind, Subject, TrainingSubject, noise, subjects

POOL = "pool of processes"
AGAINST = {
    losses.HR: (losses.CE,),
    attacks.OURS["HR"]: (attacks.HAND["HR"],),
    training.OURS["HR"]: (training.BARE["HR"],),
}
BY_EPOCHS = "epochs (digits)"
# Of the grid that is given to a pool; a process takes seconds to start.
POOL_RUNS, POOL_EPOCHS = 8, 60
NOTES = (
    "On one thread of the CPU, or the GPU where it is named. Classes and batch: forward and backward of the loss "
    "alone, float32, eager. Sides and steps: the attack of art_hrloss.attacks with the HR loss beside the loop by "
    "hand. Ratios are to cross-entropy, or to the loop by hand.",
)
TRAINING_NOTES = (
    "The network and recipe of the digits, in batches of 50 where nothing else is said. Of the runs, half have each "
    "loss. One thread for each process of the CPU, or the GPU where it is named. A pool's seconds have in them the "
    "start of its processes, which import torch; a pool of one worker is the process that is there.",
    "Ratios are of times, to the bare loop.",
)


@dataclass(frozen=True)
class Panel:
    """What grows, and what is timed."""

    name: str
    sizes: Sequence[int]
    calls: Callable[[int, Path], Mapping[str, Call]]
    """From a size, and a folder for what is written, to what is timed, by contender."""
    options: Mapping[str, Any]
    """Of :func:`interleaved`."""
    note: str = ""

    def measure(self, size: int, settings: Settings) -> list[Reading]:
        """Return the readings of one size."""
        with tempfile.TemporaryDirectory() as folder:
            times = interleaved(self.calls(size, Path(folder)), settings, rounds=15, **self.options)
        return timed_readings(at(self.name, settings.device), times, AGAINST, x=size, note=self.note)


def cases(settings: Settings, panels: Sequence[Panel]) -> dict[str, Callable[[], list[Reading]]]:
    """Return every size of every panel."""
    return {
        f"{panel.name}: {size}": partial(panel.measure, size, settings)
        for panel in panels
        for size in settings.few(panel.sizes)
    }


def panels(settings: Settings) -> list[Panel]:
    """Return what the part "growth" measures."""
    lenet, device = subjects(settings)[0], settings.device

    def loss(examples: int, classes: int) -> dict[str, Call]:
        workload = losses.Workload((examples, classes))
        logits, target = workload.example(device)
        both = losses.eager(workload, device)
        return {name: losses.step(both[name], logits, target) for name in (losses.CE, losses.HR)}

    def attack(subject: Subject, steps: int) -> dict[str, Call]:
        kind, network = AttackKind("PGD", steps), subject.on(device)
        ours = attacks.build(art_hrloss.attacks, kind, attacks.art_classifier(network, subject, HRLoss()), subject)
        hand = attacks.by_hand(kind, network, subject, HRLoss(reduction="none"))
        calls = {attacks.OURS["HR"]: ours, attacks.HAND["HR"]: hand}
        return {name: partial(attacks.seeded, call, subject) for name, call in calls.items()}

    warm = {"share": 1 / 5}
    classes, batches = (10, 30, 100, 300, 1000, 3000, 10_000, 50_000), (16, 64, 256, 1024, 4096, 8192)
    sides, side = (16, 24, 32, 48, 64), "pixels of a side (PGD-3 on ResNet-8, 32 images)"
    steps, step = (1, 3, 10, 30, 100), "steps (PGD on LeNet, one batch)"
    return [
        Panel("classes (batch 128)", classes, lambda size, _: loss(128, size), warm),
        Panel("batch (10 classes)", batches, lambda size, _: loss(size, 10), warm),
        Panel(side, sides, lambda size, _: attack(noise(size), 3), warm),
        Panel(step, steps, lambda size, _: attack(lenet, size), warm, lenet.note),
    ]


def training_panels(settings: Settings) -> list[Panel]:
    """Return what the part "training" measures of growth, all of it on the digits."""
    data, few = load_data("digits", DIGITS, data_dir=settings.data_dir), replace(DIGITS, epochs=2)
    few = replace(few, device=settings.device_name)

    def runs(number: int, **options: Any) -> list[RunSpec]:
        return [RunSpec("digits", replace(few, **options), HR if i % 2 else CE, seed=i // 2) for i in range(number)]

    def alone(folder: Path, **options: Any) -> dict[str, Call]:
        subject = TrainingSubject("digits", data, replace(few, **options))
        start = training.Start(subject, HR)
        return {
            training.OURS["HR"]: lambda _: training.trained([subject.run(HR)], data, folder),
            training.BARE["HR"]: lambda _: training.bare_loop(start),
        }

    def pool(workers: int, folder: Path) -> dict[str, Call]:
        several = runs(2, epochs=1) if settings.quick else runs(POOL_RUNS, epochs=POOL_EPOCHS)
        return {POOL: lambda _: pooled(workers, several, (AttackSpec("none"),), folder, settings.data_dir)}

    batches, epochs, workers = (16, 32, 64, 128, 256, 512), (1, 2, 5, 10, 20), worker_counts(available_cpus())
    by_workers = f"workers ({POOL_RUNS} runs of the digits, {POOL_EPOCHS} epochs)"
    cold: dict[str, Any] = {"share": 1 / 10, "warm": False}
    grown = [
        Panel("batch (digits, 2 epochs)", batches, lambda size, folder: alone(folder, batch_size=size), cold),
        Panel(BY_EPOCHS, epochs, lambda size, folder: alone(folder, epochs=size), cold),
    ]
    if settings.device.type == "cpu":  # one process has a GPU to itself
        grown.append(Panel(by_workers, workers[:1] if settings.quick else workers, pool, cold | {"least": 1}))
    return grown


def pooled(workers: int, runs: Sequence[RunSpec], under: tuple[AttackSpec, ...], folder: Path, data_dir: Path) -> Path:
    """
    Train and attack runs in a pool, as a grid is, into a new store.

    :raises RuntimeError: If a run fails.
    """
    root = Path(tempfile.mkdtemp(dir=folder))
    todo = [Job(run, under, root, data_dir) for run in runs]
    if failed := run_all(todo, partial(local, workers), lambda run, outcome: None):
        raise RuntimeError(f"expected all of {len(todo)} runs to be done, but {failed} failed: see {root}")
    return root


def worker_counts(cpus: int) -> list[int]:
    """Return 1, 2, 4, 8 and so on, and as many as there are processors."""
    return sorted({*(2**i for i in range(cpus.bit_length()) if 2**i < cpus), cpus})


def fixed_and_each(readings: pd.DataFrame, contender: str) -> tuple[float, float]:
    """Return seconds of a training whatever its epochs, and those of an epoch, by least squares through medians."""
    own = readings[(readings.contender == contender) & (readings.quantity == SECONDS)]
    own = own[own.case.str.startswith(BY_EPOCHS)]
    each, fixed = np.polyfit(own.x, own["median"], 1)
    return float(fixed), float(each)


def tables(readings: pd.DataFrame) -> list[Table]:
    """Return the table of the part "growth"."""
    return [_table("How cost grows", readings, "ms", 1e3, NOTES)]


def training_tables(readings: pd.DataFrame) -> list[Table]:
    """Return the table of how training's cost grows."""
    grown = readings[readings.x.notna()]
    lines = (
        f"{name}: {fixed:.3g} s and {each:.3g} s an epoch, by least squares."
        for name in (training.OURS["HR"], training.BARE["HR"])
        for fixed, each in [fixed_and_each(grown, name)]
    )
    return [_table("How training's cost grows", grown, "seconds", 1.0, (*lines, *TRAINING_NOTES))]


def _table(title: str, readings: pd.DataFrame, unit: str, factor: float, notes: Sequence[str]) -> Table:
    entries = {unit: entry(SECONDS, factor=factor), "ratio": entry(RATIO)}
    return tabulated(title, readings, ("what grows", "to", "contender"), entries, notes)


def picture(readings: pd.DataFrame, name: str, what: str, unit: str, factor: float) -> drawing.Picture:
    """
    Draw median times against what grows, both logarithmic, with shaded quartiles: a panel per case.

    :param readings: Those of seconds, with an x, are drawn: a line per contender.
    :param name: The figure's file.
    :param what: What it shows, in a few words.
    :param unit: Of the times.
    :param factor: From seconds to the unit.
    """
    drawn = readings[(readings.quantity == SECONDS) & readings.x.notna()]
    drawn = drawn.assign(**{part: factor * drawn[part] for part in ("lower", "median", "upper")})
    panels = list(drawn.groupby("case", sort=False))
    words, short = [], {"milliseconds": "ms", "seconds": "s"}[unit]
    with drawing.style():
        figure = Figure(figsize=(9.2, 3.6 * ((len(panels) + 1) // 2) + 0.6), layout="constrained")
        all_axes = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).ravel()
        for axes in all_axes[len(panels) :]:
            axes.set_visible(False)
        for axes, (panel, of_panel) in zip(all_axes, panels, strict=False):
            axes.set(xscale="log", yscale="log", xlabel=panel, ylabel=unit)
            for contender, own in of_panel.groupby("contender"):
                line = _line(contender)
                drawing.plot_line(axes, line, own.x, own["median"])
                axes.fill_between(own.x, own.lower, own.upper, color=line.color, alpha=0.15, linewidth=0)
                ends = (f"{y:.3g} {short} at {x:g}" for x, y in own[["x", "median"]].iloc[[0, -1]].to_numpy())
                words.append(f"{panel}: {contender}, {' to '.join(ends)}.")
            _draw_scale(axes, sorted(of_panel.x.unique()))
        drawing.draw_legend(figure, list(all_axes[: len(panels)]))
        drawing.settled(figure)
    caption = (
        f"{unit.capitalize()} against what grows, both axes logarithmic; medians over the rounds, quartiles shaded. On "
        "one thread of the CPU where nothing else is said; the machine is named above."
    )
    return drawing.Picture(name, what, caption, " ".join(words), figure)


def _draw_scale(axes: Axes, ticks: Sequence[float]) -> None:
    axes.grid(color=drawing.GREY, alpha=0.25, linewidth=0.6)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=40)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _line(name: str) -> drawing.Line:
    """Draw what is measured against wide with hollow marks, dashed if it is a loop, and the HR loss's own full."""
    if name == losses.CE:
        return drawing.Line(name, drawing.BLUE, "o", "-", True, width=2.6, size=9)
    if (name,) in AGAINST.values():
        return drawing.Line(name, drawing.BLACK, "D", "--", True, width=2.6, size=9)
    return drawing.Line(name, drawing.VERMILLION, "s" if name == losses.HR else "^", "-", False, width=1.5, size=4.5)
