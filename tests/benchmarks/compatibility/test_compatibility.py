"""The published compatibility table is what the cases say now, and the cases are all that ART exports."""

import inspect
import logging
import os
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import art.config
import numpy as np
import pytest
import torch
from art.attacks import evasion
from art.defences import trainer as trainers

from benchmarks.compatibility import findings
from benchmarks.compatibility import trainers as trainer_cases
from benchmarks.compatibility.attacks import ATTACKS, AttackCase
from benchmarks.compatibility.cases import Case, Outcome, Subject, Victim, WatchedHRClassifier, make_subject
from benchmarks.compatibility.findings import (
    FAILS_IN_ART,
    FAILS_WITH_HR,
    HEADER,
    HR,
    PUBLISHED,
    Finding,
    attempt,
    find,
    hidden,
    label,
)
from benchmarks.compatibility.trainers import TrainerCase


def published() -> dict[str, Finding]:
    """The rows of the published page, by their first cell."""
    rows = {}
    for line in PUBLISHED.read_text().splitlines():
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == len(HEADER) and tuple(cells) != HEADER and set(cells[0]) != {"-"}:
            rows[cells[0]] = Finding(*cells)
    return rows


ROWS = published()
CONDITIONS = findings.conditions()
INAPPLICABLE = {finding.label for finding in findings.inapplicable()}
FGM = next(case for case in ATTACKS if case.name == "FastGradientMethod")


@pytest.fixture(scope="module")
def subject(one_thread: None) -> Subject:
    return make_subject()


@pytest.fixture(scope="module", autouse=True)
def no_litter() -> Iterator[None]:
    """ART's classifiers save themselves into its data folder when they are copied; nothing here may do that."""
    folder = Path(art.config.ART_DATA_PATH)
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


def exported() -> set[str]:
    return {name for module in (evasion, trainers) for name, value in vars(module).items() if inspect.isclass(value)}


def effect(cell: str) -> int:
    """Whether the number of right images fell, rose or stayed."""
    if not cell:
        return 0
    before, after = map(int, cell.split(" → "))
    return int(np.sign(after - before))


# --------------------------------------------------------------------------------------------------- the published page


def test_rows_are_what_art_exports() -> None:
    """One attack is exported only where numba is installed."""
    rows = {name.split(" ")[0] for name in ROWS}
    assert exported() - rows == set()
    assert rows - exported() == (set() if find_spec("numba") else {"BrendelBethgeAttack"})


def test_rows_are_the_cases() -> None:
    labels = [label(case, hide=hide) for case, hide in CONDITIONS] + list(INAPPLICABLE)
    assert len(labels) == len(set(labels))
    assert set(ROWS) == set(labels)


