"""Headline of a report: a verdict on the robustness of HR training, its numbers as text, and their table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.config import AttackSpec, LossSpec
from benchmarks.protocols import eps_text, protocol
from benchmarks.report.attack_tables import defence_counts
from benchmarks.report.markup import Table
from benchmarks.report.notes import LOSSES, over_seeds, training, worst_case
from benchmarks.report.results import attacks
from benchmarks.report.selection import MAIN, STRONG, Cell, Selection
from benchmarks.report.statistics import Interval, corrected, judge

CLEAN, ZEROS, (PAPER, EXACT, WORST) = "no attack", "zero gradients", MAIN
NOTES = {
    PAPER: f"{PAPER}: FGSM with the gradient of a loss that is computed from clipped float32 probabilities.",
    ZEROS: f'Zero gradients: the share of images on which the gradient of "{PAPER}" is exactly 0, so that FGSM does '
    "not change them.",
    EXACT: f"{EXACT}: FGSM with the exact gradient of cross-entropy.",
}
WHERE = {EXACT: "along the exact gradient", WORST: "in the worst case"}
Conclusion = Literal["more", "less", "mixed", "not robust", "no gain", "undecided", "not measured", "nothing"]
VERDICTS: Mapping[Conclusion, str] = {
    "more": "Networks trained with HR are more accurate in the worst case",
    "less": "Networks trained with HR are less accurate in the worst case",
    "mixed": "Networks trained with HR are more accurate in the worst case at some eps and less accurate at others",
    "not robust": "At eps {eps} the HR-trained networks are not robust, and no gain over CE is shown at any eps",
    "no gain": "No gain in robustness from HR training is shown",
    "undecided": "It is undecided whether networks trained with HR are more accurate in the worst case",
}


@dataclass(frozen=True)
class Answer:
    """The answer of one data set's results."""

    conclusion: Conclusion
    verdict: str
    """One sentence, without its full stop."""
    evidence: str = ""
    """Sentences with the numbers behind the verdict."""

    def __str__(self) -> str:
        return f"{self.verdict}. {self.evidence}".strip()


@dataclass(frozen=True)
class Row:
    """CE and HR under one kind of attack at one eps."""

    eps: str
    """The eps as text, with its units if it is not a share of the pixel range."""
    kind: str
    papers: bool
    """True if the grid attacks at this eps in the paper protocol and in the paper's units of eps."""
    ce: Cell
    hr: Cell

    @property
    def gain(self) -> str:
        """Accuracy of HR minus accuracy of CE, as text; empty if there is no pair of records yet."""
        return f"{self.hr.gain:+z.3f}" if self.hr.gain.n else ""

    @property
    def undecided(self) -> bool:
        """True if the interval of the gain contains 0, or if there is no interval."""
        return judge(self.hr.gain) == "undecided"


@dataclass(frozen=True)
class Headline:
    """Accuracies of CE and HR on one data set, by eps and attack."""

    selection: Selection
    ce: LossSpec
    hr: LossSpec
    rows: Mapping[str, Mapping[str, Row]]
    """Rows by eps, smallest first, and by kind of attack."""

    def measured(self, kind: str) -> list[Row]:
        """Return the rows of a kind of attack in which both losses have been evaluated."""
        return [row[kind] for row in self.rows.values() if kind in row and row[kind].gain]

    @property
    def informative(self) -> Row | None:
        """
        The row in which the accuracy of CE is nearest 1/2, in the worst case or else along the exact gradient.

        Near 0 and 1 accuracies hardly differ. The choice uses CE alone: a choice by the difference would favour
        the eps at which chance makes it large.
        """
        rows = self.measured(WORST) or self.measured(EXACT)
        return min(rows, key=lambda row: abs(row.ce.accuracy.mean - 0.5), default=None)

    @property
    def largest_paper_gain(self) -> Row | None:
        """The row with the largest gain of HR in the paper protocol, among the paper's eps if the grid has any."""
        rows = self.measured(PAPER)
        return max([row for row in rows if row.papers] or rows, key=lambda row: row.hr.gain.mean, default=None)

    @property
    def among(self) -> str:
        """Words after the eps of the largest paper gain: " among the paper's eps" if it is larger at another eps."""
        largest = max(self.measured(PAPER), key=lambda row: row.hr.gain.mean, default=None)
        return " among the paper's eps" * (largest != self.largest_paper_gain)


