"""Files of a report: tables, figures and pages as a function of the records, without training or attacks."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import pandas as pd

from benchmarks.config import Grid
from benchmarks.report.attack_tables import (
    FOUND,
    diagnoses_table,
    ensemble_table,
    hardening_table,
    own_attacks_table,
    strong_table,
)
from benchmarks.report.calibration import calibration_frame, calibration_table, reliability
from benchmarks.report.claims import claims, claims_table
from benchmarks.report.dot_figures import hardening
from benchmarks.report.drawing import Picture, save, style
from benchmarks.report.headline import Answer, answer, headline, headline_table
from benchmarks.report.image_figures import confusion, margins, strip
from benchmarks.report.line_figures import accuracy_vs_eps, alpha, bounds, figure_1, learning_curves, strong
from benchmarks.report.markup import Table
from benchmarks.report.page import Section, index, page
from benchmarks.report.results import ATTACK, Results
from benchmarks.report.selection import Selection, confusion_attacks, where
from benchmarks.report.tables import alpha_table, bounds_table, confusion_table, table_1
from benchmarks.store import write_bytes, write_json

TABLES: dict[str, tuple[Callable[[Selection], Table | None], ...]] = {
    "table_1": (table_1,),
    "confusion": (confusion_table,),
    "calibration": (calibration_table,),
    "alpha": (partial(alpha_table, name="exact"), partial(alpha_table, name="paper")),
    "own_attacks": (own_attacks_table,),
    "strong": (strong_table,),
    "broken_by": (ensemble_table,),
    "hardening": (hardening_table,),
    "diagnostics": (diagnoses_table,),
    "bounds": (partial(bounds_table, side="upper"), partial(bounds_table, side="lower")),
}
PICTURES: tuple[Callable[[Selection], Picture | None], ...] = (
    *(figure_1, accuracy_vs_eps, strong, margins, strip, hardening, alpha),
    *(confusion, reliability, bounds, learning_curves),
)
# The sections of the page, each with the names of its tables and of its figures.
SECTIONS = {
    "The paper's claims": (("claims",), ()),
    "Accuracy against eps": (("strong", "broken_by", "table_1"), ("accuracy_vs_eps", "strong")),
    "The user's own attacks": (("own_attacks",), ()),
    "Margins": ((), ("margins",)),
    "Attacked images": ((), ("strip",)),
    "Gradient masking": (("diagnostics",), ()),
    "Defences": (("hardening",), ("hardening",)),
    "Choice of alpha": (("alpha",), ("alpha",)),
    "Confusion": (("confusion",), ("confusion",)),
    "Calibration": (("calibration",), ("reliability",)),
    "Proposition 1": (("bounds",), ("bounds",)),
    "Learning curves": ((), ("learning_curves",)),
}
# The sections that are unfolded when the page opens.
OPEN = ("The paper's claims",)
# The figure at the top of the page is the first of these that a grid has.
LEADING = ("figure_1", "hardening", "alpha", "strong", "accuracy_vs_eps")
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Report:
    """Tables, figures and answers of a grid, each computed once and cached; parts without records are left out."""

    results: Results

    @cached_property
    def selections(self) -> list[Selection]:
        """The results of each data set."""
        return [Selection(self.results, dataset) for dataset in self.results.datasets]

    @cached_property
    def claims(self) -> pd.DataFrame:
        """Every measurement of the paper's claims."""
        return claims(self.results)

    @cached_property
    def tables(self) -> dict[str, list[Table]]:
        """The tables for which the grid has attacks, by name, each a list over the data sets."""
        by_name = {
            name: [table for selection in self.selections for maker in makers if (table := maker(selection))]
            for name, makers in TABLES.items()
        }
        by_name["claims"] = [claims_table(self.claims)] if len(self.claims) else []
        return {name: tables for name, tables in by_name.items() if tables}

    @cached_property
    def answers(self) -> list[tuple[Answer, Table | None]]:
        """The verdict on robustness for each data set, and the table of its numbers."""
        headlines = [headline(selection) for selection in self.selections]
        answers = [answer(summary) for summary in headlines]
        if len(answers) > 1:
            named = zip(answers, self.results.datasets, strict=True)
            answers = [replace(item, verdict=f"{dataset}: {item.verdict}") for item, dataset in named]
        return [(item, headline_table(summary)) for item, summary in zip(answers, headlines, strict=True)]

    @cached_property
    def pictures(self) -> list[Picture]:
        """The figures for which there are records, data set by data set."""
        with style():
            pictures = [maker(selection) for selection in self.selections for maker in PICTURES]
        return [picture for picture in pictures if picture is not None]

    def files(self, command: str) -> dict[str, str]:
        """
        Return the text of each file by its name: results, records, and each table as CSV, Markdown and LaTeX.

        :param command: The command that computes the results; it is printed under the tables.
        """
        results, last = self.results, self.results.trained
        # Empty frames are left out: pandas 2 would take the types of the columns from them.
        parts = [frame for frame in (results.frame, results.calibration, results.bounds) if len(frame)]
        whole = pd.concat(parts or [results.frame]).drop(columns="key")
        frames = {"results": whole, "records": records_frame(last)}
        keys = tuple(attack.key() for attack in confusion_attacks(results.grid).values())
        frames |= dict.fromkeys(self.tables, cells_frame(self.selections))
        numbers = {
            "confusion": where(last, key=keys, metric="confusion_norm").drop(columns=["epoch", "key"]),
            "broken_by": broken_frame(last),
            "calibration": calibration_frame(results),
            "bounds": bounds_frame(results.bounds),
            "diagnostics": results.flags,
            "claims": self.claims,
        }
        frames |= {name: frame for name, frame in numbers.items() if name in self.tables}
        texts = {f"{name}.csv": frame.to_csv(index=False, float_format="%.6g") for name, frame in frames.items()}
        texts["results.json"] = whole.to_json(orient="records", double_precision=15)
        if answered := [(f"{item}\n", table.markdown()) for item, table in self.answers if table]:
            texts["headline.md"] = "\n".join("\n".join(parts) for parts in answered) + f"\nMade by `{command}`\n"
        for name, tables in self.tables.items():
            texts[f"{name}.md"] = "\n".join(table.markdown() for table in tables) + f"\nMade by `{command}`\n"
            comment = f"% Made by `{command}`. Needs \\usepackage{{booktabs}}.\n\n"
            texts[f"{name}.tex"] = comment + "\n".join(table.latex() for table in tables)
        return texts


