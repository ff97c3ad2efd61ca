"""Results -> the answer: what HR training did to robustness, as one short text with its numbers, and their table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.config import AttackSpec, LossSpec
from benchmarks.protocols import CE
from benchmarks.report.claims import Verdict, judge
from benchmarks.report.markup import Table
from benchmarks.report.notes import over_seeds
from benchmarks.report.selection import Selection, blocks, hardening_attacks
from benchmarks.report.statistics import Interval
from benchmarks.report.tables import interval_text

CLEAN, PAPER, EXACT, WORST, ZEROS = "no attack", "paper's protocol", "exact gradient", "worst case", "gradients of 0"
# The attacks of the rows, by their name and loss.
KINDS = {("fgm", "clipped-ce"): PAPER, ("fgm", "ce"): EXACT, ("worst-case", None): WORST}
NOTES = {
    PAPER: "Paper's protocol: FGSM with the gradient of clipped float32 probabilities.",
    EXACT: "Exact gradient: FGSM with that of cross-entropy.",
    WORST: "Worst case: over an ensemble of strong attacks, image by image.",
    ZEROS: "Gradients of 0: the share of images on which the paper's protocol has a gradient of exactly 0.",
}


Pair = tuple[LossSpec, LossSpec]
Conclusion = Literal["more", "less", "mixed", "not robust", "no gain", "undecided", "not measured", "nothing"]
VERDICTS: Mapping[Conclusion, str] = {
    "more": "HR training made these networks more robust",
    "less": "HR training made these networks less robust",
    "mixed": "HR training made these networks more robust at some eps and less robust at others",
    "not robust": "HR training did not make these networks robust",
    "no gain": "No gain in robustness from HR training was found",
    "undecided": "It is undecided whether HR training made these networks more robust",
}


@dataclass(frozen=True)
class Answer:
    """The answer of one data set's results."""

    conclusion: Conclusion
    verdict: str
    """A sentence, without its full stop."""
    evidence: str = ""
    """The sentences with its numbers."""

    def __str__(self) -> str:
        return f"{self.verdict}. {self.evidence}".strip()


@dataclass(frozen=True)
class Strength:
    """One eps, with the attack of every row that the grid has there, on the same images where it can be."""

    label: str
    attacks: Mapping[str, AttackSpec]
    papers: bool
    """Whether the paper's protocol is there in the paper's units of eps."""


def answer(selection: Selection) -> Answer:
    """
    The verdict on robustness, by rules that do not look for a result.

    Robust accuracy is that in the worst case, and without one nothing is said of it. A difference counts where its
    whole interval is on one side of 0; nothing counts with fewer than two seeds. Numbers are those at the eps where the
    worst case of CE, not the difference, is nearest 1/2, and at the eps where the paper's protocol is kindest to HR.
    Without a gain at any eps, networks are called not robust if they are below guessing at the latter.
    """
    pair, informative = selection.pair, _informative(selection)
    if pair is None:
        return Answer("nothing", "No verdict: this grid does not train with both CE and HR")
    if informative is None:
        return Answer("nothing", "No verdict yet: no attack of a network with CE and of one with HR has been evaluated")
    if _measured(selection, WORST):
        conclusion, verdict, evidence = _worst_case(selection, pair, informative)
    else:
        planned = any(attack.name == "worst-case" for attack in selection.results.grid.attacks)
        conclusion = "not measured"
        verdict = "Robustness is not measured " + ("yet: the worst case is missing" if planned else "by this grid")
        evidence = "" if planned else "It has no worst case, and FGSM alone is a weak attack. "
        open_ = judge(selection.gain(*pair, informative.attacks[EXACT])) == "undecided"
        evidence += f"Along the {_numbers(selection, pair, EXACT, informative)}{', undecided' * open_}."
    more = (_kindest(selection, pair), _defences(selection))
    return Answer(conclusion, verdict, " ".join(filter(None, (evidence, *more))))


