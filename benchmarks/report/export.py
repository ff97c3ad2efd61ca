"""Results -> files. A report is a function of the records: nothing is trained or attacked for it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from benchmarks.config import Grid
from benchmarks.report.bounds import bounds_frame, bounds_tables
from benchmarks.report.cells import Results
from benchmarks.report.claims import Claim, claims, claims_table
from benchmarks.report.diagnoses import diagnoses_frame, diagnoses_table
from benchmarks.report.drawing import Picture, save
from benchmarks.report.figures import pictures
from benchmarks.report.hardening import hardening_frame, hardening_table
from benchmarks.report.headline import answer, headline_table
from benchmarks.report.markup import Table
from benchmarks.report.page import Section, index, page
from benchmarks.report.selection import Selection
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
from benchmarks.store import write_bytes, write_json

# The sections of the page, with the tables and figures of each by name; then those that stand open.
SECTIONS = {
    "The paper's claims": (("claims",), ()),
    "Accuracy against eps": (("strong", "table_1"), ("accuracy_vs_eps", "strong")),
    "Margins": ((), ("margins",)),
    "Attacked images": ((), ("strip",)),
    "Gradient masking": (("diagnostics",), ()),
    "Defences": (("hardening",), ("hardening",)),
    "Choice of alpha": (("alpha",), ("alpha",)),
    "Confusion": (("confusion",), ("confusion",)),
    "Proposition 1": (("bounds",), ("bounds",)),
    "Learning curves": ((), ("learning_curves",)),
}
OPEN = ("The paper's claims",)
# The figure to be seen first is the first of these that a grid has.
LEADING = ("figure_1", "hardening", "alpha", "strong", "accuracy_vs_eps")
SUMMARY = "summary.json"


def write(results: Results, folder: Path, *, command: str, facts: Mapping[str, str] | None = None) -> Path:
    """
    Write what there is of a grid as tables, figures, and one page that shows them all, each file whole or not at all.

    :param results: What there is of a grid.
    :param folder: Takes the files.
    :param command: What makes the results, to stand under the tables.
    :param facts: When, with what and on what they were made; see benchmarks/report/provenance.py.
    :return: The page, index.html.
    :raises StoreError: If the disk is full, or the folder cannot be written.
    """
    found, drawn, facts = claims(results), pictures(results), facts or {}
    written = write_tables(results, found, folder, command=command)
    for picture in drawn:
        save(picture, folder)
    selections = [Selection(results, dataset) for dataset in results.datasets]
    answers = [answer(selection) for selection in selections]
    if len(answers) > 1:
        answers = [replace(a, verdict=f"{s.dataset}: {a.verdict}") for a, s in zip(answers, selections, strict=True)]
    first: list[Table | Picture] = [table for selection in selections if (table := headline_table(selection))]
    leading = [
        next((p for name in LEADING for p in drawn if p.name == f"{name}-{dataset}"), None)
        for dataset in results.datasets
    ]
    first += [picture for picture in leading if picture is not None]
    shown = page(
        f"HR loss: grid {results.grid.name}",
        answers=answers,
        first=first,
        sections=_sections(all_tables(results, found), [picture for picture in drawn if picture not in first]),
        command=command,
        facts=facts,
        files=[path.name for path in written] + [f"{p.name}.{kind}" for p in drawn for kind in ("png", "svg")],
        notes=_notes(results),
    )
    write_bytes(folder / "index.html", shown.encode())
    summary = {"grid": results.grid.name, "what": _what(results.grid), "verdict": " ".join(map(str, answers))}
    write_json(folder / SUMMARY, summary | {"made": facts.get("Made", "")})
    return folder / "index.html"


def write_index(reports: Path) -> Path:
    """
    Write index.html, a page that lists the reports of all grids.

    :param reports: The folder of the reports, each in a folder of its own as :func:`write` makes it.
    :raises StoreError: If it cannot be written.
    """
    entries = []
    for found in sorted(reports.glob("*/index.html")):
        entry = {"grid": found.parent.name, "what": "", "made": "", "verdict": "No summary: make this report again."}
        try:
            summary = json.loads((found.parent / SUMMARY).read_bytes())
        except (OSError, ValueError):  # of an earlier version, or damaged
            summary = {}
        if isinstance(summary, dict):
            entry |= {key: str(value) for key, value in summary.items() if key in entry}
        entries.append(entry | {"page": f"{found.parent.name}/index.html"})
    write_bytes(reports / "index.html", index(entries).encode())
    return reports / "index.html"


def _sections(tables: Mapping[str, Sequence[Table]], drawn: Sequence[Picture]) -> list[Section]:
    """What there is, by subject: figures, and then their tables."""
    sections = []
    for title, (of_tables, of_pictures) in SECTIONS.items():
        names = [name for name in of_tables if name in tables]
        parts: list[Table | Picture] = [p for name in of_pictures for p in drawn if p.name.startswith(f"{name}-")]
        parts += [table for name in names for table in tables[name]]
        files = [f"{name}.{ending}" for name in names for ending in ("csv", "tex", "md")]
        sections.append(Section(title, parts, files, folded=title not in OPEN))
    return sections


def _what(grid: Grid) -> str:
    """A grid in a few words, for a list of grids."""
    losses = ", ".join(map(str, grid.losses)) if len(grid.losses) <= 3 else f"{len(grid.losses)} losses"
    seeds = f"{len(grid.seeds)} seed{'s' * (len(grid.seeds) > 1)}"
    data = ", ".join(dataset for dataset, _ in grid.recipes)
    return f"{data}: {len(grid.runs())} trainings ({losses}; {seeds}), each under {len(grid.attacks)} attacks"


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
