"""Results -> accuracy from the paper's attack to the worst case, as a table: how much of it is masking."""

import pandas as pd

from benchmarks.config import AttackSpec, Grid, LossSpec
from benchmarks.grids import CE
from benchmarks.reporting.cells import Cell, Results
from benchmarks.reporting.markup import Table
from benchmarks.reporting.statistics import paired_interval
from benchmarks.reporting.tables import ZERO_GRADIENT_LIMIT, interval_text, over_seeds

# Columns: what the attack is called, and how it is told from the others, by its name and loss.
COLUMNS = {
    "FGSM, paper": ("fgm", "clipped-ce"),
    "FGSM, sound": ("fgm", "ce"),
    "Auto-PGD, CE": ("apgd", "ce"),
    "Auto-PGD, HR": ("apgd", "hr"),
    "Auto-PGD, margin": ("apgd", "margin"),
    "Auto-PGD, DLR": ("apgd", "dlr"),
    "worst case": ("worst-case", None),
}


def strong_table(results: Results, dataset: str) -> Table | None:
    """
    Accuracy of each training loss under ever stronger attacks on the same images, and the paired differences.

    :param results: What there is of a grid.
    :param dataset: One of its data sets.
    :return: None for a grid without a worst case.
    """
    grid = results.grid
    attacks = strong_attacks(grid)
    if not attacks:
        return None
    names = [name for name in COLUMNS if any(name in row for row in attacks.values())]
    rows: list[tuple[str, ...]] = []
    for eps, row in attacks.items():
        for i, loss in enumerate(grid.losses):
            cells = [results.cell(dataset, loss, row[name]) if name in row else None for name in names]
            rows.append((f"{eps:g}" if i == 0 else "", str(loss), *(_text(cell, grid) for cell in cells)))
        for loss in grid.losses if CE in grid.losses else ():
            if loss != CE:
                differences = [_gain(results, dataset, row[name], loss) if name in row else "" for name in names]
                rows.append(("", f"{loss} - {CE}", *differences))
    made = [attack for row in attacks.values() for attack in row.values()]
    images = max(results.cell(dataset, loss, attack).images for loss in grid.losses for attack in made)
    notes = (
        f"Data: {dataset}, the first {images} test images. {over_seeds(grid)} L-infinity, eps as a share of the pixel "
        "range. A row HR - CE is the difference paired over the seeds.",
        f"Auto-PGD: {max(attack.steps for attack in made)} steps from a random start. Worst case: image by image, what "
        "is left by an ensemble of projected gradient descent along CE, Auto-PGD along each loss, the Square attack "
        "and HopSkipJump, of which the last two see no gradients.",
        "FGSM, paper: through clipped probabilities, as in Table 1. What it leaves above the worst case is no "
        "robustness.",
        f"† On more than {ZERO_GRADIENT_LIMIT:.1%} of the images the gradient is exactly 0.",
    )
    shown = any("†" in text for row in rows for text in row)
    return Table(
        f"Strong attacks on {dataset}: test accuracy",
        ("eps", "trained", *names),
        tuple(rows),
        notes if shown else notes[:-1],
    )


def strong_attacks(grid: Grid) -> dict[float, dict[str, AttackSpec]]:
    """By eps and column, the attacks of a grid on the images on which it has a worst case."""
    found: dict[float, dict[str, AttackSpec]] = {}
    images = {attack.images for attack in grid.attacks if attack.name == "worst-case"}
    for attack in grid.attacks:
        for name, kind in COLUMNS.items():
            if (attack.name, attack.loss) == kind and attack.images in images and attack.split == "test":
                found.setdefault(attack.eps, {})[name] = attack
    return {eps: row for eps, row in sorted(found.items()) if "worst case" in row}


def broken_frame(results: Results) -> pd.DataFrame:
    """Of every worst case, how many images each attack of the ensemble broke first; the rest were left standing."""
    return pd.DataFrame(
        [
            {"dataset": run.dataset, "trained": str(run.loss), "seed": run.seed, "eps": attack.eps, "n": record["n"]}
            | {"attack": name, "broken": broken}
            for (run, attack), record in results.records.items()
            for name, broken in record.get("broken_by", {}).items()
        ],
        columns=["dataset", "trained", "seed", "eps", "n", "attack", "broken"],
    )


def _gain(results: Results, dataset: str, attack: AttackSpec, loss: LossSpec) -> str:
    ours, ce = (results.accuracies(dataset, trained, attack) for trained in (loss, CE))
    return interval_text(paired_interval(ours, ce), results.grid)


def _text(cell: Cell | None, grid: Grid) -> str:
    if cell is None:
        return ""
    return interval_text(cell.accuracy, grid) + ("†" if cell.zero_gradient > ZERO_GRADIENT_LIMIT else "")
