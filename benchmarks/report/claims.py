"""Results -> the paper's claims C1 to C7: the measured effect of each, paired over seeds, and a verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from benchmarks.config import AttackSpec, LossSpec, RunSpec
from benchmarks.protocols import CE, HR, protocol
from benchmarks.report.markup import Table
from benchmarks.report.results import Results
from benchmarks.report.results import attacks as attacks_of
from benchmarks.report.selection import alpha_eps, attacks_by_ce, chosen_alpha, confusion_attacks, has_alphas
from benchmarks.report.statistics import Interval, paired_interval

Verdict = Literal["supported", "contradicted", "undecided", "no claim"]

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
PROTOCOLS = ("sound", "paper")
WORST = "worst case"
# The sign of the accuracy under the CE attack less that under the HR attack, by C3; of other data it says nothing.
WORST_ATTACK = {"mnist": -1, "cifar10": 1, "svhn": 1}
# A run has converged once its validation accuracy is this share of what the worse one of its pair ends with.
CONVERGED = 0.99
# What an alpha of 1.6 may lose to the chosen one, and an epoch with HR may take more than one with CE, all the same.
ACCURACY_MARGIN = 0.01
TIME_MARGIN = 0.05


@dataclass(frozen=True)
class Claim:
    """One measurement of one claim of the paper."""

    name: str
    """C1 to C7."""
    statement: str
    measure: str
    """What the effect is: what less what."""
    dataset: str
    where: str
    """Under which attack, strength and protocol."""
    effect: Interval | None
    """None where no pair of seeds has been evaluated yet."""
    seeds: tuple[int, ...]
    """The seeds of the pairs."""
    verdict: Verdict


def claims(results: Results) -> list[Claim]:
    """
    Every measurement of every claim that a grid can give, by claim and then by data set.

    They compare CE with the HR loss of alpha 1.6, or with the first HR loss of a grid that has no other, and both as
    they are: neither hardened nor with anything else.

    :return: Nothing for a grid without such a CE or HR.
    """
    losses = results.grid.losses
    others = sorted((loss for loss in losses if loss.plain and loss.name == "hr"), key=lambda loss: loss != HR)
    if CE not in losses or not others:
        return []
    measures = (_accuracy, _worst_attack, _convergence, _uncertainty, _alpha, _cost)
    found = [
        claim for dataset in results.datasets for measure in measures for claim in measure(results, dataset, others[0])
    ]
    return sorted(found, key=lambda claim: claim.name)


def judge(effect: Interval | None, *, sign: int = 1, margin: float = 0.0) -> Verdict:
    """
    The verdict on a claim that an effect is above 0, or above a margin.

    :param effect: Its 95% interval; without one, or with a single seed, nothing is decided.
    :param sign: -1 for a claim that the effect is below.
    :param margin: How far on the other side of 0 the effect may lie all the same.
    """
    if effect is None or math.isnan(effect.half_width):
        return "undecided"
    low, high = sign * effect.mean - effect.half_width, sign * effect.mean + effect.half_width
    if low > -margin:
        return "supported"
    return "contradicted" if high < -margin else "undecided"


def overall(rows: Sequence[Claim]) -> Verdict:
    """One verdict on all measurements of a claim: supported if all are that are judged, contradicted if any is."""
    verdicts = {claim.verdict for claim in rows} - {"no claim"}
    if "contradicted" in verdicts:
        return "contradicted"
    return "no claim" if not verdicts else "supported" if verdicts == {"supported"} else "undecided"


def claims_table(found: Sequence[Claim]) -> Table:
    """The claims as a table: under each one's overall verdict its measurements."""
    rows: list[tuple[str, ...]] = []
    for name, (statement, measure) in CLAIMS.items():
        of_name = [claim for claim in found if claim.name == name]
        # One verdict for each protocol, where the claim is about attacks: what is masked says nothing of what is not.
        parts = {
            protocol: [claim for claim in of_name if claim.where.endswith(f", {protocol}")]
            for protocol in (*PROTOCOLS, WORST)
        }
        verdicts = {protocol: overall(part) for protocol, part in parts.items() if part}
        if of_name:
            rows.append((name, "", statement, measure, "", "" if verdicts else overall(of_name)))
        rows += [("", "all", f"every row, {protocol}", "", "", verdict) for protocol, verdict in verdicts.items()]
        rows += [("", claim.dataset, claim.where, *_effect_text(claim.effect), claim.verdict) for claim in of_name]
    seeds = sorted({seed for claim in found for seed in claim.seeds})
    notes = (
        f"Effects are paired over the seeds {', '.join(map(str, seeds)) or '(none yet)'}, of which a row has n: mean "
        "and 95% t interval. The intervals are not corrected for their number: of twenty rows without any effect one "
        "misses 0 by chance.",
        "A row is supported or contradicted where its whole interval is on one side of 0, and else undecided, as it is "
        "with fewer than two seeds. A claim, in a protocol if it is about attacks, is supported if every judged row is "
        "so, and contradicted if any row is, which among many rows one may be by chance.",
        "The paper makes C1, C2, C6 and C7 of MNIST, CIFAR-10 and SVHN, and C4 and C5 of MNIST; other data are judged "
        "by the same directions, but for C3, which has none for them. paper and sound are the protocols of Table 1. "
        "Of the worst case, of an ensemble of attacks, the paper says nothing: it is what becomes of C2.",
        f"C1, C2, C3: in accuracy. C4: epochs until {CONVERGED:.0%} of the validation accuracy with which the worse "
        "one of the pair ends. C5: ||I - C||, under the CE attack. C6: test accuracy, supported above "
        f"-{ACCURACY_MARGIN:g}, contradicted below it. C7: seconds of training per epoch, supported below "
        f"+{TIME_MARGIN:g}, contradicted above it; measured on the machine that trained, possibly with several runs at "
        "once.",
    )
    header = ("claim", "data", "where", "effect", "n", "verdict")
    return Table("The paper's claims", header, tuple(rows), notes)


