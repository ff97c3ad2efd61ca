"""What of a grid's results the figures of one data set draw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.config import AttackLossName, AttackSpec, LossSpec, Recipe, SplitName, UnitsName
from benchmarks.protocols import HR
from benchmarks.report.cells import Results
from benchmarks.report.statistics import Interval, mean_interval, paired_interval


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
        for loss in self.results.grid.losses:
            for attack in self.results.grid.attacks:
                if attack.name != "diagnostics":
                    for confusion in self.results.confusions(self.dataset, loss, attack).values():
                        return len(confusion)
        return None

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
            record["n"]
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

    def by_epoch(self, loss: LossSpec, *path: str, log_probability: bool = False) -> dict[float, Interval]:
        """
        A value of the curves' rows over the seeds, by epoch.

        :param loss: The training loss.
        :param path: The value's key in a row, or the keys that lead to it.
        :param log_probability: Whether the rows hold the logarithm of a bound on a probability: it is then taken as the
               bound, at most 1.
        """
        values: dict[float, list[float]] = {}
        for run in self.results.runs(self.dataset, loss):
            for row in self.results.curves.get(run, []):
                value: Any = row
                for key in path:
                    value = None if value is None else value.get(key)
                if value is not None:  # None after epochs in which it was not measured
                    values.setdefault(row["epoch"], []).append(math.exp(min(value, 0.0)) if log_probability else value)
        return {epoch: mean_interval(found) for epoch, found in sorted(values.items())}

    def by_eps(self, loss: LossSpec, attacks: Sequence[AttackSpec]) -> dict[float, Interval]:
        """Accuracy over the seeds, by the attacks' eps."""
        found = {attack.eps: self.results.accuracies(self.dataset, loss, attack) for attack in attacks}
        return {eps: mean_interval(list(by_seed.values())) for eps, by_seed in found.items() if by_seed}

    def gain(self, over: LossSpec, loss: LossSpec, attack: AttackSpec) -> Interval | None:
        """The accuracy of a loss less that of another, paired over the seeds; None where no seed has both."""
        return paired_interval(*(self.results.accuracies(self.dataset, trained, attack) for trained in (loss, over)))

    def values(self, loss: LossSpec, attack: AttackSpec, field: str) -> list[Any]:
        """A field of the records there are, in the order of seeds."""
        found = (self.results.records.get((run, attack), {}) for run in self.results.runs(self.dataset, loss))
        return [record[field] for record in found if field in record]
