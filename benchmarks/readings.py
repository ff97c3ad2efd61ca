"""
Readings of the paper's CIFAR-10 recipe, which leaves details open, compared with its Table 1.

Each reading is a grid: `python -m benchmarks run --grid benchmarks.readings:no_weight_decay`. With the same options and
store, `python -m benchmarks readings` shows the results of all readings beside the printed numbers.
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

# The attacks whose accuracies the paper prints, and the printed accuracies by training loss and attack.
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
    """ResNet-8 of version 1 as in Keras's example: L2 penalty of 1e-4, Keras's batch norm, the mean subtracted."""
    return _reading("as-keras")


def no_weight_decay() -> Grid:
    """ResNet-8 without the L2 penalty, which would keep weights and margins small."""
    return _reading("no-weight-decay", l2=0.0)


def version_2() -> Grid:
    """ResNet-11 of version 2, the other network of Keras's example: n = 1 in 9n + 2 layers."""
    return _reading("version-2", model="resnet-v2")


def version_2_no_weight_decay() -> Grid:
    """ResNet-11 of version 2 without the L2 penalty."""
    return _reading("version-2-no-weight-decay", model="resnet-v2", l2=0.0)


def mean_not_subtracted() -> Grid:
    """ResNet-8 whose input is not reduced by the mean of the training images."""
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
    Return the table of the readings, with the printed numbers first, and its numbers as a frame.

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
    header = ("reading", "trained", "no attack", *protocols[:2], "zero gradients", *protocols[2:], "distance")
    table = Table("Readings of the paper's CIFAR-10", header, tuple(rows), _notes(selections, distances))
    return table, pd.DataFrame(numbers)


def _notes(selections: Mapping[str, Selection], distances: Mapping[str, float]) -> tuple[str, ...]:
    one = next(iter(selections.values()))
    nearest = min(distances, key=distances.__getitem__, default="none yet")
    return (
        f"Data: CIFAR-10, {50_000 - one.recipe.validation_size} training images, {one.recipe.epochs} epochs, 10,000 "
        f"test images. Entries: accuracy, the share of images that are classified correctly. {over_seeds(one.grid)} "
        "The attack is FGSM with the CE loss. zero gradients: the share of images whose gradient in the paper protocol "
        "is exactly 0, so that FGSM does not change them. not clipped: as paper, but adversarial images are not "
        "clipped to the pixel range. exact: FGSM with the exact gradient, eps as a share of the pixel range.",
        *(f"{name}: {' '.join(str(READINGS[name].__doc__).split())}" for name in distances),
        "All readings have the momentum and the epsilon of Keras's batch norm.",
        "distance: the mean absolute difference from the six printed numbers, without attack and in the paper "
        f"protocol. The smallest distance has the reading: {nearest}. Nothing says that the authors did the same.",
    )


def publish(made: Sequence[tuple[str, Grid, str]], store: Store, folder: Path, command: str) -> Table:
    """
    Write readings.md and readings.csv for the readings that have results, and return the table.

    :param made: The name, the grid and the command of each reading.
    :param store: The store of the results.
    :param folder: The folder for the two files.
    :param command: The command that writes the table; it is printed under it.
    :raises StoreError: If the folder cannot be written.
    """
    table, numbers = readings_table({name: Selection(load(grid, store), "cifar10") for name, grid, _ in made})
    commands = (f"- `{of_reading}`" for *_, of_reading in made)
    text = "\n".join([table.markdown(), f"Made by `{command}` from\n", *commands, ""])
    write_bytes(folder / "readings.md", text.encode())
    write_bytes(folder / "readings.csv", numbers.to_csv(index=False, float_format="%.6g").encode())
    return table
