"""The command `speed`: statistics, memory, reference attacks, tables and files; no timing is asserted."""

import re
import sys
from collections.abc import Callable
from contextlib import suppress
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
from benchmarks.speed import attacks, growth, losses, parts
from benchmarks.speed.measuring import (
    COLUMNS,
    RATIO,
    SECONDS,
    Settings,
    entry,
    frame,
    interleaved,
    peak_bytes,
    reading,
    tabulated,
    timed_readings,
)
from benchmarks.speed.parts import PARTS, Part
from benchmarks.speed.reference_attacks import FOOLBOX, LACKING, MISSING, TORCHATTACKS, library_attack
from benchmarks.speed.subjects import AttackKind, Subject, subjects

CPU = torch.device("cpu")
PUBLISHED = Path(__file__).parents[3] / "benchmarks/results/speed"
SEPARATORS = r"[\s,\[\]|]+"


# ------------------------------------------------------------------------------------------------- times and statistics


def test_readings_are_medians_and_quartiles() -> None:
    """The quartiles of 1, 2, 3 and 4 are 1.75 and 3.25, by linear interpolation."""
    read = frame(
        [reading("c", "a", SECONDS, [4.0, 1.0, 3.0, 2.0]), reading("c", "b", SECONDS, (), note="not installed")]
    )
    assert read.columns.tolist() == COLUMNS
    assert read.loc[0, ["median", "lower", "upper", "n"]].tolist() == [2.5, 1.75, 3.25, 4]
    assert read.loc[1, ["median", "n"]].isna().all()
    with pytest.raises(ValueError, match="c, a"):
        reading("c", "a", SECONDS, [1.0, float("nan")])


