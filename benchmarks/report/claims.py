"""Results -> the paper's claims C1 to C7: the measured effect of each, paired over seeds, and a verdict."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import pandas as pd

from benchmarks.config import AttackSpec, LossSpec, RunSpec
from benchmarks.protocols import CE, HR, eps_text, protocol
from benchmarks.report.markup import Table
from benchmarks.report.results import Results, attacks, ce_attacks
from benchmarks.report.selection import Selection, confusion_attacks
from benchmarks.report.statistics import Interval, Verdict, judge, paired_interval, seeds_to_decide

# What each claim says, and what its effect is.
CLAIMS = {
    "C1": ("HR-trained networks are more accurate without attack", "HR - CE"),
    "C2": ("HR-trained networks are more accurate under attack", "HR - CE"),
    "C3": ("The worst attack is by CE on MNIST, by HR on CIFAR-10 and SVHN", "CE - HR attack"),
    "C4": ("HR-trained networks converge faster", "CE - HR epochs"),
    "C5": ("HR-trained networks are less uncertain", "CE - HR"),
    "C6": ("An alpha of 1.6 serves as well as any", "1.6 - chosen"),
    "C7": ("The HR loss costs no more than CE", "HR / CE - 1"),
}
PROTOCOLS = ("exact", "paper")
WORST = "worst case"
# The sign of the accuracy under the CE attack less that under the HR attack, by C3; of other data it says nothing.
WORST_ATTACK = {"mnist": -1, "cifar10": 1, "svhn": 1}
# A run has converged once its validation accuracy is this share of what the worse one of its pair ends with.
CONVERGED = 0.99
# What an alpha of 1.6 may lose to the chosen one, and an epoch with HR may take more than one with CE, all the same.
ACCURACY_MARGIN = 0.01
TIME_MARGIN = 0.05
COLUMNS = ["claim", "statement", "dataset", "where", "protocol", "measure"]
COLUMNS += ["effect", "half_width_95", "pairs", "seeds", "verdict", "seeds_to_decide"]


def claims(results: Results) -> pd.DataFrame:
    """
    Every measurement of every claim that a grid can give, by claim and then by data set.

    They compare CE with the HR loss whose alpha is nearest the paper's, both with nothing but the loss.

    :return: The columns claim (C1 to C7), statement, dataset, where (under which attack, strength and protocol),
        protocol, measure (what less what), effect, half_width_95, pairs (how many), seeds, verdict and seeds_to_decide
        (infinite above 1000); without numbers where no pair of seeds has been evaluated yet; without rows for a grid
        without such a CE or HR.
    """
    rows = [
        row
        for selection in (Selection(results, dataset) for dataset in results.datasets)
        if selection.pair is not None
        for measure in (_accuracy, _worst_attack, _convergence, _uncertainty, _alpha, _cost)
        for row in measure(selection, selection.pair[1])
    ]
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("claim", kind="stable")


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict on all measurements of a claim: supported if all are that are judged, contradicted if any is."""
    judged = set(verdicts) - {"no claim"}
    if "contradicted" in judged:
        return "contradicted"
    return "no claim" if not judged else "supported" if judged == {"supported"} else "undecided"