def headline(selection: Selection) -> Headline | None:
    """
    Return the accuracies of CE and HR under the attacks of every eps; None for a grid without CE or HR.

    If a grid has the same attack on several sets of images, the set of the worst case is used.
    """
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
        # Accuracies are comparable only on the same images: those of the worst case, or else all (images = 0).
        best = {k: min(specs, key=lambda a: (a.images != images, a.images)) for k, specs in by_kind.items() if specs}
        papers = any(attack.units == "data" for attack in by_kind.get(PAPER, ()))
        eps = eps_text(share)
        rows[eps] = {
            kind: Row(eps, kind, papers, *(selection.cell(loss, attack) for loss in selection.pair))
            for kind, attack in best.items()
        }
    return Headline(selection, *selection.pair, rows)


def answer(summary: Headline | None) -> Answer:
    """
    Return the verdict on robustness, by rules that are fixed before the results are known.

    Robust accuracy is the accuracy in the worst case; without a worst case there is no verdict on robustness. A
    difference is decided if its whole interval, corrected for the number of eps, is on one side of 0, and undecided
    with fewer than two seeds. The text quotes two eps: the one at which the worst case of CE is nearest 1/2 (this
    choice does not depend on the difference), and the one with the largest gain of HR in the paper protocol. If no
    eps has a decided difference, the verdict is "not robust" if the worst case of HR is below random guessing at the
    second of these eps.
    """
    if summary is None:
        return Answer("nothing", "No verdict: this grid does not train with both CE and HR")
    row = summary.informative
    if row is None:
        return Answer("nothing", "No verdict yet: no attack has been evaluated on networks of both CE and HR")
    if row.kind == WORST:
        conclusion, verdict, evidence = _worst_case(summary, row)
    else:
        planned = attacks(summary.selection.grid.attacks, "worst case")
        conclusion = "not measured"
        verdict = "Robustness is not measured " + ("yet: the worst case is missing" if planned else "by this grid")
        evidence = "" if planned else "The grid has no worst case, and FGSM alone is a weak attack. "
        evidence += f"{_numbers(summary, row)}{f' {_reason(row)}.' * row.undecided}"
    parts = (evidence, _paper_protocol(summary), defence_counts(summary.selection))
    return Answer(conclusion, verdict, " ".join(filter(None, parts)))


def headline_table(summary: Headline | None) -> Table | None:
    """
    Return the accuracies of CE and HR from no attack to the worst case, at the eps that the answer quotes.

    :return: None for a grid without CE or HR, or before any of their attacks has been evaluated.
    """
    if summary is None:
        return None
    reasons = {"at which the accuracy of {ce} {where} is nearest 1/2": summary.informative}
    paper = f"with the largest gain of {{hr}} over {{ce}} in the paper protocol{summary.among}"
    reasons[paper] = summary.largest_paper_gain
    quoted = {row.eps for row in reasons.values() if row}
    if not quoted:
        return None
    selection, rows, images = summary.selection, list[tuple[str, ...]](), set[int]()
    for eps, by_kind in summary.rows.items():
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
    explained = {**NOTES, WORST: worst_case(selection)}
    shown = [note for kind, note in explained.items() if any(kind == row[1] for row in rows)]
    notes = [
        f"Data: {selection.dataset}, {counts}; L-infinity norm. Accuracy: the share of images that are classified "
        f"correctly. {over_seeds(selection.grid)} The intervals are not corrected for the number of rows. "
        f"Columns: the loss that the networks are trained with; {LOSSES} {summary.hr} - {summary.ce}: the difference "
        "of the accuracies, paired over the seeds; a seed determines the initial weights and the order of the images.",
        *shown,
    ]
    if len(summary.rows) > len(quoted):
        names = {"ce": summary.ce, "hr": summary.hr, "where": WHERE[WORST if summary.measured(WORST) else EXACT]}
        choice = ", and that ".join(text.format(**names) for text, row in reasons.items() if row)
        notes.append(f"This table shows {len(quoted)} of the eps {', '.join(summary.rows)}: that {choice}.")
    notes.append(training(selection.recipe))
    header = ("eps", "attack", str(summary.ce), str(summary.hr), f"{summary.hr} - {summary.ce}, paired")
    title = f"Test accuracy on {selection.dataset}, from no attack to the worst case"
    return Table(title, header, tuple(rows), tuple(notes))


