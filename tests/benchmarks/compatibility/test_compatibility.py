"""Compatibility table: the published rows agree with the cases, and the cases include all exports of ART."""

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
from benchmarks.compatibility.cases import Case, ObservedHRClassifier, Outcome, Subject, Victim, make_subject
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
    """Return the rows of the published page, by their first cell."""
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
def no_files_in_arts_data_folder() -> Iterator[None]:
    """Check that no test writes into ART's data folder, into which ART's classifiers save themselves when copied."""
    folder = Path(art.config.ART_DATA_PATH)
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


def exported() -> set[str]:
    return {name for module in (evasion, trainers) for name, value in vars(module).items() if inspect.isclass(value)}


def effect(cell: str) -> int:
    """Return the sign of the change in the number of correctly classified images."""
    if not cell:
        return 0
    before, after = map(int, cell.split(" → "))
    return int(np.sign(after - before))


# --------------------------------------------------------------------------------------------------- the published page


def test_there_is_a_row_for_every_attack_and_trainer_of_art() -> None:
    """ART exports BrendelBethgeAttack only if numba is installed."""
    rows = {name.split(" ")[0] for name in ROWS}
    assert exported() - rows == set()
    assert rows - exported() == (set() if find_spec("numba") else {"BrendelBethgeAttack"})


def test_there_is_a_row_for_every_case() -> None:
    labels = [label(case, hide=hide) for case, hide in CONDITIONS] + list(INAPPLICABLE)
    assert len(labels) == len(set(labels))
    assert set(ROWS) == set(labels)


@pytest.mark.parametrize(
    ("case", "hide"), [pytest.param(case, hide, id=label(case, hide=hide)) for case, hide in CONDITIONS]
)
def test_the_published_row_agrees_with_a_new_run_of_its_case(
    subject: Subject, case: Case, hide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verdicts and effects are compared; numbers, which rounding may change, and error messages are not."""
    if missing := findings.lacking(case, hide=hide):
        pytest.skip(f"needs {', '.join(missing)}")
    row = ROWS[label(case, hide=hide)]
    if isinstance(case, TrainerCase) and row.effect:
        trained = attempt(case, subject, HR)
        assert isinstance(trained, Outcome)
        assert trained.after > trained.before
        monkeypatch.setattr(
            trainer_cases, "TRAINING_IMAGES", 64
        )  # two steps per epoch are enough to detect what drives them
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
def test_published_row_of_a_class_that_is_not_applicable(finding: Finding) -> None:
    assert ROWS[finding.label] == finding
    # If ART declares no requirement, the name or the purpose names the framework or the task.
    assert ": " in finding.by or re.search("TensorFlow|YOLO", finding.by)


def test_every_working_case_has_an_effect() -> None:
    """An attack lowers the number of correctly classified images, a trainer raises it."""
    named = {name for name, value in vars(trainers).items() if inspect.isclass(value)}
    for row in ROWS.values():
        if row.effect:
            assert effect(row.effect) == (1 if row.label.split(" ")[0] in named else -1), row.label


def test_the_published_page_is_rendered_from_its_rows() -> None:
    """Headers, counts and explanations agree with the code; the versions are those of the published run."""

    def without_versions(page: str) -> str:
        return re.sub(r" with ART \S+, torch \S+, NumPy \S+\.\n", "", page)

    rows = [row for row in ROWS.values() if row.label not in INAPPLICABLE]
    assert without_versions(findings.markdown(rows)) == without_versions(PUBLISHED.read_text())


# --------------------------------------------------------------------------------------------- how a verdict is reached


@dataclass(frozen=True)
class Scripted(Case):
    """Case that calls a given function."""

    script: Any = None

    def perform(self, subject: Subject, victim: Victim) -> Outcome:
        return self.script(victim)


def outcome(value: float, *calls: str) -> Outcome:
    return Outcome(np.array([value], dtype=np.float32), 2, 1, frozenset(calls))


def test_a_failure_that_does_not_occur_with_cross_entropy_is_attributed_to_hr(subject: Subject) -> None:
    def fails_with_hr(victim: Victim) -> Outcome:
        if isinstance(victim.loss, findings.HRLoss):
            raise ValueError("no")
        return outcome(1.0)

    assert find(Scripted("X", script=fails_with_hr), subject).verdict == FAILS_WITH_HR


def test_an_attack_that_calls_for_gradients_without_effect_is_an_error(subject: Subject) -> None:
    def without_effect(attack: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        attack.generate(images, y=labels)
        return images

    case = replace(FGM, generate=without_effect)
    with pytest.raises(ValueError, match=r"FastGradientMethod.*loss_gradient"):
        find(case, subject)


def test_a_random_attack_that_calls_for_gradients_is_an_error(subject: Subject) -> None:
    def script(victim: Victim) -> Outcome:
        return outcome(float(np.random.default_rng().random()), "loss_gradient")

    with pytest.raises(ValueError, match="expected X "):
        find(Scripted("X", script=script), subject)


def test_an_attack_with_its_own_objective_must_differentiate_the_network(subject: Subject) -> None:
    case = AttackCase("SquareAttack", {"eps": 0.3, "max_iter": 2, "verbose": False}, objective="cross-entropy")
    with pytest.raises(ValueError, match="expected SquareAttack "):
        find(case, subject)


def test_only_calls_from_outside_the_classifier_are_recorded(
    subject: Subject, hr_classifier: Any, network: torch.nn.Module
) -> None:
    x, y = subject.x_test[:4], subject.y_test[:4]
    classifier = ObservedHRClassifier(
        network, HR.loss, (1, 8, 8), 10, optimizer=torch.optim.Adam(network.parameters()), clip_values=(0.0, 1.0)
    )
    classifier.fit(x, y, nb_epochs=1)
    assert classifier.calls == {"fit"}
    network(torch.from_numpy(x))
    assert classifier.calls == {"fit", "the network"}
    network(torch.from_numpy(x).requires_grad_())
    classifier.loss_gradient(x, y)
    assert classifier.calls == {"fit", "the network", "gradients of the network", "loss_gradient"}


def test_an_attempt_prints_nothing_and_changes_no_global_state(
    subject: Subject, capfd: pytest.CaptureFixture[str]
) -> None:
    """There is no output, and the states of the random generators and the network's weights are unchanged."""

    def loud(victim: Victim) -> Outcome:
        print("output")
        print("error", file=sys.stderr)
        logging.getLogger("art").critical("log")
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


def test_a_hidden_package_can_be_imported_again_afterwards() -> None:
    before = (sys.modules["packaging"], sys.modules["art.attacks.evasion"], set(sys.modules))
    with hidden("packaging"), pytest.raises(ModuleNotFoundError):
        __import__("packaging.version")
    assert (sys.modules["packaging"], sys.modules["art.attacks.evasion"], set(sys.modules)) == before
    assert sys.modules["art.attacks"].evasion is evasion


def test_a_failure_names_the_file_of_art_that_raised_it(subject: Subject) -> None:
    case = AttackCase("FastGradientMethod", {"eps": -1.0})
    failure = attempt(case, subject, HR)
    assert str(failure).startswith("ValueError in fast_gradient.py: ")
    assert os.sep not in str(failure)