def claims_table(found: pd.DataFrame) -> Table:
    """The claims as a table: under each one's overall verdict its measurements."""
    rows: list[tuple[str, ...]] = []
    for name, measured in found.groupby("claim"):
        # One verdict for each protocol, where the claim is about attacks: what is masked says nothing of what is not.
        by_protocol = measured[measured.protocol != ""].groupby("protocol").verdict.agg(overall)
        rows.append((name, "", *CLAIMS[name], "", "" if len(by_protocol) else overall(measured.verdict), ""))
        for of in (*PROTOCOLS, WORST):
            rows += [("", "all", f"every row, {of}", "", "", by_protocol[of], "")] if of in by_protocol else []
        for row in measured.itertuples():
            effect = f"{Interval(row.effect, row.half_width_95, row.pairs):+z.3f}"
            more = {math.inf: "over 1000"}.get(row.seeds_to_decide, f"{row.seeds_to_decide:.0f}".replace("nan", ""))
            rows.append(("", row.dataset, row.where, effect, str(row.pairs), row.verdict, more))
    seeds = sorted({int(seed) for text in found.seeds for seed in text.split()})
    notes = (
        f"Effects are paired over the seeds {', '.join(map(str, seeds)) or '(none yet)'}, of which a row has n: mean "
        "and 95% t interval. The intervals are not corrected for their number: of twenty rows without any effect one "
        "misses 0 by chance.",
        "A row is supported or contradicted where its whole interval is on one side of 0, and else undecided, as it is "
        "with fewer than two seeds. A claim, in a protocol if it is about attacks, is supported if every judged row is "
        "so, and contradicted if any row is, which among many rows one may be by chance. seeds to decide: how many "
        "would decide an undecided row, were its effect and its spread over the seeds to stay what they are.",
        "The paper makes C1, C2, C6 and C7 of MNIST, CIFAR-10 and SVHN, and C4 and C5 of MNIST; other data are judged "
        "by the same directions, but for C3, which has none for them. paper and exact are the protocols of Table 1. "
        "Of the worst case, of an ensemble of attacks, the paper says nothing: it is what becomes of C2.",
        f"C1, C2, C3: in accuracy. C4: epochs until {CONVERGED:.0%} of the validation accuracy with which the worse "
        "one of the pair ends. C5: ||I - C||, under the CE attack. C6: test accuracy, supported above "
        f"-{ACCURACY_MARGIN:g}, contradicted below it. C7: seconds of training per epoch, supported below "
        f"+{TIME_MARGIN:g}, contradicted above it; measured on the machine that trained, possibly with several runs at "
        "once.",
    )
    header = ("claim", "data", "where", "effect", "n", "verdict", "seeds to decide")
    return Table("The paper's claims", header, tuple(rows), notes)


def _claim(
    name: str,
    selection: Selection,
    where: str,
    first: Mapping[int, float],
    second: Mapping[int, float],
    *,
    of: str = "",
    sign: int = 1,
    margin: float = 0.0,
) -> dict[str, Any]:
    """A claim from the two sides of its effect; a sign of 0 where the paper claims nothing."""
    effect, (statement, measure) = paired_interval(first, second), CLAIMS[name]
    return {
        "claim": name,
        "statement": statement,
        "dataset": selection.dataset,
        "where": f"{where}, {of}" if of else where,
        "protocol": of,
        "measure": measure,
        "effect": effect.mean,
        "half_width_95": effect.half_width,
        "pairs": effect.n,
        "seeds": " ".join(map(str, sorted(first.keys() & second.keys()))),
        "verdict": judge(effect, sign=sign, margin=margin),
        "seeds_to_decide": seeds_to_decide(effect, sign=sign, margin=margin),
    }


def _attacked(selection: Selection) -> list[tuple[str, float, dict[str, AttackSpec]]]:
    """Protocol, eps and the attack by each loss, for every strength of the grid's attacks of all test images."""
    found: dict[tuple[str, float], dict[str, AttackSpec]] = {}
    for name in PROTOCOLS:
        for attack in sorted(attacks(selection.grid.attacks, name, images=0), key=lambda a: (a.eps, protocol(a))):
            found.setdefault((name, attack.eps), {})[protocol(attack)[1]] = attack
    return [(*at, by_loss) for at, by_loss in found.items()]


