"""All parts, one after the other, each into files of its own as soon as it is finished."""

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
from benchmarks.store import write_bytes
from benchmarks.store._atomic import expect_writable

# Load per core from which on the machine is called busy.
BUSY = 0.3
# Packages as they are shown, by pip's names.
PACKAGES = {"torch": "torch", "adversarial-robustness-toolbox": "ART", "numpy": "NumPy"}
PACKAGES |= {"foolbox": "Foolbox", "torchattacks": "torchattacks"}


@dataclass(frozen=True)
class Part:
    """A part of the measurement: a new one needs these, and a place in PARTS."""

    minutes: float
    """What it takes on two cores, about."""
    cases: Callable[[Settings], Mapping[str, Callable[[], Sequence[Reading]]]]
    """What is to be measured, in order; nothing is measured yet, but data may be read and networks trained."""
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
            lambda readings: [growth.picture(readings, "growth", "how cost grows", "milliseconds", 1e3)],
        ),
        "training": Part(
            8,
            lambda settings: training.cases(settings) | growth.cases(settings, growth.training_panels(settings)),
            lambda readings: [*training.tables(readings), *growth.training_tables(readings)],
            lambda readings: [growth.picture(readings, "training-growth", "how training's cost grows", "seconds", 1.0)],
        ),
        "ways": Part(1, ways.cases, ways.tables),
    }
)


def chosen(names: Sequence[str]) -> list[str]:
    """
    Return the names of these parts, each once.

    :raises ConfigError: If there is none of such a name.
    """
    for name in names:
        if name not in PARTS:
            raise ConfigError(
                f"expected a part to be one of {list(PARTS)}, but got {name!r}{did_you_mean(name, PARTS)}"
            )
    return list(dict.fromkeys(names))


def machine(device: torch.device) -> list[str]:
    """Return what timings depend on beside the code, in sentences, with a warning if others use the machine too."""
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
        f"{versions}. Timings are of this machine: elsewhere they are others."
    ]
    if device.type == "cuda":
        kinds = (("Convolutions", torch.backends.cudnn), ("matrix products", torch.backends.cuda.matmul))
        stated = (f"{what} are in {'TF32' if backend.allow_tf32 else 'float32'}" for what, backend in kinds)
        notes.append(f"CUDA {torch.version.cuda}. Where nothing else is said {', '.join(stated)}, as torch has it.")
    if load > BUSY * cores:
        notes.append(
            f"WARNING: the machine was busy at the start (load {load:.2f} on {cores} cores). Times are too long, and "
            "ratios spread more than on a quiet one."
        )
    return notes


def measure(name: str, settings: Settings, console: Console, readings: list[Reading]) -> int:
    """
    Add all readings of a part, with a bar in a terminal, and a line for each case.

    :return: How many cases failed; the others are measured.
    """
    failed = 0
    cases = PARTS[name].cases(settings)
    shown = track(cases.items(), name, console=console, disable=not console.is_terminal)
    for i, (case, measured) in enumerate(shown, start=1):
        begun = time.perf_counter()
        how = ""
        try:
            readings += measured()
        except Exception as error:  # such as memory that is short: the others may have enough
            failed, how = failed + 1, f" fails: {type(error).__name__}: {error}"
        console.print(f"{name} {i}/{len(cases)}: {case}, {time.perf_counter() - begun:.1f} s{how}", soft_wrap=True)
    return failed


def csv_bytes(readings: pd.DataFrame) -> bytes:
    """Return the readings as they are kept, to six digits."""
    text: str = readings.to_csv(index=False, float_format="%.6g")
    return text.encode()


def write(name: str, readings: pd.DataFrame, head: Sequence[str], folder: Path) -> list[Path]:
    """
    Write NAME.md, NAME.csv and the part's figures, each whole or not at all.

    :param name: The part.
    :param head: What stands above the tables: the command, and the machine.
    :return: What was written.
    :raises StoreError: If something cannot be written.
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
    Measure parts and write them, as each is finished.

    :param names: Of the parts.
    :param command: The command without the parts, to stand in NAME.md.
    :return: The exit status: 1 if a case failed; 130 if it was interrupted, when the finished parts are kept, and what
        was measured of the next in NAME-unfinished.csv.
    :raises StoreError: If the folder cannot be written to, before anything is measured.
    """
    expect_writable(folder)
    head = machine(settings.device)
    for note in head:
        console.print(note, soft_wrap=True)
    minutes = "less than one" if settings.quick else f"about {sum(PARTS[name].minutes for name in names):g}"
    console.print(f"Parts: {', '.join(names)}; minutes on two quiet cores: {minutes}.")
    left, failed = list(names), 0
    measured: list[Reading] = []
    try:
        while left:
            measured, unfinished = [], folder / f"{left[0]}-unfinished.csv"
            failed += measure(left[0], settings, console, measured)
            readings = frame(measured)
            for table in PARTS[left[0]].tables(readings):
                console.print(table.rich())
            written = write(left[0], readings, [f"Made by `{command} --part {left[0]}`.", *head], folder)
            console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True)
            unfinished.unlink(missing_ok=True)
            left.pop(0)
    except KeyboardInterrupt:
        if measured:
            write_bytes(unfinished, csv_bytes(frame(measured)))
        done = [name for name in names if name not in left]
        kept = f"Kept in {folder}: {', '.join(done)}." if done else "No part was finished."
        console.print(f"Interrupted. {kept} The rest:\n  {command} --part {' '.join(left)}", soft_wrap=True)
        return 130
    return 1 if failed else 0
