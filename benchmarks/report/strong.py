"""Results -> accuracy from the paper's attack to the worst case, as a table: how much of it is masking."""

from collections.abc import Iterable, Sequence

import pandas as pd

from benchmarks.config import AttackSpec, Grid, LossSpec
from benchmarks.protocols import CE
from benchmarks.report.cells import Cell, Results
from benchmarks.report.markup import Table
from benchmarks.report.statistics import paired_interval
from benchmarks.report.tables import ZERO_GRADIENT_LIMIT, interval_text, over_seeds

# Columns: what the attack is called, and how it is told from the others, by its name and loss.
COLUMNS = {
    "FGSM, paper": ("fgm", "clipped-ce"),
    "FGSM, sound": ("fgm", "ce"),
    "PGD, CE": ("pgd", "ce"),
    "Auto-PGD, CE": ("apgd", "ce"),
    "Auto-PGD, HR": ("apgd", "hr"),
    "Auto-PGD, margin": ("apgd", "margin"),
    "Auto-PGD, DLR": ("apgd", "dlr"),
    "Square": ("square", None),
    "transfer": ("transfer", None),
    "worst case": ("worst-case", None),
}
PAPER_NOTE = (
    "FGSM, paper: through clipped probabilities, as in Table 1. What it leaves above the worst case is no robustness."
)
ZERO_NOTE = f"† On more than {ZERO_GRADIENT_LIMIT:.1%} of the images the gradient is exactly 0."


def strong_table(results: Results, dataset: str) -> Table | None:
    """
    Accuracy of each training loss under ever stronger attacks on the same images, and the paired differences.

    :param results: What there is of a grid.
    :param dataset: One of its data sets.
    :return: None for a grid without a worst case, or with hardened networks, which have a table of their own.
    """
    grid = results.grid
    attacks = strong_attacks(grid)
    if not attacks or has_hardening(grid):
        return None
    names = [name for name in COLUMNS if any(name in row for row in attacks.values())]
    rows: list[tuple[str, ...]] = []
    for eps, row in attacks.items():
        for i, loss in enumerate(grid.losses):
            cells = [results.cell(dataset, loss, row[name]) if name in row else None for name in names]
            rows.append((f"{eps:g}" if i == 0 else "", str(loss), *(entry_text(cell, grid) for cell in cells)))
        for loss in grid.losses if CE in grid.losses else ():
            if loss != CE:
                differences = [_gain(results, dataset, row[name], loss) if name in row else "" for name in names]
                rows.append(("", f"{loss} - {CE}", *differences))
    made = [attack for row in attacks.values() for attack in row.values()]
    notes = (
        f"{data_note(results, dataset, made)} A row HR - CE is the difference paired over the seeds.",
        f"{_steps_note(made)}{worst_case_note(made)}",
        PAPER_NOTE,
        *zero_notes(rows),
    )
    return Table(f"Strong attacks on {dataset}: test accuracy", ("eps", "trained", *names), tuple(rows), notes)


def has_hardening(grid: Grid) -> bool:
    """Whether any of a grid's networks is hardened."""
    return any(loss.hardening is not None for loss in grid.losses)


def strong_attacks(grid: Grid) -> dict[float, dict[str, AttackSpec]]:
    """By eps and column, the attacks of a grid on the images on which it has a worst case, and not that alone."""
    found: dict[float, dict[str, AttackSpec]] = {}
    images = {attack.images for attack in grid.attacks if attack.name == "worst-case"}
    for attack in grid.attacks:
        for name, kind in COLUMNS.items():
            # A worst case at the paper's own eps, in other units than its row's others, stands in Table 1.
            other = attack.name == "worst-case" and attack.units != "range"
            if (attack.name, attack.loss) == kind and attack.images in images and attack.split == "test" and not other:
                found.setdefault(attack.eps, {})[name] = attack
    return {eps: row for eps, row in sorted(found.items()) if "worst case" in row and len(row) > 1}


def broken_frame(results: Results) -> pd.DataFrame:
    """Of every worst case, how many images each attack of the ensemble broke first; the rest were left standing."""
    return pd.DataFrame(
        [
            {"dataset": run.dataset, "trained": str(run.loss), "seed": run.seed, "eps": attack.eps}
            | {"units": attack.units, "n": record["n"], "attack": name, "broken": broken}
            for (run, attack), record in results.records.items()
            for name, broken in record.get("broken_by", {}).items()
        ],
        columns=["dataset", "trained", "seed", "eps", "units", "n", "attack", "broken"],
    )


def entry_text(cell: Cell | None, grid: Grid) -> str:
    """An accuracy, marked where too many gradients are exactly 0; nothing where the grid has no such attack."""
    if cell is None:
        return ""
    return interval_text(cell.accuracy, grid) + ("†" if cell.zero_gradient > ZERO_GRADIENT_LIMIT else "")


def data_note(results: Results, dataset: str, made: Sequence[AttackSpec]) -> str:
    """What a note says of the data, the seeds and eps."""
    grid = results.grid
    images = max(results.cell(dataset, loss, attack).images for loss in grid.losses for attack in made)
    return (
        f"Data: {dataset}, the first {images} test images. {over_seeds(grid)} L-infinity, eps as a share of the pixel "
        "range."
    )


def worst_case_note(made: Iterable[AttackSpec]) -> str:
    """What a note says of the worst cases among the attacks that are made."""
    elsewhere = any(attack.name == "worst-case" and attack.source is not None for attack in made)
    return (
        "Worst case: image by image, what is left by an ensemble of projected gradient descent along CE, Auto-PGD "
        f"along each loss, {'images made on another network, ' if elsewhere else ''}the Square attack and HopSkipJump. "
        "The last two see no gradients" + (", and images made elsewhere none of this network." if elsewhere else ".")
    )


def zero_notes(rows: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The note on the mark of gradients that are 0, if it is in any row."""
    return (ZERO_NOTE,) if any("†" in text for row in rows for text in row) else ()


def _steps_note(made: Sequence[AttackSpec]) -> str:
    """What a note says of how long the attacks go on, but for the worst case."""
    ways = {
        "pgd": "PGD: {} steps from a random start",
        "apgd": "Auto-PGD: {} steps from a random start",
        "square": "Square: {} queries per image",
        "transfer": "transfer: PGD of {} steps along CE, on another network that is trained alike with CE",
    }
    steps = {name: max((attack.steps for attack in made if attack.name == name), default=0) for name in ways}
    parts = [way.format(steps[name]) for name, way in ways.items() if steps[name]]
    return "; ".join(parts) + ". " if parts else ""


def _gain(results: Results, dataset: str, attack: AttackSpec, loss: LossSpec) -> str:
    ours, ce = (results.accuracies(dataset, trained, attack) for trained in (loss, CE))
    return interval_text(paired_interval(ours, ce), results.grid)
