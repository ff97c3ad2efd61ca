"""What `speed` measures is what it says: no timing is asserted, but everything around them is."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import art.attacks.evasion
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from art_hrloss import HRClassifier, HRLoss, seeded
from benchmarks.__main__ import main
from benchmarks.speed import attacks, growth_figure, losses, parts
from benchmarks.speed.cases import SECONDS, Case, Findings, Part, Reading, Settings, find, frame, one, shown
from benchmarks.speed.libraries import FOOLBOX, MISSING, TORCHATTACKS, library_attack
from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.subjects import AttackKind, Subject, subjects
from benchmarks.speed.timing import Spread, interleaved, ratio, spread

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------- times and statistics


def test_spread_is_median_and_quartiles() -> None:
    """Of four values the quartiles lie a quarter from the second and from the third."""
    assert spread([4.0, 1.0, 3.0, 2.0]) == Spread(2.5, 1.75, 3.25, 4)
    assert str(spread([4.0, 1.0, 3.0, 2.0])) == "2.5 [1.75, 3.25]"
    assert str(spread([2.0])) == "2"


def test_ratio_is_taken_within_each_round() -> None:
    """The ratios are 2, 3 and 1; that of the medians would be 4 / 3."""
    assert ratio({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 4.0]}, "a", "b") == Spread(2.0, 1.5, 2.5, 3)


def calls_of(rounds: int, seconds: float, least: int = 3) -> list[tuple[str, int]]:
    made: list[tuple[str, int]] = []
    calls = {name: (lambda i, name=name: made.append((name, i))) for name in "abc"}
    times = interleaved(calls, device=CPU, rounds=rounds, seconds=seconds, least=least, warm=False)
    assert {len(taken) for taken in times.values()} == {len(made) // 3}
    assert all(value >= 0 for taken in times.values() for value in taken)
    return made


def test_contenders_take_turns_and_another_is_first_in_each_round() -> None:
    made = calls_of(rounds=4, seconds=60)
    assert [name for name, _ in made] == [*"abc", *"bca", *"cab", *"abc"]
    assert [i for _, i in made] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_rounds_end_with_the_time_but_there_are_some() -> None:
    assert len(calls_of(rounds=50, seconds=0)) == 3 * 3
    assert len(calls_of(rounds=2, seconds=0)) == 3 * 2


def test_quick_calls_are_repeated_until_they_fill_a_sample() -> None:
    """A call of no length is called often in the single round, and its last result is told."""
    made, told = [], []
    interleaved(
        {"a": lambda i: made.append(i) or len(made)},
        device=CPU,
        rounds=1,
        seconds=60,
        sample=0.001,
        observe=lambda *seen: told.append(seen),
    )
    assert len(made) > 10
    assert told == [("a", 0, len(made))]


# --------------------------------------------------------------------------------------------------------------- memory


# What Python allocates for a call of the loss: objects, not data.
OBJECTS = 20_000


@pytest.mark.parametrize(
    "empty", [partial(torch.empty, dtype=torch.uint8), partial(np.empty, dtype=np.uint8)], ids=["torch", "NumPy"]
)
def test_peak_of_a_known_pattern(empty: Callable[[int], Any]) -> None:
    """1 MB, and 2 MB that are gone when half a MB comes: 3 MB."""

    def pattern() -> list[Any]:
        first = empty(1_000_000)
        second = empty(2_000_000)
        del second
        return [first, empty(500_000)]

    for _ in range(2):
        assert 3_000_000 <= peak_bytes(pattern, CPU) <= 3_000_000 + OBJECTS
    assert 0 <= peak_bytes(lambda: None, CPU) <= OBJECTS


def test_release_of_what_is_older_does_not_count() -> None:
    older = [torch.empty(5_000_000, dtype=torch.uint8)]

    def pattern() -> torch.Tensor:
        older.clear()
        return torch.empty(1_000_000, dtype=torch.uint8)

    assert 1_000_000 <= peak_bytes(pattern, CPU) <= 1_000_000 + OBJECTS


def peak_of(loss: losses.Loss, size: tuple[int, int]) -> float:
    """In units of the logits."""
    logits, target = losses.example(size, CPU)
    call = losses.step(loss, logits, target)
    call()
    return peak_bytes(call, CPU) / (4 * logits.numel())


def test_loss_of_a_large_batch_takes_hardly_more_than_the_gradient() -> None:
    assert 1 <= peak_of(HRLoss(), (4096, 4000)) <= 1.2


@pytest.mark.parametrize("size", [(4096, 10), (256, 400)])
def test_loss_of_a_small_batch_takes_about_what_cross_entropy_does(size: tuple[int, int]) -> None:
    assert 2 <= peak_of(HRLoss(), size) <= 1.1 * peak_of(nn.CrossEntropyLoss(), size)


# --------------------------------------------------------------------------------------------- what is measured against


@pytest.mark.parametrize("size", [(7, 3), (128, 10), (20, 1000)])
def test_plain_composition_is_the_hr_loss(size: tuple[int, int]) -> None:
    logits, target = losses.example(size, CPU)
    plain, own = losses.plain_hr(logits, target), HRLoss()(logits, target)
    torch.testing.assert_close(plain, own, rtol=1e-6, atol=1e-6)
    by_plain, by_own = (torch.autograd.grad(value, logits)[0] for value in (plain, own))
    torch.testing.assert_close(by_plain, by_own, rtol=1e-4, atol=1e-7)


@pytest.fixture
def subject(network: nn.Module, digits: Any) -> Subject:
    """The trained network and 60 digits, not all of which it has right."""
    return Subject("digits", network, digits.x_test[:60], digits.y_test[:60], 10, 0.1, 0.02, 60)


LOSSES: dict[str, Callable[..., nn.Module]] = {"CE": nn.CrossEntropyLoss, "HR": HRLoss}
KINDS = [
    AttackKind("FGM", 1),
    AttackKind("PGD", 10),
    *(AttackKind("AutoPGD", steps) for steps in (1, 10)),
]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_loops_by_hand_make_the_images_of_art(subject: Subject, kind: AttackKind, name: str) -> None:
    classifier = HRClassifier(subject.network, LOSSES[name](), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu")
    with seeded(0):
        attack = attacks.build(art.attacks.evasion, kind, classifier, subject)
        own = attacks.seeded(lambda x, y: attacks.generate(attack, x, y), subject, 3)
        by_hand = attacks.by_hand(kind, subject.network, subject, LOSSES[name](reduction="none"))
        np.testing.assert_allclose(attacks.seeded(by_hand, subject, 3), own, rtol=0, atol=1e-6)
    assert np.abs(own - subject.images).max() > 0.09


class Rippled(nn.Module):
    """A loss of many hills: most steps lead over the next one, and down."""

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        index = labels if labels.ndim == 1 else labels.argmax(1)
        return 2 + torch.sin(20 * nn.functional.cross_entropy(logits, index, reduction="none"))


def test_auto_pgd_by_hand_goes_back_where_that_of_art_does(subject: Subject) -> None:
    """To the best point, which may be the start; with it goes the point before."""
    options = {"clip_values": (0.0, 1.0), "device_type": "cpu", "attack_loss": Rippled()}
    classifier = HRClassifier(subject.network, HRLoss(), (1, 8, 8), 10, **options)
    kind = AttackKind("AutoPGD", 30)
    with seeded(0):
        attack = attacks.build(art.attacks.evasion, kind, classifier, subject)
        own = attacks.seeded(lambda x, y: attacks.generate(attack, x, y), subject, 0)
        by_hand = attacks.by_hand(kind, subject.network, subject, Rippled())
        np.testing.assert_allclose(attacks.seeded(by_hand, subject, 0), own, rtol=0, atol=1e-6)


def test_differences_are_the_largest_and_the_share_above_a_millionth() -> None:
    def images(*values: float) -> np.ndarray:
        return np.array(values, dtype=np.float32).reshape(-1, 1, 1, 2)

    made = {
        (attacks.ART["CE"], 0): images(0.0, 0.5),
        (attacks.ART["CE"], 1): images(0.25, 1.0),
        ("Foolbox, CE", 0): images(0.0, 0.5 + 1e-5),
        ("Foolbox, CE", 1): images(0.75, 1.0),
        (attacks.ART["HR"], 0): images(0.0, 0.0),
        (attacks.OURS["HR"], 0): images(5e-7, 0.0),
    }
    values = {(r.contender, r.quantity): r.value.median for r in attacks.differences("c", made) if r.value}
    assert values == {
        ("Foolbox, CE", "largest difference"): 0.5,
        ("Foolbox, CE", "share of pixels apart"): 0.5,
        (attacks.OURS["HR"], "largest difference"): pytest.approx(5e-7),
        (attacks.OURS["HR"], "share of pixels apart"): 0.0,
    }


@pytest.mark.parametrize("library", [FOOLBOX, TORCHATTACKS])
def test_missing_library_says_so(library: str, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library.lower(), None)
    assert library_attack(library, AttackKind("PGD", 3), subject, subject.network) == MISSING
    readings = attacks.measure(AttackKind("FGM", 1), subject, CPU, Settings(Path(), quick=True))
    row = find(readings, "digits, FGM", f"{library}, CE", SECONDS)
    assert row is not None
    assert shown(row) == "not installed"
    (table,) = attacks.findings(readings).tables
    cells = next(cells for cells in table.rows if cells[1] == f"{library}, CE")
    assert cells[2:] == ("not installed", "-", "-", "-", "-")


@pytest.mark.parametrize("kind", [AttackKind("FGM", 1), AttackKind("PGD", 10)], ids=str)
@pytest.mark.parametrize("library", [FOOLBOX, TORCHATTACKS])
def test_libraries_make_the_same_images_without_a_random_start(
    library: str, kind: AttackKind, subject: Subject
) -> None:
    if find_spec(library.lower()) is None:
        pytest.skip(f"needs {library}")
    attack = library_attack(library, kind, subject, subject.network)
    assert not isinstance(attack, str)
    found = attack(torch.from_numpy(subject.images), torch.from_numpy(subject.labels))
    by_hand = attacks.by_hand(kind, subject.network, subject, nn.CrossEntropyLoss(reduction="none"))
    np.testing.assert_allclose(found.detach().numpy(), by_hand(subject.images, subject.labels), rtol=0, atol=1e-6)


def test_library_that_fails_says_so(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any) -> torch.Tensor:
        raise RuntimeError("no")

    monkeypatch.setattr(attacks, "library_attack", lambda *args: failing)
    found = attacks.contenders(AttackKind("FGM", 1), subject, CPU)
    assert found[f"{FOOLBOX}, CE"] == "fails: RuntimeError"


@pytest.mark.parametrize("workload", [*losses.HARD, *losses.OTHERS, *losses.QUICK], ids=str)
def test_losses_are_compared_with_the_same_options(workload: losses.Workload) -> None:
    """Both take the weight, the smoothing and the labels of the case; "plain" is the same loss as HR."""
    small = replace(workload, shape=(8, min(workload.shape[1], 20), *(3 for _ in workload.shape[2:])))
    logits, target = losses.example(small.shape, CPU, small.kind)
    values = {name: loss(logits, target) for name, loss in losses.eager(small).items()}
    ours, theirs = losses.eager(small)[losses.HR], losses.eager(small)[losses.CE]
    assert (ours.label_smoothing, ours.reduction) == (theirs.label_smoothing, "batch")
    assert (ours.weight is None) == (theirs.weight is None) == (workload.kind != "weights")
    assert target.is_floating_point() == (workload.kind == "soft")
    if losses.PLAIN in values:
        torch.testing.assert_close(values[losses.PLAIN], values[losses.HR], rtol=1e-5, atol=0)


def test_training_steps_begin_with_the_same_weights() -> None:
    network = losses.NETWORKS[0]
    first = [network.step(nn.CrossEntropyLoss(), CPU)() for _ in range(2)]
    assert torch.equal(*first)
    step = network.step(losses.plain_hr, CPU)
    torch.testing.assert_close(step(), network.step(HRLoss(losses.ALPHA), CPU)(), rtol=1e-5, atol=0)
    assert step() < network.step(losses.plain_hr, CPU)()  # it learns


# ------------------------------------------------------------------------------------------------- subjects and machine


def test_digits_stand_in_for_missing_data_and_the_table_says_so(tmp_path: Path) -> None:
    lenet, resnet = subjects(Settings(tmp_path))
    assert (lenet.name, resnet.name) == ("LeNet, digits", "ResNet-8, digits")
    assert lenet.note.startswith("Digits (8 x 8 pixels) stand in for mnist: ")
    assert lenet.images.shape == (256, 1, 8, 8)
    readings = attacks.measure(AttackKind("FGM", 1), replace(lenet, batch=16), CPU, Settings(tmp_path, quick=True))
    assert lenet.note in attacks.findings(readings).tables[0].notes


def test_images_that_are_right_come_first_and_gradients_are_not_saturated(tmp_path: Path) -> None:
    for subject in subjects(Settings(tmp_path)):
        x, y = torch.from_numpy(subject.images).requires_grad_(), torch.from_numpy(subject.labels)
        logits = subject.network(x)
        right = (logits.argmax(1) == y).int().tolist()
        assert right == sorted(right, reverse=True)
        assert sum(right) > 0.6 * len(right), subject.name
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), x)
        assert bool((gradient.abs().flatten(1).amax(1) > 1e-6).all()), subject.name


# --------------------------------------------------------------------------------------------------- tables and figures


def test_readings_are_kept_as_they_are() -> None:
    readings = [
        Reading("c", "a", SECONDS, Spread(2.0, 1.0, 3.0, 5), x=10.0),
        Reading("c", "b", SECONDS, None, note="not installed"),
        Reading("c", "a", "ratio", one(0.5), "b"),
    ]
    kept = frame(readings)
    assert kept.columns.tolist() == [
        "case", "x", "contender", "quantity", "against", "median", "lower", "upper", "n", "note"
    ]  # fmt: skip
    assert kept.loc[0, ["x", "median", "lower", "upper", "n"]].tolist() == [10.0, 2.0, 1.0, 3.0, 5]
    assert kept.loc[1, ["median", "n"]].isna().all()
    assert shown(find(readings, "c", "a", SECONDS), 1e3) == "2000 [1000, 3000]"
    assert shown(find(readings, "c", "a", "ratio", "b")) == "0.5"
    assert shown(find(readings, "c", "z", SECONDS)) == "-"


def test_growth_is_drawn_as_it_was_read() -> None:
    readings = [
        Reading(case, name, SECONDS, Spread(k * x / 1e3, k * x / 2e3, k * x / 1e3, 3), x=x)
        for case in ("classes", "steps")
        for k, name in enumerate(("CE, eager", "HR, eager"), start=1)
        for x in (10.0, 100.0)
    ]
    picture = growth_figure.growth_figure(readings)
    panels = picture.figure.axes
    assert [axes.get_xlabel() for axes in panels] == ["classes", "steps"]
    for axes in panels:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
        assert drawn == {"CE, eager": [[10, 10], [100, 100]], "HR, eager": [[10, 20], [100, 200]]}
    assert "classes: HR, eager, 20 ms at 10 to 200 ms at 100." in picture.alt


# ------------------------------------------------------------------------------------------------------------ all of it


PARTS = ("loss", "attacks", "growth", "training")


@pytest.mark.slow
def test_quick_run_writes_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.compiler.set_stance("force_eager"):  # compiling takes longer than all the rest
        assert main(["speed", "--quick", "--output", str(tmp_path), "--data-dir", str(tmp_path)]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {f"{part}.{end}" for part in PARTS for end in ("md", "csv")} | {
        "growth.png",
        "growth.svg",
        "training-growth.png",
        "training-growth.svg",
    }
    for part in PARTS:
        page, readings = (tmp_path / f"{part}.md").read_text(), pd.read_csv(tmp_path / f"{part}.csv")
        assert f"Made by `python -m benchmarks speed --quick --output {tmp_path} " in page
        assert f"--part {part}`." in page
        assert "Machine: " in page
        assert (readings.query("quantity == 'seconds'")["median"].dropna() > 0).all()
        assert readings["case"].nunique() == {"loss": 6, "attacks": 6, "growth": 4, "training": 6}[part]
        for case in readings["case"].unique():
            assert f"| {case} |" in page
    attack_readings = pd.read_csv(tmp_path / "attacks.csv")
    assert set(attack_readings["contender"]) == set(attacks.ORDER)
    loops = attack_readings[attack_readings.contender.str.startswith(("loop", "art_hrloss"))]
    assert loops.query("quantity == 'largest difference'")["median"].max() <= 1e-6
    with Image.open(tmp_path / "growth.png") as image:
        assert image.size[0] > 1000
    assert "Written: " in capsys.readouterr().out


def test_interrupted_run_keeps_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> list[Reading]:
        raise KeyboardInterrupt

    def half(settings: Settings) -> list[Case]:
        return [Case("done", lambda: [Reading("c", "a", SECONDS, one(1.0))]), Case("not done", interrupt)]

    whole = Part("whole", 1, lambda settings: half(settings)[:1], lambda readings: Findings(()))
    console = Console(markup=False, highlight=False)
    status = parts.run(
        [whole, replace(whole, name="half", cases=half), replace(whole, name="never")],
        Settings(tmp_path, quick=True),
        tmp_path,
        console,
        command="python -m benchmarks speed --quick",
    )
    assert status == 130
    assert {path.name for path in tmp_path.iterdir()} == {"whole.md", "whole.csv"}
    assert pd.read_csv(tmp_path / "whole.csv")["median"].tolist() == [1.0]
    shown = capsys.readouterr().out
    assert f"Interrupted. Kept in {tmp_path}: whole. The rest:\n" in shown
    assert "  python -m benchmarks speed --quick --part half never\n" in shown


def test_an_unknown_part_and_no_seconds_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "--output", str(tmp_path), "--part", "losses"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in ("losses", *PARTS))
    assert main(["speed", "--output", str(tmp_path), "--seconds", "0"]) == 2
