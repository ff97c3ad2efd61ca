"""Every table of a report, each a pivot of the results: entries over seeds, by attack and training loss."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.config import AttackSpec, Grid, LossSpec
from benchmarks.protocols import CE, protocol
from benchmarks.report import notes
from benchmarks.report.markup import Table
from benchmarks.report.paper import PAPER_COLUMNS, PAPER_CONFUSION, PAPER_CONFUSION_EPS, PAPER_TABLE_1
from benchmarks.report.results import Cell, Results
from benchmarks.report.results import attacks as attacks_of
from benchmarks.report.selection import (
    STRONG,
    UNHARDENED,
    alpha_eps,
    attacks_by_ce,
    blocks,
    chosen_alpha,
    confusion_attacks,
    hardening_attacks,
    has_alphas,
    has_hardening,
    strong_attacks,
    without_hardening,
)
from benchmarks.report.statistics import Interval, mean_interval

TABLE_1_ROWS = ("no attack", "sound", "torch's CE", "paper")
# Columns and the fields of ErrorBounds behind them; a field whose name begins with log_ is shown as a probability.
UPPER = {
    "P_e": "error",
    "CE / log 2": "log_markov_bound",
    "by P_u (5)": "log_comparison_upper_bound",
    "by H (1)": "log_upper_bound",
    "by the HR loss (11)": "log_relaxed_bound",
    "(1) at its best alpha": "log_tightest_upper_bound",
}
LOWER = {
    "P_e": "error",
    "by P_u (5)": "log_comparison_lower_bound",
    "by H (2)": "log_lower_bound",
    "(2) as printed": "log_printed_lower_bound",
    "(2) at its best alpha": "log_tightest_lower_bound",
}
Row = tuple[str, ...]


def table_1(results: Results, dataset: str) -> Table | None:
    """
    Test accuracy in the layout of the paper's Table 1; None for a grid without any of its attacks.

    For each eps a row per protocol, and what the paper prints where it has this data set. Beside every entry under
    attack stands the share of images whose input gradient is exactly 0. Where the grid has worst cases at an eps, they
    stand in columns of their own, beside the protocol whose units of eps they have.
    """
    grid = results.grid
    attacks = {(*protocol(attack), attack.eps): attack for attack in attacks_of(results.grid, *TABLE_1_ROWS, images=0)}
    pairs = [(loss, "CE") for loss in grid.losses] + [(loss, "HR") for loss in reversed(grid.losses)]
    attackers = {attacker for _, attacker, _ in attacks if attacker} or {"CE"}
    pairs = [pair for pair in pairs if pair[1] in attackers]
    worst = {("sound" if a.units == "range" else "paper", a.eps): a for a in attacks_of(results.grid, "worst case")}
    below = [loss for loss in grid.losses if worst]
    sections: dict[str, list[Row]] = {}
    shown: list[Cell] = []
    for eps in sorted({eps for *_, eps in attacks}):
        rows = sections[f"{eps:g}"] = []
        for name in TABLE_1_ROWS:
            specs = [attacks.get((name, attacker if eps else "", eps)) for _, attacker in pairs]
            if any(specs):
                cells = [
                    spec and results.cell(dataset, loss, spec) for (loss, _), spec in zip(pairs, specs, strict=True)
                ]
                bound = worst.get((name, eps))
                left = [interval_text(results.interval(dataset, loss, bound), grid) if bound else "" for loss in below]
                rows.append((name, *(cell_text(cell, grid) if cell else "" for cell in cells), *left))
                shown += [cell for cell in cells if cell]
        if eps in PAPER_TABLE_1.get(dataset, {}):
            printed = dict(zip(PAPER_COLUMNS, PAPER_TABLE_1[dataset][eps], strict=True))
            values = [printed.get((str(trained), attacker)) for trained, attacker in pairs]
            rows.append(("printed", *("" if v is None else f"{v:.3f}" for v in values), *("" for _ in below)))
    if not shown:
        return None
    header = [f"{trained} trained, {attacker} attack" for trained, attacker in pairs]
    header += [f"{loss} trained, worst case" for loss in below]
    rows_shown = {row[0] for rows in sections.values() for row in rows}
    return Table(
        f"Table 1 on {dataset}: test accuracy",
        ("eps", "protocol", *header),
        sectioned(sections),
        notes.of_table_1(results, dataset, shown, rows_shown, list(worst.values())),
    )


def confusion_table(results: Results, dataset: str) -> Table | None:
    """
    How far the semi-empirical confusion matrices are from perfect: ||I - C||, without attack and under the CE attack.

    None where the grid has none of these attacks.
    """
    attacks, grid = confusion_attacks(results.grid), results.grid
    if not attacks:
        return None

    def row(name: str, loss: LossSpec, less: LossSpec | None = None) -> Row:
        found = (results.interval(dataset, loss, a, "confusion_norm", less=less) for a in attacks.values())
        return name, *(interval_text(interval, grid) for interval in found)

    rows = [row(str(loss), loss) for loss in grid.losses]
    rows += [row(f"{CE} - {loss}", CE, loss) for loss in grid.losses if CE in grid.losses and loss != CE]
    eps = max(attack.eps for attack in attacks.values())
    names = [name if attack.name == "none" else f"eps {eps:g}, {name}" for name, attack in attacks.items()]
    printed = PAPER_CONFUSION.get(dataset, {}) if eps == PAPER_CONFUSION_EPS else {}
    if printed:
        rows = [(*row, f"{printed[row[0]]:.2f}" if row[0] in printed else "") for row in rows]
        names.append("printed")
    title = f"Confusion on {dataset}: the Frobenius norm ||I - C||"
    return Table(title, ("trained", *names), tuple(rows), notes.of_confusion(grid, dataset, eps, printed=bool(printed)))


def alpha_table(results: Results, dataset: str) -> Table | None:
    """
    Accuracy against alpha, on the validation and on the test images, the alpha chosen on validation marked.

    None for a grid with fewer than two alphas, or without attacks of validation images.
    """
    grid = results.grid
    if not has_alphas(results.grid):
        return None
    sections: dict[str, list[Row]] = {}
    images = {"validation": 0, "test": 0}
    shown: list[Cell] = []
    for eps in alpha_eps(results.grid):
        chosen = chosen_alpha(results, dataset, eps)
        for loss in grid.losses:
            entries = []
            for split in images:
                (attack,) = attacks_by_ce(results.grid, split, eps) or (None,)
                cell = attack and results.cell(dataset, loss, attack)
                mark = "‡" if split == "validation" and loss == chosen else ""
                entries.append(cell_text(cell, grid) + mark if cell else "")
                if cell:
                    shown.append(cell)
                    images[split] = max(images[split], cell.images)
            sections.setdefault(f"{eps:g}", []).append((str(loss), *entries))
    title, header = f"The choice of alpha on {dataset}", ("eps", "trained", "validation", "test")
    return Table(title, header, sectioned(sections), notes.of_alpha(grid, dataset, images, shown))


def strong_table(results: Results, dataset: str) -> Table | None:
    """
    Accuracy of each training loss under ever stronger attacks on the same images, and the paired differences.

    None for a grid without a worst case, or with hardened networks, which have a table of their own.
    """
    grid, attacks = results.grid, strong_attacks(results.grid)
    if not attacks or has_hardening(grid):
        return None
    names = [name for name in STRONG if any(name in row for row in attacks.values())]
    sections: dict[str, list[Row]] = {}
    for eps, row in attacks.items():
        accuracies = [
            (str(loss), *(entry_text(results, dataset, loss, row.get(name)) for name in names)) for loss in grid.losses
        ]
        gains = [
            (f"{loss} - {CE}", *(gain_text(results, dataset, loss, CE, row.get(name)) for name in names))
            for loss in grid.losses
            if CE in grid.losses and loss != CE
        ]
        sections[f"{eps:g}"] = accuracies + gains
    made = [attack for row in attacks.values() for attack in row.values()]
    title = f"Strong attacks on {dataset}: test accuracy"
    rows_made = sectioned(sections)
    return Table(title, ("eps", "trained", *names), rows_made, notes.of_strong(results, dataset, made, rows_made))


def hardening_table(results: Results, dataset: str) -> Table | None:
    """
    Accuracy of each training loss without and under attack, by what it is hardened with, beside the gain over CE.

    None for a grid without hardened networks, or without a worst case.
    """
    attacks = hardening_attacks(results.grid)
    if not attacks:
        return None
    sections: dict[str, list[Row]] = {}
    for hardening, losses in blocks(results.grid).items():
        ce = LossSpec("ce", hardening=hardening)
        for loss in losses:
            entries: list[str] = []
            for (_, name), attack in attacks.items():
                entries.append(entry_text(results, dataset, loss, attack))
                if name == "worst case":
                    entries.append(gain_text(results, dataset, loss, ce, attack if ce in losses else None))
            sections.setdefault(str(hardening or UNHARDENED), []).append((without_hardening(loss), *entries))
    header = []
    for eps, name in attacks:
        header.append(f"eps {eps:g}: {name}" if eps else name)
        header += [f"eps {eps:g}: {name}, less CE's"] if name == "worst case" else []
    title, rows = f"Hardened networks on {dataset}: test accuracy", sectioned(sections)
    shown = notes.of_hardening(results, dataset, list(attacks.values()), list(blocks(results.grid)), rows)
    return Table(title, ("hardening", "trained", *header), rows, shown)


def bounds_tables(results: Results, dataset: str) -> list[Table]:
    """
    The upper and the lower bounds of Proposition 1 on the test images, without attack and under the sound CE attacks.

    None where the grid has no such evaluation yet.
    """
    grid = results.grid
    attacks = attacks_by_ce(results.grid, "test")
    pairs = [(loss, attack) for attack in attacks for loss in grid.losses]
    images = [results.cell(dataset, *p).images for p in pairs if results.values(dataset, *p, "labels.error")]
    if not images:
        return []
    tables = []
    for what, labels, columns in (("upper", "labels", UPPER), ("lower", "noisy_labels", LOWER)):
        sections: dict[str, list[Row]] = {}
        for attack in attacks:
            for loss in grid.losses:
                values = {
                    field: list(results.values(dataset, loss, attack, f"{labels}.{field}").values())
                    for field in (*columns.values(), "tightest_alpha")
                }
                texts = [_bound_text(values[field], field, grid) for field in columns.values()]
                best = [_range(values["tightest_alpha"])] if what == "upper" else []
                sections.setdefault(f"{attack.eps:g}", []).append((str(loss), *texts, *best))
        header = ("eps", "trained", *columns, *(("best alpha",) if what == "upper" else ()))
        title = f"Proposition 1 on {dataset}: {what} bounds on P_e"
        tables.append(Table(title, header, sectioned(sections), notes.of_bounds(grid, dataset, max(images), what)))
    return tables


def _bound_text(values: Sequence[float], field: str, grid: Grid) -> str:
    if not values:
        return "not yet"
    interval = mean_interval([math.exp(min(v, 700.0)) if field.startswith("log_") else v for v in values])
    # A single seed has no interval, and a bound that says nothing has the same value for all.
    text = f"{interval.mean:.3g}" + (f" ± {interval.half_width:.3g}" if interval.half_width > 0 else "")
    return text + ("" if interval.n == len(grid.seeds) else f" (n = {interval.n})")


def _range(alphas: Sequence[float]) -> str:
    least, most = (f"{edge:.3g}" if alphas else "" for edge in (min(alphas, default=0), max(alphas, default=0)))
    return least if least == most else f"{least} to {most}"


def diagnoses_table(results: Results, dataset: str) -> Table | None:
    """
    The verdict of the reports on masked gradients at every eps, on each training loss, for each attacker.

    None for a grid without such reports.
    """
    grid, reports = results.grid, attacks_of(results.grid, "report")
    if not reports:
        return None
    sections: dict[str, list[Row]] = {}
    images = 0
    for eps in sorted({report.eps for report in reports}):
        for loss in grid.losses:
            for report in (report for report in reports if report.eps == eps):
                found = (results.records.get((run, report)) for run in results.runs(dataset, loss))
                records = [record for record in found if record is not None]
                images = max([images, *(record.n for record in records)])
                verdict = _verdict([record.flags or {} for record in records], grid)
                sections.setdefault(f"{eps:g}", []).append((str(loss), attacker_name(report), *verdict))
    header = ("eps", "trained", "attacker", "verdict", "flags (seeds)")
    shown = notes.of_diagnoses(dataset, images, reports)
    return Table(f"Masked gradients on {dataset}", header, sectioned(sections), shown)


def attacker_name(report: AttackSpec) -> str:
    """What a report's attacker is called: by the protocol whose gradient it follows."""
    return {"clipped-ce": "paper", "ce": "sound"}.get(str(report.loss), str(report.loss))


