"""From a case to its finding: does it follow the loss? And from all findings to the published page."""

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
HEADER = ("in ART", "verdict", "by what, or why", "right", "HRLoss in PyTorchClassifier", "note")
CASES: tuple[Case, ...] = (*ATTACKS, *TRAINERS)
TENSORFLOW = tuple(f"{x}TensorFlowV2" for x in ("AdversarialPatch", "FeatureAdversaries", "ProjectedGradientDescent"))
# What ART exports for other frameworks and tasks than PyTorch classifiers of images, and abstract bases, by what they
# are for; that HRClassifier is not what they ask for is found out by `inapplicable`, where ART says what that is.
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


class NegatedHRLoss(HRLoss):
    """The loss with the opposite gradients: whatever follows the loss goes the other way."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the negated HR loss."""
        loss: Tensor = super().forward(input, target)
        return -loss


HR = Victim(HRLoss(), HRLoss())
OTHER_ATTACK_LOSS = Victim(HRLoss(), NegatedHRLoss())
OTHER_LOSS = Victim(torch.nn.CrossEntropyLoss(), HRLoss())


class Failure(NamedTuple):
    """An exception: its type, ART's file that it came from, and its message."""

    kind: str
    file: str
    message: str

    def __str__(self) -> str:
        where = f"{self.kind} in {self.file}" if self.file else self.kind
        return f"{where}: {self.message}"


class Finding(NamedTuple):
    """A row of the table; see HEADER."""

    label: str
    """What ART exports, and which way of using it."""
    verdict: str
    """One of VERDICTS."""
    by: str
    """By what it is driven, or why it fails."""
    effect: str = ""
    """How many of the images are right before and after, or ""."""
    stock: str = ""
    """How it is with HRLoss in ART's own PyTorchClassifier."""
    note: str = ""
    """What to know before using it."""


def find(case: Case, subject: Subject, *, hide: bool = False) -> Finding:
    """
    Run a case as often as it takes to tell by what it is driven.

    :param case: An attack or a trainer.
    :param subject: What it acts on; left as it is.
    :param hide: Whether the packages that the case needs are made to look absent, be they installed or not.
    :return: The row of the table, the same in every call.
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
    """Return the first cell of a case's row: its name, its variant, and whether the packages it needs are there."""
    condition = f"{'without' if hide else 'with'} {' and '.join(case.packages)}" if case.packages else ""
    details = ", ".join(filter(None, (case.variant, condition)))
    return f"{case.name} ({details})" if details else case.name


def _judged(case: Case, subject: Subject, ours: Outcome, *, repeats: bool) -> tuple[str, str]:
    """Return the verdict on a case that works, and by what it is driven."""
    if not repeats:
        if ours.calls - {"predict", NETWORK}:
            raise ValueError(f"expected {case.name} to come out the same in every run, but it did not")
        return NOT_DRIVEN, _drive(case, ours)  # what never asks for the loss or a gradient cannot be driven by it
    of_attack = not _same(ours, attempt(case, subject, OTHER_ATTACK_LOSS))
    if isinstance(case, TrainerCase):
        of_loss = not _same(ours, attempt(case, subject, OTHER_LOSS))
        parts = [*(["the loss"] if of_loss else []), *(["its attack: the attack loss"] if of_attack else [])]
        return DRIVEN if of_loss else NOT_DRIVEN, "; ".join(parts)
    asked = [name for name in ("loss_gradient", "compute_loss") if name in ours.calls]
    return (DRIVEN, ", ".join(asked)) if of_attack else (NOT_DRIVEN, _drive(case, ours))


def _drive(case: Case, ours: Outcome) -> str:
    """Return what drives an attack that the loss does not drive, by what it asks of the classifier."""
    if case.own:
        if NETWORK_GRADIENTS not in ours.calls:
            raise ValueError(f"expected {case.name} to differentiate the network itself, but got {sorted(ours.calls)}")
        return f"its own objective: {case.own}"
    for call, words in (("class_gradient", "class gradients"), ("get_activations", "features of a layer")):
        if call in ours.calls:
            return words
    if not ours.calls <= {"predict", NETWORK}:
        raise ValueError(f"expected {case.name} to ask for predictions alone, but got {sorted(ours.calls)}")
    return "predictions only"


def _compared(ours: Outcome | Failure, stock: Outcome | Failure | None, *, repeats: bool) -> str:
    """Return how ART's own classifier does beside ours."""
    if stock is None:
        return ""
    if isinstance(stock, Failure):
        return "fails as well" if isinstance(ours, Failure) and ours.kind == stock.kind else f"fails: {stock}"
    if isinstance(ours, Failure):
        return "works"
    if ours.result.shape == stock.result.shape and np.allclose(ours.result, stock.result, rtol=0, atol=1e-4):
        return "the same"
    return f"works, otherwise: {stock.before} → {stock.after}" if repeats else "works as well"


