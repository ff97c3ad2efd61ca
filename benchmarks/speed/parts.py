"""All parts, one after the other, each into files of its own as soon as it is finished."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.config import ConfigError
from benchmarks.references import did_you_mean
from benchmarks.report.drawing import save
from benchmarks.speed.attacks import ATTACKS
from benchmarks.speed.cases import Part, Reading, Settings, frame
from benchmarks.speed.growth import GROWTH
from benchmarks.speed.losses import LOSS
from benchmarks.speed.machine import Machine, this_machine
from benchmarks.speed.training import TRAINING
from benchmarks.store._atomic import write_bytes

PARTS: tuple[Part, ...] = (LOSS, ATTACKS, GROWTH, TRAINING)


def chosen(names: Sequence[str]) -> list[Part]:
    """
    The parts of these names, each once.

    :raises ConfigError: If there is none of such a name.
    """
    known = {part.name: part for part in PARTS}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"expected a part to be one of {list(known)}, but got {name!r}{did_you_mean(name, known)}"
            )
    return [known[name] for name in dict.fromkeys(names)]


def measure(part: Part, settings: Settings, console: Console) -> list[Reading]:
    """All readings of a part, with a live line in a terminal and plain lines elsewhere."""
    readings: list[Reading] = []
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as live:
        task = live.add_task(f"{part.name}: preparing", total=None)
        cases = part.cases(settings)
        for i, case in enumerate(cases):
            live.update(task, completed=i, total=len(cases), description=f"{part.name}: {case.name}")
            begun = time.perf_counter()
            readings += case.measure()
            taken = time.perf_counter() - begun
            if not console.is_terminal:
                console.print(f"{part.name} {i + 1}/{len(cases)}: {case.name}, {taken:.1f} s", soft_wrap=True)
    return readings


def write(part: Part, readings: Sequence[Reading], machine: Machine, folder: Path, *, command: str) -> list[Path]:
    """
    Write PART.md, PART.csv and the part's figures, each whole or not at all.

    :param command: What made them, to stand in PART.md.
    :return: What was written.
    :raises StoreError: If something cannot be written.
    """
    found = part.findings(readings)
    figures = [f"![{picture.alt}]({picture.name}.png)\n\n{picture.caption}\n" for picture in found.pictures]
    head = "\n\n".join([f"# Speed: {part.name}", f"Made by `{command}`.", *machine.notes()])
    body = "\n".join([*(table.markdown() for table in found.tables), *figures])
    write_bytes(folder / f"{part.name}.md", f"{head}\n\n{body}".encode())
    write_bytes(folder / f"{part.name}.csv", frame(readings).to_csv(index=False, float_format="%.6g").encode())
    for picture in found.pictures:
        save(picture, folder)
    names = [f"{part.name}.md", f"{part.name}.csv", *(f"{picture.name}.png" for picture in found.pictures)]
    return [folder / name for name in names]


def run(parts: Sequence[Part], settings: Settings, folder: Path, console: Console, *, command: str) -> int:
    """
    Measure parts and write them, as each is finished.

    :param command: As for :func:`write`, without the parts.
    :return: The exit status: 130 if it was interrupted, when the finished parts are kept.
    """
    machine = this_machine()
    for note in machine.notes():
        console.print(note, soft_wrap=True)
    minutes = "less than one" if settings.quick else f"about {sum(part.minutes for part in parts):g}"
    console.print(f"Parts: {', '.join(part.name for part in parts)}; minutes on two quiet cores: {minutes}.")
    left = list(parts)
    try:
        while left:
            readings = measure(left[0], settings, console)
            for table in left[0].findings(readings).tables:
                console.print(table.rich())
            written = write(left[0], readings, machine, folder, command=f"{command} --part {left[0].name}")
            console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True)
            left.pop(0)
    except KeyboardInterrupt:
        done = [part.name for part in parts if part not in left]
        kept = f"Kept in {folder}: {', '.join(done)}." if done else "No part was finished."
        rest = " ".join(part.name for part in left)
        console.print(f"Interrupted. {kept} The rest:\n  {command} --part {rest}", soft_wrap=True)
        return 130
    return 0
