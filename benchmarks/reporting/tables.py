"""Results -> tables."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from benchmarks.config import AttackSpec, Grid, LossSpec
from benchmarks.protocols import CE, paper, sound, torch_ce
from benchmarks.reporting.cells import Cell, Results
from benchmarks.reporting.markup import Table
from benchmarks.reporting.statistics import Interval, distance_to_identity, paired_interval

# Above this share of input gradients that are exactly 0 an entry is marked: part of its accuracy may be no robustness.
ZERO_GRADIENT_LIMIT = 0.001

# Table 1 as printed: data set -> eps -> accuracy for each pair (trained, attacked).
PAPER_COLUMNS = (("CE", "ce"), ("HR(1.6)", "ce"), ("HR(1.6)", "hr"), ("CE", "hr"))
PAPER_TABLE_1 = {
    "mnist": {
        0.0: (0.985, 0.986, 0.986, 0.985),
        0.1: (0.907, 0.945, 0.977, 0.977),
        0.25: (0.852, 0.861, 0.974, 0.972),
    },
    "cifar10": {
        0.0: (0.656, 0.685, 0.685, 0.656),
        0.1: (0.296, 0.337, 0.324, 0.288),
        0.25: (0.282, 0.320, 0.306, 0.271),
    },
    "svhn": {
        0.0: (0.865, 0.901, 0.901, 0.865),
        0.1: (0.797, 0.836, 0.835, 0.801),
        0.25: (0.672, 0.704, 0.698, 0.674),
    },
}
# The printed norms ||I - C||, under the CE attack at this eps.
PAPER_CONFUSION = {"mnist": {"CE": 0.40, "HR(1.6)": 0.23}}
PAPER_CONFUSION_EPS = 0.1

Attacker = Literal["ce", "hr"]

# The rows of Table 1: the attack along the gradient of a loss at an eps, or None where the row has none.
Rows = Mapping[str, Callable[[Attacker, float], AttackSpec | None]]
UNDER_ATTACK: Rows = {
    "sound": sound,
    "torch's CE": lambda loss, eps: torch_ce(eps) if loss == "ce" else None,
    "paper": paper,
}
WITHOUT_ATTACK: Rows = {"no attack": sound}


def tables(results: Results) -> dict[str, list[Table]]:
    """The tables that a grid can give, by name: each name's tables, one per data set."""
    made: dict[str, Sequence[Table | None]] = {
        "table_1": [table_1(results, dataset) for dataset in results.datasets],
        "confusion": [confusion_table(results, dataset) for dataset in results.datasets],
        "alpha": [alpha_table(results, dataset) for dataset in results.datasets],
    }
    found = {name: [table for table in several if table is not None] for name, several in made.items()}
    return {name: several for name, several in found.items() if several}


def table_1(results: Results, dataset: str) -> Table | None:
    """
    Test accuracy in the layout of the paper's Table 1.

    For each eps a row per protocol, and what the paper prints where it has this data set. Beside every entry under
    attack stands the share of images whose input gradient is exactly 0.

    :param results: What there is of a grid.
    :param dataset: One of its data sets.
    :return: None for a grid without any of its attacks.
    """
    grid, attacks = results.grid, _test_attacks(results.grid)
    columns = _table_1_columns(grid)
    rows: list[tuple[str, ...]] = []
    shown: list[Cell] = []
    for eps in sorted({attack.eps for attack in attacks}):
        first = f"{eps:g}"
        for label, attack_of in (UNDER_ATTACK if eps else WITHOUT_ATTACK).items():
            specs = [(trained, attack_of(loss, eps)) for trained, loss in columns]
            row = [results.cell(dataset, trained, spec) if spec in attacks else None for trained, spec in specs]
            if any(row):
                rows.append((first, label, *("" if cell is None else _text(cell, grid) for cell in row)))
                shown += [cell for cell in row if cell is not None]
                first = ""
        if eps in PAPER_TABLE_1.get(dataset, {}):
            printed = dict(zip(PAPER_COLUMNS, PAPER_TABLE_1[dataset][eps], strict=True))
            values = [printed.get((str(trained), loss)) for trained, loss in columns]
            rows.append((first, "printed", *("" if value is None else f"{value:.3f}" for value in values)))
    if not shown:
        return None
    header = ("eps", "protocol", *(f"{trained} trained, {loss.upper()} attack" for trained, loss in columns))
    notes = _table_1_notes(results, dataset, shown, {row[1] for row in rows})
    return Table(f"Table 1 on {dataset}: test accuracy", header, tuple(rows), notes)


