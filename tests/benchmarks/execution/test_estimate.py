"""Estimates of the time of runs without timings, from short trials."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from testing import studies

from benchmarks import grids, protocols
from benchmarks.__main__ import main
from benchmarks.config import AttackSpec, Hardening, LossSpec, RunSpec
from benchmarks.evaluation import measure_all
from benchmarks.execution import InProcess, Job, Seconds, costs, execute, seconds_left, status
from benchmarks.execution import _estimate as estimate
from benchmarks.execution._estimate import extrapolated, probe
from benchmarks.record import Record
from benchmarks.store import Store

GRID = replace(grids.digits(), seeds=(0, 1), attacks=protocols.TABLE_1_ATTACKS)
CE_0, HR_0, CE_1, HR_1 = GRID.runs()


def job_of(run: RunSpec, folder: Path, attacks: tuple[AttackSpec, ...] = GRID.attacks) -> Job:
    return Job(run, attacks, folder / "store", folder)


def test_seconds_are_extrapolated_linearly_from_two_numbers_of_images() -> None:
    assert extrapolated(1.0, 2.0, 50, 250, 250) == 2.0
    assert extrapolated(1.0, 2.0, 50, 250, 10_250) == pytest.approx(2 + 10_000 / 200)
    assert extrapolated(2.0, 1.0, 50, 250, 10_250) == 1.0, "timing noise gives no negative time per image"
    assert extrapolated(1.0, 2.0, 40, 40, 40) == 2.0, "both numbers of images are equal"
    assert extrapolated(1.0, 2.0, 50, 250, 500, batches=2) == pytest.approx(500 / 200 + 2 * 0.75)


def test_a_probe_adds_up_the_parts_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances by 1 second per call, so that the sums are known."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(next(ticks)))
    attacks = (AttackSpec("none"), AttackSpec("fgm", "ce", 0.1), AttackSpec("fgm", "ce", 0.25))
    cost = probe(job_of(CE_0, tmp_path, attacks))
    # Training: 1257 images, 400 of them timed; validation; storing the state; and 5 curve attacks every 10th epoch.
    expected = {"epoch": 1257 / 400 + 1 + 1 + 5 / 10, "none": 1.0, "fgm-ce-0.1": 1.0, "fgm-ce-0.25": 1.0}
    assert cost == pytest.approx(expected)
    # Each part is timed once, and the network is trained for a tick. Each kind of attack (none, ce, clipped), whatever
    # its eps, is timed with two numbers of images.
    assert next(ticks) == 2 * (1 + 1 + 1 + 1 + 3 * 2)


def test_a_probe_stores_nothing_and_restores_random_generators_and_threads(tmp_path: Path) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    run = replace(HR_0, recipe=replace(HR_0.recipe, threads=2, curve_every=0, curve_attacks=()))
    threads = torch.get_num_threads()
    attack = AttackSpec("pgd", "ce", 0.1, steps=2)
    cost = probe(job_of(run, tmp_path, (attack,)))
    assert cost.keys() == {"epoch", attack.key()}
    assert min(cost.values()) > 0
    assert not (tmp_path / "store").exists()
    assert torch.get_num_threads() == threads
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


def test_probed_attacks_start_from_correctly_classified_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strong attacks skip misclassified images, which most images of a hardly trained network are."""
    records: list[Record] = []

    def recording(specs, *args):
        results = list(measure_all(specs, *args))
        records.extend(record for _, record in results)
        return results

    monkeypatch.setattr(estimate, "measure_all", recording)
    probe(job_of(CE_0, tmp_path, (AttackSpec("none"), AttackSpec("none", split="validation"))))
    unattacked = [record for record in records if record.zero_gradient is None]
    assert {(int(record.right.sum()), record.n) for record in unattacked} == {(n, n) for n in (250, 360, 180)}