def test_ratio_is_taken_within_each_round() -> None:
    """The ratios of the rounds are 2, 3 and 1, with median 2; the ratio of the medians would be 4 / 3."""
    times = {"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 4.0]}
    *_, ratio = (r for r in timed_readings("c", times, {"a": ("b", "absent")}) if r["quantity"] == RATIO)
    assert (ratio["contender"], ratio["against"]) == ("a", "b")
    assert [ratio[part] for part in ("median", "lower", "upper", "n")] == [2.0, 1.5, 2.5, 3]


def calls_of(rounds: int, seconds: float, least: int = 3) -> list[tuple[str, int]]:
    """Return the contender and the round of every call."""
    calls_made: list[tuple[str, int]] = []
    calls = {name: (lambda i, name=name: calls_made.append((name, i))) for name in "abc"}
    times = interleaved(calls, Settings(Path(), seconds=2 * seconds), rounds=rounds, share=0.5, least=least, warm=False)
    assert {len(seconds) for seconds in times.values()} == {len(calls_made) // 3}
    assert all(value >= 0 for seconds in times.values() for value in seconds)
    return calls_made


def test_contenders_take_turns_and_another_is_first_in_each_round() -> None:
    calls = calls_of(rounds=4, seconds=60)
    assert [name for name, _ in calls] == [*"abc", *"bca", *"cab", *"abc"]
    assert [i for _, i in calls] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_no_round_starts_after_the_time_limit_except_the_first_three() -> None:
    assert len(calls_of(rounds=50, seconds=0)) == 3 * 3
    assert len(calls_of(rounds=2, seconds=0)) == 3 * 2


def test_fast_calls_are_repeated_until_they_fill_a_sample() -> None:
    """A call that takes almost no time is repeated often within a single round."""
    calls: list[int] = []
    interleaved({"a": calls.append}, Settings(Path()), rounds=1)
    assert len(calls) > 10


# --------------------------------------------------------------------------------------------------------------- memory


def test_peak_memory_of_a_known_sequence_of_allocations() -> None:
    """1 MB and 2 MB; half a MB comes after the release of 2 MB, so the peak is 3 MB."""

    def pattern() -> list[torch.Tensor]:
        first, second = (torch.empty(size, dtype=torch.uint8) for size in (1_000_000, 2_000_000))
        del second
        return [first, torch.empty(500_000, dtype=torch.uint8)]

    for _ in range(2):
        assert peak_bytes(pattern, CPU) == 3_000_000
    assert peak_bytes(lambda: None, CPU) == 0


def test_release_of_memory_allocated_before_the_call_is_ignored() -> None:
    older = [torch.empty(5_000_000, dtype=torch.uint8)]

    def pattern() -> torch.Tensor:
        older.clear()
        return torch.empty(1_000_000, dtype=torch.uint8)

    assert peak_bytes(pattern, CPU) == 1_000_000


def peak_of(loss: losses.Loss, size: tuple[int, int]) -> float:
    """Return the peak memory of a loss and its gradient, in units of the logits."""
    logits, target = losses.Workload(size).example(CPU)
    call = losses.step(loss, logits, target)
    call()
    return peak_bytes(call, CPU) / (4 * logits.numel())


def test_loss_of_a_large_batch_needs_little_more_memory_than_the_gradient() -> None:
    assert 1 <= peak_of(HRLoss(), (4096, 4000)) <= 1.2


@pytest.mark.parametrize("size", [(4096, 10), (256, 400)])
def test_loss_of_a_small_batch_needs_about_the_memory_of_cross_entropy(size: tuple[int, int]) -> None:
    assert 2 <= peak_of(HRLoss(), size) <= 1.1 * peak_of(nn.CrossEntropyLoss(), size)


# --------------------------------------------------------------------------------------------- what is measured against


@pytest.mark.parametrize("size", [(7, 3), (128, 10), (20, 1000)])
def test_plain_implementation_has_the_value_and_gradient_of_the_hr_loss(size: tuple[int, int]) -> None:
    logits, target = losses.Workload(size).example(CPU)
    plain, hr = losses.plain_hr(logits, target), HRLoss()(logits, target)
    torch.testing.assert_close(plain, hr, rtol=1e-6, atol=1e-6)
    plain_gradient, hr_gradient = (torch.autograd.grad(value, logits)[0] for value in (plain, hr))
    torch.testing.assert_close(plain_gradient, hr_gradient, rtol=1e-4, atol=1e-7)


@pytest.fixture
def subject(network: nn.Module, digits: Any) -> Subject:
    """Return the trained network and 60 digits, of which it misclassifies some."""
    return Subject("digits", network, digits.x_test[:60], digits.y_test[:60], 0.1, 0.02, 60)


LOSSES: dict[str, Callable[..., nn.Module]] = {"CE": nn.CrossEntropyLoss, "HR": HRLoss}
KINDS = [
    AttackKind("FGM", 1),
    AttackKind("PGD", 10),
    *(AttackKind("AutoPGD", steps) for steps in (1, 10)),
]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_reference_loops_give_the_same_images_as_art(subject: Subject, kind: AttackKind, name: str) -> None:
    classifier = HRClassifier(subject.network, LOSSES[name](), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu")
    with seeded(0):
        attack = attacks.build(art.attacks.evasion, kind, classifier, subject)
        of_art = attacks.seeded(attack, subject, 3)
        by_hand = attacks.by_hand(kind, subject.network, subject, LOSSES[name](reduction="none"))
        np.testing.assert_allclose(attacks.seeded(by_hand, subject, 3), of_art, rtol=0, atol=1e-6)
    assert np.abs(of_art - subject.images).max() > 0.09


class Rippled(nn.Module):
    """Loss with many local maxima, so that most steps of an attack decrease it."""

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        index = labels if labels.ndim == 1 else labels.argmax(1)
        return 2 + torch.sin(20 * nn.functional.cross_entropy(logits, index, reduction="none"))


def test_reference_auto_pgd_restarts_from_the_best_iterate_as_art_does(subject: Subject) -> None:
    """The best iterate may be the start; the momentum then uses the iterate before it."""
    options = {"clip_values": (0.0, 1.0), "device_type": "cpu", "attack_loss": Rippled()}
    classifier = HRClassifier(subject.network, HRLoss(), (1, 8, 8), 10, **options)
    kind = AttackKind("AutoPGD", 30)
    with seeded(0):
        attack = attacks.build(art.attacks.evasion, kind, classifier, subject)
        of_art = attacks.seeded(attack, subject, 0)
        by_hand = attacks.by_hand(kind, subject.network, subject, Rippled())
        np.testing.assert_allclose(attacks.seeded(by_hand, subject, 0), of_art, rtol=0, atol=1e-6)


def test_differences_are_the_largest_and_the_share_above_a_millionth() -> None:
    def images(*values: float) -> np.ndarray:
        return np.array(values, dtype=np.float32).reshape(-1, 1, 1, 2)

    adversarial = {
        (attacks.ART["CE"], 0): images(0.0, 0.5),
        (attacks.ART["CE"], 1): images(0.25, 1.0),
        ("Foolbox, CE", 0): images(0.0, 0.5 + 1e-5),
        ("Foolbox, CE", 1): images(0.75, 1.0),
        (attacks.ART["HR"], 0): images(0.0, 0.0),
        (attacks.OURS["HR"], 0): images(5e-7, 0.0),
    }
    values = {(r["contender"], r["quantity"]): r["median"] for r in attacks.differences("c", adversarial)}
    assert values == {
        ("Foolbox, CE", "largest difference"): 0.5,
        ("Foolbox, CE", "share of pixels apart"): 0.5,
        (attacks.OURS["HR"], "largest difference"): pytest.approx(5e-7),
        (attacks.OURS["HR"], "share of pixels apart"): 0.0,
    }


@pytest.mark.parametrize("library", [FOOLBOX, TORCHATTACKS])
def test_missing_library_is_reported_in_the_table(
    library: str, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library.lower(), None)
    assert library_attack(library, AttackKind("PGD", 3), subject, subject.network) == MISSING
    readings = attacks.measure(AttackKind("FGM", 1), subject, Settings(Path(), quick=True))
    (table,) = attacks.tables(frame(readings))
    cells = next(cells for cells in table.rows if cells[1] == f"{library}, CE")
    assert cells[2:] == (MISSING, "-", "-", "-", "-")


@pytest.mark.parametrize("kind", [AttackKind("FGM", 1), AttackKind("PGD", 10)], ids=str)
@pytest.mark.parametrize("library", [FOOLBOX, TORCHATTACKS])
def test_libraries_make_the_same_images_without_a_random_start(
    library: str, kind: AttackKind, subject: Subject
) -> None:
    if find_spec(library.lower()) is None:
        pytest.skip(f"needs {library}")
    attack = library_attack(library, kind, subject, subject.network)
    assert not isinstance(attack, str)
    adversarial = attack(torch.from_numpy(subject.images), torch.from_numpy(subject.labels))
    by_hand = attacks.by_hand(kind, subject.network, subject, nn.CrossEntropyLoss(reduction="none"))
    if library == FOOLBOX:
        assert library_attack(library, AttackKind("AutoPGD", 3), subject, subject.network) == LACKING
    np.testing.assert_allclose(adversarial.detach().numpy(), by_hand(subject.images, subject.labels), rtol=0, atol=1e-6)


def test_library_that_raises_an_error_is_reported_with_its_type(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> torch.Tensor:
        raise RuntimeError("no")

    monkeypatch.setattr(attacks, "library_attack", lambda *args: failing)
    contenders = attacks.contenders(AttackKind("FGM", 1), subject, CPU)
    assert contenders[f"{FOOLBOX}, CE"] == "fails: RuntimeError"


@pytest.mark.parametrize("workload", [*losses.HARD, *losses.OTHERS], ids=str)
def test_losses_are_compared_with_the_same_options(workload: losses.Workload) -> None:
    """Both losses have the weight, the smoothing and the labels of the case; "plain" is the same loss as HR."""
    small = replace(workload, shape=(8, min(workload.shape[1], 20), *(3 for _ in workload.shape[2:])))
    logits, target = small.example(CPU)
    both = losses.eager(small, CPU)
    values, ours, theirs = {name: loss(logits, target) for name, loss in both.items()}, both[losses.HR], both[losses.CE]
    assert (ours.label_smoothing, ours.reduction) == (theirs.label_smoothing, "batch")
    assert (ours.weight is None) == (theirs.weight is None) == (workload.kind != "weights")
    assert target.is_floating_point() == (workload.kind == "soft")
    if losses.PLAIN in values:
        torch.testing.assert_close(values[losses.PLAIN], values[losses.HR], rtol=1e-5, atol=0)


def test_training_steps_begin_with_the_same_weights() -> None:
    step = partial(losses.training_step, "small CNN", device=CPU)
    assert torch.equal(step(nn.CrossEntropyLoss())(), step(nn.CrossEntropyLoss())())
    torch.testing.assert_close(step(losses.plain_hr)(), step(HRLoss(losses.ALPHA))(), rtol=1e-5, atol=0)
    twice = step(losses.plain_hr)
    assert twice() > twice()  # it learns


# ------------------------------------------------------------------------------------------------- subjects and machine


def test_digits_replace_missing_data_sets_with_a_note_under_the_table(tmp_path: Path) -> None:
    lenet, resnet = subjects(Settings(tmp_path))
    assert (lenet.name, resnet.name) == ("LeNet, digits", "ResNet-8, digits")
    assert "mnist" in lenet.note
    assert lenet.images.shape == (256, 1, 8, 8)
    readings = attacks.measure(AttackKind("FGM", 1), replace(lenet, batch=16), Settings(tmp_path, quick=True))
    assert lenet.note in attacks.tables(frame(readings))[0].notes


def test_correctly_classified_images_come_first_and_gradients_are_not_saturated(tmp_path: Path) -> None:
    for subject in subjects(Settings(tmp_path)):
        x, y = torch.from_numpy(subject.images).requires_grad_(), torch.from_numpy(subject.labels)
        logits = subject.network(x)
        right = (logits.argmax(1) == y).int().tolist()
        assert right == sorted(right, reverse=True)
        assert sum(right) > 0.6 * len(right), subject.name
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), x)
        assert bool((gradient.abs().flatten(1).amax(1) > 1e-6).all()), subject.name


# --------------------------------------------------------------------------------------------------- tables and figures


def test_entries_of_a_table() -> None:
    """Entries have three digits, other units, no quartiles for one value, and the reason for a missing value."""
    readings = [
        reading("c", "a", SECONDS, [1.0, 2.0, 3.0]),
        reading("c", "a", RATIO, [0.5], "b"),
        reading("c", "b", SECONDS, (), note="not installed"),
        reading("d", "a", SECONDS, [1234.5], note="remarked"),
    ]
    entries = {"ms": entry(SECONDS, factor=1e3), "/ b": entry(RATIO, "b"), "/ c": entry(RATIO, "c")}
    table = tabulated("t", frame(readings), ("case", "contender"), entries, ("noted",), order="ba")
    assert table.header == ("case", "contender", "ms", "/ b", "/ c")
    assert table.rows == (
        ("c", "b", "not installed", "-", "-"),
        ("", "a", "2000 [1500, 2500]", "0.5", "-"),
        ("d", "a", "1234500", "-", "-"),
    )
    assert table.notes[:2] == ("remarked", "noted")


def test_growth_figure_draws_the_readings() -> None:
    readings = [
        reading(case, name, SECONDS, [k * x / 1e3, k * x / 1e3, k * x / 2e3], x=x)
        for case in ("classes", "steps")
        for k, name in enumerate(("CE, eager", "HR, eager"), start=1)
        for x in (10.0, 100.0)
    ]
    picture = growth.picture(frame(readings), "growth", "growth of the cost", "milliseconds", 1e3)
    panels = picture.figure.axes
    assert [axes.get_xlabel() for axes in panels] == ["classes", "steps"]
    for axes in panels:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
        assert drawn == {"CE, eager": [[10, 10], [100, 100]], "HR, eager": [[10, 20], [100, 200]]}
    assert "classes: HR, eager, 20 ms at 10 to 200 ms at 100." in picture.alt


# ------------------------------------------------------------------------------------------------------------ all of it


def stored_readings(folder: Path, part: str) -> pd.DataFrame:
    """Return the readings of a part from its CSV file."""
    readings = pd.read_csv(folder / f"{part}.csv", dtype={"against": str, "note": str})
    return readings.fillna({"against": "", "note": ""})


def kinds(readings: pd.DataFrame) -> set[tuple[str, ...]]:
    """Return the contenders with their quantities and references, without libraries that are not installed."""
    absent = [name for name, library in attacks.LIBRARIES.items() if find_spec(library.lower()) is None]
    present = readings[~readings.contender.isin(absent)]
    return set(present[["contender", "quantity", "against"]].itertuples(index=False, name=None))


# The part "ways" is of interest on a GPU only.
PUBLISHED_PARTS = [part for part in PARTS if part != "ways"]


@pytest.mark.parametrize("part", PUBLISHED_PARTS)
def test_published_pages_agree_with_the_published_readings(part: str) -> None:
    """Texts are equal, and numbers as far as the six digits of the CSV files determine three."""
    page = (PUBLISHED / f"{part}.md").read_text().splitlines()
    for table in PARTS[part].tables(stored_readings(PUBLISHED, part)):
        expected = table.markdown().splitlines()
        first = page.index(expected[0])
        for line, expected_line in zip(page[first:], expected, strict=False):
            pairs = zip(re.split(SEPARATORS, line), re.split(SEPARATORS, expected_line), strict=True)
            for word, expected_word in pairs:
                with suppress(ValueError):
                    word, expected_word = float(word), pytest.approx(float(expected_word), rel=0.005)
                assert word == expected_word


@pytest.mark.slow
def test_quick_run_writes_the_files_of_all_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.compiler.set_stance("force_eager"):  # compiling takes longer than everything else
        assert main(["speed", "--quick", "--output", str(tmp_path), "--data-dir", str(tmp_path)]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {f"{part}.{end}" for part in PARTS for end in ("md", "csv")} | {
        "growth.png",
        "growth.svg",
        "training-growth.png",
        "training-growth.svg",
    }
    for part in PARTS:
        page, readings = (tmp_path / f"{part}.md").read_text(), stored_readings(tmp_path, part)
        assert f"Made by `python -m benchmarks speed --quick --output {tmp_path} " in page
        assert f"--part {part}`." in page
        assert "Machine: " in page
        assert (readings.query("quantity == 'seconds'")["median"].dropna() > 0).all()
        assert readings["case"].nunique() == {"loss": 6, "attacks": 4, "growth": 4, "training": 5, "ways": 2}[part]
        for case in readings["case"].unique():
            assert f"| {case} |" in page
        if part in PUBLISHED_PARTS:
            assert kinds(readings) == kinds(stored_readings(PUBLISHED, part))
    attack_readings = stored_readings(tmp_path, "attacks")
    loops = attack_readings[attack_readings.contender.str.startswith(("loop", "art_hrloss"))]
    assert loops.query("quantity == 'largest difference'")["median"].max() <= 1e-6
    with Image.open(tmp_path / "growth.png") as image:
        assert image.size[0] > 1000
    assert "Written: " in capsys.readouterr().out


def test_interrupted_run_writes_finished_parts_and_unfinished_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> list[dict[str, Any]]:
        raise KeyboardInterrupt

    done = {"done": lambda: [reading("c", "a", SECONDS, [1.0])]}
    whole = Part(1, lambda settings: done, lambda readings: ())
    half = replace(whole, cases=lambda settings: done | {"not done": interrupt})
    (tmp_path / "whole-unfinished.csv").touch()
    monkeypatch.setattr(parts, "PARTS", {"whole": whole, "half": half, "never": whole})
    command, console = "python -m benchmarks speed --quick", Console(markup=False, highlight=False)
    assert parts.run(("whole", "half", "never"), Settings(tmp_path), tmp_path, console, command=command) == 130
    assert {path.name for path in tmp_path.iterdir()} == {"whole.md", "whole.csv", "half-unfinished.csv"}
    for file in ("whole.csv", "half-unfinished.csv"):
        assert pd.read_csv(tmp_path / file)["median"].tolist() == [1.0]
    assert f"  {command} --part half never\n" in capsys.readouterr().out


def test_a_failed_case_is_reported_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> list[dict[str, Any]]:
        raise torch.OutOfMemoryError("no memory")

    cases = {"fails": fail, "done": lambda: [reading("c", "a", SECONDS, [1.0])]}
    monkeypatch.setattr(parts, "PARTS", {"part": Part(1, lambda settings: cases, lambda readings: ())})
    console = Console(markup=False, highlight=False)
    assert parts.run(["part"], Settings(tmp_path), tmp_path, console, command="") == 1
    assert pd.read_csv(tmp_path / "part.csv")["median"].tolist() == [1.0]
    assert "no memory" in capsys.readouterr().out


def test_bad_options_are_errors_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for options, named in (
        ("--part losses", "losses"),
        ("--seconds 0", "0.0"),
        (f"--output {tmp_path}/file/a", "file"),
    ):
        assert main(["speed", "--output", str(tmp_path), *options.split()]) == 2
        shown = capsys.readouterr()
        assert named in shown.err
        assert not shown.out
