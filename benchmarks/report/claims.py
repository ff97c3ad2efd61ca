"""The paper's claims C1 to C7: the measured effects of each claim, paired over the seeds, and their verdicts."""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import pandas as pd

from benchmarks.config import AttackSpec, LossSpec, RunSpec
from benchmarks.protocols import CE, HR, eps_text, protocol
from benchmarks.report import notes
from benchmarks.report.markup import Table
from benchmarks.report.results import Results, attacks, ce_attacks
from benchmarks.report.selection import Selection, confusion_attacks
from benchmarks.report.statistics import Interval, Verdict, judge, paired_interval, seeds_to_decide

# Each claim's statement, and the difference that its effect is.
CLAIMS = {
    "C1": ("HR-trained networks are more accurate without attack", "accuracy, HR - CE"),
    "C2": ("HR-trained networks are more accurate under attack", "accuracy, HR - CE"),
    "C3": (
        "The strongest attack uses the CE loss on MNIST, and the HR loss on CIFAR-10 and SVHN",
        "accuracy, CE attack - HR attack",
    ),
    "C4": ("HR-trained networks converge faster", "epochs, CE - HR"),
    "C5": ("HR-trained networks are less uncertain", "||I - C||, CE - HR"),
    "C6": ("alpha = 1.6 is as accurate as the best alpha", "accuracy, 1.6 - chosen alpha"),
    "C7": ("Training with the HR loss takes no longer than with CE", "seconds, HR / CE - 1"),
}
PROTOCOLS = ("exact", "paper")
WORST = "worst case"
# The sign that C3 predicts for (accuracy under the CE attack) - (accuracy under the HR attack). The paper makes no such
# claim for other data sets.
WORST_ATTACK = {"mnist": -1, "cifar10": 1, "svhn": 1}
# A run has converged when its validation accuracy reaches this share of the lower final accuracy of its pair.
CONVERGED = 0.99
# Margins of the claims "as accurate" and "no longer": a loss of accuracy and an excess of time that still support them.
# A claim of equality can never be supported by an interval around 0 without a margin.
ACCURACY_MARGIN = 0.01
TIME_MARGIN = 0.05
COLUMNS = ["claim", "statement", "dataset", "where", "protocol", "measure"]
COLUMNS += ["effect", "half_width_95", "pairs", "seeds", "verdict", "seeds_to_decide"]


