"""From a case to its finding: run it with HRLoss and with another loss, and see whether the result is another."""

import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from art_hrloss import HRLoss, seeded
from benchmarks.compatibility.cases import AttackCase, Case, Outcome, Victim
from benchmarks.compatibility.subjects import Subject
from benchmarks.compatibility.watching import NETWORK, NETWORK_GRADIENTS

DRIVEN, NOT_DRIVEN = "driven by HR", "works, not driven by HR"
FAILS_IN_ART, FAILS_WITH_HR = "fails in ART", "fails with HR"
NOT_APPLICABLE = "not applicable"
VERDICTS = (DRIVEN, NOT_DRIVEN, FAILS_IN_ART, FAILS_WITH_HR, NOT_APPLICABLE)
ART_EXPORTS = "art.attacks.evasion"


class NegatedHRLoss(HRLoss):
    """The loss with the opposite gradients: whatever follows the loss goes the other way."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the negated HR loss."""
        loss: Tensor = super().forward(input, target)
        return -loss


HR = Victim(HRLoss(), HRLoss())
OTHER_ATTACK_LOSS = Victim(HRLoss(), NegatedHRLoss())
OTHER_LOSS = Victim(torch.nn.CrossEntropyLoss(), HRLoss())


@dataclass(frozen=True)
class Failure:
    """An exception: its type, ART's file that it came from, and what it says."""

    kind: str
    file: str
    message: str

    def __str__(self) -> str:
        where = f"{self.kind} in {self.file}" if self.file else self.kind
        return f"{where}: {self.message}"


@dataclass(frozen=True)
class Finding:
    """
    A row of the table.

    :param label: What ART exports, and which way of using it.
    :param verdict: One of the verdicts of this module.
    :param by: By what it is driven, or why it fails.
    :param effect: How many of the images are right before and after, or "".
    :param stock: How it is with HRLoss in ART's own PyTorchClassifier.
    :param note: What to know before using it.
    """

    label: str
    verdict: str
    by: str
    effect: str = ""
    stock: str = ""
    note: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        return self.label, self.verdict, self.by, self.effect, self.stock, self.note


def label(case: Case, *, hide: bool) -> str:
    """The first cell of a case's row: its name, its variant, and whether the packages it needs are there."""
    condition = [f"{'without' if hide else 'with'} {' and '.join(case.packages)}"] if case.packages else []
    details = ", ".join([*([case.variant] if case.variant else []), *condition])
    return f"{case.name} ({details})" if details else case.name


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


def _judged(case: Case, subject: Subject, ours: Outcome, *, repeats: bool) -> tuple[str, str]:
    """The verdict on a case that works, and by what it is driven."""
    asked = [name for name in ("loss_gradient", "compute_loss") if name in ours.calls]
    if not repeats:
        if ours.calls - {"predict", NETWORK}:
            raise ValueError(f"expected {case.name} to come out the same in every run, but it did not")
        return NOT_DRIVEN, _drive(case, ours)  # what never asks for the loss or a gradient cannot be driven by it
    of_attack = not _same(ours, attempt(case, subject, OTHER_ATTACK_LOSS))
    if isinstance(case, AttackCase):
        return (DRIVEN, ", ".join(asked)) if of_attack else (NOT_DRIVEN, _drive(case, ours))
    of_loss = not _same(ours, attempt(case, subject, OTHER_LOSS))
    parts = [*(["the loss"] if of_loss else []), *(["its attack: the attack loss"] if of_attack else [])]
    return DRIVEN if of_loss else NOT_DRIVEN, "; ".join(parts)


def _drive(case: Case, ours: Outcome) -> str:
    """What drives an attack that the loss does not drive, by what it asks of the classifier."""
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
    """How ART's own classifier does beside ours."""
    if stock is None:
        return ""
    if isinstance(stock, Failure):
        return "fails as well" if isinstance(ours, Failure) and ours.kind == stock.kind else f"fails: {stock}"
    if isinstance(ours, Failure):
        return "works"
    if ours.result.shape == stock.result.shape and np.allclose(ours.result, stock.result, rtol=0, atol=1e-4):
        return "the same"
    if not repeats:
        return "works as well"
    return f"works, otherwise: {stock.before} → {stock.after}"


def _same(one: Outcome, other: Outcome | Failure) -> bool:
    """Bit for bit; a failure is something else."""
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
    """No prints, progress bars, log lines or warnings."""
    disabled = logging.root.manager.disable
    with ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(redirect_stdout(null))
        stack.enter_context(redirect_stderr(null))
        stack.enter_context(warnings.catch_warnings())
        stack.callback(logging.disable, disabled)
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        yield


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """The packages cannot be imported, and ART's list of exports is made anew without them."""
    held: dict[str, Any] = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in packages}
    exports, parent = sys.modules.pop(ART_EXPORTS, None), importlib.import_module("art.attacks")
    for package in packages:
        sys.modules[package] = None  # type: ignore[assignment]  # Python's mark of a module that cannot be imported
    try:
        yield
    finally:
        for package in packages:
            del sys.modules[package]
        sys.modules.update(held)
        if exports is not None:
            sys.modules[ART_EXPORTS] = exports
            parent.evasion = exports  # type: ignore[attr-defined]