def _table_1_columns(grid: Grid) -> list[tuple[LossSpec, Attacker]]:
    """The pairs (training loss, attack loss) in the paper's order, but for attack losses that the grid has not."""
    pairs: list[tuple[LossSpec, Attacker]] = [(loss, "ce") for loss in grid.losses]
    pairs += [(loss, "hr") for loss in reversed(grid.losses)]
    attackers = {attack.loss.split("-")[-1] for attack in _test_attacks(grid) if attack.loss} or {"ce"}
    return [pair for pair in pairs if pair[1] in attackers]


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
    attacks = _test_attacks(grid)
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
                entries.append(_text(cell, grid) + mark if attack in grid.attacks else "")
            rows.append((f"{eps:g}" if loss == grid.losses[0] else "", str(loss), *entries))
    notes = [
        f"Data: {dataset}, {images['validation']} validation images, held out of training, and {images['test']} test "
        f"images. {over_seeds(grid)} FGSM by the CE loss, sound protocol, eps as a share of the pixel range. In "
        "brackets: the share of images whose input gradient is exactly 0.",
        "‡ The alpha chosen at this eps: the highest mean accuracy on validation, over the seeds that all alphas have.",
        *_flag_notes(shown),
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


def _test_attacks(grid: Grid) -> list[AttackSpec]:
    return [attack for attack in grid.attacks if attack.split == "test" and attack.name != "diagnostics"]


def _with_alpha(grid: Grid) -> list[LossSpec]:
    """The HR losses with nothing but an alpha, one of which is chosen."""
    return [loss for loss in grid.losses if loss.plain and loss.alpha is not None]


def _differences(first: list[dict[int, float]], second: list[dict[int, float]], grid: Grid) -> list[str]:
    return [interval_text(paired_interval(a, b), grid) for a, b in zip(first, second, strict=True)]


def _text(cell: Cell, grid: Grid) -> str:
    if cell.accuracy is None:
        return "not yet"
    beside = [] if math.isnan(cell.zero_gradient) else [f"{cell.zero_gradient:.1%}"]
    beside += [] if cell.accuracy.n == len(grid.seeds) else [f"n = {cell.accuracy.n}"]
    flag = "†" if cell.zero_gradient > ZERO_GRADIENT_LIMIT else ""
    return f"{cell.accuracy}{flag}" + (f" ({', '.join(beside)})" if beside else "")


def _table_1_notes(results: Results, dataset: str, shown: list[Cell], labels: set[str]) -> tuple[str, ...]:
    images = max((cell.images for cell in shown), default=0)
    scale = dict(results.grid.recipes)[dataset].input_scale
    units = "" if scale == 1 else f", which is given pixels in [0, {scale:g}]: eps 0.1 is 0.1/{scale:g} of their range"
    more = "masking" if scale == 1 else "masking or the smaller eps"
    by_label = {
        "sound": "sound: the exact gradient of the per-example loss; eps as a share of the pixel range.",
        "torch's CE": "torch's CE: as sound, but through torch.nn.CrossEntropyLoss, whose float32 gradient loses the "
        "true class as the margin nears 17.",
        "paper": "paper: the paper's protocol, as we read it. The gradient of a loss computed from float32 "
        "probabilities clipped to [1e-7, 1 - 1e-7], as in Keras 2, is exactly 0 past a margin of about 16; eps in "
        f"units of the network's input{units}. What this row leaves above sound is {more}, not robustness.",
        "printed": "printed: what the paper prints; no measurement of ours.",
    }
    notes = [
        f"Data: {dataset}, {images} test images. {over_seeds(results.grid)} FGSM, L-infinity. In brackets: the share "
        "of images whose input gradient is exactly 0.",
        *(note for label, note in by_label.items() if label in labels),
        "FGSM is a weak attack: these figures bound robust accuracy from above and are no evidence of robustness.",
        *_flag_notes(shown),
    ]
    return tuple(notes)


def _flag_notes(shown: Sequence[Cell]) -> list[str]:
    if not any(cell.zero_gradient > ZERO_GRADIENT_LIMIT for cell in shown):
        return []
    return [
        f"† On more than {ZERO_GRADIENT_LIMIT:.1%} of the images the gradient is exactly 0, and the attack cannot "
        "move them: not to be quoted alone, and in Table 1 to be compared with the sound row."
    ]
