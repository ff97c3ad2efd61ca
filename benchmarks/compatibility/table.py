"""The findings as a table, and the table read again."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from packaging.version import Version

from benchmarks.compatibility.cases import Case
from benchmarks.compatibility.inapplicable import INAPPLICABLE, exports, refusal
from benchmarks.compatibility.loss_attacks import LOSS_ATTACKS
from benchmarks.compatibility.measuring import NOT_APPLICABLE, VERDICTS, Finding
from benchmarks.compatibility.other_attacks import OTHER_ATTACKS
from benchmarks.compatibility.trainers import TRAINERS
from benchmarks.report.markup import Table

PUBLISHED = Path(__file__).parents[1] / "results" / "compatibility.md"
COMMAND = "python -m benchmarks.compatibility --write"
HEADER = ("in ART", "verdict", "by what, or why", "right", "HRLoss in PyTorchClassifier", "note")
CASES: tuple[Case, ...] = (*LOSS_ATTACKS, *OTHER_ATTACKS, *TRAINERS)

HOW = (
    "Every case runs on scikit-learn's digits and the small CNN, from fixed seeds, in an HRClassifier with HRLoss: "
    "once, again to see that it comes out the same, and once with another loss in its place (for attacks the negated "
    "HR loss as the attack loss, for trainers cross-entropy as the loss, and the negated HR loss as the attack loss). "
    'It is "driven by HR" if the adversarial images, or the trained weights, are then others. What else drives it is '
    "told by which methods of the classifier it calls.",
    '"fails in ART" means that it fails in the same way with torch.nn.CrossEntropyLoss in ART\'s own '
    'PyTorchClassifier. "right" counts the images that the network has right before and after; budgets are tiny, so '
    'the numbers show that something happened, not how strong an attack or a defence is. "HRLoss in '
    "PyTorchClassifier\" is the same case with ART's own classifier, whose attacks see the loss of the whole batch.",
)


def conditions() -> Iterator[tuple[Case, bool]]:
    """Every case and whether its packages are hidden: where it needs some that ART does not install, both ways."""
    for case in CASES:
        if case.packages:
            yield case, True
        yield case, False


def lacking(case: Case, *, hide: bool) -> list[str]:
    """What is not installed here and is needed to find out the row, as pip would be asked for it."""
    names = {"cv2": "opencv-python-headless"}
    packages = [] if hide else [names.get(p, p) for p in case.packages if find_spec(p) is None]
    old = case.numpy is not None and Version(np.__version__) < Version(case.numpy)
    return [*packages, *([f"numpy>={case.numpy}"] if old else [])]


def inapplicable() -> list[Finding]:
    """The rows that nothing has to be run for."""
    rows = []
    for name, purpose in INAPPLICABLE.items():
        declared = refusal(name)
        rows.append(Finding(name, NOT_APPLICABLE, f"{purpose}: {declared}" if declared else purpose))
    return rows


def tables(findings: Iterable[Finding]) -> list[Table]:
    """Attacks and trainers, each in the order of their names, with what they have in common under the second."""
    named = exports().trainers
    parts: tuple[list[Finding], list[Finding]] = ([], [])
    for finding in sorted([*findings, *inapplicable()], key=lambda finding: finding.label.split(" ")[0]):
        parts[finding.label.split(" ")[0] in named].append(finding)
    titles = ("ART's evasion attacks with the HR loss", "ART's trainers with the HR loss")
    return [
        Table(title, HEADER, tuple(finding.cells for finding in part), (_counted(part),))
        for title, part in zip(titles, parts, strict=True)
    ]


def _counted(findings: list[Finding]) -> str:
    counts = Counter(finding.verdict for finding in findings)
    return "Rows: " + "; ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]) + "."


def markdown(findings: Iterable[Finding]) -> str:
    """The published page."""
    versions = ", ".join(
        f"{shown} {metadata.version(package)}"
        for shown, package in (("ART", "adversarial-robustness-toolbox"), ("torch", "torch"), ("NumPy", "numpy"))
    )
    body = "\n".join(table.markdown() for table in tables(findings))
    made = f"Made by `{COMMAND}` with {versions}."
    return "\n\n".join(["# Which of ART's attacks and trainers work with the HR loss", *HOW, made, body])


def published() -> dict[str, Finding]:
    """The rows of the published page, by their first cell."""
    rows = {}
    for line in PUBLISHED.read_text().splitlines():
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == len(HEADER) and tuple(cells) != HEADER and set(cells[0]) != {"-"}:
            rows[cells[0]] = Finding(*cells)
    return rows
