"""Readings of the paper's CIFAR-10 differ in what they name, and their table holds the records' numbers."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from testing import made_up

from benchmarks import grids, readings
from benchmarks.cli import main
from benchmarks.config import AttackSpec, RunSpec
from benchmarks.protocols import CE, HR, paper
from benchmarks.report.selection import Selection

CHANGED = {
    "as Keras's example": {},
    "no weight decay": {"l2": 0.0},
    "ResNet v2": {"model": "resnet-v2"},
    "ResNet v2, no weight decay": {"model": "resnet-v2", "l2": 0.0},
    "mean not subtracted": {"subtract_pixel_mean": False},
}


def test_a_reading_is_the_papers_recipe_but_for_what_it_names() -> None:
    ((dataset, recipe),) = grids.cifar10().recipes
    assert {name: build().recipes for name, build in readings.READINGS.items()} == {
        name: ((dataset, replace(recipe, **changes)),) for name, changes in CHANGED.items()
    }
    assert len({build().name for build in readings.READINGS.values()}) == len(CHANGED)


def test_the_table_has_the_accuracies_and_the_mean_distance_from_what_is_printed() -> None:
    # Off the printed figures by 0.01 everywhere but without attack, where it is on them.
    off = {AttackSpec("none"): 0, paper("ce", 0.1): 1000, paper("ce", 0.25): -1000}

    def correct(run: RunSpec, attack: AttackSpec) -> int:
        printed = readings.PRINTED.get((run.loss, attack), 0.5)
        return round(made_up.N * printed) + off.get(attack, 0)

    done, begun = (replace(readings.READINGS[name](), seeds=(0, 1)) for name in ("as Keras's example", "ResNet v2"))
    selections = {
        "as Keras's example": made_up.results(done, correct, zero=lambda run, attack: 2000 * (run.loss == HR)),
        "ResNet v2": made_up.results(begun, correct, made=lambda run, attack: run.loss == CE),
    }
    table, numbers = readings.readings_table({k: Selection(v, "cifar10") for k, v in selections.items()})
    printed, printed_hr, ce, hr = table.rows
    assert printed[:5] == ("printed", "CE", "0.656", "0.296", "0.282")
    assert printed_hr[:5] == ("", "HR(1.6)", "0.685", "0.337", "0.320")
    assert ce[:6] == ("as Keras's example", "CE", "0.656 ± 0.000", "0.306 ± 0.000", "0.272 ± 0.000", "0.0%")
    assert ce[-1] == f"{4 * 0.01 / 6:.3f}"
    assert hr[:3] == ("", "HR(1.6)", "0.685 ± 0.000")
    assert hr[5:] == ("2.0%", *["0.500 ± 0.000"] * 4, "")
    assert all(len(row) == len(table.header) for row in table.rows)
    assert set(numbers.reading) == {"as Keras's example"}
    assert np.allclose(numbers[numbers.trained == "CE"].accuracy[:3], [0.656, 0.306, 0.272])


@pytest.mark.slow
def test_without_results_the_command_shows_what_is_printed_and_the_commands_that_make_them(tmp_path: Path) -> None:
    folders = ["--store", str(tmp_path / "store"), "--output", str(tmp_path / "out"), "--seeds", "1"]
    done = subprocess.run([sys.executable, "-m", "benchmarks", "readings", *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out/readings.md").read_text()
    assert "| printed | CE | 0.656 | 0.296 | 0.282 |" in text
    for build in readings.READINGS.values():
        assert f"`python -m benchmarks run --grid benchmarks.readings:{build.__name__} --seeds 1`" in text


def test_bad_options_are_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, value in ((["--seeds", "0"], "seeds"), (["--epochs", "-1"], "epochs"), (["--seed", "1"], "--seeds")):
        assert main(["readings", "--output", str(tmp_path / "out"), *options]) == 2
        assert value in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
