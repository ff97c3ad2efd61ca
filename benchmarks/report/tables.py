"""Results -> tables of confusion and of the choice of alpha, and what all tables of accuracy share."""

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.config import AttackSpec, Grid, LossSpec
from benchmarks.protocols import CE, paper, sound
from benchmarks.report.cells import Cell, Results
from benchmarks.report.markup import Table
from benchmarks.report.statistics import Interval, distance_to_identity, paired_interval

# Above this share of input gradients that are exactly 0 an entry is marked: part of its accuracy may be no robustness.
ZERO_GRADIENT_LIMIT = 0.001

# The printed norms ||I - C||, under the CE attack at this eps.
PAPER_CONFUSION = {"mnist": {"CE": 0.40, "HR(1.6)": 0.23}}
PAPER_CONFUSION_EPS = 0.1


def confusion_table(results: Results, dataset: str) -> Table | None:
    """
    How far the semi-empirical confusion matrices are from perfect: ||I - C||, without attack and under the CE attack.

    :param results: What there is of a grid.
    :param dataset: One of its data sets.
    :return: None where the grid has none of these attacks.
    """
    attacks, losses = confusion_attacks(results.grid), results.grid.losses
    if not attacks:
        return None
    norms = {loss: [confusion_norms(results, dataset, loss, attack) for attack in attacks.values()] for loss in losses}
    zeros: list[dict[int, float]] = [dict.fromkeys(results.grid.seeds, 0.0) for _ in attacks]
    rows = [(str(loss), *_differences(norms[loss], zeros, results.grid)) for loss in losses]
    others = [loss for loss in losses if loss != CE] if CE in losses else []
    rows += [(f"{CE} - {loss}", *_differences(norms[CE], norms[loss], results.grid)) for loss in others]
    eps = max(attack.eps for attack in attacks.values())
    names = [label if attack.name == "none" else f"eps {eps:g}, {label}" for label, attack in attacks.items()]
    notes = [
        f"Data: {dataset}. C[i, j] is the mean probability of class i over the test images of class j; I - C is the "
        "zero matrix for a classifier that is right and certain. " + over_seeds(results.grid),
        "The attack is FGSM by the CE loss; sound and paper are the protocols of Table 1. A row CE - HR is the "
        "difference paired over the seeds.",
    ]
    printed = PAPER_CONFUSION.get(dataset, {}) if eps == PAPER_CONFUSION_EPS else {}
    if printed:
        rows = [(*row, f"{printed[row[0]]:.2f}" if row[0] in printed else "") for row in rows]
        names.append("printed")
        notes.append(f"printed: what the paper prints, under the CE attack at eps {eps:g}.")
    title = f"Confusion on {dataset}: the Frobenius norm ||I - C||"
    return Table(title, ("trained", *names), tuple(rows), tuple(notes))


def confusion_attacks(grid: Grid) -> dict[str, AttackSpec]:
    """No attack, and the CE attack at the grid's smallest eps in each protocol: those that the grid has, by name."""
    attacks = of_test_images(grid)
    strengths = {a.eps for a in attacks if a.eps and a in (sound("ce", a.eps), paper("ce", a.eps))}
    found = {"no attack": sound("ce", 0)}
    if strengths:
        found |= {"sound": sound("ce", min(strengths)), "paper": paper("ce", min(strengths))}
    return {name: attack for name, attack in found.items() if attack in attacks}


def confusion_norms(results: Results, dataset: str, loss: LossSpec, attack: AttackSpec) -> dict[int, float]:
    """||I - C|| by seed."""
    confusions = results.confusions(dataset, loss, attack)
    return {seed: distance_to_identity(confusion) for seed, confusion in confusions.items()}


