"""Comparison with AutoAttack on real digits: counts, sets of images, verification, resuming and tables."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import nn

from art_hrloss import HRClassifier
from benchmarks.autoattack import networks, results
from benchmarks.autoattack.measuring import (
    AUTOATTACK,
    WORST_CASE,
    Cost,
    Evaluation,
    Measured,
    Meter,
    Passes,
    fingerprint,
    measure,
)
from benchmarks.autoattack.networks import Case, chosen
from benchmarks.autoattack.running import run
from benchmarks.cli import main
from benchmarks.cli._autoattack import AutoAttack
from benchmarks.config import ConfigError, RunSpec
from benchmarks.protocols import CE
from benchmarks.recipes import DIGITS_ADAM
from benchmarks.store import Store, StoreError

BRIEF = Evaluation(WORST_CASE, max_iter=5, square_iter=10)


def needs_autoattack() -> None:
    pytest.importorskip("pyautoattack")


@pytest.fixture
def linear(digits):
    """Return a fast linear classifier of the digits, and 3 images that it classifies correctly, with labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    images, labels = torch.tensor(digits.x_train), torch.tensor(digits.y_train)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    network = networks.Around(network).eval().requires_grad_(False)
    options = {"input_shape": (1, 8, 8), "nb_classes": 10, "clip_values": (0.0, 1.0), "device_type": "cpu"}
    x, y = torch.tensor(digits.x_test), torch.tensor(digits.y_test)
    right = (network(x).argmax(1) == y).nonzero().squeeze(1)[:3]
    return HRClassifier(network, nn.CrossEntropyLoss(), **options), x[right], y[right]


def test_a_meter_counts_the_images_of_forward_and_backward_passes(network):
    meter = Meter(Passes(network))

    def attack(x):
        with torch.no_grad():
            network(x)
        x = x.clone().requires_grad_()
        for _ in range(2):
            torch.autograd.grad(network(x).sum(), x)
        return x

    images = torch.zeros(5, 1, 8, 8)
    meter.metered("one", attack)(images)
    meter.metered("one", attack)(images[:2])
    cost = meter.costs["one"]
    assert (cost.forward, cost.backward, cost.passes, meter.attacked["one"]) == (21, 14, 35, 7)
    assert cost.seconds > 0


@pytest.mark.slow  # version `standard` has no smaller setting: its Square attack makes 5000 sequential queries
def test_passes_of_autoattack_are_those_of_its_algorithms(linear):
    """The eps is so small that no attack succeeds, so the number of passes is known."""
    needs_autoattack()
    measured = measure(Evaluation(AUTOATTACK), *linear, eps=1e-5)
    assert measured.robust.all()
    assert measured.rejected == 0
    # Each attack predicts first. A run of Auto-PGD is a start and 100 steps; one of FAB-T, on each of 9 targets, two
    # predictions, 100 steps of a gradient and a prediction, and a prediction; Square 5000 queries, a start and the end.
    expected = {
        "APGD-CE": (1 + 101, 101),
        "APGD-T": (1 + 9 * (1 + 101), 9 * 101),
        "FAB-T": (1 + 9 * (2 + 2 * 100 + 1), 9 * 100),
        "Square": (5000 + 3, 0),
    }
    counts = {stage.name: (stage.cost.forward / 3, stage.cost.backward / 3) for stage in measured.stages}
    assert counts == expected
    # Further passes: five predictions that must agree, two checks, clean accuracy, and the verification of each attack.
    assert measured.cost.forward == 3 * (sum(forward for forward, _ in expected.values()) + 8 + 4)
    assert [stage.attacked for stage in measured.stages] == [3, 3, 3, 3]


def test_passes_of_the_worst_case_are_those_of_its_attacks_predictions_and_checks(linear):
    classifier, x, y = linear
    measured = measure(BRIEF, classifier, x, y, eps=1e-5)
    assert measured.robust.all()
    assert [stage.attacked for stage in measured.stages] == [3] * len(measured.stages)
    inside = sum(stage.cost.forward for stage in measured.stages)
    square = next(stage for stage in measured.stages if stage.name == "Square")
    assert square.cost.backward == 0
    assert 0 < square.cost.forward <= 3 * (10 + 3)
    assert sum(stage.cost.backward for stage in measured.stages) == measured.cost.backward > 0
    # Further predictions: of the images of each attack, and of all images at the start, at least twice.
    assert measured.cost.forward >= inside + 3 * len(measured.stages) + 2 * 3


