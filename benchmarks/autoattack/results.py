"""Results of the comparison with AutoAttack: one file per network and evaluation, and the tables of all of them."""

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
from benchmarks.protocols import eps_text
from benchmarks.report.markup import Table
from benchmarks.store import DamagedError, StoreError, read_json, write_bytes, write_json

NOTES = (
    "clean, AutoAttack and worst case: clean accuracy, and robust accuracy as a share of the images. AutoAttack: its "
    "own code, version standard (APGD-CE, APGD-T, FAB-T, Square), from the package pyautoattack. worst case: "
    "art_hrloss.worst_case with the default ensemble; settings: the steps of its attacks and the queries per image of "
    "Square. AutoAttack only, worst case only: the number of images that only this evaluation misclassifies. Both "
    "attack the same first test images with their true labels, L-infinity norm, in batches of 250, with the same seed "
    "of their random starts (0, or that in settings; the network is always that of seed 0), "
    "and each attack only the images that the attacks before it did not misclassify. An adversarial example counts if "
    "it is within eps of the image and in [0, 1], and the network in evaluation mode misclassifies it.",
    "Mpasses: millions of images that pass through the network; a forward and a backward pass count as one each, and "
    "clean predictions and checks are included. ratio: passes of the worst case divided by those of AutoAttack. CPU s: "
    "CPU seconds of the process, on one thread. They are longer if other processes use the machine; the number of "
    "passes does not depend on that. Most of the difference comes from Square, which in the worst case ends after a "
    "tenth of its queries, at least 500, in a row without a further adversarial example, and in AutoAttack after all "
    "of them; and from FAB-T, which the ensemble does not have.",
)
ATTACK_NOTES = (
    "Each evaluation runs its attacks in this order. attacked: the images that no attack before it has misclassified. "
    "found: those of them for which it finds an adversarial example. kpasses: thousands of images that pass through "
    "the network, forward and backward.",
)


@dataclass(frozen=True)
class Result:
    """Result of one network under one evaluation, as stored; its fingerprint shows whether it is up to date."""

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
    Write a result by an atomic write.

    :raises StoreError: If the file cannot be written.
    """
    values = asdict(measured) | {name: _text(getattr(measured, name)) for name in ("correct", "robust")}
    about = {"case": case.name, "what": case.what, "dataset": case.run.dataset, "eps": case.eps}
    write_json(file, about | {"evaluation": asdict(evaluation), "fingerprint": fingerprint, "measured": values})


def load(file: Path) -> Result | None:
    """
    Return a stored result, or None if there is none.

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
        raise DamagedError(file, f"is not a result ({error!r}): remove it, and run the command again") from error


def _text(flags: Any) -> str:
    return "".join("1" if flag else "0" for flag in flags)


