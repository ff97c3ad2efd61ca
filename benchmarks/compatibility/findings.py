"""Findings of the compatibility cases: whether each follows the HR loss, and the published page of all of them."""

import importlib
import inspect
import logging
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from art.attacks import evasion
from art.defences import trainer as trainers
from packaging.version import Version
from torch import Tensor

from art_hrloss import HRClassifier, HRLoss, seeded
from benchmarks.compatibility.attacks import ATTACKS
from benchmarks.compatibility.cases import NETWORK, NETWORK_GRADIENTS, Case, Outcome, Subject, Victim
from benchmarks.compatibility.trainers import TRAINERS, TrainerCase
from benchmarks.report.markup import Table

PUBLISHED = Path(__file__).parents[1] / "results" / "compatibility.md"
COMMAND = "python -m benchmarks.compatibility --write"
DRIVEN, NOT_DRIVEN = "driven by HR", "works, not driven by HR"
FAILS_IN_ART, FAILS_WITH_HR = "fails in ART", "fails with HR"
NOT_APPLICABLE = "not applicable"
VERDICTS = (DRIVEN, NOT_DRIVEN, FAILS_IN_ART, FAILS_WITH_HR, NOT_APPLICABLE)
HEADER = ("class of ART", "verdict", "driven by, or reason", "correct", "HRLoss in PyTorchClassifier", "note")
CASES: tuple[Case, ...] = (*ATTACKS, *TRAINERS)
TENSORFLOW = tuple(f"{x}TensorFlowV2" for x in ("AdversarialPatch", "FeatureAdversaries", "ProjectedGradientDescent"))
# Classes of ART for other frameworks and tasks than PyTorch image classifiers, and abstract bases, by purpose. The
# function `inapplicable` checks that HRClassifier does not meet their requirements, where ART declares them.
INAPPLICABLE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "TensorFlow": TENSORFLOW,
        "malware, TensorFlow": ("MalwareGDTensorFlow",),
        "speech": ("CarliniWagnerASR", "ImperceptibleASR", "ImperceptibleASRPyTorch"),
        "decision trees": ("DecisionTreeAttack",),
        "Gaussian processes": ("HighConfidenceLowUncertainty",),
        "objects in images": ("DPatch", "RobustDPatch"),
        "objects in images, YOLO": ("OverloadPyTorch", "SNAL"),
        "objects in video": ("AdversarialTexturePyTorch",),
        "base of AdversarialTrainerAWPPyTorch": ("AdversarialTrainerAWP",),
        "base of AdversarialTrainerFBFPyTorch": ("AdversarialTrainerFBF",),
        "base of AdversarialTrainerOAATPyTorch": ("AdversarialTrainerOAAT",),
        "base of AdversarialTrainerTRADESPyTorch": ("AdversarialTrainerTRADES",),
        "base of all trainers": ("Trainer",),
    }
)
HOW = (
    "Every case runs on scikit-learn's digits and the small CNN, with fixed seeds, in an HRClassifier with HRLoss. It "
    "runs twice, to check that the result is the same, and then with another loss: for attacks the negated HR loss as "
    "the attack loss; for trainers cross-entropy as the training loss, and the negated HR loss as the attack loss. The "
    'case is "driven by HR" if the adversarial images, or the trained weights, change with the loss. Otherwise the '
    "methods of the classifier that it calls show what drives it.",
    '"fails in ART": it fails in the same way with torch.nn.CrossEntropyLoss in ART\'s PyTorchClassifier. "correct": '
    "the number of correctly classified images before → after the attack or training. The budgets are very small, so "
    'these numbers show that a case has an effect, not how strong an attack or a defence is. "HRLoss in '
    "PyTorchClassifier\": the same case with ART's PyTorchClassifier, whose attacks use the loss of the whole batch.",
)


class NegatedHRLoss(HRLoss):
    """HR loss with the opposite sign, which reverses the direction of everything that follows the loss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the negated HR loss."""
        loss: Tensor = super().forward(input, target)
        return -loss


HR = Victim(HRLoss(), HRLoss())
OTHER_ATTACK_LOSS = Victim(HRLoss(), NegatedHRLoss())
OTHER_LOSS = Victim(torch.nn.CrossEntropyLoss(), HRLoss())


class Failure(NamedTuple):
    """Exception of a case: its type, the file of ART that raised it, and its message."""

    kind: str
    file: str
    message: str

    def __str__(self) -> str:
        where = f"{self.kind} in {self.file}" if self.file else self.kind
        return f"{where}: {self.message}"