def write(results: Results, folder: Path, *, command: str, facts: Mapping[str, str] | None = None) -> Path:
    """
    Write the tables and figures of a grid, and one page that shows them all; every write is atomic.

    :param results: The records and curves of a grid.
    :param folder: The folder for the files.
    :param command: The command that computes the results; it is printed under the tables.
    :param facts: Date, versions and machine of the results; see benchmarks/report/provenance.py.
    :return: The path of the page, index.html.
    :raises StoreError: If the disk is full, or the folder cannot be written.
    """
    report, facts = Report(results), facts or {}
    files = write_tables(report, folder, command=command)
    for picture in report.pictures:
        save(picture, folder)
    answers = [item for item, _ in report.answers]
    by_name = {picture.name: picture for picture in report.pictures}
    first: list[Table | Picture] = [table for _, table in report.answers if table]
    for dataset in results.datasets:
        first += [by_name[name] for leading in LEADING if (name := f"{leading}-{dataset}") in by_name][:1]
    shown = page(
        f"HR loss: grid {results.grid.name}",
        answers=answers,
        first=first,
        sections=_sections(report, first),
        command=command,
        facts=facts,
        files=[*files, *(f"{name}.{kind}" for name in by_name for kind in ("png", "svg"))],
        notes=_notes(results),
    )
    write_bytes(folder / "index.html", shown.encode())
    summary = {"grid": results.grid.name, "what": _what(results.grid), "verdict": " ".join(map(str, answers))}
    write_json(folder / SUMMARY, summary | {"made": facts.get("Made", "")})
    return folder / "index.html"


def write_tables(report: Report, folder: Path, *, command: str) -> list[str]:
    """Write the tables, their numbers and the records, and return the names of the files."""
    texts = report.files(command)
    for file, text in texts.items():
        write_bytes(folder / file, text.encode())
    return list(texts)


def write_index(reports: Path) -> Path:
    """
    Write index.html, a page that lists the reports of all grids.

    :param reports: The folder of the reports; each report has its own folder, as :func:`write` writes it.
    :raises StoreError: If it cannot be written.
    """
    entries = []
    for page_file in sorted(reports.glob("*/index.html")):
        name = page_file.parent.name
        entry = {"grid": name, "what": "", "made": "", "verdict": "No summary: make this report again."}
        try:
            summary = json.loads((page_file.parent / SUMMARY).read_bytes())
        except (OSError, ValueError):  # a report of an earlier version has none; this one may be damaged
            summary = {}
        if isinstance(summary, dict):
            entry |= {key: str(value) for key, value in summary.items() if key in entry}
        entries.append(entry | {"page": f"{name}/index.html"})
    write_bytes(reports / "index.html", index(entries).encode())
    return reports / "index.html"