@pytest.mark.parametrize(
    ("case", "hide"), [pytest.param(case, hide, id=label(case, hide=hide)) for case, hide in CONDITIONS]
)
def test_row_is_what_the_case_says_now(
    subject: Subject, case: Case, hide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the numbers, which rounding may change, nor the wording of a message; but whether there was an effect."""
    if missing := findings.lacking(case, hide=hide):
        pytest.skip(f"needs {', '.join(missing)}")
    row = ROWS[label(case, hide=hide)]
    if isinstance(case, TrainerCase) and row.effect:
        trained = attempt(case, subject, HR)
        assert isinstance(trained, Outcome)
        assert trained.after > trained.before
        monkeypatch.setattr(trainer_cases, "TRAINING_IMAGES", 64)  # two steps an epoch show what drives them
    now = find(case, subject, hide=hide)
    assert now.verdict == row.verdict
    if now.verdict == FAILS_IN_ART:
        assert now.by.split(": ")[0] == row.by.split(": ")[0]
    else:
        assert now.by == row.by
    assert isinstance(case, TrainerCase) or effect(now.effect) == effect(row.effect)
    assert now.stock.split(" ")[0].startswith("fails") == row.stock.startswith("fails")
    assert now.note == row.note


@pytest.mark.parametrize("finding", findings.inapplicable(), ids=lambda finding: finding.label)
def test_row_that_does_not_apply(finding: Finding) -> None:
    assert ROWS[finding.label] == finding
    # Where ART declares nothing, the name or the purpose says what it is for.
    assert ": " in finding.by or re.search("TensorFlow|YOLO", finding.by)


def test_what_works_does_something() -> None:
    """An attack lowers the number of right images, a trainer raises it."""
    named = {name for name, value in vars(trainers).items() if inspect.isclass(value)}
    for row in ROWS.values():
        if row.effect:
            assert effect(row.effect) == (1 if row.label.split(" ")[0] in named else -1), row.label


def test_page_is_rendered_from_its_rows() -> None:
    """Its heads, counts and explanations are those of the code; only the versions are those of its making."""

    def versions_out(page: str) -> str:
        return re.sub(r" with ART \S+, torch \S+, NumPy \S+\.\n", "", page)

    rows = [row for row in ROWS.values() if row.label not in INAPPLICABLE]
    assert versions_out(findings.markdown(rows)) == versions_out(PUBLISHED.read_text())


# --------------------------------------------------------------------------------------------- how a verdict is reached


@dataclass(frozen=True)
class Scripted(Case):
    """A case that does what it is told."""

    script: Any = None

    def perform(self, subject: Subject, victim: Victim) -> Outcome:
        return self.script(victim)


def outcome(value: float, *calls: str) -> Outcome:
    return Outcome(np.array([value], dtype=np.float32), 2, 1, frozenset(calls))


def test_failure_that_cross_entropy_does_not_share_is_that_of_hr(subject: Subject) -> None:
    def fails_with_hr(victim: Victim) -> Outcome:
        if isinstance(victim.loss, findings.HRLoss):
            raise ValueError("no")
        return outcome(1.0)

    assert find(Scripted("X", script=fails_with_hr), subject).verdict == FAILS_WITH_HR


def test_loss_that_is_asked_for_in_vain_is_no_verdict(subject: Subject) -> None:
    def without_effect(attack: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        attack.generate(images, y=labels)
        return images

    case = replace(FGM, generate=without_effect)
    with pytest.raises(ValueError, match="expected FastGradientMethod to ask for predictions alone"):
        find(case, subject)


def test_random_attack_that_asks_for_gradients_is_no_verdict(subject: Subject) -> None:
    def script(victim: Victim) -> Outcome:
        return outcome(float(np.random.default_rng().random()), "loss_gradient")

    with pytest.raises(ValueError, match="expected X to come out the same in every run"):
        find(Scripted("X", script=script), subject)


def test_objective_of_its_own_must_be_seen(subject: Subject) -> None:
    case = AttackCase("SquareAttack", {"eps": 0.3, "max_iter": 2, "verbose": False}, own="cross-entropy")
    with pytest.raises(ValueError, match="expected SquareAttack to differentiate the network itself"):
        find(case, subject)


def test_calls_are_those_from_outside(subject: Subject, hr_classifier: Any, network: torch.nn.Module) -> None:
    x, y = subject.x_test[:4], subject.y_test[:4]
    classifier = WatchedHRClassifier(
        network, HR.loss, (1, 8, 8), 10, optimizer=torch.optim.Adam(network.parameters()), clip_values=(0.0, 1.0)
    )
    classifier.fit(x, y, nb_epochs=1)
    assert classifier.calls == {"fit"}
    network(torch.from_numpy(x))
    assert classifier.calls == {"fit", "the network"}
    network(torch.from_numpy(x).requires_grad_())
    classifier.loss_gradient(x, y)
    assert classifier.calls == {"fit", "the network", "gradients of the network", "loss_gradient"}


def test_an_attempt_leaves_no_trace(subject: Subject, capfd: pytest.CaptureFixture[str]) -> None:
    """No print, warning or log line, the generators where they were, the network's weights as they were."""

    def loud(victim: Victim) -> Outcome:
        print("here")
        print("there", file=sys.stderr)
        logging.getLogger("art").critical("everywhere")
        return outcome(float(np.random.rand() + random.random() + torch.rand(()).item()))  # noqa: NPY002

    state = (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist())  # noqa: NPY002
    weights = [parameter.clone() for parameter in subject.trained.parameters()]
    first, second = (attempt(Scripted("X", script=loud), subject, HR) for _ in range(2))
    assert isinstance(first, Outcome)
    assert isinstance(second, Outcome)
    assert first.result == second.result
    attempt(FGM, subject, HR)
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET
    assert state == (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist())  # noqa: NPY002
    assert all(map(torch.equal, weights, subject.trained.parameters()))


def test_hidden_package_is_back_afterwards() -> None:
    before = (sys.modules["packaging"], sys.modules["art.attacks.evasion"], set(sys.modules))
    with hidden("packaging"), pytest.raises(ModuleNotFoundError):
        __import__("packaging.version")
    assert (sys.modules["packaging"], sys.modules["art.attacks.evasion"], set(sys.modules)) == before
    assert sys.modules["art.attacks"].evasion is evasion


def test_failure_names_the_file_of_art(subject: Subject) -> None:
    case = AttackCase("FastGradientMethod", {"eps": -1.0})
    failure = attempt(case, subject, HR)
    assert str(failure).startswith("ValueError in fast_gradient.py: ")
    assert os.sep not in str(failure)