@pytest.mark.parametrize("method", [AUTOATTACK, WORST_CASE])
def test_both_evaluations_misclassify_all_images_at_a_large_eps(linear, method):
    needs_autoattack()
    classifier, x, y = linear
    wrong = (y + 1) % 10
    measured = measure(Evaluation(method, 5, 10), classifier, x, torch.cat([y[:2], wrong[2:]]), eps=0.5)
    np.testing.assert_array_equal(measured.correct, [True, True, False])
    assert not measured.robust.any()
    assert measured.rejected == 0
    assert measured.stages[0].attacked == measured.stages[0].found == 2


def test_images_that_only_one_evaluation_misclassifies_are_counted():
    autoattack = np.array([True, True, False, False, False])
    worst = np.array([True, False, True, True, False])
    assert results.only_one(autoattack, worst) == (2, 1)
    assert results.only_one(autoattack, autoattack) == (0, 0)


def test_the_fingerprint_changes_with_network_settings_and_eps(linear):
    classifier, x, y = linear
    digests = {
        fingerprint(evaluation, classifier, x, y, eps, "1")
        for evaluation in (BRIEF, replace(BRIEF, square_iter=11), Evaluation(AUTOATTACK))
        for eps in (0.1, 0.2)
    }
    assert fingerprint(BRIEF, classifier, x, y, 0.1, "1") in digests
    classifier.model.network[1].bias[0] += 1
    digests.add(fingerprint(BRIEF, classifier, x, y, 0.1, "1"))
    assert len(digests) == 7


@pytest.fixture
def few() -> list[Case]:
    """Return two cases with brief training, at an eps at which the first attack misclassifies nearly all images."""
    training = RunSpec("digits", replace(DIGITS_ADAM, epochs=2), CE, 0)
    plain = Case("digits-ce", "CE", training, 0.5, 20)
    rounded = next(case for case in networks.cases() if case.name == "masked-scaled")
    return [plain, replace(rounded, run=training, eps=0.5, images=20)]


def test_a_run_resumes_and_adds_settings(few, tmp_path: Path):
    """Missing networks are trained, and finished results are reused."""
    needs_autoattack()
    store, folder, console = Store(tmp_path / "store"), tmp_path / "out", Console(record=True, width=200)

    def call(cases: list[Case], *evaluations: Evaluation) -> pd.DataFrame:
        assert run(cases, evaluations or [BRIEF], store, folder, console, data_dir=tmp_path, command="the command") == 0
        return pd.read_csv(folder / "autoattack.csv")

    def files() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (folder / "results").iterdir()}

    assert len(call(few[:1])) == 1
    first = files()
    values = call(few)
    assert list(values["case"]) == ["digits-ce", "masked-scaled"]
    assert len(first) == 2
    assert len(files()) == 4
    assert files().items() >= first.items()
    np.testing.assert_array_equal(values["worst case"], values["AutoAttack"])
    attacks = pd.read_csv(folder / "autoattack-attacks.csv")
    counts = attacks[attacks.evaluation.str.startswith(WORST_CASE)].groupby("case").found.sum()
    robust = values.set_index("case")
    np.testing.assert_allclose(counts, (20 * (robust["clean"] - robust["worst case"])).loc[counts.index], atol=1e-3)
    page = (folder / "autoattack.md").read_text()
    assert "the command" in page
    # A lost result is computed again, with the same values; no other result is.
    lost = next((folder / "results").glob("digits-ce*worst-case*"))
    before, content = files(), json.loads(lost.read_text())
    lost.unlink()
    call(few)
    assert {name for name, time in files().items() if before[name] != time} == {lost.name}
    again = json.loads(lost.read_text())
    assert again["measured"]["robust"] == content["measured"]["robust"]
    assert again["measured"]["cost"]["forward"] == content["measured"]["cost"]["forward"]
    # Other settings give another row, with the same result of AutoAttack.
    values = call(few[:1], replace(BRIEF, square_iter=0))
    assert list(values["case"]) == ["digits-ce", "digits-ce", "masked-scaled"]
    assert len(files()) == 5
    values = call(few[:1], BRIEF, replace(BRIEF, seed=1))  # AutoAttack also runs with this seed
    assert list(values["case"]) == ["digits-ce"] * 3 + ["masked-scaled"]
    assert len(files()) == 7
    lost.write_text("{}")
    with pytest.raises(StoreError, match=lost.name):
        call(few)


