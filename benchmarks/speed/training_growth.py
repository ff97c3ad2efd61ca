"""How the cost of training grows with the runs at once, the batch, the epochs, and the workers of a pool."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from art_hrloss import seeded
from benchmarks.config import AttackSpec, Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.execution import Job, available_cpus, load_data, local, run_all, threads
from benchmarks.protocols import CE, HR
from benchmarks.recipes import DIGITS
from benchmarks.report.drawing import Picture
from benchmarks.report.markup import Table
from benchmarks.speed.cases import HOW, RATIO, SECONDS, Case, Reading, Settings, find, shown, timed_readings
from benchmarks.speed.growth_figure import growth_figure
from benchmarks.speed.timing import Call, interleaved
from benchmarks.speed.training_loops import Start, TrainingSubject, bare_loop, whole_run
from benchmarks.store import Store
from benchmarks.training import train, train_together

RUNS, BATCHES, EPOCHS = (1, 2, 5, 10), (16, 32, 64, 128, 256, 512), (1, 2, 5, 10, 20)
QUICK_RUNS, QUICK_BATCHES, QUICK_EPOCHS = (1, 2), (64, 256), (1, 2)
# Of the grid that is given to a pool; a process takes seconds to start.
POOL_SEEDS, POOL_EPOCHS = 4, 60
BY_RUNS, BY_BATCH = "runs (digits, 2 epochs)", "batch (digits, 2 epochs)"
BY_EPOCHS, BY_WORKERS = "epochs (digits)", f"workers ({2 * POOL_SEEDS} runs of the digits, {POOL_EPOCHS} epochs)"
TOGETHER, ONE_BY_ONE = "trained at once", "one after the other"
OURS, BARE, POOL = "whole run, HR", "bare loop, HR", "pool of processes"
AGAINST = {TOGETHER: ONE_BY_ONE, OURS: BARE}
NOTES = (
    "The network and recipe of the digits, in batches of 50 where nothing else is said. Of the runs, half have each "
    "loss. One thread for each process of the CPU, or the GPU where it is named. A pool's seconds have in them the "
    "start of its processes, which import torch; a pool of one worker is the process that is there.",
    "Ratios are of times: to the same runs one after the other, or to the bare loop.",
    HOW,
)


def _recipe(device: torch.device, *, epochs: int = 2, batch_size: int = DIGITS.batch_size) -> Recipe:
    return replace(DIGITS, device="cpu" if device.type == "cpu" else "gpu", epochs=epochs, batch_size=batch_size)


def runs_of(count: int, recipe: Recipe) -> list[RunSpec]:
    """So many runs on the digits, of both losses in turn."""
    return [RunSpec("digits", recipe, HR if i % 2 else CE, seed=i // 2) for i in range(count)]


def at_once(runs: Sequence[RunSpec], data: Dataset, folder: Path) -> Store:
    """
    Runs trained at once, in a new store.

    :raises Exception: What a run failed by.
    """
    store = _opened(runs, data, folder)
    for error in train_together(runs, data, store).values():
        raise error
    return store


def one_by_one(runs: Sequence[RunSpec], data: Dataset, folder: Path) -> Store:
    """The same runs in another, one after the other."""
    store = _opened(runs, data, folder)
    for run in runs:
        train(run, data, store)
    return store


def _opened(runs: Sequence[RunSpec], data: Dataset, folder: Path) -> Store:
    store = Store(Path(tempfile.mkdtemp(dir=folder)))
    for run in runs:
        store.open(run, data.fingerprint)
    return store


def pooled(workers: int, jobs: Sequence[tuple[RunSpec, tuple[AttackSpec, ...]]], folder: Path, data_dir: Path) -> Store:
    """
    Runs trained and attacked by a pool, as a grid is.

    :param jobs: Each run with its attacks.
    :raises RuntimeError: If a run fails.
    """
    root = Path(tempfile.mkdtemp(dir=folder))
    todo = [Job(run, attacks, root, data_dir) for run, attacks in jobs]
    if failed := run_all(todo, partial(local, workers), lambda run, outcome: None):
        raise RuntimeError(f"expected all of {len(todo)} runs to be done, but {failed} failed: see {root}")
    return Store(root)


def _measure(
    case: str, x: float, calls: Mapping[str, Call], settings: Settings, device: torch.device, least: int = 3
) -> list[Reading]:
    with threads(1), seeded(0):
        times = interleaved(
            calls,
            device=device,
            rounds=1 if settings.quick else 15,
            seconds=settings.seconds / 10,
            least=least,
            warm=False,
        )
    return timed_readings(case, times, {name: (other,) for name, other in AGAINST.items()}, x=x)


def _by_runs(count: int, device: torch.device, settings: Settings) -> list[Reading]:
    runs = runs_of(count, _recipe(device))
    data = load_data("digits", DIGITS, data_dir=settings.data_dir)
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Call] = {
            TOGETHER: lambda _: at_once(runs, data, Path(folder)),
            ONE_BY_ONE: lambda _: one_by_one(runs, data, Path(folder)),
        }
        panel = BY_RUNS + (f", {device.type}" if device.type != "cpu" else "")
        return _measure(panel, count, calls, settings, device)


def _by_recipe(panel: str, x: int, recipe: Recipe, settings: Settings) -> list[Reading]:
    data = load_data("digits", DIGITS, data_dir=settings.data_dir)
    subject = TrainingSubject("digits", data, recipe)
    start = Start(subject, HR)
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Call] = {
            OURS: lambda _: whole_run(subject, HR, Path(folder)),
            BARE: lambda _: bare_loop(start),
        }
        return _measure(panel, x, calls, settings, torch.device("cpu"))


def _by_workers(workers: int, settings: Settings) -> list[Reading]:
    recipe = _recipe(torch.device("cpu"), epochs=1 if settings.quick else POOL_EPOCHS)
    jobs = [(run, (AttackSpec("none"),)) for run in runs_of(2 if settings.quick else 2 * POOL_SEEDS, recipe)]
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Call] = {POOL: lambda _: pooled(workers, jobs, Path(folder), settings.data_dir)}
        return _measure(BY_WORKERS, workers, calls, settings, torch.device("cpu"), least=1)


def worker_counts(cpus: int) -> list[int]:
    """1, 2, 4, 8 and so on, and as many as there are processors."""
    return sorted({*(2**i for i in range(cpus.bit_length()) if 2**i < cpus), cpus})


def cases(settings: Settings) -> list[Case]:
    """Every point of every panel."""
    quick, cpu = settings.quick, torch.device("cpu")
    found = [
        Case(f"{count} runs ({device.type})", partial(_by_runs, count, device, settings))
        for device in settings.devices
        for count in (QUICK_RUNS if quick else RUNS)
    ]
    by_recipe = [
        *((BY_BATCH, size, _recipe(cpu, batch_size=size)) for size in (QUICK_BATCHES if quick else BATCHES)),
        *((BY_EPOCHS, epochs, _recipe(cpu, epochs=epochs)) for epochs in (QUICK_EPOCHS if quick else EPOCHS)),
    ]
    found += [Case(f"{panel}: {x}", partial(_by_recipe, panel, x, recipe, settings)) for panel, x, recipe in by_recipe]
    workers = [1] if quick else worker_counts(available_cpus())
    return found + [Case(f"{count} workers", partial(_by_workers, count, settings)) for count in workers]


def fixed_and_each(readings: Sequence[Reading], contender: str) -> tuple[float, float]:
    """Seconds of a training whatever its epochs, and those of an epoch: the line of least squares through medians."""
    own = [r for r in readings if r.case == BY_EPOCHS and r.contender == contender and r.quantity == SECONDS]
    points = [(r.x, r.value.median) for r in own if r.x is not None and r.value is not None]
    each, fixed = np.polyfit([x for x, _ in points], [seconds for _, seconds in points], 1)
    return float(fixed), float(each)


def shown_growth(readings: Sequence[Reading]) -> tuple[Table, Picture]:
    """One table, a section per panel, and one figure with a panel for each."""
    own = [r for r in readings if r.x is not None]
    rows, panel = [], ""
    for reading in (r for r in own if r.quantity == SECONDS):
        at = [r for r in own if r.x == reading.x]
        beside = shown(find(at, reading.case, reading.contender, RATIO, AGAINST.get(reading.contender, "")))
        first = "" if reading.case == panel else reading.case
        panel = reading.case
        rows.append((first, f"{reading.x:g}", reading.contender, shown(reading), beside))
    header = ("what grows", "to", "contender", "seconds", "ratio")
    lines = (
        f"{name}: {fixed:.3g} s and {each:.3g} s an epoch, by least squares."
        for name in (OURS, BARE)
        for fixed, each in [fixed_and_each(own, name)]
    )
    table = Table("How training's cost grows", header, tuple(rows), (*lines, *NOTES))
    return table, growth_figure(own, name="training-growth", what="how training's cost grows", unit="seconds")
