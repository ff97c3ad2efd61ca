"""The tables of attacks stronger than FGSM, of a user's own attacks, and of reports on masked gradients."""

from itertools import product

import pandas as pd

from benchmarks.config import AttackSpec, Reference
from benchmarks.protocols import CE, protocol
from benchmarks.report import notes
from benchmarks.report.markup import Table
from benchmarks.report.results import attacks
from benchmarks.report.selection import (
    STRONG,
    Selection,
    blocks,
    hardening_attacks,
    has_hardening,
    strong_attacks,
    where,
    without_hardening,
)
from benchmarks.report.tables import entries, in_order, pivot, table

# What the metrics of an ensemble's attacks begin with.
FOUND = "found: "


def strong_table(selection: Selection) -> Table | None:
    """
    Accuracy of each training loss under ever stronger attacks on the same images, and the paired differences.

    None for a grid without a worst case, or with hardened networks, which have a table of their own.
    """
    by_eps = strong_attacks(selection.grid)
    if not by_eps or has_hardening(selection.grid):
        return None
    names = {attack.key(): name for row in by_eps.values() for name, attack in row.items()}
    cells = entries(selection, key=tuple(names))
    cells = cells.assign(column=cells.key.map(names), entry=cells.short)
    gains = where(cells, compared=True)
    gains = gains.assign(trained=gains.trained + f" - {CE}", entry=gains.more)
    columns = [name for name in dict.fromkeys(STRONG.values()) if name in names.values()]
    title = f"Strong attacks on {selection.dataset}: test accuracy"
    return table(title, pivot(pd.concat([cells, gains]), columns=columns), notes.of_strong(selection, cells))


def found_table(selection: Selection) -> Table | None:
    """
    How many images each attack of the ensemble found first, and how many are left, over all seeds.

    None before a worst case has been measured.
    """
    worst = where(selection.results.trained, dataset=selection.dataset, protocol="worst case", split="test")
    attackers = {metric: metric.removeprefix(FOUND) for metric in worst.metric if metric.startswith(FOUND)}
    columns = {"n": "images", **attackers, "correct": "left"}
    if not attackers:
        return None
    scales = worst.units.map({"range": 1.0, "data": selection.recipe.input_scale})
    counts = worst.assign(eps=(worst.eps / scales).round(9), column=worst.metric.map(columns)).dropna(subset="column")
    sums = counts.groupby(["eps", "trained", "column"], sort=False).value.sum().reset_index(name="entry")
    wide = pivot(sums.assign(entry=sums.entry.map("{:.0f}".format)), columns=[*columns.values()])
    title = f"Found by each attack of the ensemble on {selection.dataset}"
    return table(title, wide, notes.of_found(selection))


def hardening_table(selection: Selection) -> Table | None:
    """
    Accuracy of each training loss without and under attack, by what it is hardened with, beside the gain over CE.

    None for a grid without hardened networks, or without a worst case.
    """
    known = hardening_attacks(selection.grid)
    if not known:
        return None
    by_kind = blocks(selection.grid)
    kinds = {str(loss): kind for kind, losses in by_kind.items() for loss in losses}
    names = {attack.key(): f"eps {eps:g}: {name}" if eps else name for (eps, name), attack in known.items()}
    cells = entries(selection, key=tuple(names))
    cells = cells.assign(
        hardening=cells.trained.map(kinds),
        trained=cells.trained.map({str(loss): without_hardening(loss) for loss in selection.grid.losses}),
        column=cells.key.map(names),
        entry=cells.short,
    )
    gains = where(cells, protocol="worst case")
    gains = gains.assign(column=gains.column + ", less CE's", entry=gains.more)
    rows = in_order(pd.concat([cells, gains]), "hardening", [*by_kind])
    columns = [c for name in names.values() for c in (name, f"{name}, less CE's") if c in set(rows.column)]
    title = f"Hardened networks on {selection.dataset}: test accuracy"
    return table(title, pivot(rows, ["hardening", "trained"], columns), notes.of_hardening(selection, cells))


def own_attacks_table(selection: Selection) -> Table | None:
    """
    Test accuracy of each training loss under each attack of the user's own, below that without attack.

    None for a grid without such attacks.
    """
    known = attacks(selection.grid.attacks, "own attack")
    if not known:
        return None
    clean = attacks(selection.grid.attacks, "no attack", images=tuple({attack.images for attack in known}))
    cells = entries(selection, key=tuple(attack.key() for attack in clean + known))
    by_attack = [(attack, where(cells, key=attack.key())) for attack in clean + known]
    rows = [(*_own_name(attack), str(of_attack.n.iloc[0] or ""), *of_attack.entry) for attack, of_attack in by_attack]
    header = ("eps", "attack", "test images", *(f"{loss} trained" for loss in selection.grid.losses))
    title = f"Own attacks on {selection.dataset}: test accuracy"
    return Table(title, header, tuple(rows), notes.of_own_attacks(selection, known, cells))


def _own_name(attack: AttackSpec) -> tuple[str, str]:
    if not isinstance(attack.name, Reference):
        return "0", "no attack"
    eps = f"{attack.eps:g}" + (" of the input's units" if attack.units == "data" else "")
    return eps if attack.eps else "", attack.name.label + (f" by {attack.loss}" if attack.loss else "")


def diagnoses_table(selection: Selection) -> Table | None:
    """
    The verdict of the reports on masked gradients at every eps, on each training loss, for each attacker.

    None for a grid without such reports.
    """
    reports, seeds = attacks(selection.grid.attacks, "report"), len(selection.grid.seeds)
    if not reports:
        return None
    flags, losses, rows = where(selection.results.flags, dataset=selection.dataset), selection.grid.losses, []
    for report, loss in sorted(product(reports, losses), key=lambda pair: (pair[0].eps, losses.index(pair[1]))):
        of_entry = where(flags, trained=str(loss), eps=report.eps, attacker=(attacker := protocol(report)[1]))
        made, raised = of_entry.seed.nunique(), of_entry[of_entry.flag != ""]
        verdict = f"flagged in {raised.seed.nunique()} of {made} seeds"
        if raised.empty:
            verdict = ("no flag" + f" (n = {made})" * (made < seeds)) if made else "not yet"
        counts = raised.flag.value_counts().sort_index().sort_values(ascending=False, kind="stable")
        texts = ", ".join(f"{flag} ({count})" for flag, count in counts.items())
        rows.append((report.eps, str(loss), attacker, verdict, texts))
    wide = pd.DataFrame(rows, columns=["eps", "trained", "attacker", "verdict", "flags (seeds)"])
    shown = notes.of_diagnoses(selection.dataset, int(max(flags.n, default=0)), reports)
    return table(f"Masked gradients on {selection.dataset}", wide.set_index("eps"), shown)