def headline_table(selection: Selection) -> Table | None:
    """
    Accuracy from no attack to the worst case, of CE and HR, at the strengths whose numbers the answer has.

    :return: None without a CE and an HR loss, or any attack of theirs that has been evaluated.
    """
    pair, grid, results = selection.pair, selection.results.grid, selection.results
    quoted = {strength.label for strength in (_informative(selection), _most_gain(selection)) if strength}
    shown = [strength for strength in _strengths(selection) if strength.label in quoted]
    if pair is None or not shown:
        return None
    rows: list[tuple[str, ...]] = []
    images: set[int] = set()
    for strength in shown:
        first = strength.label
        for name in (CLEAN, PAPER, EXACT, WORST):
            if name not in strength.attacks or (name == CLEAN and rows):
                continue
            cells = [results.cell(selection.dataset, loss, strength.attacks[name]) for loss in pair]
            images |= {cell.images for cell in cells} - {0}
            texts = [interval_text(cell.accuracy, grid) for cell in cells]
            rows.append(("0" if name == CLEAN else first, name, *texts, _gain(selection, pair, strength, name)))
            first = first if name == CLEAN else ""
            if name == PAPER:
                rows.append(("", ZEROS, *(_share(cell.zero_gradient) for cell in cells), ""))
    fewer = f" (in the worst case the first {min(images)})" if len(images) > 1 else ""
    counts = f"{max(images, default=0)} test images{fewer}"
    known = [NOTES[name] for name in NOTES if any(name == row[1] for row in rows)]
    notes = [f"{selection.dataset}, {counts}, L-infinity. {over_seeds(grid)} {' '.join(known)}"]
    if (more := len(_strengths(selection))) > len(shown):
        kind = WORST if _measured(selection, WORST) else EXACT
        notes.append(
            f"Of {more} eps, those where the {kind} of CE is nearest 1/2 and where the paper's protocol is kindest to "
            f"{pair[1]}; the others are below."
        )
    header = ("eps", "attack", str(pair[0]), str(pair[1]), f"{pair[1]} - {pair[0]}, paired")
    title = f"Test accuracy on {selection.dataset}, from no attack to the worst case"
    return Table(title, header, tuple(rows), tuple(notes))


def _strengths(selection: Selection) -> list[Strength]:
    """Every eps of the grid's attacks of test images, weakest first."""
    scale = selection.recipe.input_scale
    candidates: dict[float, dict[str, list[AttackSpec]]] = {}
    tests = [attack for attack in selection.results.grid.attacks if attack.split == "test"]
    for attack in tests:
        if kind := KINDS.get((attack.name, attack.loss)):
            share = attack.eps / (scale if attack.units == "data" else 1.0)
            candidates.setdefault(round(share, 9), {}).setdefault(kind, []).append(attack)
    strengths = []
    for share, by_kind in sorted(candidates.items()):
        images = by_kind[WORST][0].images if WORST in by_kind else 0
        by_kind[CLEAN] = [attack for attack in tests if attack.name == "none"]
        # The same images as in the worst case, else all.
        best = {
            kind: min(found, key=lambda attack: (attack.images != images, attack.images))
            for kind, found in by_kind.items()
            if found
        }
        own = next((a for kind, a in best.items() if kind != CLEAN and a.units == "data" and scale != 1), None)
        papers = any(attack.units == "data" for attack in by_kind.get(PAPER, ()))
        strengths.append(Strength(f"{own.eps:g}/{scale:g}" if own else f"{share:g}", best, papers))
    return strengths


def _measured(selection: Selection, kind: str) -> list[tuple[Strength, Interval]]:
    """The strengths at which both losses have been evaluated, each with the gain of HR over CE."""
    pair = selection.pair
    found = [(s, selection.gain(*pair, s.attacks[kind])) for s in _strengths(selection) if pair and kind in s.attacks]
    return [(strength, gain) for strength, gain in found if gain is not None]


def _informative(selection: Selection) -> Strength | None:
    """The strength at which the accuracy of CE is nearest 1/2, in the worst case or else along the exact gradient."""
    for kind in (WORST, EXACT):
        if measured := [strength for strength, _ in _measured(selection, kind)]:
            return min(measured, key=lambda strength: abs(_accuracy(selection, CE, strength.attacks[kind]).mean - 0.5))
    return None


def _most_gain(selection: Selection) -> Strength | None:
    """The strength, of the paper's if there are any, at which HR is most above CE in the paper's protocol."""
    measured = _measured(selection, PAPER)
    measured = [item for item in measured if item[0].papers] or measured
    return max(measured, key=lambda item: item[1].mean)[0] if measured else None


def _accuracy(selection: Selection, loss: LossSpec, attack: AttackSpec) -> Interval:
    accuracy = selection.results.cell(selection.dataset, loss, attack).accuracy
    return Interval(math.nan, math.nan, 0) if accuracy is None else accuracy


