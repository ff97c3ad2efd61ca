"""Results of one data set of a grid: entries over the seeds, and the choice of entries for each table and figure."""

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

# The columns of the table of strong attacks, by protocol and attacker.
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
# The columns that distinguish gradient masking from robustness.
MAIN = ("FGSM, paper", "FGSM, exact", "worst case")
NO_DEFENCE = "no defence"


@dataclass(frozen=True)
class Cell:
    """Entry of a table: the evaluations of one training loss under one attack, over the seeds."""

    accuracy: Interval
    gain: Interval
    """The accuracy minus that of cross-entropy with the same defence, paired over the seeds."""
    n: int
    """Images per seed; 0 if no seed has been evaluated yet."""
    zero_gradient: float
    """Share of the images, over all seeds, whose input gradient is exactly 0; NaN without attack or record."""


@dataclass(frozen=True)
class Selection:
    """Results of one data set of a grid."""

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
        """Losses without a defence, one of each name; of the HR losses, the one whose alpha is nearest the paper's."""
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
        """The number of classes, from any record of the data set; None before there is one."""
        known = (record for (run, _), record in self.results.records.items() if run.dataset == self.dataset)
        return next((len(record.confusion) for record in known if record.flags is None), None)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """
        Planned entries as rows: training loss, attack, its parameters, the fields of its cell, and chosen.

        The column chosen marks the alpha that is chosen on validation images at the row's eps; without such a choice
        there are no rows of validation images.
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
        """Return one entry, from the finished evaluations."""
        accuracies, images, zeros = (self.values(loss, attack, name) for name in ("accuracy", "n", "zero_gradient"))
        ce = LossSpec("ce", hardening=loss.hardening)
        counted = sum(images[seed] for seed in zeros)  # only gradient attacks count zero gradients
        return Cell(
            mean_interval(list(accuracies.values())),
            Interval() if loss == ce else paired_interval(accuracies, self.values(ce, attack)),
            int(next(iter(images.values()), 0)),
            sum(zeros.values()) / counted if counted else math.nan,
        )

    def text(self, interval: Interval, spec: str = "") -> str:
        """Return an interval over the grid's seeds as text, with the number of seeds if some are missing."""
        missing = 0 < interval.n < len(self.grid.seeds)
        return f"{interval:{spec}}" + (f" (n = {interval.n})" if missing else "")

    def values(self, loss: LossSpec, attack: AttackSpec, metric: str = "accuracy") -> dict[int, float]:
        """Return a metric of the trained networks by seed, for the seeds that have been evaluated."""
        return self.results.values(self.dataset, loss, attack, metric)

    def records(self, loss: LossSpec, attack: AttackSpec) -> dict[int, Record]:
        """Return the records of a training loss under an attack, by seed."""
        records = {run.seed: self.results.records.get((run, attack)) for run in self.results.runs(self.dataset, loss)}
        return {seed: record for seed, record in records.items() if record is not None}

    @property
    def left_out(self) -> str:
        """A sentence for captions on the losses of the grid that are not drawn; empty if all are drawn."""
        count = len(self.grid.losses) - len(self.losses)
        if not count:
            return ""
        if all(loss.plain for loss in self.grid.losses):
            name = "value of alpha" if count == 1 else "values of alpha"
        else:
            name = f"training loss{'es' * (count > 1)} or defence{'s' * (count > 1)}"
        return f" Not drawn: the grid's {count} other {name}."

    @property
    def images(self) -> str:
        """The attacked images as text, with their number if there is a record."""
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
        Return a metric over the seeds, by epoch.

        :param loss: The training loss.
        :param metric: Its name in the frame; the logarithm of a bound is returned as the bound, at most 1.
        :param attack: The attack; None for metrics of an epoch that are independent of attacks.
        """
        frame = where(self.results.frame, dataset=self.dataset, trained=str(loss), metric=metric)
        frame = frame[frame.epoch.notna() & (frame.key.isna() if attack is None else frame.key == attack.key())]
        # A bound above 1 on a probability is vacuous: 1 is what it says, and exp cannot overflow.
        values = frame.value.clip(upper=0).map(math.exp) if ".log_" in metric else frame.value
        by_epoch: Any = values.groupby(pd.to_numeric(frame.epoch))
        return {float(epoch): mean_interval(list(seeds)) for epoch, seeds in by_epoch}

    def by_eps(self, loss: LossSpec, attacks: Iterable[AttackSpec]) -> dict[float, Interval]:
        """Return accuracy over the seeds, by the eps of the attacks."""
        cells = {attack.eps: self.cell(loss, attack).accuracy for attack in attacks}
        return {eps: accuracy for eps, accuracy in cells.items() if accuracy.n}

    @property
    def alpha_eps(self) -> list[float]:
        """The eps at which an alpha is chosen; empty without several alphas or attacks on validation images."""
        strengths = [attack.eps for attack in exact_attacks(self.grid.attacks, "validation")]
        return strengths if self._tried[1:] and any(strengths) else []

    def chosen_alpha(self, eps: float, name: str = "exact") -> LossSpec | None:
        """
        Return the HR loss with the highest mean validation accuracy under the CE attack; if equal, the smaller alpha.

        The choice uses validation images, so that the test accuracy of the chosen alpha is unbiased. None if no seed
        has been evaluated for every alpha, or if the grid has no such attack on validation images.

        :param eps: The eps of the attack; 0 for no attack.
        :param name: The protocol of the attack, exact or paper.
        """
        matching = ce_attacks(self.grid.attacks, name if eps else "no attack", split="validation", eps=eps)
        if not matching:
            return None
        (attack,) = matching
        by_seed = {loss: self.values(loss, attack) for loss in self._tried}
        seeds = set(self.grid.seeds).intersection(*by_seed.values())
        return max(by_seed, key=lambda loss: math.fsum(by_seed[loss][s] for s in seeds)) if seeds else None

    @property
    def _tried(self) -> list[LossSpec]:
        """The HR losses without a defence or other option, by alpha."""
        tried = [loss for loss in self.grid.losses if loss.plain and loss.alpha is not None]
        return sorted(tried, key=lambda loss: loss.alpha or 0)


def where(frame: pd.DataFrame, **fields: object) -> pd.DataFrame:
    """Return the rows of a frame whose fields have the given values, each a value or a tuple of several."""
    for name, value in fields.items():
        frame = frame[frame[name].isin(value if isinstance(value, tuple) else (value,))]
    return frame


def fgsm(known: Sequence[AttackSpec], name: str, attacker: str, split: str = "test") -> list[AttackSpec]:
    """
    Return no attack and FGSM with a loss in a protocol, in order of eps, all on the same images.

    These are all images if the grid has such attacks, and else the smallest set.
    """
    matching = attacks(known, "no attack", name, attacker=("", attacker), split=split)
    images = min((attack.images for attack in matching), default=0)  # 0 stands for all images
    return [attack for attack in matching if attack.images == images]


def confusion_attacks(grid: Grid) -> dict[str, AttackSpec]:
    """Return no attack and the CE attack at the grid's smallest eps in each protocol, by name, if the grid has them."""
    known = ce_attacks(grid.attacks)
    smallest = min((attack.eps for attack in known if attack.eps), default=0.0)
    by_name = {protocol(attack)[0]: attack for attack in known if attack.eps in (0, smallest)}
    return {name: by_name[name] for name in ("no attack", "exact", "paper") if name in by_name}