def claims(results: Results) -> pd.DataFrame:
    """
    Return every measurement of every claim that a grid can give, by claim and then by data set.

    Compared are CE and the HR loss whose alpha is nearest the paper's, both without a defence or label smoothing.

    :return: The columns claim (C1 to C7), statement, dataset, where (network, attack, eps and protocol), protocol,
        measure (which difference the effect is), effect, half_width_95, pairs (number of pairs of seeds), seeds,
        verdict and seeds_to_decide (infinite above 1000). A row has no numbers until a pair of seeds has been
        evaluated; a grid without CE or HR has no rows.
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
    """Return one verdict on all rows of a claim: supported if every judged row is, contradicted if any row is."""
    judged = set(verdicts) - {"no claim"}
    if "contradicted" in judged:
        return "contradicted"
    return "no claim" if not judged else "supported" if judged == {"supported"} else "undecided"


def claims_table(measurements: pd.DataFrame) -> Table:
    """Return the claims as a table: for each claim its statement, its overall verdicts and its measurements."""
    rows: list[tuple[str, ...]] = []
    for name, measured in measurements.groupby("claim"):
        # A claim about attacks has one verdict per protocol: gradient masking in one must not hide the other's result.
        by_protocol = measured[measured.protocol != ""].groupby("protocol").verdict.agg(overall)
        rows.append((name, "", *CLAIMS[name], "", "" if len(by_protocol) else overall(measured.verdict), ""))
        judged = [name for name in (*PROTOCOLS, WORST) if name in by_protocol]
        rows += [("", "all", f"all rows, {name}", "", "", by_protocol[name], "") for name in judged]
        for row in measured.itertuples():
            effect = _text(Interval(row.effect, row.half_width_95, row.pairs))
            needed = {math.inf: "over 1000"}.get(row.seeds_to_decide, f"{row.seeds_to_decide:.0f}".replace("nan", ""))
            rows.append(("", row.dataset, row.where, effect, str(row.pairs), row.verdict, needed))
    seeds = sorted({int(seed) for text in measurements.seeds for seed in text.split()})
    header = ("claim", "data", "network and attack", "effect", "pairs", "verdict", "seeds to decide")
    return Table("The paper's claims", header, tuple(rows), _notes(seeds))


def _text(effect: Interval) -> str:
    """Return an effect as text to three decimals; in scientific notation if that would leave only zeros."""
    small = effect.mean != 0 and max(abs(effect.mean), effect.half_width) < 0.0005
    return f"{effect:{'+.1e' if small else '+z.3f'}}"


def _notes(seeds: list[int]) -> tuple[str, ...]:
    """Return the notes under the table of claims."""
    return (
        "The first row of a claim has its statement and, under effect, the difference that is measured. In the other "
        "rows effect is the mean of this difference with its 95% t interval, paired over the seeds "
        f"{', '.join(map(str, seeds)) or '(none yet)'}; pairs: the number of seeds for which both values exist. The "
        "intervals are not corrected for their number: without any effect, about one row in twenty excludes 0 by "
        "chance.",
        "supported: the whole interval is on the side of 0 that the claim predicts; contradicted: it is on the other "
        "side; undecided: it contains 0, or there are fewer than two pairs; no claim: the paper predicts no direction. "
        "A claim is supported if all its judged rows are, and contradicted if at least one row is; among many rows one "
        "may be contradicted by chance. Claims about attacks have one such verdict per protocol. seeds to decide: the "
        "number of seeds that would decide an undecided row if its mean and its spread over the seeds stayed the same.",
        "The paper states C1, C2, C6 and C7 for MNIST, CIFAR-10 and SVHN, and C4 and C5 for MNIST. Other data sets are "
        "judged by the same directions, except C3, whose direction depends on the data set. "
        f"{notes.PROTOCOLS} worst case: an ensemble of strong attacks, which the paper does not use; these rows show "
        "whether C2 holds under stronger attacks.",
        "C1, C2 and C3: test accuracy, as a share of the images. C4: the number of epochs until the validation "
        f"accuracy reaches {CONVERGED:.0%} of the lower final validation accuracy of the pair. C5: the Frobenius norm "
        "of I - C under the CE attack, where C[i, j] is the mean probability of class i over the images of class j. "
        "C6: test accuracy with alpha = 1.6 minus test accuracy with the alpha that is best on the validation images; "
        f"supported if the whole interval is above -{ACCURACY_MARGIN:g}, contradicted if it is below. C7: seconds of "
        f"training per epoch, HR / CE - 1; supported if the whole interval is below +{TIME_MARGIN:g}, contradicted if "
        "it is above. The times are those of the machine that trained, where several runs may have shared the "
        "processors.",
    )


def _claim(
    name: str,
    selection: Selection,
    where: str,
    first: Mapping[int, float],
    second: Mapping[int, float],
    *,
    under: str = "",
    sign: int = 1,
    margin: float = 0.0,
) -> dict[str, Any]:
    """
    Return a row of the frame of claims: the effect first - second, by seed, and its verdict.

    :param under: The protocol; empty for a claim that is not about attacks.
    :param sign: As for :func:`judge`; 0 where the paper predicts no direction.
    """
    effect, (statement, measure) = paired_interval(first, second), CLAIMS[name]
    return {
        "claim": name,
        "statement": statement,
        "dataset": selection.dataset,
        "where": f"{where}, {under}" if under else where,
        "protocol": under,
        "measure": measure,
        "effect": effect.mean,
        "half_width_95": effect.half_width,
        "pairs": effect.n,
        "seeds": " ".join(map(str, sorted(first.keys() & second.keys()))),
        "verdict": judge(effect, sign=sign, margin=margin),
        "seeds_to_decide": seeds_to_decide(effect, sign=sign, margin=margin),
    }


def _attacked(selection: Selection) -> list[tuple[str, float, dict[str, AttackSpec]]]:
    """Return protocol, eps and the attacks by loss, for each eps at which a grid attacks all test images by FGSM."""
    by_eps: dict[tuple[str, float], dict[str, AttackSpec]] = {}
    for name in PROTOCOLS:
        for attack in sorted(attacks(selection.grid.attacks, name, images=0), key=lambda a: (a.eps, protocol(a))):
            by_eps.setdefault((name, attack.eps), {})[protocol(attack)[1]] = attack
    return [(name, eps, by_loss) for (name, eps), by_loss in by_eps.items()]


def _accuracy(selection: Selection, hr: LossSpec) -> Iterator[dict[str, Any]]:
    """Yield the rows of C1 and C2: accuracy without and under attack."""
    known, scale = selection.grid.attacks, selection.recipe.input_scale
    compared = [("C1", "no attack", "", attack) for attack in attacks(known, "no attack", images=0)]
    for name, eps, by_loss in _attacked(selection):
        compared += [("C2", f"{loss} attack, eps {eps:g}", name, attack) for loss, attack in by_loss.items()]
    for units in ("range", "data"):
        per = f"/{scale:g}" if units == "data" and scale != 1 else ""
        worst = attacks(known, "worst case", units=units)
        compared += [("C2", f"eps {eps_text(attack.eps)}{per}", WORST, attack) for attack in worst]
    for claim, where, name, attack in compared:
        pair = selection.values(hr, attack), selection.values(CE, attack)
        yield _claim(claim, selection, f"{hr}, {where}", *pair, under=name)


def _worst_attack(selection: Selection, hr: LossSpec) -> Iterator[dict[str, Any]]:
    """Yield the rows of C3: accuracy under the CE attack minus accuracy under the HR attack, for each network."""
    sign = WORST_ATTACK.get(selection.dataset, 0)
    for name, eps, by_loss in _attacked(selection):
        for trained in (CE, hr) if {"CE", "HR"} <= by_loss.keys() else ():
            pair = (selection.values(trained, by_loss[loss]) for loss in ("CE", "HR"))
            yield _claim("C3", selection, f"{trained} trained, eps {eps:g}", *pair, under=name, sign=sign)


def _convergence(selection: Selection, hr: LossSpec) -> Iterator[dict[str, Any]]:
    """Yield the row of C4: epochs to convergence, for the pairs of seeds of which both runs are finished."""
    epochs: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for runs in zip(*(selection.results.runs(selection.dataset, loss) for loss in (CE, hr)), strict=True):
        curves = [_validation(selection.results, run) for run in runs]
        for curve, run, by_seed in zip(curves, runs, epochs, strict=True) if all(curves) else ():
            # The accuracy that both networks reach: with a threshold of its own, a worse network would look faster.
            threshold = CONVERGED * min(curve[-1] for curve in curves)
            by_seed[run.seed] = next(float(e) for e, accuracy in enumerate(curve, 1) if accuracy >= threshold)
    yield _claim("C4", selection, f"{hr}, validation images", *epochs)


def _validation(results: Results, run: RunSpec) -> list[float]:
    """Return the validation accuracy after each epoch; empty for a run that is not finished."""
    curve = results.curves.get(run, [])
    return [row["validation_accuracy"] for row in curve] if len(curve) == run.recipe.epochs else []


def _uncertainty(selection: Selection, hr: LossSpec) -> Iterator[dict[str, Any]]:
    """Yield the rows of C5: ||I - C|| at the smallest eps of the CE attack, which is 0.1 in the paper."""
    for name, attack in confusion_attacks(selection.grid).items():
        if attack.eps:
            pair = (selection.values(loss, attack, "confusion_norm") for loss in (CE, hr))
            yield _claim("C5", selection, f"{hr}, eps {attack.eps:g}", *pair, under=name)


def _alpha(selection: Selection, hr: LossSpec) -> Iterator[dict[str, Any]]:
    """Yield the rows of C6, for grids with several alphas, 1.6 among them."""
    for name, eps in product(PROTOCOLS, selection.alpha_eps if hr == HR else ()):
        tried = ce_attacks(selection.grid.attacks, name if eps else "no attack", eps=eps)
        for attack in tried if eps or name == "exact" else ():
            chosen = selection.chosen_alpha(eps, name)
            best = {} if chosen is None else selection.values(chosen, attack)
            where = f"eps {eps:g}, chosen: " + ("none yet" if chosen is None else f"{chosen.alpha:g}")
            pair = selection.values(HR, attack), best
            yield _claim("C6", selection, where, *pair, under=name, margin=ACCURACY_MARGIN)


def _cost(selection: Selection, hr: LossSpec) -> Iterator[dict[str, Any]]:
    """Yield the row of C7: seconds of training per epoch."""
    runs = zip(*(selection.results.runs(selection.dataset, loss) for loss in (CE, hr)), strict=True)
    known = selection.results.epoch_seconds
    ratios = {ce.seed: known[run] / known[ce] for ce, run in runs if known.get(ce) and known.get(run)}
    pair = ratios, dict.fromkeys(ratios, 1.0)
    yield _claim("C7", selection, f"{hr}, per epoch", *pair, sign=-1, margin=TIME_MARGIN)
