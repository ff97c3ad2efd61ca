"""Results -> the answer: what HR training did to robustness, as one short text with its numbers, and their table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.config import AttackSpec, LossSpec
from benchmarks.protocols import eps_text, protocol
from benchmarks.report.markup import Table
from benchmarks.report.notes import over_seeds
from benchmarks.report.results import attacks
from benchmarks.report.selection import MAIN, STRONG, Cell, Selection, hardening_attacks
from benchmarks.report.statistics import Interval, judge

CLEAN, ZEROS, (PAPER, EXACT, WORST) = "no attack", "gradients of 0", MAIN
NOTES = {
    PAPER: f"{PAPER}: with the gradient of clipped float32 probabilities.",
    EXACT: f"{EXACT}: with the gradient of cross-entropy.",
    WORST: "Worst case: over an ensemble of strong attacks, image by image.",
    ZEROS: f"Gradients of 0: the share of images on which {PAPER}, has a gradient of exactly 0.",
}
WHERE = {EXACT: "along the exact gradient", WORST: "in the worst case"}
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
class Row:
    """CE and HR under one kind of attack at one eps."""

    eps: str
    """As it is shown, with its units where they are not the range of a pixel."""
    kind: str
    papers: bool
    """Whether the paper protocol is there in the paper's units of eps."""
    ce: Cell
    hr: Cell

    @property
    def gain(self) -> str:
        """What HR has more than CE; nothing where it is not known."""
        return f"{self.hr.gain:+z.3f}" if self.hr.gain.n else ""

    @property
    def undecided(self) -> bool:
        """Whether the interval of the gain holds 0."""
        return judge(self.hr.gain) == "undecided"


@dataclass(frozen=True)
class Headline:
    """The rows of one data set's results, and what they say."""

    selection: Selection
    ce: LossSpec
    hr: LossSpec
    rows: Mapping[str, Mapping[str, Row]]
    """By eps, weakest first, and kind."""

    def measured(self, kind: str) -> list[Row]:
        """The rows of a kind in which both losses have been evaluated."""
        return [row[kind] for row in self.rows.values() if kind in row and row[kind].gain]

    @property
    def informative(self) -> Row | None:
        """The row in which the accuracy of CE is nearest 1/2, in the worst case or else along the exact gradient."""
        rows = self.measured(WORST) or self.measured(EXACT)
        return min(rows, key=lambda row: abs(row.ce.accuracy.mean - 0.5), default=None)

    @property
    def kindest(self) -> Row | None:
        """The row, at the paper's eps if there are any, where HR is most above CE in the paper protocol."""
        rows = self.measured(PAPER)
        return max([row for row in rows if row.papers] or rows, key=lambda row: row.hr.gain.mean, default=None)


def headline(selection: Selection) -> Headline | None:
    """The attacks of every eps, on the same images as the worst case where it can be; None without CE and HR."""
    if selection.pair is None:
        return None
    known, scale = selection.grid.attacks, selection.recipe.input_scale
    by_share: dict[float, dict[str, list[AttackSpec]]] = {}
    for attack in attacks(known):
        if (kind := STRONG.get(protocol(attack))) in MAIN:
            share = round(attack.eps / (scale if attack.units == "data" else 1.0), 9)
            by_share.setdefault(share, {CLEAN: attacks(known, "no attack")}).setdefault(kind, []).append(attack)
    rows: dict[str, dict[str, Row]] = {}
    for share, by_kind in sorted(by_share.items()):
        images = by_kind[WORST][0].images if WORST in by_kind else 0
        # The same images as in the worst case, else all.
        best = {k: min(found, key=lambda a: (a.images != images, a.images)) for k, found in by_kind.items() if found}
        papers = any(attack.units == "data" for attack in by_kind.get(PAPER, ()))
        eps = eps_text(share)
        rows[eps] = {
            kind: Row(eps, kind, papers, *(selection.cell(loss, attack) for loss in selection.pair))
            for kind, attack in best.items()
        }
    return Headline(selection, *selection.pair, rows)


def answer(found: Headline | None) -> Answer:
    """
    The verdict on robustness, by rules that do not look for a result.

    Robust accuracy is that in the worst case, and without one nothing is said of it. A difference counts where its
    whole interval is on one side of 0; nothing counts with fewer than two seeds. Numbers are those at the eps where the
    worst case of CE, not the difference, is nearest 1/2, and at the eps where the paper protocol is kindest to HR.
    Without a gain at any eps, networks are called not robust if they are below guessing at the latter.
    """
    if found is None:
        return Answer("nothing", "No verdict: this grid does not train with both CE and HR")
    row = found.informative
    if row is None:
        return Answer("nothing", "No verdict yet: no attack of a network with CE and of one with HR has been evaluated")
    if row.kind == WORST:
        conclusion, verdict, evidence = _worst_case(found, row)
    else:
        planned = attacks(found.selection.grid.attacks, "worst case")
        conclusion = "not measured"
        verdict = "Robustness is not measured " + ("yet: the worst case is missing" if planned else "by this grid")
        evidence = "" if planned else "It has no worst case, and FGSM alone is a weak attack. "
        evidence += f"{_numbers(found, row)}{', undecided' * row.undecided}."
    return Answer(conclusion, verdict, " ".join(filter(None, (evidence, _kindest(found), _defences(found.selection)))))


