"""Growth of the cost of the loss, of attacks and of training: part "growth", and the last tables of part "training"."""

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
# Runs of a pool and epochs of each. They have to take much longer than the start of a process, which takes seconds.
POOL_RUNS, POOL_EPOCHS = 8, 60
NOTES = (
    "One thread of the CPU, or the GPU if it is named. Classes and batch: forward and backward pass of the loss alone, "
    "float32, eager; ratio: the time of HR divided by that of CE. Sides and steps: the attack of art_hrloss.attacks "
    "with the HR loss; ratio: its time divided by that of the loop by hand, a reference implementation in torch.",
)
TRAINING_NOTES = (
    "The network and recipe of the digits, with batches of 50 unless the batch varies. Half of the runs use each loss. "
    "One thread of the CPU per process, or the GPU if it is named. The seconds of a pool include the start of its "
    "processes, which import torch; a pool of one worker runs in the main process.",
    "ratio: the time divided by that of the bare loop.",
)


@dataclass(frozen=True)
class Panel:
    """Series of timings in which one size varies."""

    name: str
    """The size that varies, as text."""
    sizes: Sequence[int]
    calls: Callable[[int, Path], Mapping[str, Call]]
    """A function from a size, and a folder for its files, to the calls to time, by contender."""
    options: Mapping[str, Any]
    """Options of :func:`interleaved`."""
    note: str = ""

    def measure(self, size: int, settings: Settings) -> list[Reading]:
        """Return the readings of one size."""
        with tempfile.TemporaryDirectory() as folder:
            times = interleaved(self.calls(size, Path(folder)), settings, rounds=15, **self.options)
        return timed_readings(at(self.name, settings.device), times, AGAINST, x=size, note=self.note)


def cases(settings: Settings, panels: Sequence[Panel]) -> dict[str, Callable[[], list[Reading]]]:
    """Return the measurements of every size of every panel, by name."""
    return {
        f"{panel.name}: {size}": partial(panel.measure, size, settings)
        for panel in panels
        for size in settings.few(panel.sizes)
    }


def panels(settings: Settings) -> list[Panel]:
    """Return the panels of the part "growth"."""
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
    """Return the panels of growth of the part "training", all on the digits."""
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
    panels = [
        Panel("batch (digits, 2 epochs)", batches, lambda size, folder: alone(folder, batch_size=size), cold),
        Panel(BY_EPOCHS, epochs, lambda size, folder: alone(folder, epochs=size), cold),
    ]
    if settings.device.type == "cpu":  # a single process uses a GPU
        panels.append(Panel(by_workers, workers[:1] if settings.quick else workers, pool, cold | {"least": 1}))
    return panels


def pooled(
    workers: int, runs: Sequence[RunSpec], attack_specs: tuple[AttackSpec, ...], folder: Path, data_dir: Path
) -> Path:
    """
    Train and attack runs in a pool, as `python -m benchmarks run` does, into a new store.

    :raises RuntimeError: If a run fails.
    """
    root = Path(tempfile.mkdtemp(dir=folder))
    jobs = [Job(run, attack_specs, root, data_dir) for run in runs]
    if failed := run_all(jobs, partial(local, workers), lambda run, outcome: None):
        raise RuntimeError(f"expected all of {len(jobs)} runs to be done, but {failed} failed: see {root}")
    return root


def worker_counts(cpus: int) -> list[int]:
    """Return 1, 2, 4, 8 and so on below the number of CPUs, and that number."""
    return sorted({*(2**i for i in range(cpus.bit_length()) if 2**i < cpus), cpus})


def fixed_and_each(readings: pd.DataFrame, contender: str) -> tuple[float, float]:
    """Return the seconds that a training takes independently of its epochs, and those per epoch, by least squares."""
    times = readings[(readings.contender == contender) & (readings.quantity == SECONDS)]
    times = times[times.case.str.startswith(BY_EPOCHS)]
    each, fixed = np.polyfit(times.x, times["median"], 1)
    return float(fixed), float(each)


