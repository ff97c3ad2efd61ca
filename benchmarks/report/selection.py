"""One data set of a grid's results: its entries over the seeds, and which belong into one table or figure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import pandas as pd

from benchmarks.config import AttackSpec, Grid, HardeningName, LossSpec, Recipe
from benchmarks.protocols import HR, protocol
from benchmarks.record import Record
from benchmarks.report.results import Results, attack_columns, attacks, ce_attacks, exact_attacks
from benchmarks.report.statistics import Interval, mean_interval, paired_interval

# The columns of strong attacks, by protocol and attacker.
STRONG = {
    ("paper", "CE"): "FGSM, paper",
    ("clipped", "CE"): "FGSM, paper",
    ("exact", "CE"): "FGSM, exact",
    ("PGD", "CE"): "PGD, CE",
    ("Auto-PGD", "CE"): "Auto-PGD, CE",
    ("Auto-PGD", "HR"): "Auto-PGD, HR",
    ("Auto-PGD", "margin"): "Auto-PGD, margin",
    ("Auto-PGD", "DLR"): "Auto-PGD, DLR",
    ("Square", ""): "Square",
    ("transfer", ""): "transfer",
    ("worst case", ""): "worst case",
}
# Those that tell gradient masking from robustness.
MAIN = ("FGSM, paper", "FGSM, exact", "worst case")


@dataclass(frozen=True)
class Cell:
    """An entry: the evaluations of one training loss under one attack, over the seeds."""

    accuracy: Interval
    gain: Interval
    """The accuracy less that of cross-entropy that is hardened alike, paired over the seeds."""
    n: int
    """Images per seed; 0 where none has been evaluated yet."""
    zero_gradient: float
    """Share of the images, over all seeds, whose input gradient is exactly 0; NaN without attack or record."""


@dataclass(frozen=True)
class Selection:
    """One data set of a grid's results."""

    results: Results
    dataset: str

    @property
    def grid(self) -> Grid:
        """The grid of the results."""
        return self.results.grid

    @property
    def recipe(self) -> Recipe:
        """The grid's recipe for the data set."""
        return dict(self.grid.recipes)[self.dataset]

    @property
    def losses(self) -> list[LossSpec]:
        """The plain losses to compare: one of each name, of the HR losses that whose alpha is nearest the paper's."""
        paper, nearest = HR.alpha or 0.0, dict[str, LossSpec]()
        plain = [loss for loss in self.grid.losses if loss.plain]
        for loss in sorted(plain, key=lambda loss: abs((loss.alpha or paper) - paper)):
            nearest.setdefault(loss.name, loss)
        return [loss for loss in self.grid.losses if loss in nearest.values()]

    @property
    def pair(self) -> tuple[LossSpec, LossSpec] | None:
        """CE, and the plain HR loss whose alpha is nearest the paper's; None for a grid without one of them."""
        by_name = {loss.name: loss for loss in self.losses}
        return (by_name["ce"], by_name["hr"]) if {"ce", "hr"} <= by_name.keys() else None

    @property
    def classes(self) -> int | None:
        """The number of classes, as soon as there is a record to tell it."""
        known = (record for (run, _), record in self.results.records.items() if run.dataset == self.dataset)
        return next((len(record.confusion) for record in known if record.flags is None), None)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """
        A row per entry that the grid plans: training loss, attack, its parameters, the fields of its cell, and chosen.

        The last marks the alpha that is chosen on validation images at the row's eps; without such a choice there are
        no rows of validation images.
        """
        chosen = {(eps, name): self.chosen_alpha(eps, name) for eps in self.alpha_eps for name in ("exact", "paper")}
        splits = ("test", "validation") if chosen else ("test",)
        planned = {a: protocol(a)[0] for a in self.grid.attacks if protocol(a)[0] != "report" and a.split in splits}
        rows = [
            {"dataset": self.dataset, "trained": str(loss), **attack_columns(attack), **vars(self.cell(loss, attack))}
            | {"chosen": chosen.get((attack.eps, "paper" if name == "paper" else "exact")) == loss}
            for loss in self.grid.losses
            for attack, name in planned.items()
        ]
        return pd.DataFrame(rows)

    def cell(self, loss: LossSpec, attack: AttackSpec) -> Cell:
        """One entry, from the records that are there."""
        accuracies, images, zeros = (self.values(loss, attack, name) for name in ("accuracy", "n", "zero_gradient"))
        ce = LossSpec("ce", hardening=loss.hardening)
        counted = sum(images[seed] for seed in zeros)
        return Cell(
            mean_interval(list(accuracies.values())),
            Interval() if loss == ce else paired_interval(accuracies, self.values(ce, attack)),
            int(next(iter(images.values()), 0)),
            sum(zeros.values()) / counted if counted else math.nan,
        )

    def text(self, interval: Interval, spec: str = "") -> str:
        """An interval over the grid's seeds, with their number where some are missing."""
        missing = 0 < interval.n < len(self.grid.seeds)
        return f"{interval:{spec}}" + (f" (n = {interval.n})" if missing else "")

    def values(self, loss: LossSpec, attack: AttackSpec, metric: str = "accuracy") -> dict[int, float]:
        """A metric of the trained networks by seed, for the seeds that have been evaluated."""
        return self.results.values(self.dataset, loss, attack, metric)

    def records(self, loss: LossSpec, attack: AttackSpec) -> dict[int, Record]:
        """The records there are, by seed."""
        known = {run.seed: self.results.records.get((run, attack)) for run in self.results.runs(self.dataset, loss)}
        return {seed: record for seed, record in known.items() if record is not None}

    @property
    def left_out(self) -> str:
        """What a caption says of the losses that are not in `losses`; empty if there are none."""
        others = len(self.grid.losses) - len(self.losses)
        what = "values of alpha" if all(loss.plain for loss in self.grid.losses) else "trainings"
        return f" Not drawn: the grid's {others} other {what}." if others else ""

    @property
    def images(self) -> str:
        """What was attacked, with its number as soon as there is a record to tell it."""
        known = attacks(self.grid.attacks)
        counts = (
            record.n
            for (run, attack), record in self.results.records.items()
            if run.dataset == self.dataset and record.flags is None and attack in known
        )
        count = next(counts, None)
        return "the test images" if count is None else f"{count} test images"

    def by_epoch(self, loss: LossSpec, metric: str, attack: AttackSpec | None = None) -> dict[float, Interval]:
        """
        A metric over the seeds, by epoch.

        :param loss: The training loss.
        :param metric: Its name in the frame; of the logarithm of a bound on a probability, the bound, at most 1.
        :param attack: The attack that it is of; None for what an epoch has without attacks.
        """
        frame = where(self.results.frame, dataset=self.dataset, trained=str(loss), metric=metric)
        frame = frame[frame.epoch.notna() & (frame.key.isna() if attack is None else frame.key == attack.key())]
        values = frame.value.clip(upper=0).map(math.exp) if ".log_" in metric else frame.value
        by_epoch: Any = values.groupby(pd.to_numeric(frame.epoch))
        return {float(epoch): mean_interval(list(seeds)) for epoch, seeds in by_epoch}

    def by_eps(self, loss: LossSpec, attacks: Iterable[AttackSpec]) -> dict[float, Interval]:
        """Accuracy over the seeds, by the attacks' eps."""
        cells = {attack.eps: self.cell(loss, attack).accuracy for attack in attacks}
        return {eps: accuracy for eps, accuracy in cells.items() if accuracy.n}

    @property
    def alpha_eps(self) -> list[float]:
        """The strengths at which an alpha is chosen; none without several, or validation images under attack."""
        strengths = [attack.eps for attack in exact_attacks(self.grid.attacks, "validation")]
        return strengths if self._tried[1:] and any(strengths) else []

    def chosen_alpha(self, eps: float, name: str = "exact") -> LossSpec | None:
        """
        The HR loss of the highest mean validation accuracy under the CE attack; of equals, of the smaller alpha.

        None where no seed has been evaluated for every alpha, or validation images are not attacked so.

        :param eps: The attack's; 0 for none.
        :param name: The attack's protocol, exact or paper.
        """
        found = ce_attacks(self.grid.attacks, name if eps else "no attack", split="validation", eps=eps)
        if not found:
            return None
        (attack,) = found
        by_seed = {loss: self.values(loss, attack) for loss in self._tried}
        seeds = set(self.grid.seeds).intersection(*by_seed.values())
        return max(by_seed, key=lambda loss: math.fsum(by_seed[loss][s] for s in seeds)) if seeds else None

    @property
    def _tried(self) -> list[LossSpec]:
        """The HR losses with nothing but an alpha, by alpha."""
        tried = [loss for loss in self.grid.losses if loss.plain and loss.alpha is not None]
        return sorted(tried, key=lambda loss: loss.alpha or 0)