@dataclass(frozen=True)
class Pair:
    """Results of a network under both evaluations."""

    autoattack: Result
    worst_case: Result

    @cached_property
    def row(self) -> dict[str, Any]:
        """The numbers of the pair, by the columns of autoattack.csv."""
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
    Return the number of images that only AutoAttack misclassifies, and of those that only the worst case does.

    :param autoattack: True for images that are robust under AutoAttack, shape ``(n,)``.
    :param worst: True for images that are robust in the worst case, shape ``(n,)``.
    """
    return int((~autoattack & worst).sum()), int((autoattack & ~worst).sum())


def pairs(folder: Path) -> list[Pair]:
    """
    Return the pairs of results of all networks in a folder that have both, in order.

    :raises StoreError: If a result cannot be used.
    """
    loaded = [load(file) for file in sorted((folder / "results").glob("*.json"))]
    results = [result for result in loaded if result is not None]
    order = [case.name for case in cases()]
    by_network: dict[tuple[int, float, int], list[Result]] = {}
    for result in results:
        place = order.index(result.case) if result.case in order else len(order)
        by_network.setdefault((place, result.eps, len(result.measured.correct)), []).append(result)
    paired: list[Pair] = []
    for _, of_network in sorted(by_network.items()):
        by_seed = {r.evaluation.seed: r for r in of_network if r.evaluation.method == AUTOATTACK}
        worst = [r for r in of_network if r.evaluation.method == WORST_CASE and r.evaluation.seed in by_seed]
        worst.sort(key=lambda r: (-r.evaluation.max_iter, -r.evaluation.square_iter, r.evaluation.seed))
        paired += [Pair(by_seed[result.evaluation.seed], result) for result in worst]
    return paired


def write(folder: Path, head: Sequence[str]) -> list[Table]:
    """
    Write autoattack.md, autoattack.csv and autoattack-attacks.csv from all results of a folder; return the tables.

    :param head: Paragraphs above the tables.
    :raises StoreError: If a file cannot be written, or a result cannot be used.
    """
    both = pairs(folder)
    if not both:
        raise StoreError(f"expected results in {folder}, but got none")
    tables = [comparison(both), attacks(both)]
    body = "\n".join(table.markdown() for table in tables)
    text = "\n\n".join(["# The worst case compared with AutoAttack", *head, body])
    write_bytes(folder / "autoattack.md", text.encode())
    frames = {"autoattack": [pair.row for pair in both], "autoattack-attacks": [r for p in both for r in _stages(p)]}
    for name, rows in frames.items():
        values: str = pd.DataFrame(rows).to_csv(index=False, float_format="%.6g")
        write_bytes(folder / f"{name}.csv", values.encode())
    return tables


def comparison(both: Sequence[Pair]) -> Table:
    """Return the table of networks, with a row per network and settings of the worst case."""
    accuracies = ("clean", "AutoAttack", "worst case")
    costs_of = ("Mpasses, AutoAttack", "Mpasses, worst case", "ratio", "CPU s, AutoAttack", "CPU s, worst case")
    only = ("AutoAttack only", "worst case only")
    header = ("network", "eps", "settings", "images", *accuracies, *only, *costs_of, "AutoAttack's warnings")
    rows = []
    for pair in both:
        row, costs = pair.row, (pair.autoattack.measured.cost, pair.worst_case.measured.cost)
        shown = [f"{row['dataset']}, {row['network']}", eps_text(row["eps"]), row["settings"], str(row["images"])]
        shown += [f"{row[name]:.3f}" for name in accuracies]
        shown += [str(row["found by AutoAttack only"]), str(row["found by worst case only"])]
        shown += [f"{cost.passes / 1e6:.3f}" for cost in costs] + [f"{row['passes ratio']:.2f}"]
        shown += [*(f"{cost.seconds:.1f}" for cost in costs), row["AutoAttack's warnings"] or "-"]
        rows.append(tuple(shown))
    title = "Robust accuracy under AutoAttack and in the worst case, and their cost"
    return Table(title, header, tuple(rows), (*summary(both), *NOTES))


def summary(both: Sequence[Pair]) -> list[str]:
    """Return sentences that compare the strength and the cost of both evaluations, for each settings."""
    sentences = []
    for settings in dict.fromkeys(pair.row["settings"] for pair in both):
        rows = [pair.row for pair in both if pair.row["settings"] == settings]
        weaker = [row for row in rows if row["worst case"] > row["AutoAttack"]]
        stronger = [row for row in rows if row["worst case"] < row["AutoAttack"]]
        named = "; ".join(f"{row['dataset']}, {row['network']} at eps {eps_text(row['eps'])}" for row in weaker)
        ratios = [row["passes ratio"] for row in rows]
        third = sum(ratio <= 1 / 3 for ratio in ratios)
        rejected = sum(row["rejected, AutoAttack"] + row["rejected, worst case"] for row in rows)
        only_autoattack, only_worst = (
            sum(row[f"found by {name} only"] for row in rows) for name in ("AutoAttack", "worst case")
        )
        number = len(rows)
        sentences.append(
            f"{settings}, {number} network{'s' * (number != 1)}: the robust accuracy of the worst case is higher than "
            f"that of AutoAttack (the worst case is weaker) on {len(weaker)}{f' ({named})' if weaker else ''}, lower "
            f"(stronger) on {len(stronger)}, and equal on {number - len(weaker) - len(stronger)}. Only AutoAttack "
            f"misclassifies {only_autoattack} image{'s' * (only_autoattack != 1)}, only the worst case {only_worst}. "
            f"The worst case needs {median(ratios):.2f} times the passes of AutoAttack in the median, from "
            f"{min(ratios):.2f} to {max(ratios):.2f}, and at most a third of them on {third} of {number}. Images that "
            f"an evaluation counts as misclassified but the verification does not: {rejected}."
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
    """Return the table of attacks, with a section per network."""
    header = ("network", "eps", "evaluation", "attack", "attacked", "found", "kpasses", "CPU s", "found / CPU s")
    rows: dict[tuple[str, ...], None] = {}
    for pair in both:
        for row in _stages(pair):
            passes = (row["forward"] + row["backward"]) / 1e3
            shown = [row["network"], eps_text(row["eps"]), row["evaluation"], row["attack"], str(row["attacked"])]
            shown += [str(row["found"]), f"{passes:.1f}", f"{row['CPU seconds']:.1f}"]
            # A dict without values drops duplicates: several settings share the rows of AutoAttack.
            rows[(*shown, f"{row['found per CPU second']:.2g}")] = None
    return Table("Adversarial examples and cost by attack", header, tuple(rows), ATTACK_NOTES)
