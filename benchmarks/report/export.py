"""Results -> files. A report is a function of the records: nothing is trained or attacked for it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd

from benchmarks.config import Grid, LossSpec
from benchmarks.report.claims import Claim, claims, claims_frame, claims_table
from benchmarks.report.drawing import Picture, save
from benchmarks.report.figures import pictures
from benchmarks.report.headline import answer, headline_table
from benchmarks.report.markup import Table
from benchmarks.report.own_attacks import own_attacks_table
from benchmarks.report.page import Section, index, page
from benchmarks.report.results import Results, attack_columns
from benchmarks.report.selection import Selection, alpha_eps, chosen_alpha, confusion_attacks
from benchmarks.report.statistics import Interval
from benchmarks.report.tables import (
    alpha_table,
    attacker_name,
    bounds_tables,
    confusion_table,
    diagnoses_table,
    hardening_table,
    strong_table,
    table_1,
)
from benchmarks.store import write_bytes, write_json

# The sections of the page, with the tables and figures of each by name; then those that stand open.
SECTIONS = {
    "The paper's claims": (("claims",), ()),
    "Accuracy against eps": (("strong", "table_1"), ("accuracy_vs_eps", "strong")),
    "Own attacks": (("own_attacks",), ()),
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
    tables = all_tables(results, found)
    written = _write_tables(results, found, tables, folder, command=command)
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
        sections=_sections(tables, [picture for picture in drawn if picture not in first]),
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
    return _write_tables(results, found, all_tables(results, found), folder, command=command)


def _write_tables(
    results: Results, found: Sequence[Claim], tables: Mapping[str, Sequence[Table]], folder: Path, *, command: str
) -> list[Path]:
    last = results.frame[results.frame.epoch.isna()]
    whole = pd.concat([results.frame, results.bounds]).drop(columns="key")
    texts = {
        "results.csv": _csv(whole),
        "results.json": whole.to_json(orient="records", double_precision=15),
        "records.csv": _csv(records_frame(last)),
    }
    if not (broken := broken_frame(last)).empty:
        texts["broken_by.csv"] = _csv(broken)
    for name, several in tables.items():
        texts[f"{name}.md"] = "\n".join(table.markdown() for table in several) + f"\nMade by `{command}`\n"
        texts[f"{name}.tex"] = _latex(several, command)
    texts |= {f"{name}.csv": _csv(make()) for name, make in _numbers(results, last, found).items() if name in tables}
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


def _numbers(results: Results, last: pd.DataFrame, found: Sequence[Claim]) -> dict[str, Callable[[], pd.DataFrame]]:
    """What makes the numbers behind each table, unrounded, by the tables' names."""
    keys = [attack.key() for attack in confusion_attacks(results.grid).values()]
    norms = last[last.key.isin(keys) & (last.metric == "confusion_norm")]

    @cache  # several tables show parts of it
    def cells() -> pd.DataFrame:
        return cells_frame(results)

    return {
        "table_1": cells,
        "alpha": cells,
        "own_attacks": cells,
        "strong": cells,
        "hardening": cells,
        "confusion": lambda: norms.drop(columns=["epoch", "key"]),
        "bounds": lambda: bounds_frame(results.bounds),
        "diagnostics": lambda: diagnoses_frame(results),
        "claims": lambda: claims_frame(found),
    }


def cells_frame(results: Results) -> pd.DataFrame:
    """
    One row per entry: accuracy over the seeds, and its paired difference from cross-entropy that is hardened alike.

    The column chosen marks the alpha that is chosen on validation images at the row's eps, in grids with several.
    """
    rows = []
    for dataset in results.datasets:
        best = {eps: chosen_alpha(results, dataset, eps) for eps in alpha_eps(results.grid)}
        for loss in results.grid.losses:
            ce = LossSpec("ce", hardening=loss.hardening)
            for attack in (attack for attack in results.grid.attacks if attack.name != "diagnostics"):
                cell = results.cell(dataset, loss, attack)
                gain = None if loss == ce else results.interval(dataset, loss, attack, less=ce)
                accuracy = _numbers_of(cell.accuracy, "accuracy", "half_width_95", "seeds")
                less_ce = _numbers_of(gain, "less_ce", "less_ce_half_width_95", "pairs")
                rows.append(
                    {"dataset": dataset, "trained": str(loss), **attack_columns(attack), **accuracy, "n": cell.images}
                    | {"zero_gradient": cell.zero_gradient, **less_ce, "chosen": best.get(attack.eps) == loss}
                )
    return pd.DataFrame(rows).drop(columns="key")