def where(frame: pd.DataFrame, **fields: object) -> pd.DataFrame:
    """The rows of a frame whose fields are these, each a value or a tuple of several."""
    for name, value in fields.items():
        frame = frame[frame[name].isin(value if isinstance(value, tuple) else (value,))]
    return frame


def fgsm(known: Sequence[AttackSpec], name: str, attacker: str, split: str = "test") -> list[AttackSpec]:
    """No attack and FGSM in a protocol by a loss, in order of eps: those on all images, or else on the fewest."""
    found = attacks(known, "no attack", name, attacker=("", attacker), split=split)
    images = min((attack.images for attack in found), default=0)
    return [attack for attack in found if attack.images == images]


def confusion_attacks(grid: Grid) -> dict[str, AttackSpec]:
    """No attack, and the CE attack at the grid's smallest eps in each protocol: those that the grid has, by name."""
    known = ce_attacks(grid.attacks)
    smallest = min((attack.eps for attack in known if attack.eps), default=0.0)
    by_name = {protocol(attack)[0]: attack for attack in known if attack.eps in (0, smallest)}
    return {name: by_name[name] for name in ("no attack", "exact", "paper") if name in by_name}


def strong_attacks(grid: Grid) -> dict[float, dict[str, AttackSpec]]:
    """By eps and column, the attacks of a grid on the images on which it has a worst case, and not that alone."""
    found: dict[float, dict[str, AttackSpec]] = {}
    images = tuple({attack.images for attack in attacks(grid.attacks, "worst case")})
    for attack in attacks(grid.attacks, units="range", images=images):
        if name := STRONG.get(protocol(attack)):
            found.setdefault(attack.eps, {})[name] = attack
    return {eps: row for eps, row in found.items() if "worst case" in row and len(row) > 1}


