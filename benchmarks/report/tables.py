"""Tables of a report, each a pivot of the results: entries over the seeds, by attack and training loss."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from benchmarks.config import LossSpec
from benchmarks.protocols import CE, eps_text
from benchmarks.report import notes
from benchmarks.report.markup import Table
from benchmarks.report.paper import PAPER_COLUMNS, PAPER_CONFUSION, PAPER_CONFUSION_EPS, PAPER_TABLE_1
from benchmarks.report.results import ce_attacks, exact_attacks
from benchmarks.report.selection import Selection, confusion_attacks, where
from benchmarks.report.statistics import Interval, mean_interval, paired_interval

TABLE_1_ROWS = ("no attack", "exact", "torch's CE", "paper")
# The row of Table 1 that shows a worst case, by the units of its eps: both protocols have their own units.
PROTOCOL_OF_UNITS = {"range": "exact", "data": "paper"}
# Columns and their fields of ErrorBounds; a field whose name begins with log_ is shown as a probability.
UPPER = {
    "P_e": "error",
    "CE / log 2": "log_markov_bound",
    "by P_u (5)": "log_comparison_upper_bound",
    "by H (1)": "log_upper_bound",
    "by the HR loss (11)": "log_relaxed_bound",
    "(1) at its best alpha": "log_tightest_upper_bound",
    "best alpha": "tightest_alpha",
}
LOWER = {
    "P_e": "error",
    "by P_u (5)": "log_comparison_lower_bound",
    "by H (2)": "log_lower_bound",
    "(2) as printed": "log_printed_lower_bound",
    "(2) at its best alpha": "log_tightest_lower_bound",
}


def table_1(selection: Selection) -> Table | None:
    """
    Return test accuracy in the layout of the paper's Table 1; None for a grid without any of its attacks.

    Each eps has a row per protocol, and a row with the paper's numbers if the paper has this data set. An entry under
    attack also shows the share of images whose input gradient is exactly 0. Worst cases at these eps have their own
    columns, in the row of the protocol with the same units of eps.
    """
    cells = entries(selection, protocol=TABLE_1_ROWS, images=0, split="test")
    losses = [str(loss) for loss in selection.grid.losses]
    attackers = {"CE": losses, "HR": losses[::-1]}
    present = [name for name in attackers if name in set(cells.attacker)] or ["CE"]
    # Accuracy without attack (attacker "") is repeated in the columns of every attacker, as in the paper.
    shown = pd.concat([where(cells, attacker=("", name)).assign(by=f"{name} attack") for name in present])
    if shown.empty:
        return None
    worst = entries(selection, protocol="worst case", split="test")
    worst = worst.assign(protocol=worst.units.map(PROTOCOL_OF_UNITS), by="worst case", entry=worst.short)
    worst = worst.merge(shown[["eps", "protocol"]].drop_duplicates())
    printed = [
        (eps, "printed", trained, f"{attacker} attack", f"{value:.3f}")
        for eps, values in PAPER_TABLE_1.get(selection.dataset, {}).items()
        for (trained, attacker), value in zip(PAPER_COLUMNS, values, strict=True)
        if eps in set(shown.eps) and trained in losses and attacker in present
    ]
    fields = ["eps", "protocol", "trained", "by", "entry"]
    parts = (shown, worst, pd.DataFrame(printed, columns=fields))
    rows = pd.concat([part[fields] for part in parts if len(part)])
    columns = [f"{loss} trained, {name} attack" for name in present for loss in attackers[name]]
    columns += [f"{loss} trained, worst case" for loss in losses if len(worst)]
    rows = in_order(rows.assign(column=rows.trained + " trained, " + rows.by), "protocol", (*TABLE_1_ROWS, "printed"))
    title = f"Table 1 on {selection.dataset}: test accuracy"
    table_notes = notes.table_1(selection, shown, set(rows.protocol), worst)
    return table(title, pivot(rows, ["eps", "protocol"], columns), table_notes)


def confusion_table(selection: Selection) -> Table | None:
    """
    Return ||I - C|| of the semi-empirical confusion matrices C, without attack and under the CE attack.

    This is their distance from the matrix of a perfect classifier. None for a grid without these attacks.
    """
    known, losses = confusion_attacks(selection.grid), selection.grid.losses
    if not known:
        return None
    eps = max(attack.eps for attack in known.values())
    wide: dict[str, dict[str, str]] = {}
    for name, attack in known.items():
        by_loss = {loss: selection.values(loss, attack, "confusion_norm") for loss in losses}
        norms = {str(loss): mean_interval(list(by_seed.values())) for loss, by_seed in by_loss.items()}
        for loss in losses if CE in losses else ():
            norms |= {} if loss == CE else {f"{CE} - {loss}": paired_interval(by_loss[CE], by_loss[loss])}
        column = f"eps {eps:g}, {name}" if attack.eps else name
        wide[column] = {trained: selection.text(norm) for trained, norm in norms.items()}
    if printed := PAPER_CONFUSION.get(selection.dataset, {}) if eps == PAPER_CONFUSION_EPS else {}:
        wide["printed"] = {str(loss): f"{printed[str(loss)]:.2f}" for loss in losses if str(loss) in printed}
    shown = pd.DataFrame(wide).fillna("").rename_axis("trained")
    title = f"Confusion on {selection.dataset}: the Frobenius norm ||I - C||"
    return table(title, shown, notes.confusion(selection, eps, printed=bool(printed)))


def alpha_table(selection: Selection, name: str) -> Table | None:
    """
    Return accuracy by alpha on the validation and the test images, with a mark at the alpha chosen on validation.

    :param selection: The results of a data set.
    :param name: The protocol, exact or paper.
    :return: None for a grid with fewer than two alphas, or without attacks on validation images in this protocol.
    """
    protocols = ("no attack", name) if name == "exact" else (name,)
    known = ce_attacks(selection.grid.attacks, *protocols, split=("validation", "test"))
    known = [attack for attack in known if attack.eps in selection.alpha_eps]
    if not any(attack.split == "validation" for attack in known):
        return None
    cells = entries(selection, key=tuple(attack.key() for attack in known))
    marks = ["‡" if marked else "" for marked in cells.chosen & (cells.split == "validation")]
    wide = pivot(cells.assign(column=cells.split, entry=cells.entry + marks), columns=["validation", "test"])
    title = f"The choice of alpha on {selection.dataset}, {name} protocol"
    return table(title, wide, notes.alpha(selection, cells, name))


def bounds_table(selection: Selection, side: str) -> Table | None:
    """
    Return the bounds of Proposition 1 on the test images, without attack and under the exact CE attack.

    :param selection: The results of a data set.
    :param side: "upper", or "lower", which has labels that are wrong at a known rate.
    :return: None before such an evaluation has been made.
    """
    measured = where(selection.results.bounds, dataset=selection.dataset)
    if measured.empty:
        return None
    labels, columns = ("labels", UPPER) if side == "upper" else ("noisy_labels", LOWER)
    by_entry = measured.groupby(["eps", "trained", "metric"]).value.agg(list).to_dict()
    cells = where(bounded(selection), split="test")
    rows = [
        (eps, trained, name, _bound_text(by_entry.get((eps, trained, f"{labels}.{field}"), []), field, selection))
        for eps, trained in zip(cells.eps, cells.trained, strict=True)
        for name, field in columns.items()
    ]
    wide = pivot(pd.DataFrame(rows, columns=["eps", "trained", "column", "entry"]), columns=[*columns])
    title = f"Proposition 1 on {selection.dataset}: {side} bounds on P_e"
    return table(title, wide, notes.bounds(selection, max(cells.n), side))


def _bound_text(values: Sequence[float], field: str, selection: Selection) -> str:
    """Return one value per seed as text: alphas as a range, bounds as the mean and interval of probabilities."""
    if field == "tightest_alpha":
        return " to ".join(dict.fromkeys(f"{edge:.3g}" for edge in (min(values), max(values)))) if values else ""
    # exp overflows above 709; a bound this large is vacuous anyway.
    interval = mean_interval([math.exp(min(v, 700.0)) if field.startswith("log_") else v for v in values])
    # A vacuous bound has the same value, 1, for all seeds: an interval of width 0 would look like precision.
    return selection.text(interval if interval.half_width else Interval(interval.mean, n=interval.n), ".3g")


def bounded(selection: Selection) -> pd.DataFrame:
    """Return the entries on all images of both splits for which the bounds of Proposition 1 are shown."""
    known = exact_attacks(selection.grid.attacks, ("validation", "test"))
    return entries(selection, key=tuple(attack.key() for attack in known))


def entries(selection: Selection, **fields: object) -> pd.DataFrame:
    """
    Return the cells with the given field values, with their text.

    :return: The cells with the columns entry, an accuracy with the share of zero gradients; short, without this share;
        compared, true if the grid has CE with the same defence; and gain_text, the accuracy minus that of CE.
    """
    cells, seeds = where(selection.cells, **fields), len(selection.grid.seeds)
    ce = {str(loss): str(LossSpec("ce", hardening=loss.hardening)) for loss in selection.grid.losses}
    marks = ["†" if share > notes.ZERO_GRADIENT_LIMIT else "" for share in cells.zero_gradient]
    details = [
        [f"{share:.1%}"] * (share >= 0) + [f"n = {accuracy.n}"] * (0 < accuracy.n < seeds)
        for share, accuracy in zip(cells.zero_gradient, cells.accuracy, strict=True)
    ]
    brackets = [f" ({', '.join(texts)})" if texts else "" for texts in details]
    compared = [ce[name] != name and ce[name] in ce for name in cells.trained]
    return cells.assign(
        entry=[f"{a}{mark}{text}" for a, mark, text in zip(cells.accuracy, marks, brackets, strict=True)],
        short=[selection.text(a) + mark for a, mark in zip(cells.accuracy, marks, strict=True)],
        compared=compared,
        gain_text=[selection.text(g) if c else "" for g, c in zip(cells.gain, compared, strict=True)],
    )


def pivot(rows: pd.DataFrame, index: Sequence[str] = ("eps", "trained"), columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return the column entry by index and column, sorted by eps if the index has it, else in the order of the rows."""
    rows = rows.sort_values("eps", kind="stable") if "eps" in index else rows
    wide = rows.pivot_table(index=[*index], columns="column", values="entry", aggfunc="last", sort=False)
    order = rows.drop_duplicates([*index]).set_index([*index]).index
    return wide.reindex(index=order, columns=columns).fillna("")


def in_order(rows: pd.DataFrame, column: str, names: Sequence[str]) -> pd.DataFrame:
    """Return the rows sorted by a column, in the order of its names."""
    return rows.sort_values(column, key=lambda values: values.map([*names].index), kind="stable")


def table(title: str, wide: pd.DataFrame, table_notes: Sequence[str]) -> Table:
    """Return a table of entries; rows with the same first entry form a section, and only the first row shows it."""
    firsts = ["", *(eps_text(name) if isinstance(name, float) else name for name in wide.index.get_level_values(0))]
    entries_after_first = wide.reset_index().iloc[:, 1:].itertuples(index=False, name=None)
    rows = [
        ("" if previous == first else first, *row)
        for (previous, first), row in zip(pairwise(firsts), entries_after_first, strict=True)
    ]
    return Table(title, (*wide.index.names, *wide.columns), tuple(rows), tuple(table_notes))