def tables(readings: pd.DataFrame) -> list[Table]:
    """Return the table of the part "growth"."""
    return [_table("Growth of the cost", readings, "ms", 1e3, NOTES)]


def training_tables(readings: pd.DataFrame) -> list[Table]:
    """Return the table of the growth of training's cost."""
    varied = readings[readings.x.notna()]
    lines = (
        f"{name}: {fixed:.3g} s plus {each:.3g} s per epoch, by least squares."
        for name in (training.OURS["HR"], training.BARE["HR"])
        for fixed, each in [fixed_and_each(varied, name)]
    )
    return [_table("Growth of the cost of training", varied, "seconds", 1.0, (*lines, *TRAINING_NOTES))]


def _table(title: str, readings: pd.DataFrame, unit: str, factor: float, notes: Sequence[str]) -> Table:
    entries = {unit: entry(SECONDS, factor=factor), "ratio": entry(RATIO)}
    return tabulated(title, readings, ("size", "value", "contender"), entries, notes)


def picture(readings: pd.DataFrame, name: str, title: str, unit: str, factor: float) -> drawing.Picture:
    """
    Draw median times against the size that varies, on logarithmic axes, with shaded quartiles and a panel per case.

    :param readings: The readings; drawn are those of seconds with an x, with a line per contender.
    :param name: The name of the figure's files.
    :param title: The title of the figure.
    :param unit: The unit of the times.
    :param factor: The number of units in a second.
    """
    drawn = readings[(readings.quantity == SECONDS) & readings.x.notna()]
    drawn = drawn.assign(**{part: factor * drawn[part] for part in ("lower", "median", "upper")})
    panels = list(drawn.groupby("case", sort=False))
    texts, short = [], {"milliseconds": "ms", "seconds": "s"}[unit]
    with drawing.style():
        figure = Figure(figsize=(9.2, 3.6 * ((len(panels) + 1) // 2) + 0.6), layout="constrained")
        all_axes = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).ravel()
        for axes in all_axes[len(panels) :]:
            axes.set_visible(False)
        for axes, (panel, of_panel) in zip(all_axes, panels, strict=False):
            axes.set(xscale="log", yscale="log", xlabel=panel, ylabel=unit)
            for contender, times in of_panel.groupby("contender"):
                line = _line(contender)
                drawing.plot_line(axes, line, times.x, times["median"])
                axes.fill_between(times.x, times.lower, times.upper, color=line.color, alpha=0.15, linewidth=0)
                ends = (f"{y:.3g} {short} at {x:g}" for x, y in times[["x", "median"]].iloc[[0, -1]].to_numpy())
                texts.append(f"{panel}: {contender}, {' to '.join(ends)}.")
            _draw_scale(axes, sorted(of_panel.x.unique()))
        drawing.draw_legend(figure, list(all_axes[: len(panels)]))
        drawing.settled(figure)
    caption = (
        f"{unit.capitalize()} against the size that varies, on logarithmic axes; medians over the rounds, quartiles "
        "shaded. One thread of the CPU unless a GPU is named; the machine is described above."
    )
    return drawing.Picture(name, title, caption, " ".join(texts), figure)


def _draw_scale(axes: Axes, ticks: Sequence[float]) -> None:
    axes.grid(color=drawing.GREY, alpha=0.25, linewidth=0.6)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=40)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _line(name: str) -> drawing.Line:
    """Return a contender's style: wide with hollow markers for references, dashed for loops, filled for the others."""
    if name == losses.CE:
        return drawing.Line(name, drawing.BLUE, "o", "-", True, width=2.6, size=9)
    if (name,) in AGAINST.values():
        return drawing.Line(name, drawing.BLACK, "D", "--", True, width=2.6, size=9)
    return drawing.Line(name, drawing.VERMILLION, "s" if name == losses.HR else "^", "-", False, width=1.5, size=4.5)