def _worst_case(summary: Headline, informative: Row) -> tuple[Conclusion, str, str]:
    """Return the conclusion, its verdict, and the sentences with its numbers."""
    rows = summary.measured(WORST)
    gains, total = [row.hr.gain for row in rows], len(rows)
    # With several eps, one interval in twenty would exclude 0 by chance: the verdict corrects for their number.
    verdicts = [judge(corrected(gain, total)) for gain in gains]
    above, below = verdicts.count("supported"), verdicts.count("contradicted")
    conclusion: Conclusion = "no gain"
    if all(math.isnan(gain.half_width) for gain in gains):
        conclusion = "undecided"
    elif above or below:
        conclusion = "mixed" if above and below else "more" if above else "less"
    elif summary.largest_paper_gain and _below_guessing(summary, summary.largest_paper_gain):
        conclusion = "not robust"
    undecided = total - above - below
    eps = ", ".join(row.eps for row, verdict in zip(rows, verdicts, strict=True) if verdict != "undecided")
    where = f" at eps {eps}" if conclusion in ("more", "less") and undecided else ""
    count = f"{'all ' if undecided == total else f'{undecided} of '}{total} eps"
    end = f" The difference is undecided at {count}, corrected for {total} comparisons." if undecided else ""
    if judge(corrected(informative.hr.gain, total)) == "undecided":
        end = f" {_reason(informative, total)}{f'; it is undecided at {count}' if undecided > 1 else ''}."
    clean = summary.rows[informative.eps].get(CLEAN)
    if clean and clean.gain and (above or below):  # robustness may be bought with accuracy
        end += f" Without attack the difference is {clean.gain}{' (undecided)' * clean.undecided}."
    verdict = VERDICTS[conclusion].format(eps=summary.largest_paper_gain.eps if summary.largest_paper_gain else "")
    return conclusion, f"{verdict}{where}", f"{_numbers(summary, informative)}{end}"


def _below_guessing(summary: Headline, row: Row) -> Interval | None:
    """Return the worst case of HR at a row's eps if its whole interval is below 1/classes; None with a single seed."""
    worst, classes = summary.rows[row.eps].get(WORST), summary.selection.classes
    if worst is None or classes is None:
        return None
    accuracy = worst.hr.accuracy
    return accuracy if accuracy.mean + accuracy.half_width < 1 / classes else None


def _numbers(summary: Headline, row: Row) -> str:
    """Return a sentence with the accuracies of CE and HR in a row and their difference."""
    n = row.hr.gain.n
    seeds = f"{n} seeds, 95% t intervals" if n > 1 else "one seed, so no intervals"
    return (
        f"{WHERE[row.kind].capitalize()} at eps {row.eps}, the accuracy is {row.ce.accuracy} for {summary.ce} and "
        f"{row.hr.accuracy} for {summary.hr}; the paired difference {summary.hr} - {summary.ce} is {row.gain} "
        f"({row.ce.n} images, {seeds})."
    )


def _reason(row: Row, comparisons: int = 1) -> str:
    """Return why the difference of a row is undecided."""
    reason = "There is no interval" if math.isnan(row.hr.gain.half_width) else "The interval contains 0"
    if not row.undecided:
        half_width = corrected(row.hr.gain, comparisons).half_width
        reason = f"Corrected for {comparisons} comparisons (Bonferroni) it is ± {half_width:.3f} and contains 0"
    return f"{reason}, so this difference is undecided"


def _paper_protocol(summary: Headline) -> str:
    """Return sentences on the largest gain in the paper protocol: its zero gradients, and stronger attacks there."""
    row = summary.largest_paper_gain
    if row is None:
        return ""
    text = (
        "In the paper protocol (FGSM along a loss of clipped probabilities) the difference is largest at eps "
        f"{row.eps}{summary.among}: {row.gain}{' (undecided)' * row.undecided}. There the gradient is exactly 0, so "
        f"that FGSM changes nothing, on {_share(row.hr)} of the images for {summary.hr} and on {_share(row.ce)} for "
        f"{summary.ce}."
    )
    by_kind = summary.rows[row.eps]
    gains = [(by_kind[kind].gain, where) for kind, where in WHERE.items() if kind in by_kind]
    if stronger := " and ".join(f"{gain} {where}" for gain, where in gains if gain):
        text += f" At the same eps the difference is {stronger}."
    if accuracy := _below_guessing(summary, row):
        text += f" There the worst case of {summary.hr} is {accuracy}, below random guessing."
    return text


def _share(cell: Cell) -> str:
    """Return the share of zero gradients as text."""
    return "" if math.isnan(cell.zero_gradient) else f"{cell.zero_gradient:.1%}"