class Finding(NamedTuple):
    """Row of the table; see HEADER."""

    label: str
    """The class of ART and its variant."""
    verdict: str
    """One of VERDICTS."""
    by: str
    """What drives it, or the reason why it fails."""
    effect: str = ""
    """The number of correctly classified images before → after; empty if it fails."""
    stock: str = ""
    """The result with HRLoss in ART's PyTorchClassifier."""
    note: str = ""
    """A remark for users."""


def find(case: Case, subject: Subject, *, hide: bool = False) -> Finding:
    """
    Return the row of the table for a case, which is run several times to determine what drives it.

    :param case: An attack or a trainer.
    :param subject: The images and the network; they are not changed.
    :param hide: True to hide the packages that the case needs, as if they were not installed.
    :return: The row, the same in every call.
    """
    with hidden(*case.packages) if hide else nullcontext():
        ours = attempt(case, subject, HR)
        stock = attempt(case, subject, Victim(HRLoss(), stock=True)) if case.stock else None
        if isinstance(ours, Failure):
            control = attempt(case, subject, Victim(torch.nn.CrossEntropyLoss(), stock=True))
            same = isinstance(control, Failure) and control.kind == ours.kind
            verdict, by, effect, repeats = FAILS_IN_ART if same else FAILS_WITH_HR, str(ours), "", True
        else:
            repeats = _same(ours, attempt(case, subject, HR))
            verdict, by = _judged(case, subject, ours, repeats=repeats)
            effect = f"{ours.before} → {ours.after}"
    return Finding(label(case, hide=hide), verdict, by, effect, _compared(ours, stock, repeats=repeats), case.note)


def label(case: Case, *, hide: bool) -> str:
    """Return the first cell of a case's row: its name, its variant, and whether it runs with its optional packages."""
    condition = f"{'without' if hide else 'with'} {' and '.join(case.packages)}" if case.packages else ""
    details = ", ".join(filter(None, (case.variant, condition)))
    return f"{case.name} ({details})" if details else case.name


def _judged(case: Case, subject: Subject, ours: Outcome, *, repeats: bool) -> tuple[str, str]:
    """Return the verdict on a case that works, and what drives it."""
    if not repeats:
        if ours.calls - {"predict", NETWORK}:
            raise ValueError(f"expected {case.name} to give the same result in every run, but it did not")
        return NOT_DRIVEN, _drive(case, ours)  # it never calls for the loss or a gradient, so they cannot drive it
    of_attack = not _same(ours, attempt(case, subject, OTHER_ATTACK_LOSS))
    if isinstance(case, TrainerCase):
        of_loss = not _same(ours, attempt(case, subject, OTHER_LOSS))
        parts = [*(["the loss"] if of_loss else []), *(["its attack: the attack loss"] if of_attack else [])]
        return DRIVEN if of_loss else NOT_DRIVEN, "; ".join(parts)
    called = [name for name in ("loss_gradient", "compute_loss") if name in ours.calls]
    return (DRIVEN, ", ".join(called)) if of_attack else (NOT_DRIVEN, _drive(case, ours))


def _drive(case: Case, ours: Outcome) -> str:
    """Return what drives an attack that does not follow the loss, from its calls of the classifier."""
    if case.objective:
        if NETWORK_GRADIENTS not in ours.calls:
            raise ValueError(f"expected {case.name} to differentiate the network itself, but got {sorted(ours.calls)}")
        return f"its own objective: {case.objective}"
    for call, text in (("class_gradient", "class gradients"), ("get_activations", "features of a layer")):
        if call in ours.calls:
            return text
    if not ours.calls <= {"predict", NETWORK}:
        raise ValueError(f"expected {case.name} to call for predictions only, but got {sorted(ours.calls)}")
    return "predictions only"


def _compared(ours: Outcome | Failure, stock: Outcome | Failure | None, *, repeats: bool) -> str:
    """Return the result with ART's PyTorchClassifier, compared with that of HRClassifier."""
    if stock is None:
        return ""
    if isinstance(stock, Failure):
        return "fails as well" if isinstance(ours, Failure) and ours.kind == stock.kind else f"fails: {stock}"
    if isinstance(ours, Failure):
        return "works"
    if ours.result.shape == stock.result.shape and np.allclose(ours.result, stock.result, rtol=0, atol=1e-4):
        return "the same result"
    return f"works, other result: {stock.before} → {stock.after}" if repeats else "works as well"