def alpha_table(results: Results, dataset: str) -> Table | None:
    """
    Accuracy against alpha, on the validation and on the test images, the alpha chosen on validation marked.

    :param results: What there is of a grid.
    :param dataset: One of its data sets.
    :return: None for a grid with fewer than two alphas, or without attacks of validation images.
    """
    grid = results.grid
    if not has_alphas(grid):
        return None
    rows: list[tuple[str, ...]] = []
    images = {"validation": 0, "test": 0}
    shown: list[Cell] = []
    for eps in alpha_eps(grid):
        chosen = chosen_alpha(results, dataset, eps)
        for loss in grid.losses:
            entries = []
            for split in ("validation", "test"):
                attack = sound("ce", eps, split)
                cell = results.cell(dataset, loss, attack)
                shown.append(cell)
                images[split] = max(images[split], cell.images)
                mark = "‡" if split == "validation" and loss == chosen else ""
                entries.append(cell_text(cell, grid) + mark if attack in grid.attacks else "")
            rows.append((f"{eps:g}" if loss == grid.losses[0] else "", str(loss), *entries))
    notes = [
        f"Data: {dataset}, {images['validation']} validation images, held out of training, and {images['test']} test "
        f"images. {over_seeds(grid)} FGSM by the CE loss, sound protocol, eps as a share of the pixel range. In "
        "brackets: the share of images whose input gradient is exactly 0.",
        "‡ The alpha chosen at this eps: the highest mean accuracy on validation, over the seeds that all alphas have.",
        *flag_notes(shown),
    ]
    return Table(
        f"The choice of alpha on {dataset}", ("eps", "trained", "validation", "test"), tuple(rows), tuple(notes)
    )


def has_alphas(grid: Grid) -> bool:
    """Whether a grid has alphas to choose from, and validation images under attack to choose by."""
    return len(_with_alpha(grid)) > 1 and bool(alpha_eps(grid))


def alpha_eps(grid: Grid) -> list[float]:
    """The strengths at which an alpha is chosen."""
    return sorted(a.eps for a in grid.attacks if a == sound("ce", a.eps, "validation"))


def chosen_alpha(results: Results, dataset: str, eps: float) -> LossSpec | None:
    """
    The HR loss of the highest mean validation accuracy under the sound CE attack; of equals, that of the smaller alpha.

    :return: None where no seed has been evaluated for every alpha.
    """
    attack = sound("ce", eps, "validation")
    losses = sorted(_with_alpha(results.grid), key=lambda loss: loss.alpha or 0)
    found = {loss: results.accuracies(dataset, loss, attack) for loss in losses}
    seeds = set(results.grid.seeds).intersection(*found.values())
    if not seeds or not losses:
        return None
    return max(losses, key=lambda loss: float(np.mean([found[loss][seed] for seed in sorted(seeds)])))


def interval_text(interval: Interval | None, grid: Grid) -> str:
    """An interval over a grid's seeds, with their number where some are missing."""
    if interval is None:
        return "not yet"
    return str(interval) + ("" if interval.n == len(grid.seeds) else f" (n = {interval.n})")


def over_seeds(grid: Grid) -> str:
    """What a note says of the seeds."""
    seeds = len(grid.seeds)
    return "One seed, so without an interval." if seeds == 1 else f"Mean and 95% t interval over {seeds} seeds."


def cell_text(cell: Cell, grid: Grid) -> str:
    """An entry: its interval, and in brackets the share of gradients that are 0 and the seeds if some are missing."""
    if cell.accuracy is None:
        return "not yet"
    beside = [] if math.isnan(cell.zero_gradient) else [f"{cell.zero_gradient:.1%}"]
    beside += [] if cell.accuracy.n == len(grid.seeds) else [f"n = {cell.accuracy.n}"]
    flag = "†" if cell.zero_gradient > ZERO_GRADIENT_LIMIT else ""
    return f"{cell.accuracy}{flag}" + (f" ({', '.join(beside)})" if beside else "")


def flag_notes(shown: Sequence[Cell]) -> list[str]:
    """The note on entries that are marked for their gradients of 0, if any is."""
    if not any(cell.zero_gradient > ZERO_GRADIENT_LIMIT for cell in shown):
        return []
    return [
        f"† On more than {ZERO_GRADIENT_LIMIT:.1%} of the images the gradient is exactly 0, and the attack cannot "
        "move them: not to be quoted alone, and in Table 1 to be compared with the sound row."
    ]


def of_test_images(grid: Grid) -> list[AttackSpec]:
    """The attacks of a grid on test images, and no attack; reports on masked gradients are neither."""
    return [attack for attack in grid.attacks if attack.split == "test" and attack.name != "diagnostics"]


def _with_alpha(grid: Grid) -> list[LossSpec]:
    """The HR losses with nothing but an alpha, one of which is chosen."""
    return [loss for loss in grid.losses if loss.plain and loss.alpha is not None]


def _differences(first: list[dict[int, float]], second: list[dict[int, float]], grid: Grid) -> list[str]:
    return [interval_text(paired_interval(a, b), grid) for a, b in zip(first, second, strict=True)]