def _accuracy(selection: Selection, hr: LossSpec) -> Iterator[dict[str, Any]]:
    """C1 and C2."""
    known, scale = selection.grid.attacks, selection.recipe.input_scale
    of = [("C1", "no attack", "", attack) for attack in attacks(known, "no attack", images=0)]
    for name, eps, by_loss in _attacked(selection):
        of += [("C2", f"{loss} attack, eps {eps:g}", name, attack) for loss, attack in by_loss.items()]
    for units in ("range", "data"):
        per = f"/{scale:g}" if units == "data" and scale != 1 else ""
        of += [("C2", f"eps {eps_text(a.eps)}{per}", WORST, a) for a in attacks(known, "worst case", units=units)]
    for claim, where, name, attack in of:
        pair = selection.values(hr, attack), selection.values(CE, attack)
        yield _claim(claim, selection, f"{hr}, {where}", *pair, of=name)


def _worst_attack(selection: Selection, hr: LossSpec) -> Iterator[dict[str, Any]]:
    """C3."""
    sign = WORST_ATTACK.get(selection.dataset, 0)
    for name, eps, by_loss in _attacked(selection):
        for trained in (CE, hr) if {"CE", "HR"} <= by_loss.keys() else ():
            pair = (selection.values(trained, by_loss[loss]) for loss in ("CE", "HR"))
            yield _claim("C3", selection, f"{trained} trained, eps {eps:g}", *pair, of=name, sign=sign)


def _convergence(selection: Selection, hr: LossSpec) -> Iterator[dict[str, Any]]:
    """C4, from the runs that are trained to their end."""
    epochs: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for runs in zip(*(selection.results.runs(selection.dataset, loss) for loss in (CE, hr)), strict=True):
        curves = [_validation(selection.results, run) for run in runs]
        for curve, run, by_seed in zip(curves, runs, epochs, strict=True) if all(curves) else ():
            threshold = CONVERGED * min(curve[-1] for curve in curves)
            by_seed[run.seed] = next(float(e) for e, accuracy in enumerate(curve, 1) if accuracy >= threshold)
    yield _claim("C4", selection, f"{hr}, validation images", *epochs)


def _validation(results: Results, run: RunSpec) -> list[float]:
    """Validation accuracy after each epoch; nothing for a run that is not at its end."""
    curve = results.curves.get(run, [])
    return [row["validation_accuracy"] for row in curve] if len(curve) == run.recipe.epochs else []


def _uncertainty(selection: Selection, hr: LossSpec) -> Iterator[dict[str, Any]]:
    """C5, at the smallest eps of the CE attack: 0.1 in the paper and in its grids."""
    for name, attack in confusion_attacks(selection.grid).items():
        if attack.eps:
            pair = (selection.values(loss, attack, "confusion_norm") for loss in (CE, hr))
            yield _claim("C5", selection, f"{hr}, eps {attack.eps:g}", *pair, of=name)


def _alpha(selection: Selection, hr: LossSpec) -> Iterator[dict[str, Any]]:
    """C6, for grids with several alphas, 1.6 among them."""
    for name, eps in product(PROTOCOLS, selection.alpha_eps if hr == HR else ()):
        tried = ce_attacks(selection.grid.attacks, name if eps else "no attack", eps=eps)
        for attack in tried if eps or name == "exact" else ():
            chosen = selection.chosen_alpha(eps, name)
            best = {} if chosen is None else selection.values(chosen, attack)
            where = f"eps {eps:g}, chosen: " + ("none yet" if chosen is None else f"{chosen.alpha:g}")
            pair = selection.values(HR, attack), best
            yield _claim("C6", selection, where, *pair, of=name, margin=ACCURACY_MARGIN)


def _cost(selection: Selection, hr: LossSpec) -> Iterator[dict[str, Any]]:
    """C7."""
    runs = zip(*(selection.results.runs(selection.dataset, loss) for loss in (CE, hr)), strict=True)
    known = selection.results.epoch_seconds
    ratios = {ce.seed: known[run] / known[ce] for ce, run in runs if known.get(ce) and known.get(run)}
    pair = ratios, dict.fromkeys(ratios, 1.0)
    yield _claim("C7", selection, f"{hr}, per epoch", *pair, sign=-1, margin=TIME_MARGIN)