def _effect_text(effect: Interval | None) -> tuple[str, str]:
    if effect is None:
        return "not yet", "0"
    spread = "" if math.isnan(effect.half_width) else f" ± {effect.half_width:.3f}"
    return f"{effect.mean:+z.3f}{spread}", str(effect.n)


def _claim(
    name: str,
    dataset: str,
    where: str,
    pair: tuple[Mapping[int, float], Mapping[int, float]],
    *,
    sign: int = 1,
    margin: float = 0.0,
) -> Claim:
    """A claim from the two sides of its effect; a sign of 0 where the paper claims nothing."""
    first, second = pair
    effect = paired_interval(first, second)
    verdict: Verdict = judge(effect, sign=sign, margin=margin) if sign else "no claim"
    seeds = tuple(sorted(set(first) & set(second)))
    return Claim(name, *CLAIMS[name], dataset, where, effect, seeds, verdict)


def _attacked(results: Results) -> list[tuple[str, float, dict[str, AttackSpec]]]:
    """Protocol, eps and the attack by each loss, for every strength of the grid's attacks of test images."""
    found: dict[tuple[str, float], dict[str, AttackSpec]] = {}
    for name in PROTOCOLS:
        for attack in attacks_of(results.grid, name, images=0):
            found.setdefault((name, attack.eps), {})[protocol(attack)[1]] = attack
    return [(name, eps, dict(sorted(attacks.items()))) for (name, eps), attacks in found.items()]


def _accuracy(results: Results, dataset: str, hr: LossSpec) -> list[Claim]:
    """C1 and C2."""

    def claim(name: str, where: str, attack: AttackSpec) -> Claim:
        pair = (results.values(dataset, hr, attack), results.values(dataset, CE, attack))
        return _claim(name, dataset, where, pair)

    found = [claim("C1", f"{hr}, no attack", clean) for clean in attacks_of(results.grid, "no attack", images=0)]
    for name, eps, attacks in _attacked(results):
        found += [claim("C2", f"{hr}, {loss} attack, eps {eps:g}, {name}", attack) for loss, attack in attacks.items()]
    scale = dict(results.grid.recipes)[dataset].input_scale
    for units in ("range", "data"):
        for attack in attacks_of(results.grid, "worst case", units=units):
            strength = f"{attack.eps:g}" + ("" if units == "range" or scale == 1 else f"/{scale:g}")
            found.append(claim("C2", f"{hr}, eps {strength}, {WORST}", attack))
    return found


