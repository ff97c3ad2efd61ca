"""Results -> what the reports on masked gradients say, as a table: how many seeds raise which flag."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from benchmarks.config import AttackSpec, Grid, RunSpec
from benchmarks.report.cells import Results
from benchmarks.report.markup import Table

# What an attacker along each loss is called: by the protocol.
ATTACKERS = {"clipped-ce": "paper", "ce": "sound"}


def diagnoses_table(results: Results, dataset: str) -> Table | None:
    """
    The verdict of the reports on masked gradients at every eps, on each training loss, for each attacker.

    :param results: What there is of a grid.
    :param dataset: One of its data sets.
    :return: None for a grid without such reports.
    """
    grid, reports = results.grid, _reports(results.grid)
    if not reports:
        return None
    rows: list[tuple[str, ...]] = []
    for eps in sorted({report.eps for report in reports}):
        first = f"{eps:g}"
        for loss in grid.losses:
            for report in (report for report in reports if report.eps == eps):
                found = [results.records.get((run, report)) for run in results.runs(dataset, loss)]
                records = [record for record in found if record is not None]
                rows.append((first, str(loss), _attacker(report), *_verdict(records, grid)))
                first = ""
    images = max((record["n"] for (run, _), record in _diagnosed(results) if run.dataset == dataset), default=0)
    steps = " or ".join(str(steps) for steps in sorted({report.steps for report in reports}))
    notes = (
        f"Data: {dataset}, the first {images} test images; L-infinity, eps as a share of the pixel range. In brackets: "
        "how many seeds raise the flag.",
        "Each verdict is that of art_hrloss's gradient_masking_report: whether input gradients vanish, whether other "
        "losses on the same network or attacks without gradients break more than the attacker's own gradient, whether "
        f"more steps and larger eps do what they must, and other signs of an attack that fails; {steps} steps of "
        "projected gradient descent. paper: an attacker through clipped probabilities. sound: along the exact gradient "
        "of cross-entropy.",
        "A flag is about the attack: what it leaves standing is not to be believed. No flag is no proof of robustness.",
    )
    header = ("eps", "trained", "attacker", "verdict", "flags (seeds)")
    return Table(f"Masked gradients on {dataset}", header, tuple(rows), notes)


def diagnoses_frame(results: Results) -> pd.DataFrame:
    """A row per run, attacker and flag that it raises, with the evidence; a row without a flag where none is raised."""
    columns = ["dataset", "trained", "seed", "eps", "attacker", "n", "flag", "evidence"]
    rows = [
        (run.dataset, str(run.loss), run.seed, attack.eps, _attacker(attack), record["n"], flag, evidence)
        for (run, attack), record in _diagnosed(results)
        for flag, evidence in (record["flags"] or {"": ""}).items()
    ]
    return pd.DataFrame(rows, columns=columns)


def _reports(grid: Grid) -> list[AttackSpec]:
    return [attack for attack in grid.attacks if attack.name == "diagnostics"]


def _diagnosed(results: Results) -> Iterator[tuple[tuple[RunSpec, AttackSpec], Mapping[str, Any]]]:
    return (item for item in results.records.items() if item[0][1].name == "diagnostics")


def _attacker(report: AttackSpec) -> str:
    return ATTACKERS.get(str(report.loss), str(report.loss))


def _verdict(records: list[Mapping[str, Any]], grid: Grid) -> tuple[str, str]:
    """How many of the seeds there are raise any flag, and how many each, most first."""
    if not records:
        return "not yet", ""
    flagged = sum(bool(record["flags"]) for record in records)
    counts = Counter(flag for record in records for flag in record["flags"])
    flags = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    missing = "" if len(records) == len(grid.seeds) else f" (n = {len(records)})"
    verdict = f"flagged in {flagged} of {len(records)} seeds" if flagged else f"no flag{missing}"
    return verdict, ", ".join(f"{flag} ({count})" for flag, count in flags)
