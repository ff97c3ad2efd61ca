"""Tables of attacks stronger than FGSM, of defences, of a user's own attacks, and of reports on gradient masking."""

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
from benchmarks.report.statistics import judge
from benchmarks.report.tables import entries, in_order, pivot, table

# Prefix of the metrics that count an ensemble's adversarial examples by attack.
FOUND = "found: "


def strong_table(selection: Selection) -> Table | None:
    """
    Return accuracy by training loss under increasingly strong attacks on the same images, and the paired differences.

    None for a grid without a worst case, or with defences, which have their own table.
    """
    by_eps = strong_attacks(selection.grid)
    if not by_eps or has_hardening(selection.grid):
        return None
    names = {attack.key(): name for row in by_eps.values() for name, attack in row.items()}
    cells = entries(selection, key=tuple(names))
    cells = cells.assign(column=cells.key.map(names), entry=cells.short)
    gains = where(cells, compared=True)
    gains = gains.assign(trained=gains.trained + f" - {CE}", entry=gains.gain_text)
    columns = [name for name in dict.fromkeys(STRONG.values()) if name in names.values()]
    title = f"Strong attacks on {selection.dataset}: test accuracy"
    return table(title, pivot(pd.concat([cells, gains]), columns=columns), notes.strong(selection, cells))


def ensemble_table(selection: Selection) -> Table | None:
    """
    Return the number of images that each attack of the ensemble misclassifies first, and of robust images.

    The numbers are sums over the seeds. None before a worst case has been evaluated.
    """
    worst = where(selection.results.trained, dataset=selection.dataset, protocol="worst case", split="test")
    attackers = {metric: metric.removeprefix(FOUND) for metric in worst.metric if metric.startswith(FOUND)}
    columns = {"n": "images", **attackers, "correct": "robust"}
    if not attackers:
        return None
    scales = worst.units.map({"range": 1.0, "data": selection.recipe.input_scale})
    counts = worst.assign(eps=(worst.eps / scales).round(9), column=worst.metric.map(columns)).dropna(subset="column")
    sums = counts.groupby(["eps", "trained", "column"], sort=False).value.sum().reset_index(name="entry")
    wide = pivot(sums.assign(entry=sums.entry.map("{:.0f}".format)), columns=[*columns.values()])
    title = f"Adversarial examples by attack of the ensemble on {selection.dataset}: numbers of images"
    return table(title, wide, notes.ensemble(selection))


def hardening_table(selection: Selection) -> Table | None:
    """
    Return accuracy by defence and training loss, without and under attack, with the gain over CE in the worst case.

    None for a grid without defences, or without a worst case.
    """
    known = hardening_attacks(selection.grid)
    if not known:
        return None
    by_kind = blocks(selection.grid)
    kinds = {str(loss): kind for kind, losses in by_kind.items() for loss in losses}
    names = {attack.key(): f"eps {eps:g}: {name}" if eps else name for (eps, name), attack in known.items()}
    cells = entries(selection, key=tuple(names))
    cells = cells.assign(
        defence=cells.trained.map(kinds),
        trained=cells.trained.map({str(loss): without_hardening(loss) for loss in selection.grid.losses}),
        column=cells.key.map(names),
        entry=cells.short,
    )
    gains = where(cells, protocol="worst case")
    gains = gains.assign(column=gains.column + ", minus CE", entry=gains.gain_text)
    rows = in_order(pd.concat([cells, gains]), "defence", [*by_kind])
    columns = [c for name in names.values() for c in (name, f"{name}, minus CE") if c in set(rows.column)]
    title = f"Defences on {selection.dataset}: test accuracy"
    return table(title, pivot(rows, ["defence", "trained"], columns), notes.defences(selection, cells))


def defence_counts(selection: Selection) -> str:
    """Return how often HR is above or below CE when both are trained with a defence; empty for a grid without one."""
    gains = [
        selection.cell(loss, attack).gain
        for loss in selection.grid.losses
        for (_, name), attack in hardening_attacks(selection.grid).items()
        if loss.hardening is not None and loss.name == "hr" and name == "worst case"
    ]
    verdicts = [judge(gain) for gain in gains if gain.n]
    above, below = verdicts.count("supported"), verdicts.count("contradicted")
    if not verdicts:
        return ""
    return (
        f"With a defence, HR is more robust than CE in the worst case in {above} of {len(verdicts)} comparisons, less "
        f"robust in {below}, and undecided in {len(verdicts) - above - below}. The intervals are not corrected for "
        "the number of comparisons."
    )


def own_attacks_table(selection: Selection) -> Table | None:
    """
    Return test accuracy by training loss without attack and under each of the user's own attacks.

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
    title = f"The user's own attacks on {selection.dataset}: test accuracy"
    return Table(title, header, tuple(rows), notes.own_attacks(selection, known, cells))


def _own_name(attack: AttackSpec) -> tuple[str, str]:
    """Return the eps and the name of an attack as text."""
    if not isinstance(attack.name, Reference):
        return "0", "no attack"
    eps = f"{attack.eps:g}" + (" (in units of the input)" if attack.units == "data" else "")
    return eps if attack.eps else "", attack.name.label + (f" with {attack.loss}" if attack.loss else "")


def diagnoses_table(selection: Selection) -> Table | None:
    """
    Return the verdicts of the reports on gradient masking by eps, training loss and attacker.

    None for a grid without such reports.
    """
    reports, seeds = attacks(selection.grid.attacks, "report"), len(selection.grid.seeds)
    if not reports:
        return None
    flags, losses, rows = where(selection.results.flags, dataset=selection.dataset), selection.grid.losses, []
    for report, loss in sorted(product(reports, losses), key=lambda pair: (pair[0].eps, losses.index(pair[1]))):
        of_entry = where(flags, trained=str(loss), eps=report.eps, attacker=(attacker := protocol(report)[1]))
        reported, raised = of_entry.seed.nunique(), of_entry[of_entry.flag != ""]
        verdict = f"flagged in {raised.seed.nunique()} of {reported} seed{'s' * (reported != 1)}"
        if raised.empty:
            verdict = ("no flag" + f" (n = {reported})" * (reported < seeds)) if reported else "not yet"
        counts = raised.flag.value_counts().sort_index().sort_values(ascending=False, kind="stable")
        texts = ", ".join(f"{flag} ({count})" for flag, count in counts.items())
        rows.append((report.eps, str(loss), attacker, verdict, texts))
    wide = pd.DataFrame(rows, columns=["eps", "trained", "attacker", "verdict", "flags (seeds)"])
    table_notes = notes.diagnostics(selection.dataset, int(max(flags.n, default=0)), reports)
    return table(f"Gradient masking on {selection.dataset}", wide.set_index("eps"), table_notes)