def _worst_attack(results: Results, dataset: str, hr: LossSpec) -> list[Claim]:
    """C3."""
    sign = WORST_ATTACK.get(dataset, 0)
    found = []
    for name, eps, attacks in _attacked(results):
        for trained in (CE, hr) if len(attacks) == 2 else ():
            by_ce, by_hr = (results.values(dataset, trained, attacks[loss]) for loss in ("CE", "HR"))
            where = f"{trained} trained, eps {eps:g}, {name}"
            found.append(_claim("C3", dataset, where, (by_ce, by_hr), sign=sign))
    return found


def _convergence(results: Results, dataset: str, hr: LossSpec) -> list[Claim]:
    """C4, from the runs that are trained to their end."""
    ce_epochs, hr_epochs = {}, {}
    for a, b in zip(results.runs(dataset, CE), results.runs(dataset, hr), strict=True):
        by_ce, by_hr = (_validation(results, run) for run in (a, b))
        if by_ce and by_hr:
            threshold = CONVERGED * min(by_ce[-1], by_hr[-1])
            ce_epochs[a.seed], hr_epochs[b.seed] = (
                next(float(epoch) for epoch, accuracy in enumerate(curve, start=1) if accuracy >= threshold)
                for curve in (by_ce, by_hr)
            )
    return [_claim("C4", dataset, f"{hr}, validation images", (ce_epochs, hr_epochs))]


def _validation(results: Results, run: RunSpec) -> list[float]:
    """Validation accuracy after each epoch; nothing for a run that is not at its end."""
    curve = results.curves.get(run, [])
    return [row["validation_accuracy"] for row in curve] if len(curve) == run.recipe.epochs else []


def _uncertainty(results: Results, dataset: str, hr: LossSpec) -> list[Claim]:
    """C5, at the smallest eps of the CE attack: 0.1 in the paper and in its grids."""
    found = []
    for name, attack in confusion_attacks(results.grid).items():
        if attack.eps:
            ce, other = (results.values(dataset, loss, attack, "confusion_norm") for loss in (CE, hr))
            found.append(_claim("C5", dataset, f"{hr}, eps {attack.eps:g}, {name}", (ce, other)))
    return found


def _alpha(results: Results, dataset: str, hr: LossSpec) -> list[Claim]:
    """C6, for grids with several alphas, 1.6 among them."""
    found = []
    for eps in alpha_eps(results.grid) if hr == HR and has_alphas(results.grid) else ():
        (attack,), chosen = attacks_by_ce(results.grid, "test", eps), chosen_alpha(results, dataset, eps)
        best = {} if chosen is None else results.values(dataset, chosen, attack)
        where = f"eps {eps:g}, chosen: " + ("none yet" if chosen is None else f"{chosen.alpha:g}")
        pair = (results.values(dataset, HR, attack), best)
        found.append(_claim("C6", dataset, where, pair, margin=ACCURACY_MARGIN))
    return found


def _cost(results: Results, dataset: str, hr: LossSpec) -> list[Claim]:
    """C7."""
    seconds = {
        loss: {run.seed: results.epoch_seconds.get(run, 0.0) for run in results.runs(dataset, loss)}
        for loss in (CE, hr)
    }
    ratios = {seed: seconds[hr][seed] / ce for seed, ce in seconds[CE].items() if ce and seconds[hr][seed]}
    pair = (ratios, dict.fromkeys(ratios, 1.0))
    return [_claim("C7", dataset, f"{hr}, per epoch", pair, sign=-1, margin=TIME_MARGIN)]


def claims_frame(found: Sequence[Claim]) -> pd.DataFrame:
    """Every measurement of every claim; without numbers where no pair of seeds has been evaluated yet."""
    return pd.DataFrame(
        {
            "claim": claim.name,
            "statement": claim.statement,
            "dataset": claim.dataset,
            "where": claim.where,
            "measure": claim.measure,
            "effect": claim.effect.mean if claim.effect else math.nan,
            "half_width_95": claim.effect.half_width if claim.effect else math.nan,
            "pairs": len(claim.seeds),
            "seeds": " ".join(map(str, claim.seeds)),
            "verdict": claim.verdict,
        }
        for claim in found
    )
