"""Which of a grid's attacks and losses belong into one table or figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import pandas as pd

from benchmarks.config import (
    AttackLossName,
    AttackSpec,
    Grid,
    Hardening,
    HardeningName,
    LossSpec,
    Recipe,
    SplitName,
    UnitsName,
)
from benchmarks.protocols import BOUNDED, HR, protocol
from benchmarks.record import Record
from benchmarks.report.results import Results, attacks
from benchmarks.report.statistics import Interval, mean_interval

# The columns of strong attacks: protocol and attacker.
STRONG = {
    "FGSM, paper": ("clipped", "CE"),
    "FGSM, sound": ("sound", "CE"),
    "PGD, CE": ("PGD", "CE"),
    "Auto-PGD, CE": ("Auto-PGD", "CE"),
    "Auto-PGD, HR": ("Auto-PGD", "HR"),
    "Auto-PGD, margin": ("Auto-PGD", "margin"),
    "Auto-PGD, DLR": ("Auto-PGD", "DLR"),
    "Square": ("Square", ""),
    "transfer": ("transfer", ""),
    "worst case": ("worst case", ""),
}
OF_HARDENED = ("FGSM, paper", "FGSM, sound", "worst case")
UNHARDENED = "as they are"


@dataclass(frozen=True)
class Protocol:
    """Attacks that are drawn together."""

    title: str
    losses: tuple[tuple[str, AttackLossName], ...]
    """Pairs (name, the attack's loss), CE first."""
    units: UnitsName

    def attacks(
        self, known: Sequence[AttackSpec], loss: AttackLossName, *, split: SplitName = "test"
    ) -> list[AttackSpec]:
        """
        Those of the known FGSM attacks that belong here, by eps; no attack is the one of eps 0.

        Of attacks on all images of the split, and on its first, those on all.
        """
        own = [a for a in known if (a.name, a.loss, a.units) == ("fgm", loss, self.units)]
        found = [attack for attack in known if attack.split == split and (attack.name == "none" or attack in own)]
        images = min((attack.images for attack in found), default=0)
        return sorted((attack for attack in found if attack.images == images), key=lambda attack: attack.eps)

    def eps_label(self, recipe: Recipe) -> str:
        """Of an axis."""
        if self.units == "range":
            return "eps (share of the pixel range)"
        return f"eps (units of the network's input, 0 to {recipe.input_scale:g})"


SOUND = Protocol("Sound protocol", (("CE", "ce"), ("HR", "hr")), "range")
PAPER = Protocol("Paper protocol", (("CE", "clipped-ce"), ("HR", "clipped-hr")), "data")
PROTOCOLS = (SOUND, PAPER)


@dataclass(frozen=True)
class Selection:
    """One data set of a grid's results."""

    results: Results
    dataset: str

    @property
    def recipe(self) -> Recipe:
        """The grid's recipe for the data set."""
        return dict(self.results.grid.recipes)[self.dataset]

    @property
    def losses(self) -> list[LossSpec]:
        """The plain losses to compare: one of each name, of the HR losses that whose alpha is nearest the paper's."""
        paper, nearest = HR.alpha or 0.0, dict[str, LossSpec]()
        plain = [loss for loss in self.results.grid.losses if loss.plain]
        for loss in sorted(plain, key=lambda loss: abs((loss.alpha or paper) - paper)):
            nearest.setdefault(loss.name, loss)
        return [loss for loss in self.results.grid.losses if loss in nearest.values()]

    @property
    def pair(self) -> tuple[LossSpec, LossSpec] | None:
        """CE, and the plain HR loss whose alpha is nearest the paper's; None for a grid without one of them."""
        by_name = {loss.name: loss for loss in self.losses}
        return (by_name["ce"], by_name["hr"]) if {"ce", "hr"} <= by_name.keys() else None

    @property
    def classes(self) -> int | None:
        """The number of classes, as soon as there is a record to tell it."""
        own = (record for (run, _), record in self.results.records.items() if run.dataset == self.dataset)
        return next((len(record.confusion) for record in own if record.flags is None), None)

    @property
    def left_out(self) -> str:
        """What a caption says of the losses that are not in `losses`; empty if there are none."""
        losses = self.results.grid.losses
        others = len(losses) - len(self.losses)
        what = "values of alpha" if all(loss.plain for loss in losses) else "trainings"
        return f" Not drawn: the grid's {others} other {what}." if others else ""

    @property
    def images(self) -> str:
        """What was attacked, with its number as soon as there is a record to tell it."""
        found = (
            record.n
            for (run, attack), record in self.results.records.items()
            if run.dataset == self.dataset and attack.split == "test" and attack.name != "diagnostics"
        )
        count = next(found, None)
        return "the test images" if count is None else f"{count} test images"

    @property
    def curve_images(self) -> str:
        """The images that were attacked as training went on, in words."""
        first = self.recipe.curve_attacks[0].images if self.recipe.curve_attacks else 0
        return f"the first {first} test images" if first else self.images

    def by_epoch(
        self, loss: LossSpec, metric: str, attack: AttackSpec | None = None, *, log_probability: bool = False
    ) -> dict[float, Interval]:
        """
        A metric over the seeds, by epoch.

        :param loss: The training loss.
        :param metric: Its name in the frame of the results.
        :param attack: The attack that it is of; None for what an epoch has without attacks.
        :param log_probability: Whether the values are logarithms of bounds on a probability: they are then taken as the
               bound, at most 1.
        """
        frame = self.results.frame
        frame = frame[(frame.dataset == self.dataset) & (frame.trained == str(loss)) & (frame.metric == metric)]
        frame = frame[frame.epoch.notna() & (frame.key.isna() if attack is None else frame.key == attack.key())]
        values = frame.value.clip(upper=0).map(math.exp) if log_probability else frame.value
        by_epoch: Any = values.groupby(pd.to_numeric(frame.epoch))
        return {float(epoch): mean_interval(list(found)) for epoch, found in by_epoch}

    def by_eps(self, loss: LossSpec, attacks: Sequence[AttackSpec]) -> dict[float, Interval]:
        """Accuracy over the seeds, by the attacks' eps."""
        found = {attack.eps: self.results.interval(self.dataset, loss, attack) for attack in attacks}
        return {eps: interval for eps, interval in found.items() if interval is not None}

    def gain(self, over: LossSpec, loss: LossSpec, attack: AttackSpec) -> Interval | None:
        """The accuracy of a loss less that of another, paired over the seeds; None where no seed has both."""
        return self.results.interval(self.dataset, loss, attack, less=over)

    def records(self, loss: LossSpec, attack: AttackSpec) -> list[Record]:
        """The records there are, in the order of seeds."""
        found = (self.results.records.get((run, attack)) for run in self.results.runs(self.dataset, loss))
        return [record for record in found if record is not None]


def confusion_attacks(grid: Grid) -> dict[str, AttackSpec]:
    """No attack, and the CE attack at the grid's smallest eps in each protocol: those that the grid has, by name."""
    known = [a for a in attacks(grid, "no attack", "sound", "paper", images=0) if protocol(a)[1] in ("", "CE")]
    smallest = min((attack.eps for attack in known if attack.eps), default=0.0)
    by_name = {protocol(attack)[0]: attack for attack in known if attack.eps in (0, smallest)}
    return {name: by_name[name] for name in ("no attack", "sound", "paper") if name in by_name}


def has_alphas(grid: Grid) -> bool:
    """Whether a grid has alphas to choose from, and validation images under attack to choose by."""
    return len(_with_alpha(grid)) > 1 and bool(alpha_eps(grid))


def alpha_eps(grid: Grid) -> list[float]:
    """The strengths at which an alpha is chosen."""
    return [attack.eps for attack in attacks_by_ce(grid, "validation")]


def chosen_alpha(results: Results, dataset: str, eps: float) -> LossSpec | None:
    """
    The HR loss of the highest mean validation accuracy under the sound CE attack; of equals, that of the smaller alpha.

    None where no seed has been evaluated for every alpha.
    """
    losses = sorted(_with_alpha(results.grid), key=lambda loss: loss.alpha or 0)
    attacked = attacks_by_ce(results.grid, "validation", eps)
    found = {loss: results.values(dataset, loss, attack) for loss in losses for attack in attacked}
    seeds = set(results.grid.seeds).intersection(*found.values())
    if not seeds or not found:
        return None
    return max(found, key=lambda loss: math.fsum(found[loss][seed] for seed in seeds))


def attacks_by_ce(grid: Grid, split: str, *eps: float) -> list[AttackSpec]:
    """No attack, and the sound attacks by CE on all images of a split; of these eps, or of all."""
    found = attacks(grid, "no attack", "sound", split=split, images=0)
    return [a for a in found if protocol(a) in BOUNDED and (not eps or a.eps in eps)]


def _with_alpha(grid: Grid) -> list[LossSpec]:
    """The HR losses with nothing but an alpha, one of which is chosen."""
    return [loss for loss in grid.losses if loss.plain and loss.alpha is not None]


def strong_attacks(grid: Grid) -> dict[float, dict[str, AttackSpec]]:
    """By eps and column, the attacks of a grid on the images on which it has a worst case, and not that alone."""
    found: dict[float, dict[str, AttackSpec]] = {}
    images = {attack.images for attack in attacks(grid, "worst case")}
    for name, (kind, attacker) in STRONG.items():
        for attack in attacks(grid, kind, attacker=attacker, units="range"):
            if attack.images in images:
                found.setdefault(attack.eps, {})[name] = attack
    return {eps: row for eps, row in sorted(found.items()) if "worst case" in row and len(row) > 1}


def blocks(grid: Grid) -> dict[Hardening | None, list[LossSpec]]:
    """A grid's losses by what they are hardened with: first those with nothing, then noise, Madry and TRADES."""
    order = (None, *get_args(HardeningName))
    found: dict[Hardening | None, list[LossSpec]] = {}
    for loss in sorted(grid.losses, key=lambda loss: order.index(loss.hardening and loss.hardening.name)):
        found.setdefault(loss.hardening, []).append(loss)
    return found


def has_hardening(grid: Grid) -> bool:
    """Whether any of a grid's networks is hardened."""
    return any(loss.hardening is not None for loss in grid.losses)


def without_hardening(loss: LossSpec) -> str:
    """What a loss is called where its hardening is named already."""
    return str(replace(loss, hardening=None))


def hardening_attacks(grid: Grid) -> dict[tuple[float, str], AttackSpec]:
    """By eps and column, what hardened networks are compared under, no attack first; empty without any of them."""
    by_eps = strong_attacks(grid) if has_hardening(grid) else {}
    images = {row["worst case"].images for row in by_eps.values()}
    clean = [attack for attack in attacks(grid, "no attack") if attack.images in images]
    found = {(0.0, "no attack"): clean[0]} if clean else {}
    return found | {(eps, name): row[name] for eps, row in by_eps.items() for name in OF_HARDENED if name in row}
