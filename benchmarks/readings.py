"""
The CIFAR-10 networks of the paper, read in other ways where it leaves them open: which is nearest to its Table 1?

Each reading is a grid of one's own, such as `python -m benchmarks run --grid benchmarks.readings:no_weight_decay`; with
the same options and store, `python -m benchmarks readings` puts all that are there beside the printed figures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from statistics import fmean
from types import MappingProxyType

import pandas as pd

from benchmarks.config import AttackSpec, Grid, Recipe
from benchmarks.grids import cifar10
from benchmarks.protocols import CE, EPS, HR, exact, paper
from benchmarks.report.markup import Table
from benchmarks.report.notes import over_seeds
from benchmarks.report.paper import PAPER_COLUMNS, PAPER_TABLE_1
from benchmarks.report.results import load
from benchmarks.report.selection import Selection
from benchmarks.store import Store, write_bytes

# What the paper prints, and its figures by training loss and attack.
COMPARED = (AttackSpec("none"), *(paper("ce", eps) for eps in EPS))
PRINTED = {
    (loss, attack): PAPER_TABLE_1["cifar10"][attack.eps][PAPER_COLUMNS.index((str(loss), "CE"))]
    for loss in (CE, HR)
    for attack in COMPARED
}
ATTACKS = (
    *COMPARED,
    *(replace(paper("ce", eps), clip=False) for eps in EPS),
    *(exact("ce", eps) for eps in EPS),
)


def as_keras() -> Grid:
    """ResNet-8 of version 1 as in Keras's example: l2 of 1e-4, its batch normalisation, the mean subtracted."""
    return _reading("as-keras")


def no_weight_decay() -> Grid:
    """Without the l2 penalty, so that nothing holds the weights, and with them the margins."""
    return _reading("no-weight-decay", l2=0.0)


def version_2() -> Grid:
    """ResNet-11 of version 2, which Keras's example has as well: n = 1 in 9n + 2 layers."""
    return _reading("version-2", model="resnet-v2")


def version_2_no_weight_decay() -> Grid:
    """Version 2 without the l2 penalty."""
    return _reading("version-2-no-weight-decay", model="resnet-v2", l2=0.0)


def mean_not_subtracted() -> Grid:
    """Without the mean of the training images subtracted."""
    return _reading("mean-not-subtracted", subtract_pixel_mean=False)


READINGS: Mapping[str, Callable[[], Grid]] = MappingProxyType(
    {
        "as Keras's example": as_keras,
        "no weight decay": no_weight_decay,
        "ResNet v2": version_2,
        "ResNet v2, no weight decay": version_2_no_weight_decay,
        "mean not subtracted": mean_not_subtracted,
    }
)


def _reading(name: str, **changes: object) -> Grid:
    grid = cifar10()
    ((dataset, recipe),) = grid.recipes
    changed: Recipe = replace(recipe, **changes)  # type: ignore[arg-type]  # fields by name
    return replace(grid, name=f"reading-{name}", recipes=((dataset, changed),), attacks=ATTACKS)


def readings_table(selections: Mapping[str, Selection]) -> tuple[Table, pd.DataFrame]:
    """
    Return the table of the readings, the printed figures first, and its numbers.

    :param selections: The results of each reading, by its name.
    """
    rows: list[tuple[str, ...]] = []
    numbers: list[dict[str, object]] = []
    for loss in (CE, HR):
        printed = (f"{PRINTED[loss, attack]:.3f}" for attack in COMPARED)
        rows.append(("printed" if loss == CE else "", str(loss), *printed, *[""] * (len(ATTACKS) - len(COMPARED) + 2)))
    distances: dict[str, float] = {}
    for name, selection in selections.items():
        cells = {(loss, attack): selection.cell(loss, attack) for loss in (CE, HR) for attack in ATTACKS}
        if not all(cell.n for cell in cells.values()):
            continue
        distances[name] = fmean(abs(cells[key].accuracy.mean - value) for key, value in PRINTED.items())
        for loss in (CE, HR):
            texts = [selection.text(cells[loss, attack].accuracy) for attack in ATTACKS]
            texts.insert(len(COMPARED), f"{cells[loss, COMPARED[1]].zero_gradient:.1%}")
            ends = (name, f"{distances[name]:.3f}") if loss == CE else ("", "")
            rows.append((ends[0], str(loss), *texts, ends[1]))
        for (loss, attack), cell in cells.items():
            row = {"reading": name, "trained": str(loss), "attack": attack.key(), "zero_gradient": cell.zero_gradient}
            numbers.append(row | dict(zip(("accuracy", "half_width_95", "seeds"), astuple(cell.accuracy), strict=True)))
    protocols = [f"{name}, eps {eps:g}" for name in ("paper", "not clipped", "exact") for eps in EPS]
    header = ("reading", "trained", "no attack", *protocols[:2], "gradients of 0", *protocols[2:], "from printed")
    table = Table("Readings of the paper's CIFAR-10", header, tuple(rows), _notes(selections, distances))
    return table, pd.DataFrame(numbers)


def _notes(selections: Mapping[str, Selection], distances: Mapping[str, float]) -> tuple[str, ...]:
    one = next(iter(selections.values()))
    nearest = min(distances, key=distances.__getitem__, default="none yet")
    return (
        f"CIFAR-10: {50_000 - one.recipe.validation_size} training images, {one.recipe.epochs} epochs, 10,000 test "
        f"images. {over_seeds(one.grid)} FGSM by the CE loss. gradients of 0: the share of images whose gradient in "
        "the paper protocol is exactly 0, which it leaves as they are. not clipped: the same attack, but images may "
        "leave the range of a pixel. exact: along the exact gradient.",
        *(f"{name}: {' '.join(str(READINGS[name].__doc__).split())}" for name in distances),
        "Batch normalisation is Keras's in all of them: its momentum and its epsilon.",
        "from printed: the mean distance of the six figures without attack and in the paper protocol from the printed "
        f"ones. Nearest: {nearest}. It is a reading, and not what the authors are known to have done.",
    )


def publish(made: Sequence[tuple[str, Grid, str]], store: Store, folder: Path, command: str) -> Table:
    """
    Write readings.md and readings.csv, of the readings that are in the store; return the table.

    :param made: Of each reading its name, its grid and the command that makes its results.
    :param store: The results.
    :param folder: Takes the two files.
    :param command: The command that makes the table.
    :raises StoreError: If the folder cannot be written.
    """
    table, numbers = readings_table({name: Selection(load(grid, store), "cifar10") for name, grid, _ in made})
    commands = (f"- `{of_reading}`" for *_, of_reading in made)
    text = "\n".join([table.markdown(), f"Made by `{command}` from\n", *commands, ""])
    write_bytes(folder / "readings.md", text.encode())
    write_bytes(folder / "readings.csv", numbers.to_csv(index=False, float_format="%.6g").encode())
    return table