def _verdict(flags: Sequence[Mapping[str, str]], grid: Grid) -> tuple[str, str]:
    """How many of the seeds there are raise any flag, and how many each, most first."""
    if not flags:
        return "not yet", ""
    flagged = sum(map(bool, flags))
    counts = Counter(flag for raised in flags for flag in raised)
    by_number = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    missing = "" if len(flags) == len(grid.seeds) else f" (n = {len(flags)})"
    verdict = f"flagged in {flagged} of {len(flags)} seeds" if flagged else f"no flag{missing}"
    return verdict, ", ".join(f"{flag} ({count})" for flag, count in by_number)


def sectioned(sections: Mapping[str, Iterable[Row]]) -> tuple[Row, ...]:
    """Rows under their section's name, which stands in the first of them alone."""
    return tuple((name if i == 0 else "", *row) for name, rows in sections.items() for i, row in enumerate(rows))


def interval_text(interval: Interval | None, grid: Grid) -> str:
    """An interval over a grid's seeds, with their number where some are missing."""
    if interval is None:
        return "not yet"
    return str(interval) + ("" if interval.n == len(grid.seeds) else f" (n = {interval.n})")


def cell_text(cell: Cell, grid: Grid) -> str:
    """An entry: its interval, and in brackets the share of gradients that are 0 and the seeds if some are missing."""
    if cell.accuracy is None:
        return "not yet"
    beside = [] if math.isnan(cell.zero_gradient) else [f"{cell.zero_gradient:.1%}"]
    beside += [] if cell.accuracy.n == len(grid.seeds) else [f"n = {cell.accuracy.n}"]
    flag = "†" if cell.zero_gradient > notes.ZERO_GRADIENT_LIMIT else ""
    return f"{cell.accuracy}{flag}" + (f" ({', '.join(beside)})" if beside else "")


def entry_text(results: Results, dataset: str, loss: LossSpec, attack: AttackSpec | None) -> str:
    """An accuracy, marked where too many gradients are exactly 0; nothing where the grid has no such attack."""
    if attack is None:
        return ""
    cell = results.cell(dataset, loss, attack)
    flag = "†" if cell.zero_gradient > notes.ZERO_GRADIENT_LIMIT else ""
    return interval_text(cell.accuracy, results.grid) + flag


def gain_text(results: Results, dataset: str, loss: LossSpec, ce: LossSpec, attack: AttackSpec | None) -> str:
    """What a loss has more than cross-entropy, paired over seeds; nothing for that itself, or without the attack."""
    if attack is None or loss == ce:
        return ""
    return interval_text(results.interval(dataset, loss, attack, less=ce), results.grid)