def _worst_case(selection: Selection, pair: Pair, informative: Strength) -> tuple[Conclusion, str, str]:
    """The conclusion, its verdict, and the sentence with its numbers."""
    gains = [gain for _, gain in _measured(selection, WORST)]
    verdicts = [judge(gain) for gain in gains]
    above, below, total = verdicts.count("supported"), verdicts.count("contradicted"), len(verdicts)
    papers = _most_gain(selection)
    conclusion: Conclusion = "no gain"
    if all(math.isnan(gain.half_width) for gain in gains):
        conclusion = "undecided"
    elif above or below:
        conclusion = "mixed" if above and below else "more" if above else "less"
    elif papers and _is_below_guessing(selection, pair[1], papers):
        conclusion = "not robust"
    decided, others = above + below, total - above - below
    where = f" at {decided} of {total} eps" if conclusion in ("more", "less") and others else ""
    if judge(selection.gain(*pair, informative.attacks[WORST])) == "undecided":
        many = "" if others == 1 else f", as at {'all ' if others == total else f'{others} of '}{total} eps"
        end = f", undecided{many}"
    else:
        end = f"; undecided at {others} of {total} eps" if others else ""
    evidence = f"In the {_numbers(selection, pair, WORST, informative)}{end}."
    return conclusion, f"{VERDICTS[conclusion]}{where}", evidence


def _is_below_guessing(selection: Selection, loss: LossSpec, strength: Strength) -> bool:
    """Whether the whole interval of a worst case is; never with a single seed, which has none."""
    if WORST not in strength.attacks or selection.classes is None:
        return False
    left = _accuracy(selection, loss, strength.attacks[WORST])
    return left.mean + left.half_width < 1 / selection.classes


def _numbers(selection: Selection, pair: Pair, kind: str, strength: Strength) -> str:
    attack = strength.attacks[kind]
    ce, hr = (_accuracy(selection, loss, attack) for loss in pair)
    images = selection.results.cell(selection.dataset, pair[0], attack).images
    gain = selection.gain(*pair, attack)
    seeds = f"{gain.n} seeds, 95% t interval" if gain and gain.n > 1 else "one seed, so no interval"
    return (
        f"{kind} at eps {strength.label} the accuracy of {pair[0]} is {ce} and that of {pair[1]} {hr}: a paired "
        f"difference of {_gain(selection, pair, strength, kind)} ({images} images, {seeds})"
    )


def _kindest(selection: Selection, pair: Pair) -> str:
    """The largest gain in the paper's protocol, with what a reader must know of it."""
    strength = _most_gain(selection)
    if strength is None:
        return ""
    attack = strength.attacks[PAPER]
    ce, hr = (_share(selection.results.cell(selection.dataset, loss, attack).zero_gradient) for loss in pair)
    text = (
        f"The paper's protocol shows at most {_gain(selection, pair, strength, PAPER)}"
        f"{', undecided' if judge(selection.gain(*pair, attack)) == 'undecided' else ''}, at eps {strength.label}: its "
        f"gradient there is exactly 0 on {hr} of the images of {pair[1]} ({pair[0]}: {ce})"
    )
    beside = [
        f"{_gain(selection, pair, strength, kind)} {words}"
        for kind, words in ((EXACT, "along the exact gradient"), (WORST, "in the worst case"))
        if _gain(selection, pair, strength, kind)
    ]
    text += f", and the difference is {' and '.join(beside)}" if beside else ""
    if _is_below_guessing(selection, pair[1], strength):
        left = _accuracy(selection, pair[1], strength.attacks[WORST])
        text += f", which leaves {pair[1]} at {left}, below guessing"
    return f"{text}."


def _defences(selection: Selection) -> str:
    """What HR adds to a defence, counted over all comparisons; nothing for a grid without one."""
    worst = [a for (_, name), a in hardening_attacks(selection.results.grid).items() if name == WORST]
    verdicts: list[Verdict] = []
    for hardening, losses in blocks(selection.results.grid).items():
        ce = LossSpec("ce", hardening=hardening)
        if hardening is not None and ce in losses:
            gains = [selection.gain(ce, loss, attack) for loss in losses if loss.name == "hr" for attack in worst]
            verdicts += [judge(gain) for gain in gains if gain is not None]
    above, below = verdicts.count("supported"), verdicts.count("contradicted")
    if not verdicts:
        return ""
    return (
        f"Added to a defence, HR is above CE in the worst case in {above} of {len(verdicts)} comparisons, below in "
        f"{below}, and undecided in {len(verdicts) - above - below}; they are not corrected for their number."
    )


def _gain(selection: Selection, pair: Pair, strength: Strength, kind: str) -> str:
    """The difference with its sign; nothing where it is not known."""
    gain = selection.gain(*pair, strength.attacks[kind]) if kind in strength.attacks else None
    if gain is None:
        return ""
    return f"{gain.mean:+z.3f}" + ("" if math.isnan(gain.half_width) else f" ± {gain.half_width:.3f}")


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"