def _same(one: Outcome, other: Outcome | Failure) -> bool:
    """Compare bit for bit; a failure is something else."""
    return isinstance(other, Outcome) and np.array_equal(one.result, other.result, equal_nan=True)


def attempt(case: Case, subject: Subject, victim: Victim) -> Outcome | Failure:
    """Run a case once, from the same seeds, in silence."""
    with quiet(), seeded(0):
        try:
            return case.perform(subject, victim)
        except Exception as error:  # whatever goes wrong inside ART is what is to be found out
            frames = traceback.extract_tb(error.__traceback__)
            files = [frame.filename for frame in frames if f"{os.sep}art{os.sep}" in frame.filename]
            message = str(error).strip().split("\n")[0]
            if isinstance(error, ModuleNotFoundError) and error.name:
                message = f"no module named {error.name.split('.')[0]!r}"  # the same whether it is hidden or absent
            return Failure(type(error).__name__, os.path.basename(files[-1]) if files else "", message)


@contextmanager
def quiet() -> Iterator[None]:
    """Let nothing print, show a progress bar, log or warn."""
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
    """Let the packages look absent, and ART's list of exports be made anew without them."""
    name, parent = "art.attacks.evasion", importlib.import_module("art.attacks")
    installed = [module for module in sys.modules if module.split(".")[0] in packages]
    held = {module: sys.modules.pop(module) for module in (name, *installed)}
    sys.modules.update(dict.fromkeys(packages))  # type: ignore[arg-type]  # None marks what cannot be imported
    try:
        yield
    finally:
        for package in packages:
            del sys.modules[package]
        sys.modules.update(held)
        parent.evasion = held[name]  # type: ignore[attr-defined]


def conditions() -> list[tuple[Case, bool]]:
    """Return every case and whether its packages are hidden: both where it needs some that ART does not install."""
    return [(case, hide) for case in CASES for hide in ((True, False) if case.packages else (False,))]


def lacking(case: Case, *, hide: bool) -> list[str]:
    """Return what is not installed here and is needed to find out the row, as pip would be asked for it."""
    names = {"cv2": "opencv-python-headless"}
    packages = [] if hide else [names.get(p, p) for p in case.packages if find_spec(p) is None]
    old = case.numpy is not None and Version(np.__version__) < Version(case.numpy)
    return [*packages, *([f"numpy>={case.numpy}"] if old else [])]


def inapplicable() -> list[Finding]:
    """Return the rows that nothing has to be run for: with what ART itself declares to ask for, if anything."""
    rows = []
    for name, purpose in ((name, purpose) for purpose, names in INAPPLICABLE.items() for name in names):
        exported = getattr(trainers, name, None) or getattr(evasion, name)
        unmet = [r for r in getattr(exported, "_estimator_requirements", None) or () if not issubclass(HRClassifier, r)]
        kinds = (" or ".join(kind.__name__ for kind in (r if isinstance(r, tuple) else (r,))) for r in unmet)
        declared = "abstract" if inspect.isabstract(exported) else f"asks for {', '.join(kinds)}" if unmet else ""
        rows.append(Finding(name, NOT_APPLICABLE, f"{purpose}: {declared}" if declared else purpose))
    return rows


def tables(findings: Iterable[Finding]) -> list[Table]:
    """Return attacks and trainers, each in the order of their names, with the counts of their verdicts."""
    rows = sorted([*findings, *inapplicable()], key=lambda finding: finding.label.split(" ")[0])
    found = []
    for title, trains in (("evasion attacks", False), ("trainers", True)):
        part = [row for row in rows if hasattr(trainers, row.label.split(" ")[0]) == trains]
        counts = Counter(row.verdict for row in part)
        counted = "; ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
        found.append(Table(f"ART's {title} with the HR loss", HEADER, tuple(part), (f"Rows: {counted}.",)))
    return found


def markdown(findings: Iterable[Finding]) -> str:
    """Return the published page."""
    packages = {"ART": "adversarial-robustness-toolbox", "torch": "torch", "NumPy": "numpy"}
    versions = ", ".join(f"{shown} {metadata.version(package)}" for shown, package in packages.items())
    body = "\n".join(table.markdown() for table in tables(findings))
    made = f"Made by `{COMMAND}` with {versions}."
    return "\n\n".join(["# Which of ART's attacks and trainers work with the HR loss", *HOW, made, body])