@pytest.mark.parametrize(
    "attack",
    [
        AttackSpec("transfer", eps=0.1, steps=2, source=100),
        AttackSpec("diagnostics", "ce", 0.1, steps=2, images=20),
    ],
)
def test_runs_with_a_defence_and_long_attacks_can_be_probed(tmp_path: Path, attack: AttackSpec) -> None:
    loss = LossSpec("hr", 1.6, hardening=Hardening("madry", 0.1, 1))
    recipe = replace(CE_0.recipe, batch_size=10, curve_every=0, curve_attacks=())
    plain = probe(job_of(RunSpec("digits", recipe, LossSpec("hr", 1.6), 0), tmp_path, (attack,)))
    hardened = probe(job_of(RunSpec("digits", recipe, loss, 0), tmp_path, (attack,)))
    assert plain[attack.key()] > 0
    assert hardened["epoch"] > plain["epoch"]


def test_one_run_of_each_kind_is_probed_with_as_many_simultaneous_probes_as_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Job] = []

    def answer(job: Job, together: int) -> Seconds:
        asked.append(job)
        return {"epoch": 2.0 if job.run.loss.name == "ce" else 3.0, **{a.key(): 0.5 for a in job.attacks}}

    monkeypatch.setattr(estimate, "probe", answer)
    store = Store(tmp_path)
    states = status(GRID, store)
    expected = costs(states, lambda run: job_of(run, tmp_path), InProcess())
    assert [job.run for job in asked] == [CE_0, HR_0]
    assert expected.keys() == {CE_0, HR_0, CE_1, HR_1}
    states = status(GRID, store, costs=expected)
    epochs, records = CE_0.recipe.epochs, len(GRID.attacks)
    assert [state.seconds_left for state in states] == [epochs * n + records * 0.5 for n in (2, 3, 2, 3)]
    assert seconds_left(states, at_once=2) == (epochs * 10 + records * 2) / 2
    asked.clear()
    assert costs(status(GRID, store), lambda run: job_of(run, tmp_path), InProcess(), at_once=3) == expected
    assert [job.run for job in asked] == [CE_0, HR_0, CE_0]
    assert costs(states, lambda run: job_of(run, tmp_path), InProcess()) == {}, "all runs have an estimate already"


def test_attacks_without_timings_are_probed_on_trained_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(
        GRID, seeds=(0,), recipes=(("digits", replace(CE_0.recipe, epochs=1, curve_every=0, curve_attacks=())),)
    )
    root = tmp_path / "store"
    root.mkdir()
    store = Store(root)
    for run in small.runs():
        execute(Job(run, small.attacks, root, tmp_path))
    square = AttackSpec("square", eps=0.1, steps=2, images=20)
    more = replace(small, attacks=(*small.attacks, square))
    monkeypatch.setattr(estimate.Training, "epoch", None)
    expected = costs(status(more, store), lambda run: Job(run, more.attacks, root, tmp_path), InProcess())
    assert [cost.keys() for cost in expected.values()] == [{square.key()}] * 2


def test_timings_take_precedence_over_estimates(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lock(CE_0):
        store.log(CE_0, "epoch", epoch=1, training=7.0, seconds=7.0)
    states = status(GRID, store, costs={run: {"epoch": 1.0} for run in GRID.runs()})
    assert [state.seconds_left for state in states] == [CE_0.recipe.epochs * 7.0] * 4


def test_the_command_prints_an_estimate_before_it_starts_and_the_time_left_after_each_run(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["run", "--grid", studies.SMALL, "--seeds", "1", "--workers", "1", "--store", str(tmp_path)]
    assert main(command) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "Estimated" in line or "accuracy 0" in line]
    assert lines[0].startswith("Estimated time: ")
    assert "unknown" not in lines[0]
    assert lines[0].endswith("(from a few batches of training and a few images of each attack).")
    assert ["; time left: " in line for line in lines[1:3]] == [True, True]
    assert lines[2].endswith("left: 0 s")
    assert main([*command[:4], "2", *command[5:]]) == 0
    assert "(from the times of other runs)." in capsys.readouterr().out


def test_a_failed_probe_does_not_stop_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(job: Job, together: int) -> Seconds:
        raise MemoryError("no memory")

    monkeypatch.setattr(estimate, "probe", no_memory)
    assert main(["run", "--grid", studies.SMALL, "--seeds", "1", "--workers", "1", "--store", str(tmp_path)]) == 0
    assert "Estimated time: unknown (the estimate failed: no memory)." in capsys.readouterr().out