def hardening_attacks(grid: Grid) -> dict[tuple[float, str], AttackSpec]:
    """By eps and column, what hardened networks are compared under, no attack first; empty without any of them."""
    by_eps = strong_attacks(grid) if has_hardening(grid) else {}
    images = tuple({row["worst case"].images for row in by_eps.values()})
    clean = {(attack.eps, "no attack"): attack for attack in attacks(grid.attacks, "no attack", images=images)}
    return clean | {(eps, name): row[name] for eps, row in by_eps.items() for name in MAIN if name in row}


def blocks(grid: Grid) -> dict[str, list[LossSpec]]:
    """A grid's losses by the name of what they are hardened with: nothing first, then noise, Madry and TRADES."""
    order = (None, *get_args(HardeningName))
    found: dict[str, list[LossSpec]] = {}
    for loss in sorted(grid.losses, key=lambda loss: order.index(loss.hardening and loss.hardening.name)):
        found.setdefault(str(loss.hardening or "as they are"), []).append(loss)
    return found


def has_hardening(grid: Grid) -> bool:
    """Whether any of a grid's networks is hardened."""
    return any(loss.hardening is not None for loss in grid.losses)


def without_hardening(loss: LossSpec) -> str:
    """What a loss is called where its hardening is named already."""
    return str(replace(loss, hardening=None))