def _numbers_of(interval: Interval | None, mean: str, half_width: str, n: str) -> dict[str, float]:
    nan = float("nan")
    values = (nan, nan, 0) if interval is None else (interval.mean, interval.half_width, interval.n)
    return dict(zip((mean, half_width, n), values, strict=True))


def records_frame(last: pd.DataFrame) -> pd.DataFrame:
    """One row per evaluation that is there: how many of n images are classified right."""
    names = ["dataset", "trained", "seed", "attack", "attack_loss", "eps", "units", "split", "steps", "images"]
    counts = ["n", "correct", "zero_gradient"]
    chosen = last[last.metric.isin(counts)]
    wide = chosen.pivot_table(index=[*names[:3], "key"], columns="metric", values="value", sort=False)
    of_attack = chosen.drop_duplicates([*names[:3], "key"]).set_index([*names[:3], "key"])[names[3:]]
    frame = of_attack.join(wide.reindex(columns=counts)).reset_index()
    return frame[[*names, *counts]].astype(dict.fromkeys((*counts, "steps", "images"), "Int64"))


def broken_frame(last: pd.DataFrame) -> pd.DataFrame:
    """Of every worst case, how many images each attack of the ensemble broke first; the rest were left standing."""
    names = ["dataset", "trained", "seed", "eps", "units"]
    images = last[last.metric == "n"].set_index([*names[:3], "key"]).value
    found = last[last.metric.astype(str).str.startswith("found: ")]
    n = images.reindex(pd.MultiIndex.from_frame(found[[*names[:3], "key"]])).to_numpy()
    attack = found.metric.astype(str).str.removeprefix("found: ")
    frame = found[names].assign(n=n, attack=attack, broken=found.value)
    return frame.astype({"n": "Int64", "broken": "Int64"})


def bounds_frame(bounds: pd.DataFrame) -> pd.DataFrame:
    """All fields of ErrorBounds, per network, attack and kind of labels; empty where a value is not finite."""
    names = ["dataset", "trained", "seed", "eps"]
    parts = bounds.metric.astype(str).str.extract(r"^(\w+)\.(\w+)$")
    chosen = bounds[names].assign(labels=parts[0], field=parts[1], value=bounds.value)
    fields = chosen.field.drop_duplicates()
    wide = chosen.pivot_table(index=[*names, "labels"], columns="field", values="value", sort=False)
    return wide.reindex(columns=fields).replace([float("inf"), -float("inf")], float("nan")).reset_index()


def diagnoses_frame(results: Results) -> pd.DataFrame:
    """A row per run, attacker and flag that it raises, with the evidence; a row without a flag where none is raised."""
    columns = ["dataset", "trained", "seed", "eps", "attacker", "n", "flag", "evidence"]
    rows = [
        (run.dataset, str(run.loss), run.seed, attack.eps, attacker_name(attack), record.n, flag, evidence)
        for (run, attack), record in results.records.items()
        if attack.name == "diagnostics"
        for flag, evidence in (record.flags or {"": ""}).items()
    ]
    return pd.DataFrame(rows, columns=columns)


def _csv(data: pd.DataFrame) -> str:
    text: str = data.to_csv(index=False, float_format="%.6g")
    return text


def _latex(several: Sequence[Table], command: str) -> str:
    comment = f"% Made by `{command}`. Needs \\usepackage{{booktabs}}.\n\n"
    return comment + "\n".join(table.latex() for table in several)
