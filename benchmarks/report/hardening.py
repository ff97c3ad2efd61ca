"""Results -> does a loss add to a defence? Accuracy of hardened networks, and what each loss has more than CE."""

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import pandas as pd

from benchmarks.config import AttackSpec, Grid, Hardening, HardeningName, LossSpec
from benchmarks.report.cells import Results
from benchmarks.report.markup import Table
from benchmarks.report.statistics import Interval, paired_interval
from benchmarks.report.strong import (
    PAPER_NOTE,
    data_note,
    entry_text,
    has_hardening,
    strong_attacks,
    worst_case_note,
    zero_notes,
)
from benchmarks.report.tables import interval_text

# Columns at every eps, as the table of strong attacks calls them.
COLUMNS = ("FGSM, paper", "FGSM, sound", "worst case")
UNHARDENED = "as they are"


def hardening_table(results: Results, dataset: str) -> Table | None:
    """
    Accuracy of each training loss without and under attack, by what it is hardened with, beside the gain over CE.

    :param results: What there is of a grid.
    :param dataset: One of its data sets.
    :return: None for a grid without hardened networks, or without a worst case.
    """
    grid, attacks = results.grid, hardening_attacks(results.grid)
    if not attacks:
        return None
    rows: list[tuple[str, ...]] = []
    for hardening, losses in blocks(grid).items():
        for i, loss in enumerate(losses):
            entries: list[str] = []
            for (_, name), attack in attacks.items():
                entries.append(entry_text(results.cell(dataset, loss, attack), grid))
                entries += [_gain_text(results, dataset, loss, attack)] if name == "worst case" else []
            rows.append((str(hardening or UNHARDENED) if i == 0 else "", without_hardening(loss), *entries))
    header = []
    for eps, name in attacks:
        header.append(f"eps {eps:g}: {name}" if eps else name)
        header += [f"eps {eps:g}: {name}, less CE's"] if name == "worst case" else []
    made = list(attacks.values())
    notes = (
        f"{data_note(results, dataset, made)} Less CE's: the difference, paired over the seeds, from cross-entropy "
        "that is hardened alike. The intervals are not corrected for their number: of twenty differences where there "
        "is none one misses 0 by chance.",
        *_hardening_notes(grid),
        *_loss_notes(grid),
        f"{PAPER_NOTE} {worst_case_note(made)}",
        *zero_notes(rows),
    )
    title = f"Hardened networks on {dataset}: test accuracy"
    return Table(title, ("hardening", "trained", *header), tuple(rows), notes)


def blocks(grid: Grid) -> dict[Hardening | None, list[LossSpec]]:
    """A grid's losses by what they are hardened with: first those with nothing, then noise, Madry and TRADES."""
    order = (None, *get_args(HardeningName))
    found: dict[Hardening | None, list[LossSpec]] = {}
    for loss in sorted(grid.losses, key=lambda loss: order.index(loss.hardening and loss.hardening.name)):
        found.setdefault(loss.hardening, []).append(loss)
    return found


def without_hardening(loss: LossSpec) -> str:
    """What a loss is called where its hardening is named already."""
    return str(replace(loss, hardening=None))


def hardening_attacks(grid: Grid) -> dict[tuple[float, str], AttackSpec]:
    """By eps and column, what hardened networks are compared under, no attack first; empty without any of them."""
    by_eps = strong_attacks(grid) if has_hardening(grid) else {}
    if not by_eps:
        return {}
    images = {row["worst case"].images for row in by_eps.values()}
    clean = [a for a in grid.attacks if a.name == "none" and a.split == "test" and a.images in images]
    found = {(0.0, "no attack"): clean[0]} if clean else {}
    return found | {(eps, name): row[name] for eps, row in by_eps.items() for name in COLUMNS if name in row}


def hardening_frame(results: Results) -> pd.DataFrame:
    """Every entry of the table, and what every loss has more than the cross-entropy that is hardened alike."""
    columns = ["dataset", "hardening", "trained", "eps", "attack", "accuracy", "half_width_95", "seeds"]
    columns += ["zero_gradient", "less_ce", "less_ce_half_width_95", "pairs"]
    rows = []
    for dataset, loss, (eps, name), attack in _entries(results):
        cell, gain = results.cell(dataset, loss, attack), _gain(results, dataset, loss, attack)
        hardening = str(loss.hardening or UNHARDENED)
        entry = (dataset, hardening, without_hardening(loss), eps, name, *_numbers(cell.accuracy))
        rows.append((*entry, cell.zero_gradient, *_numbers(gain)))
    return pd.DataFrame(rows, columns=columns)


def _entries(results: Results) -> Iterator[tuple[str, LossSpec, tuple[float, str], AttackSpec]]:
    for dataset in results.datasets:
        for losses in blocks(results.grid).values():
            for loss in losses:
                for column, attack in hardening_attacks(results.grid).items():
                    yield dataset, loss, column, attack


def _numbers(interval: Interval | None) -> tuple[float, float, int]:
    nan = float("nan")
    return (nan, nan, 0) if interval is None else (interval.mean, interval.half_width, interval.n)


def _gain(results: Results, dataset: str, loss: LossSpec, attack: AttackSpec) -> Interval | None:
    """What a loss has more than the cross-entropy of its block; None for that itself, and where no seed has both."""
    ce = LossSpec("ce", hardening=loss.hardening)
    ours, its = (results.accuracies(dataset, trained, attack) for trained in (loss, ce))
    return None if loss == ce else paired_interval(ours, its)


def _gain_text(results: Results, dataset: str, loss: LossSpec, attack: AttackSpec) -> str:
    ce = LossSpec("ce", hardening=loss.hardening)
    if loss == ce or ce not in results.grid.losses:
        return ""
    return interval_text(_gain(results, dataset, loss, attack), results.grid)


def _hardening_notes(grid: Grid) -> list[str]:
    kinds = [kind for kind in blocks(grid) if kind is not None]
    notes = {
        "noise": "noise: trained on images with uniform noise in every pixel, of at most the eps beside it.",
        "madry": "Madry: trained on adversarial images in place of the clean ones, by ART's trainer.",
        "trades": "TRADES: the loss of the clean images, and beta times the divergence of the predictions at "
        "adversarial ones, by ART's trainer. Losses differ in size, so one beta weighs less beside a larger loss.",
    }
    found = [note for name, note in notes.items() if any(kind.name == name for kind in kinds)]
    if steps := sorted({kind.steps for kind in kinds if kind.steps}):
        found.append(
            f"Adversarial images in training: of the eps beside the name, {' or '.join(map(str, steps))} steps. They "
            "climb the trained loss, example by example: for HR another than for CE, and for TRADES not the "
            "divergence, which its authors climb."
        )
    return found


def _loss_notes(grid: Grid) -> list[str]:
    notes = []
    if any(loss.alpha == 1 for loss in grid.losses):
        notes.append("HR(1), with hard labels: cross-entropy plus the entropy of the prediction.")
    if margins := sorted({loss.margin for loss in grid.losses if loss.margin}):
        notes.append(
            f"margin {' or '.join(f'{margin:g}' for margin in margins)}: once trained, the logits are multiplied so "
            "that this is the median margin of the validation images. That changes no prediction: what any attack "
            "leaves above the same training without it is the attack's failure."
        )
    return notes