def _sections(report: Report, first: list[Table | Picture]) -> list[Section]:
    """Return the sections below the top of the page: the figures of each subject, and then its tables."""
    sections = []
    for title, (table_names, picture_names) in SECTIONS.items():
        names = [name for name in table_names if name in report.tables]
        pictures = [p for name in picture_names for p in report.pictures if p.name.startswith(f"{name}-")]
        parts: list[Table | Picture] = [picture for picture in pictures if picture not in first]
        parts += [table for name in names for table in report.tables[name]]
        files = [f"{name}.{ending}" for name in names for ending in ("csv", "tex", "md")]
        sections.append(Section(title, parts, files, folded=title not in OPEN))
    return sections


def _what(grid: Grid) -> str:
    """Return a short description of a grid, for the list of all grids."""
    losses = ", ".join(map(str, grid.losses)) if len(grid.losses) <= 3 else f"{len(grid.losses)} losses"
    seeds = f"{len(grid.seeds)} seed{'s' * (len(grid.seeds) > 1)}"
    data = ", ".join(dataset for dataset, _ in grid.recipes)
    return f"{data}: {len(grid.runs())} training runs ({losses}; {seeds}), each with {len(grid.attacks)} evaluations"


def _notes(results: Results) -> list[str]:
    """Return the notes at the top of the page: the number of missing evaluations, and files that cannot be used."""
    planned, finished = len(results.grid.runs()) * len(results.grid.attacks), len(results.records)
    missing = [] if finished == planned else [f"{finished} of {planned} evaluations are finished."]
    return [*missing, *(f"Counted as missing: {problem}." for problem in results.problems)]


def cells_frame(selections: list[Selection]) -> pd.DataFrame:
    """
    Return one row per entry: accuracy over the seeds, and its paired difference from CE with the same defence.

    The column chosen marks the alpha that is chosen on validation images at the row's eps, in grids with several.
    """
    cells = pd.concat([selection.cells for selection in selections], ignore_index=True)

    def spread(column: str, *names: str) -> pd.DataFrame:
        return pd.DataFrame([(each.mean, each.half_width, each.n) for each in cells[column]], columns=names)

    accuracy = spread("accuracy", "accuracy", "half_width_95", "seeds")
    gain = spread("gain", "less_ce", "less_ce_half_width_95", "pairs")
    parts = [cells[["dataset", "trained", *ATTACK[1:]]], accuracy, cells[["n", "zero_gradient"]], gain, cells.chosen]
    return pd.concat(parts, axis=1)


def records_frame(last: pd.DataFrame) -> pd.DataFrame:
    """Return one row per finished evaluation: the number of images that are classified correctly, of n."""
    names = ["dataset", "trained", "seed", "attack", "attack_loss", "eps", "units", "split", "steps", "images"]
    counts = ["n", "correct", "zero_gradient"]
    chosen = last[last.metric.isin(counts)]
    wide = chosen.pivot_table(index=[*names[:3], "key"], columns="metric", values="value", sort=False)
    of_attack = chosen.drop_duplicates([*names[:3], "key"]).set_index([*names[:3], "key"])[names[3:]]
    frame = of_attack.join(wide.reindex(columns=counts)).reset_index()
    return frame[[*names, *counts]].astype(dict.fromkeys((*counts, "steps", "images"), "Int64"))


def broken_frame(last: pd.DataFrame) -> pd.DataFrame:
    """
    Return one row per worst case and attack: the column broken counts the images that this attack misclassifies first.

    The other images of n are robust under all attacks of the ensemble.
    """
    names = ["dataset", "trained", "seed", "eps", "units"]
    images = last[last.metric == "n"].set_index([*names[:3], "key"]).value
    counts = last[last.metric.astype(str).str.startswith(FOUND)]
    n = images.reindex(pd.MultiIndex.from_frame(counts[[*names[:3], "key"]])).to_numpy()
    attack = counts.metric.astype(str).str.removeprefix(FOUND)
    frame = counts[names].assign(n=n, attack=attack, broken=counts.value)
    return frame.astype({"n": "Int64", "broken": "Int64"})


def bounds_frame(bounds: pd.DataFrame) -> pd.DataFrame:
    """Return all fields of ErrorBounds by network, attack and kind of labels; empty where a value is not finite."""
    names = ["dataset", "trained", "seed", "eps"]
    parts = bounds.metric.astype(str).str.extract(r"^(\w+)\.(\w+)$")
    chosen = bounds[names].assign(labels=parts[0], field=parts[1], value=bounds.value)
    fields = chosen.field.drop_duplicates()
    wide = chosen.pivot_table(index=[*names, "labels"], columns="field", values="value", sort=False)
    return wide.reindex(columns=fields).replace([float("inf"), -float("inf")], float("nan")).reset_index()