def pair(case: Case, autoattack: str, worst: str, passes: tuple[int, int]) -> results.Pair:
    """Return a pair of synthetic results, from the robust images and the numbers of passes."""

    def result(method: str, robust: str, forward: int) -> results.Result:
        flags = np.array([c == "1" for c in robust])
        measured = Measured(np.ones(len(flags), bool), flags, 0, Cost(forward), ())
        return results.Result(case.name, case.what, "digits", case.eps, Evaluation(method), "", measured)

    return results.Pair(result(AUTOATTACK, autoattack, passes[0]), result(WORST_CASE, worst, passes[1]))


def test_the_summary_counts_networks_images_and_passes(few):
    both = [pair(few[0], "1100", "1110", (100, 20)), pair(few[1], "1100", "0011", (100, 50))]
    rows = [one.row for one in both]
    assert [(row["found by AutoAttack only"], row["found by worst case only"]) for row in rows] == [(1, 0), (2, 2)]
    assert [row["passes ratio"] for row in rows] == [0.2, 0.5]
    (text,) = results.summary(both)
    assert "2 networks" in text
    assert "on 1 (digits, CE at eps 0.5)" in text
    assert re.search(r"a third\D*1 of 2", text)
    assert len(results.comparison(both).rows) == 2


# The networks


def test_networks_are_chosen_by_group_or_name():
    every = networks.cases()
    assert len({case.key for case in every}) == len(every)
    assert [case.name for case in chosen(["digits", "digits-hr"])] == ["digits-ce", "digits-hr", "digits-madry"]
    assert [(case.eps, case.images) for case in chosen(["masked-kwta"], [0.1, 0.2], 7)] == [(0.1, 7), (0.2, 7)]
    assert [case.key for case in chosen(networks.groups())] == [case.key for case in every]
    with pytest.raises(ConfigError, match=r"masked-kwt'.*masked-kwta"):
        chosen(["masked-kwt"])


def test_shattered_gradients_have_other_signs_and_nearly_the_same_predictions(network, digits):
    x = torch.tensor(digits.x_test[:100]).requires_grad_()
    masked = networks.masked.shattered(network)
    logits = [one(x) for one in (network, masked)]
    assert (logits[0].argmax(1) == logits[1].argmax(1)).float().mean() > 0.95
    plain, other = (torch.autograd.grad(one.logsumexp(1).sum(), x)[0].sign() for one in logits)
    assert 0.3 < (plain == other)[plain != 0].float().mean() < 0.7


def test_a_distilled_student_has_large_logits_and_is_accurate(network, digits):
    """The teacher of this test was trained without a temperature, so its logits are scaled."""
    images, labels = torch.tensor(digits.x_train[:600]), torch.tensor(digits.y_train[:600])
    teacher = networks.masked.scaled(network, 10.0)
    state = torch.get_rng_state()
    student = networks.masked.distilled(teacher, images, epochs=30, batch_size=50, lr=0.01)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert (student(images).argmax(1) == labels).float().mean() > 0.9
        assert student(images).abs().max() > 3 * network(images).abs().max()


# The command


def test_without_the_package_the_command_names_what_to_install(tmp_path: Path):
    code = (
        "import sys; sys.modules['pyautoattack'] = None; from benchmarks.cli import main; "
        f"sys.exit(main(['autoattack', '--store', {str(tmp_path / 'store')!r}, '--output', {str(tmp_path / 'out')!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300)
    assert ended.returncode == 2
    assert b"pip install pyautoattack" in ended.stderr
    assert b"Traceback" not in ended.stderr
    assert not any(tmp_path.iterdir())


def test_the_command_to_resume_repeats_the_options():
    assert AutoAttack().resuming == "python -m benchmarks autoattack"
    command = AutoAttack(networks=("digits", "mnist-hr"), store=Path("my store"), eps=(0.1, 0.2), max_iter=50)
    options = "--networks digits mnist-hr --store 'my store' --eps 0.1 0.2 --max-iter 50"
    assert command.resuming == f"python -m benchmarks autoattack {options}"
    assert command.command == command.resuming.replace(" --store 'my store'", "")


@pytest.mark.parametrize(
    ("options", "value"),
    [
        (["--networks", "minst"], "minst"),
        (["--images", "0"], "images"),
        (["--max-iter", "0"], "max_iter"),
        (["--square-iter", "-1"], "square_iter"),
        (["--seeds", "0"], "seeds"),
        (["--eps", "0.1", "2"], "2.0"),
    ],
)
def test_bad_options_are_refused(options, value, capsys, tmp_path: Path):
    assert main(["autoattack", "--output", str(tmp_path / "out"), *options]) == 2
    assert value in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