def _same(one: Outcome, other: Outcome | Failure) -> bool:
    """Return true if both results are equal to the bit; a failure differs from every result."""
    return isinstance(other, Outcome) and np.array_equal(one.result, other.result, equal_nan=True)


def attempt(case: Case, subject: Subject, victim: Victim) -> Outcome | Failure:
    """Run a case once, with fixed seeds and without output."""
    with quiet(), seeded(0):
        try:
            return case.perform(subject, victim)
        except Exception as error:  # any error inside ART is a finding
            frames = traceback.extract_tb(error.__traceback__)
            files = [frame.filename for frame in frames if f"{os.sep}art{os.sep}" in frame.filename]
            message = str(error).strip().split("\n")[0]
            if isinstance(error, ModuleNotFoundError) and error.name:
                message = f"no module named {error.name.split('.')[0]!r}"  # the same for hidden and missing packages
            return Failure(type(error).__name__, os.path.basename(files[-1]) if files else "", message)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress prints, progress bars, log lines and warnings."""
    disabled = logging.root.manager.disable
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """Hide packages as if they were not installed, and import ART's list of exports again without them."""
    name, parent = "art.attacks.evasion", importlib.import_module("art.attacks")
    installed = [module for module in sys.modules if module.split(".")[0] in packages]
    removed = {module: sys.modules.pop(module) for module in (name, *installed)}
    sys.modules.update(dict.fromkeys(packages))  # type: ignore[arg-type]  # None makes the import fail
    try:
        yield
    finally:
        for package in packages:
            del sys.modules[package]
        sys.modules.update(removed)
        parent.evasion = removed[name]  # type: ignore[attr-defined]


def conditions() -> list[tuple[Case, bool]]:
    """Return every case with whether its packages are hidden; cases with optional packages occur with both values."""
    return [(case, hide) for case in CASES for hide in ((True, False) if case.packages else (False,))]


def lacking(case: Case, *, hide: bool) -> list[str]:
    """Return the packages that a row needs and that are not installed, by their names for pip."""
    names = {"cv2": "opencv-python-headless"}
    packages = [] if hide else [names.get(p, p) for p in case.packages if find_spec(p) is None]
    old = case.numpy is not None and Version(np.__version__) < Version(case.numpy)
    return [*packages, *([f"numpy>={case.numpy}"] if old else [])]


def inapplicable() -> list[Finding]:
    """Return the rows of classes that are not applicable, with the requirements that ART declares, if any."""
    rows = []
    for name, purpose in ((name, purpose) for purpose, names in INAPPLICABLE.items() for name in names):
        exported = getattr(trainers, name, None) or getattr(evasion, name)
        unmet = [r for r in getattr(exported, "_estimator_requirements", None) or () if not issubclass(HRClassifier, r)]
        kinds = (" or ".join(kind.__name__ for kind in (r if isinstance(r, tuple) else (r,))) for r in unmet)
        declared = "abstract" if inspect.isabstract(exported) else f"requires {', '.join(kinds)}" if unmet else ""
        rows.append(Finding(name, NOT_APPLICABLE, f"{purpose}: {declared}" if declared else purpose))
    return rows


def tables(findings: Iterable[Finding]) -> list[Table]:
    """Return the tables of attacks and trainers, each sorted by name and with the counts of its verdicts."""
    rows = sorted([*findings, *inapplicable()], key=lambda finding: finding.label.split(" ")[0])
    both = []
    for title, trains in (("evasion attacks", False), ("trainers", True)):
        part = [row for row in rows if hasattr(trainers, row.label.split(" ")[0]) == trains]
        counts = Counter(row.verdict for row in part)
        counted = "; ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
        both.append(Table(f"ART's {title} with the HR loss", HEADER, tuple(part), (f"Rows: {counted}.",)))
    return both


def markdown(findings: Iterable[Finding]) -> str:
    """Return the published page."""
    packages = {"ART": "adversarial-robustness-toolbox", "torch": "torch", "NumPy": "numpy"}
    versions = ", ".join(f"{shown} {metadata.version(package)}" for shown, package in packages.items())
    body = "\n".join(table.markdown() for table in tables(findings))
    made = f"Made by `{COMMAND}` with {versions}."
    return "\n\n".join(["# Compatibility of ART's attacks and trainers with the HR loss", *HOW, made, body])
