"""Results -> files. A report is a function of the records: nothing is trained or attacked for it."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.report.bounds import bounds_frame, bounds_tables
from benchmarks.report.cells import Results
from benchmarks.report.claims import Claim, claims, claims_table
from benchmarks.report.diagnoses import diagnoses_frame, diagnoses_table
from benchmarks.report.drawing import save
from benchmarks.report.figures import pictures
from benchmarks.report.hardening import hardening_frame, hardening_table
from benchmarks.report.markup import Table
from benchmarks.report.own_attacks import own_attacks_table
from benchmarks.report.page import page
from benchmarks.report.strong import broken_frame, strong_table
from benchmarks.report.table_1 import table_1
from benchmarks.report.tables import (
    alpha_eps,
    alpha_table,
    chosen_alpha,
    confusion_attacks,
    confusion_norms,
    confusion_table,
)
from benchmarks.store import write_bytes

# What the page calls the tables of each name.
HEADINGS = {
    "table_1": "Accuracy",
    "confusion": "Confusion",
    "alpha": "Choice of alpha",
    "own_attacks": "Own attacks",
    "strong": "Strong attacks",
    "hardening": "Hardening",
    "diagnostics": "Masked gradients",
    "bounds": "Proposition 1",
    "claims": "Claims",
}


def write(results: Results, folder: Path, *, command: str) -> Path:
    """
    Write what there is of a grid as tables, figures, and one page that shows them all, each file whole or not at all.

    :param results: What there is of a grid.
    :param folder: Takes the files.
    :param command: What makes the results, to stand under the tables.
    :return: The page, index.html.
    :raises StoreError: If the disk is full, or the folder cannot be written.
    """
    found, drawn = claims(results), pictures(results)
    write_tables(results, found, folder, command=command)
    for picture in drawn:
        save(picture, folder)
    title = f"HR loss: grid {results.grid.name}"
    by_heading = {HEADINGS[name]: several for name, several in all_tables(results, found).items()}
    shown = page(title, command=command, tables=by_heading, pictures=drawn, notes=_notes(results))
    write_bytes(folder / "index.html", shown.encode())
    return folder / "index.html"


def write_tables(results: Results, found: Sequence[Claim], folder: Path, *, command: str) -> list[Path]:
    """
    Write the tables, and the records behind them.

    :param results: What there is of a grid.
    :param found: What it says of the paper's claims.
    :param folder: Takes NAME.md, NAME.tex and NAME.csv of every table, and records.csv.
    :param command: What makes the results, to stand under the tables.
    :return: The files.
    """
    numbers = frames(results, found)
    texts = {"records.csv": _csv(results.record_frame())}
    broken = broken_frame(results)
    texts |= {} if broken.empty else {"broken_by.csv": _csv(broken)}
    for name, several in all_tables(results, found).items():
        texts[f"{name}.md"] = "\n".join(table.markdown() for table in several) + f"\nMade by `{command}`\n"
        texts[f"{name}.tex"] = _latex(several, command)
        texts[f"{name}.csv"] = _csv(numbers[name])
    for file, text in texts.items():
        write_bytes(folder / file, text.encode())
    return [folder / file for file in texts]


def _notes(results: Results) -> list[str]:
    """What a reader must know before the numbers."""
    planned, made = len(results.grid.runs()) * len(results.grid.attacks), len(results.records)
    missing = [] if made == planned else [f"{made} of {planned} evaluations are there so far."]
    return [*missing, *(f"Counted as missing: {problem}." for problem in results.problems)]


def all_tables(results: Results, found: Sequence[Claim]) -> dict[str, list[Table]]:
    """The tables that a grid can give, by name, with that of the claims found."""
    makers = {
        "table_1": table_1,
        "confusion": confusion_table,
        "alpha": alpha_table,
        "own_attacks": own_attacks_table,
        "strong": strong_table,
        "hardening": hardening_table,
        "diagnostics": diagnoses_table,
    }
    made = {
        name: [table for dataset in results.datasets if (table := maker(results, dataset))]
        for name, maker in makers.items()
    }
    made["bounds"] = [table for dataset in results.datasets for table in bounds_tables(results, dataset)]
    made["claims"] = [claims_table(found)] if found else []
    return {name: several for name, several in made.items() if several}


def frames(results: Results, found: Sequence[Claim]) -> dict[str, pd.DataFrame]:
    """The numbers behind the tables, unrounded, by the tables' names."""
    return {
        "table_1": results.cell_frame(),
        "confusion": confusion_frame(results),
        "alpha": alpha_frame(results),
        "bounds": bounds_frame(results),
        "own_attacks": results.cell_frame(),
        "strong": results.cell_frame(),
        "hardening": hardening_frame(results),
        "diagnostics": diagnoses_frame(results),
        "claims": claims_frame(found),
    }


def confusion_frame(results: Results) -> pd.DataFrame:
    """The norm of I - C of every network under every attack of the table."""
    return pd.DataFrame(
        [
            {
                "dataset": dataset,
                "trained": str(loss),
                "seed": seed,
                "attack": attack.name,
                "attack_loss": attack.loss,
                "eps": attack.eps,
                "units": attack.units,
                "norm": norm,
            }
            for dataset in results.datasets
            for loss in results.grid.losses
            for attack in confusion_attacks(results.grid).values()
            for seed, norm in confusion_norms(results, dataset, loss, attack).items()
        ],
        columns=["dataset", "trained", "seed", "attack", "attack_loss", "eps", "units", "norm"],
    )


def alpha_frame(results: Results) -> pd.DataFrame:
    """Every entry of the grid, and whether its alpha is the one chosen on validation at that eps."""
    entries = results.cell_frame()
    chosen = {
        (dataset, eps): str(chosen_alpha(results, dataset, eps))
        for dataset in results.datasets
        for eps in alpha_eps(results.grid)
    }
    keys = zip(entries.dataset, entries.eps, entries.trained, strict=True)
    return entries.assign(chosen=[chosen.get((dataset, eps)) == trained for dataset, eps, trained in keys])


def claims_frame(found: Sequence[Claim]) -> pd.DataFrame:
    """Every measurement of every claim; without numbers where no pair of seeds has been evaluated yet."""
    return pd.DataFrame(
        {
            "claim": claim.name,
            "statement": claim.statement,
            "dataset": claim.dataset,
            "where": claim.where,
            "measure": claim.measure,
            "effect": claim.effect.mean if claim.effect else float("nan"),
            "half_width_95": claim.effect.half_width if claim.effect else float("nan"),
            "pairs": len(claim.seeds),
            "seeds": " ".join(map(str, claim.seeds)),
            "verdict": claim.verdict,
        }
        for claim in found
    )


def _csv(data: pd.DataFrame) -> str:
    text: str = data.to_csv(index=False, float_format="%.6g")
    return text


def _latex(several: Sequence[Table], command: str) -> str:
    comment = f"% Made by `{command}`. Needs \\usepackage{{booktabs}}.\n\n"
    return comment + "\n".join(table.latex() for table in several)