def headline_table(found: Headline | None) -> Table | None:
    """
    Accuracy from no attack to the worst case, of CE and HR, at the strengths whose numbers the answer has.

    :return: None without a CE and an HR loss, or any attack of theirs that has been evaluated.
    """
    if found is None or not (quoted := {row.eps for row in (found.informative, found.kindest) if row}):
        return None
    selection, rows, images = found.selection, list[tuple[str, ...]](), set[int]()
    for eps, by_kind in found.rows.items():
        first = eps
        for kind in (CLEAN, PAPER, EXACT, WORST) if eps in quoted else ():
            if kind not in by_kind or (kind == CLEAN and rows):
                continue
            row = by_kind[kind]
            images |= {row.ce.n, row.hr.n} - {0}
            texts = (selection.text(cell.accuracy) for cell in (row.ce, row.hr))
            rows.append(("0" if kind == CLEAN else first, kind, *texts, row.gain))
            first = first if kind == CLEAN else ""
            if kind == PAPER:
                rows.append(("", ZEROS, *(_share(cell) for cell in (row.ce, row.hr)), ""))
    fewer = f" (in the worst case the first {min(images)})" if len(images) > 1 else ""
    counts = f"{max(images, default=0)} test images{fewer}"
    known = [NOTES[name] for name in NOTES if any(name == row[1] for row in rows)]
    notes = [f"{selection.dataset}, {counts}, L-infinity. {over_seeds(selection.grid)} {' '.join(known)}"]
    if len(found.rows) > len(quoted):
        where = WHERE[WORST if found.measured(WORST) else EXACT]
        notes.append(
            f"Of {len(found.rows)} eps, those where CE is nearest 1/2 {where} and where the paper protocol is kindest "
            f"to {found.hr}; the others are below."
        )
    header = ("eps", "attack", str(found.ce), str(found.hr), f"{found.hr} - {found.ce}, paired")
    title = f"Test accuracy on {selection.dataset}, from no attack to the worst case"
    return Table(title, header, tuple(rows), tuple(notes))


def _worst_case(found: Headline, informative: Row) -> tuple[Conclusion, str, str]:
    """The conclusion, its verdict, and the sentence with its numbers."""
    gains = [row.hr.gain for row in found.measured(WORST)]
    verdicts = [judge(gain) for gain in gains]
    above, below, total = verdicts.count("supported"), verdicts.count("contradicted"), len(verdicts)
    conclusion: Conclusion = "no gain"
    if all(math.isnan(gain.half_width) for gain in gains):
        conclusion = "undecided"
    elif above or below:
        conclusion = "mixed" if above and below else "more" if above else "less"
    elif found.kindest and _below_guessing(found, found.kindest):
        conclusion = "not robust"
    decided, others = above + below, total - above - below
    where = f" at {decided} of {total} eps" if conclusion in ("more", "less") and others else ""
    if informative.undecided:
        many = "" if others == 1 else f", as at {'all ' if others == total else f'{others} of '}{total} eps"
        end = f", undecided{many}"
    else:
        end = f"; undecided at {others} of {total} eps" if others else ""
    return conclusion, f"{VERDICTS[conclusion]}{where}", f"{_numbers(found, informative)}{end}."


def _below_guessing(found: Headline, row: Row) -> Interval | None:
    """The worst case of HR at a row's eps, if its whole interval is below guessing; a single seed has none."""
    worst, classes = found.rows[row.eps].get(WORST), found.selection.classes
    if worst is None or classes is None:
        return None
    left = worst.hr.accuracy
    return left if left.mean + left.half_width < 1 / classes else None


def _numbers(found: Headline, row: Row) -> str:
    n = row.hr.gain.n
    seeds = f"{n} seeds, 95% t interval" if n > 1 else "one seed, so no interval"
    return (
        f"{WHERE[row.kind].capitalize()} at eps {row.eps} the accuracy of {found.ce} is {row.ce.accuracy} and that of "
        f"{found.hr} {row.hr.accuracy}: a paired difference of {row.gain} ({row.ce.n} images, {seeds})"
    )


def _kindest(found: Headline) -> str:
    """The largest gain in the paper protocol, with what a reader must know of it."""
    row = found.kindest
    if row is None:
        return ""
    text = (
        f"The paper protocol shows at most {row.gain}{', undecided' * row.undecided}, at eps {row.eps}: its gradient "
        f"there is exactly 0 on {_share(row.hr)} of the images of {found.hr} ({found.ce}: {_share(row.ce)})"
    )
    beside = [(found.rows[row.eps][kind].gain, where) for kind, where in WHERE.items() if kind in found.rows[row.eps]]
    known = [f"{gain} {where}" for gain, where in beside if gain]
    text += f", and the difference is {' and '.join(known)}" if known else ""
    left = _below_guessing(found, row)
    return text + (f", which leaves {found.hr} at {left}, below guessing." if left else ".")


def _defences(selection: Selection) -> str:
    """What HR adds to a defence, counted over all comparisons; nothing for a grid without one."""
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
        f"Added to a defence, HR is above CE in the worst case in {above} of {len(verdicts)} comparisons, below in "
        f"{below}, and undecided in {len(verdicts) - above - below}; they are not corrected for their number."
    )


def _share(cell: Cell) -> str:
    return "" if math.isnan(cell.zero_gradient) else f"{cell.zero_gradient:.1%}"