def strong_attacks(grid: Grid) -> dict[float, dict[str, AttackSpec]]:
    """Return, by eps and column, the attacks on the images of the worst case, for each eps with several attacks."""
    by_eps: dict[float, dict[str, AttackSpec]] = {}
    images = tuple({attack.images for attack in attacks(grid.attacks, "worst case")})
    for attack in attacks(grid.attacks, units="range", images=images):
        if name := STRONG.get(protocol(attack)):
            by_eps.setdefault(attack.eps, {})[name] = attack
    return {eps: row for eps, row in by_eps.items() if "worst case" in row and len(row) > 1}


def hardening_attacks(grid: Grid) -> dict[tuple[float, str], AttackSpec]:
    """Return, by eps and column, the attacks that compare defences, no attack first; empty without defences."""
    by_eps = strong_attacks(grid) if has_hardening(grid) else {}
    images = tuple({row["worst case"].images for row in by_eps.values()})
    clean = {(attack.eps, "no attack"): attack for attack in attacks(grid.attacks, "no attack", images=images)}
    return clean | {(eps, name): row[name] for eps, row in by_eps.items() for name in MAIN if name in row}


def blocks(grid: Grid) -> dict[str, list[LossSpec]]:
    """Return a grid's losses by the name of their defence: first without defence, then noise, Madry and TRADES."""
    order = (None, *get_args(HardeningName))
    by_defence: dict[str, list[LossSpec]] = {}
    for loss in sorted(grid.losses, key=lambda loss: order.index(loss.hardening and loss.hardening.name)):
        by_defence.setdefault(str(loss.hardening or NO_DEFENCE), []).append(loss)
    return by_defence


def has_hardening(grid: Grid) -> bool:
    """Return true if a grid trains networks with a defence."""
    return any(loss.hardening is not None for loss in grid.losses)


def without_hardening(loss: LossSpec) -> str:
    """Return the name of a loss without its defence."""
    return str(replace(loss, hardening=None))
