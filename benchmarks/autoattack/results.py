"""Results on disk, one file for each network and evaluation, and the table made from all of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.autoattack.measuring import AUTOATTACK, WORST_CASE, Cost, Evaluation, Measured, Stage
from benchmarks.autoattack.networks import Case, cases
from benchmarks.report.markup import Table
from benchmarks.store import StoreError, write_bytes, write_json
from benchmarks.store._atomic import DamagedError, read_json

COUNTED = (
    "AutoAttack: its own code, version standard (APGD-CE, APGD-T, FAB-T, Square), from the package pyautoattack. Worst "
    "case: art_hrloss.worst_case with the default ensemble, with so many steps and queries per image. Both attack the "
    "same first test images at their true labels, L-infinity, in batches of 250, from the same seed, and each attack "
    "only the images that those before it left robust. An adversarial image counts if it lies within eps and in "
    "[0, 1], and the network in evaluation mode misclassifies it.",
    "Passes are images that pass through the network, forward and backward counted as one each; all is counted, also "
    "clean predictions and checks. CPU seconds are those of the process, on one thread: on a machine that is not "
    "quiet they are too long, and passes are exact.",
)


@dataclass(frozen=True)
class Result:
    """One network under one evaluation, and whether it is up to date."""

    case: str
    what: str
    dataset: str
    eps: float
    evaluation: Evaluation
    fingerprint: str
    measured: Measured


def path(folder: Path, case: Case, evaluation: Evaluation) -> Path:
    """Return the file of a result."""
    kind = "autoattack" if evaluation.method == AUTOATTACK else "worst-case"
    settings = "" if evaluation.method == AUTOATTACK else f"-{evaluation.max_iter}-{evaluation.square_iter}"
    settings += f"-seed-{evaluation.seed}" if evaluation.seed else ""
    return folder / "results" / f"{case.key}-{kind}{settings}.json"


def save(file: Path, case: Case, evaluation: Evaluation, fingerprint: str, measured: Measured) -> None:
    """
    Write a result, whole or not at all.

    :raises StoreError: If the place cannot be written.
    """
    values = asdict(measured) | {name: _text(getattr(measured, name)) for name in ("correct", "robust")}
    about = {"case": case.name, "what": case.what, "dataset": case.run.dataset, "eps": case.eps}
    write_json(file, about | {"evaluation": asdict(evaluation), "fingerprint": fingerprint, "measured": values})


def load(file: Path) -> Result | None:
    """
    Return a result, or None if it is not there.

    :raises StoreError: If it cannot be read, or is not a result.
    """
    values = read_json(file, dict)
    if values is None:
        return None
    try:
        raw = values["measured"]
        stages = tuple(Stage(**stage | {"cost": Cost(**stage["cost"])}) for stage in raw["stages"])
        flags = {name: np.array([c == "1" for c in raw[name]]) for name in ("correct", "robust")}
        parts: dict[str, Any] = {"stages": stages, "cost": Cost(**raw["cost"]), "flags": tuple(raw["flags"])}
        evaluation = Evaluation(**values["evaluation"])
        measured = Measured(**raw | flags | parts)
        return Result(**values | {"evaluation": evaluation, "measured": measured})
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(file, f"is not a result ({error!r}): remove it, and give the command again") from error


def _text(flags: Any) -> str:
    return "".join("1" if flag else "0" for flag in flags)


@dataclass(frozen=True)
class Pair:
    """A network under both evaluations."""

    autoattack: Result
    worst_case: Result

    @cached_property
    def row(self) -> dict[str, Any]:
        """The numbers, by their names in the file of values."""
        a, w = self.autoattack.measured, self.worst_case.measured
        only_a, only_w = only_one(a.robust, w.robust)
        return {
            "case": self.worst_case.case,
            "network": self.worst_case.what,
            "dataset": self.worst_case.dataset,
            "eps": self.worst_case.eps,
            "settings": str(self.worst_case.evaluation),
            "images": len(a.correct),
            "clean": a.correct.mean(),
            "AutoAttack": a.robust.mean(),
            "worst case": w.robust.mean(),
            "found by AutoAttack only": only_a,
            "found by worst case only": only_w,
            **{f"{name} passes, AutoAttack": getattr(a.cost, name) for name in ("forward", "backward")},
            **{f"{name} passes, worst case": getattr(w.cost, name) for name in ("forward", "backward")},
            "passes ratio": w.cost.passes / a.cost.passes,
            "CPU seconds, AutoAttack": a.cost.seconds,
            "CPU seconds, worst case": w.cost.seconds,
            "rejected, AutoAttack": a.rejected,
            "rejected, worst case": w.rejected,
            "AutoAttack's warnings": ", ".join(a.flags),
        }


def only_one(autoattack: Any, worst: Any) -> tuple[int, int]:
    """
    Return how many images AutoAttack found adversarial images of and the worst case did not, and the reverse.

    :param autoattack: The images that are robust under it, shape ``(n,)``.
    :param worst: The same of the worst case, on the same images.
    """
    return int((~autoattack & worst).sum()), int((autoattack & ~worst).sum())


def pairs(folder: Path) -> list[Pair]:
    """
    Return all networks of a folder that have both results, in order.

    :raises StoreError: If a result cannot be used.
    """
    found = [load(file) for file in sorted((folder / "results").glob("*.json"))]
    results = [result for result in found if result is not None]
    order = [case.name for case in cases()]
    by_network: dict[tuple[int, float, int], list[Result]] = {}
    for result in results:
        place = order.index(result.case) if result.case in order else len(order)
        by_network.setdefault((place, result.eps, len(result.measured.correct)), []).append(result)
    paired: list[Pair] = []
    for _, same in sorted(by_network.items()):
        by_seed = {one.evaluation.seed: one for one in same if one.evaluation.method == AUTOATTACK}
        ours = [one for one in same if one.evaluation.method == WORST_CASE and one.evaluation.seed in by_seed]
        ours.sort(key=lambda one: (-one.evaluation.max_iter, -one.evaluation.square_iter, one.evaluation.seed))
        paired += [Pair(by_seed[one.evaluation.seed], one) for one in ours]
    return paired


def write(folder: Path, head: Sequence[str]) -> list[Table]:
    """
    Write autoattack.md, autoattack.csv and autoattack-attacks.csv from all results of a folder; return the tables.

    :param head: What stands above the tables.
    :raises StoreError: If the place cannot be written, or a result cannot be used.
    """
    both = pairs(folder)
    if not both:
        raise StoreError(f"expected results in {folder}, but got none")
    tables = [comparison(both), attacks(both)]
    body = "\n".join(table.markdown() for table in tables)
    write_bytes(folder / "autoattack.md", "\n\n".join(["# The worst case beside AutoAttack", *head, body]).encode())
    frames = {"autoattack": [pair.row for pair in both], "autoattack-attacks": [r for p in both for r in _stages(p)]}
    for name, rows in frames.items():
        text: str = pd.DataFrame(rows).to_csv(index=False, float_format="%.6g")
        write_bytes(folder / f"{name}.csv", text.encode())
    return tables


def comparison(both: Sequence[Pair]) -> Table:
    """Return the table of networks, a row for each with each settings of the worst case."""
    accuracies = ("clean", "AutoAttack", "worst case")
    costs_of = ("Mpasses, AutoAttack", "Mpasses, worst case", "ratio", "CPU s, AutoAttack", "CPU s, worst case")
    only = ("AutoAttack only", "worst case only")
    header = ("network", "eps", "settings", "images", *accuracies, *only, *costs_of, "AutoAttack's warnings")
    rows = []
    for pair in both:
        row, costs = pair.row, (pair.autoattack.measured.cost, pair.worst_case.measured.cost)
        shown = [f"{row['dataset']}, {row['network']}", f"{row['eps']:.3g}", row["settings"], str(row["images"])]
        shown += [f"{row[name]:.3f}" for name in accuracies]
        shown += [str(row["found by AutoAttack only"]), str(row["found by worst case only"])]
        shown += [f"{cost.passes / 1e6:.3f}" for cost in costs] + [f"{row['passes ratio']:.2f}"]
        shown += [*(f"{cost.seconds:.1f}" for cost in costs), row["AutoAttack's warnings"] or "-"]
        rows.append(tuple(shown))
    notes = (*summary(both), *COUNTED)

    return Table("Robust accuracy, images found by one only, and cost", header, tuple(rows), notes)


def summary(both: Sequence[Pair]) -> list[str]:
    """Return in sentences, for each settings, where the worst case is weaker than AutoAttack, and what it costs."""
    sentences = []
    for settings in dict.fromkeys(pair.row["settings"] for pair in both):
        rows = [pair.row for pair in both if pair.row["settings"] == settings]
        weaker = [row for row in rows if row["worst case"] > row["AutoAttack"]]
        stronger = [row for row in rows if row["worst case"] < row["AutoAttack"]]
        named = "; ".join(f"{row['dataset']}, {row['network']} at eps {row['eps']:.3g}" for row in weaker)
        ratios = [row["passes ratio"] for row in rows]
        third = sum(ratio <= 1 / 3 for ratio in ratios)
        rejected = sum(row["rejected, AutoAttack"] + row["rejected, worst case"] for row in rows)
        sentences.append(
            f"{settings}: of {len(rows)} networks the worst case is weaker than AutoAttack on {len(weaker)}"
            f"{f' ({named})' if weaker else ''}, stronger on {len(stronger)}, and as strong on "
            f"{len(rows) - len(weaker) - len(stronger)}. AutoAttack alone found "
            f"{sum(row['found by AutoAttack only'] for row in rows)} images, the worst case alone "
            f"{sum(row['found by worst case only'] for row in rows)}. The worst case takes {median(ratios):.2f} of "
            f"AutoAttack's passes in the median, from {min(ratios):.2f} to {max(ratios):.2f}; at most a third on "
            f"{third}. Images that one of them counts as misclassified and that verification rejects: {rejected}."
        )
    return sentences


def _stages(pair: Pair) -> list[dict[str, Any]]:
    rows = []
    for result in (pair.autoattack, pair.worst_case):
        for stage in result.measured.stages:
            seconds = stage.cost.seconds
            rows.append(
                {
                    "case": result.case,
                    "network": f"{result.dataset}, {result.what}",
                    "eps": result.eps,
                    "evaluation": f"{result.evaluation.method}, {result.evaluation}",
                    "attack": stage.name,
                    "attacked": stage.attacked,
                    "found": stage.found,
                    "forward": stage.cost.forward,
                    "backward": stage.cost.backward,
                    "CPU seconds": seconds,
                    "found per CPU second": stage.found / seconds if seconds else 0.0,
                }
            )
    return rows


def attacks(both: Sequence[Pair]) -> Table:
    """Return the table of attacks, a section for each network."""
    header = ("network", "eps", "evaluation", "attack", "attacked", "found", "kpasses", "CPU s", "found / CPU s")
    rows: dict[tuple[str, ...], None] = {}
    for pair in both:
        for row in _stages(pair):
            passes = (row["forward"] + row["backward"]) / 1e3
            shown = [row["network"], f"{row['eps']:.3g}", row["evaluation"], row["attack"], str(row["attacked"])]
            shown += [str(row["found"]), f"{passes:.1f}", f"{row['CPU seconds']:.1f}"]
            rows[(*shown, f"{row['found per CPU second']:.2g}")] = None  # AutoAttack once, beside several settings
    return Table("Attack by attack, in their order", header, tuple(rows), ())
