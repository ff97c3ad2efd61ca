"""Parts of the speed benchmark, measured one after the other; each writes its own files when it is finished."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.config import ConfigError
from benchmarks.execution import available_cpus
from benchmarks.references import did_you_mean
from benchmarks.report.drawing import Picture, save
from benchmarks.report.markup import Table
from benchmarks.speed import attacks, growth, losses, training, ways
from benchmarks.speed.measuring import Reading, Settings, frame
from benchmarks.store import expect_writable, write_bytes

# Load per core above which the machine is reported as busy.
BUSY = 0.3
# Names of packages in the notes, by their names on PyPI.
PACKAGES = {"torch": "torch", "adversarial-robustness-toolbox": "ART", "numpy": "NumPy"}
PACKAGES |= {"foolbox": "Foolbox", "torchattacks": "torchattacks"}


@dataclass(frozen=True)
class Part:
    """Part of the benchmark; to add one, add an entry to PARTS."""

    minutes: float
    """Approximate duration on two cores."""
    cases: Callable[[Settings], Mapping[str, Callable[[], Sequence[Reading]]]]
    """A function that returns the measurements, in order, without running them; it may read data and train networks."""
    tables: Callable[[pd.DataFrame], Sequence[Table]]
    pictures: Callable[[pd.DataFrame], Sequence[Picture]] = lambda readings: ()


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "loss": Part(12, losses.cases, losses.tables),
        "attacks": Part(6, attacks.cases, attacks.tables),
        "growth": Part(
            2,
            lambda settings: growth.cases(settings, growth.panels(settings)),
            growth.tables,
            lambda readings: [growth.picture(readings, "growth", "growth of the cost", "milliseconds", 1e3)],
        ),
        "training": Part(
            8,
            lambda settings: training.cases(settings) | growth.cases(settings, growth.training_panels(settings)),
            lambda readings: [*training.tables(readings), *growth.training_tables(readings)],
            lambda readings: [
                growth.picture(readings, "training-growth", "growth of the cost of training", "seconds", 1.0)
            ],
        ),
        "ways": Part(1, ways.cases, ways.tables),
    }
)


def chosen(names: Sequence[str]) -> list[str]:
    """
    Return the names of the given parts, each once.

    :raises ConfigError: If there is no part with a name.
    """
    for name in names:
        if name not in PARTS:
            raise ConfigError(
                f"expected a part to be one of {list(PARTS)}, but got {name!r}{did_you_mean(name, PARTS)}"
            )
    return list(dict.fromkeys(names))


def machine(device: torch.device) -> list[str]:
    """Return sentences on the machine and the versions, with a warning if other processes use the machine."""
    information, cores = Path("/proc/cpuinfo"), available_cpus()
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]  # on Linux alone
    cpu = models[0] if models else platform.processor() or platform.machine()
    gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "no GPU"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    installed = {package.metadata["Name"].lower(): package.version for package in metadata.distributions()}
    versions = ", ".join(
        f"{shown} {installed[name]}" if name in installed else f"no {shown}" for name, shown in PACKAGES.items()
    )
    notes = [
        f"Machine: {cpu}, {cores} cores; {gpus}. Load at the start: {load:.2f}. Python {platform.python_version()}, "
        f"{versions}. The timings are those of this machine and differ on others."
    ]
    if device.type == "cuda":
        kinds = (("convolutions", torch.backends.cudnn), ("matrix products", torch.backends.cuda.matmul))
        precisions = (f"{what} are in {'TF32' if backend.allow_tf32 else 'float32'}" for what, backend in kinds)
        notes.append(
            f"CUDA {torch.version.cuda}. {', '.join(precisions)}, torch's default, unless a case names another."
        )
    if load > BUSY * cores:
        notes.append(
            f"WARNING: the machine was busy at the start (load {load:.2f} on {cores} cores). Times are too long, and "
            "ratios vary more than on an idle machine."
        )
    return notes


def measure(name: str, settings: Settings, console: Console, readings: list[Reading]) -> int:
    """
    Measure all cases of a part and add their readings to a list, with a progress bar and a line for each case.

    :return: The number of cases that failed; the others are measured.
    """
    failed = 0
    cases = PARTS[name].cases(settings)
    tracked = track(cases.items(), name, console=console, disable=not console.is_terminal)
    for i, (case, measure_case) in enumerate(tracked, start=1):
        started = time.perf_counter()
        outcome = ""
        try:
            readings += measure_case()
        except Exception as error:  # such as too little memory, which may be enough for other cases
            failed, outcome = failed + 1, f" fails: {type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        console.print(f"{name} {i}/{len(cases)}: {case}, {seconds:.1f} s{outcome}", soft_wrap=True)
    return failed


def csv_bytes(readings: pd.DataFrame) -> bytes:
    """Return the readings as CSV, with six digits."""
    text: str = readings.to_csv(index=False, float_format="%.6g")
    return text.encode()


def write(name: str, readings: pd.DataFrame, head: Sequence[str], folder: Path) -> list[Path]:
    """
    Write NAME.md, NAME.csv and the part's figures, each by an atomic write.

    :param name: The part.
    :param head: Paragraphs above the tables: the command and the machine.
    :return: The paths of the files.
    :raises StoreError: If a file cannot be written.
    """
    tables, pictures = PARTS[name].tables(readings), PARTS[name].pictures(readings)
    figures = [f"![{picture.alt}]({picture.name}.png)\n\n{picture.caption}\n" for picture in pictures]
    body = "\n".join([*(table.markdown() for table in tables), *figures])
    write_bytes(folder / f"{name}.md", "\n\n".join([f"# Speed: {name}", *head, body]).encode())
    write_bytes(folder / f"{name}.csv", csv_bytes(readings))
    for picture in pictures:
        save(picture, folder)
    return [folder / file for file in (f"{name}.md", f"{name}.csv", *(f"{picture.name}.png" for picture in pictures))]


def run(names: Sequence[str], settings: Settings, folder: Path, console: Console, *, command: str) -> int:
    """
    Measure parts, and write each when it is finished.

    :param names: The names of the parts.
    :param command: The command without the parts, for NAME.md.
    :return: The exit status: 1 if a case failed; 130 after an interrupt. Then the finished parts are written, and the
        readings of the unfinished one are in NAME-unfinished.csv.
    :raises StoreError: If the folder cannot be written to; this is checked before the measurements.
    """
    expect_writable(folder)
    head = machine(settings.device)
    for note in head:
        console.print(note, soft_wrap=True)
    minutes = "less than one" if settings.quick else f"about {sum(PARTS[name].minutes for name in names):g}"
    console.print(f"Parts: {', '.join(names)}; minutes on two idle cores: {minutes}.")
    remaining, failed = list(names), 0
    measured: list[Reading] = []
    try:
        while remaining:
            name = remaining[0]
            measured, unfinished = [], folder / f"{name}-unfinished.csv"
            failed += measure(name, settings, console, measured)
            readings = frame(measured)
            for table in PARTS[name].tables(readings):
                console.print(table.rich())
            written = write(name, readings, [f"Made by `{command} --part {name}`.", *head], folder)
            console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True)
            unfinished.unlink(missing_ok=True)
            remaining.pop(0)
    except KeyboardInterrupt:
        if measured:
            write_bytes(unfinished, csv_bytes(frame(measured)))
        finished = [name for name in names if name not in remaining]
        stored = f"Finished parts, in {folder}: {', '.join(finished)}." if finished else "No part is finished."
        rest = f"To measure the others:\n  {command} --part {' '.join(remaining)}"
        console.print(f"Interrupted. {stored} {rest}", soft_wrap=True)
        return 130
    return 1 if failed else 0
