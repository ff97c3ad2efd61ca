"""Status of a grid: states, errors and the time left, read without changing the store."""

import io
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from testing import made_up

from benchmarks import protocols, recipes
from benchmarks.config import AttackSpec, Grid, RunSpec
from benchmarks.execution import Job, RunStatus, duration, local, run_all, seconds_left, status, table
from benchmarks.store import Store

RECIPE = replace(recipes.DIGITS, epochs=4)
GRID = Grid(
    "small",
    (("digits", RECIPE),),
    (protocols.CE, protocols.HR),
    (0, 1),
    (AttackSpec("none"), protocols.exact("ce", 0.1)),
)
CE_0, HR_0, CE_1, HR_1 = GRID.runs()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def train(store: Store, run: RunSpec, epochs: int, seconds: list[float]) -> None:
    """Write the files of a run with finished epochs, and their seconds in the log."""
    rows = [{"epoch": epoch, "validation_accuracy": epoch / 10} for epoch in range(1, epochs + 1)]
    state = {"model": {}, "optimizer": {}, "order": torch.ones(1), "curve": rows}
    store.save_state(run, state)
    if epochs == run.recipe.epochs:
        store.save_checkpoint(run, {"w": torch.ones(1)})
    for epoch, length in enumerate(seconds, start=1):
        store.log(run, "epoch", epoch=epoch, training=0.0, seconds=length)


def evaluate(store: Store, run: RunSpec, seconds: list[float]) -> None:
    """Write records of a run, and their seconds in the log."""
    for attack, length in zip(GRID.attacks, seconds, strict=False):
        store.save_record(run, attack, made_up.record(8, 5, 0))
        store.log(run, "record", attack=attack.key(), seconds=length)


def shown(states: list[RunStatus], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(GRID, states))
    return console.file.getvalue()


def listing(root: Path) -> dict[Path, tuple[int, int]]:
    paths = (path for path in (root, *root.rglob("*")) if path.name != ".lock")
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


def test_in_a_missing_store_all_runs_are_missing_and_no_folder_is_created(store: Store) -> None:
    states = status(GRID, store)
    assert states == [RunStatus(run) for run in GRID.runs()]
    assert {state.state for state in states} == {"missing"}
    assert seconds_left(states) is None
    assert not store.root.exists()


def test_every_state_of_real_runs_is_shown_and_no_file_changes(store: Store) -> None:
    diverges = replace(CE_1, recipe=replace(RECIPE, lr=1e30))
    store.root.mkdir()
    jobs = [Job(run, GRID.attacks, store.root, store.root) for run in (CE_0, HR_0, diverges)]
    assert run_all(jobs, lambda: local(1), lambda run, outcome: None) == 1
    (store.folder(HR_0) / "records" / "none.safetensors").unlink()
    before = listing(store.root)

    states = dict(zip(GRID.runs(), status(GRID, store), strict=True))
    assert [state.state for state in states.values()] == ["done", "started", "missing", "missing"]
    record = store.record(CE_0, AttackSpec("none"))
    assert states[CE_0].accuracy == record.accuracy
    assert (states[CE_0].epochs, states[CE_0].records, states[CE_0].seconds_left) == (4, 2, 0)
    assert states[HR_0].accuracy == store.curve(HR_0)[-1]["validation_accuracy"]
    assert (states[HR_0].epochs, states[HR_0].records, states[HR_0].error) == (4, 1, "")

    (failed, _, _, _) = status(replace(GRID, recipes=(("digits", diverges.recipe),), seeds=(1, 2)), store)
    assert failed.state == "failed"
    assert failed.error.startswith("benchmarks.training._loop.TrainingError: the loss of digits, CE, seed 1 became nan")
    assert listing(store.root) == before


def test_a_run_is_running_while_another_process_holds_its_lock(store: Store) -> None:
    train(store, CE_0, 1, [1.0])
    store.save_error(CE_0, "an old failure")
    store.lock(HR_0)  # creates its folder
    hold = "import sys; from filelock import FileLock\nwith FileLock(sys.argv[1]): print('held', flush=True); input()"
    for run, other in ((CE_0, "failed"), (HR_0, "missing")):
        place = GRID.runs().index(run)
        assert status(GRID, store)[place].state == other
        command = [sys.executable, "-c", hold, str(store.folder(run) / ".lock")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout.readline() == "held\n"
            state = status(GRID, store)[place]
            assert (state.state, state.error) == ("running", "")
            holder.kill()
        assert status(GRID, store)[place].state == other


def test_time_left_uses_the_timings_of_the_most_similar_runs(store: Store) -> None:
    train(store, CE_0, 4, [1, 1, 4, 2])  # the mean is 2; the median would be 1.5
    evaluate(store, CE_0, [0.5, 1.5])  # mean 1
    train(store, CE_1, 1, [5])
    states = dict(zip(GRID.runs(), status(GRID, store), strict=True))
    assert {run: state.seconds_left for run, state in states.items()} == {
        CE_0: 0,
        CE_1: 3 * 5 + 2 * 1,  # its own epochs, the evaluations of another seed
        HR_0: 4 * 3.5 + 2 * 1,  # another loss: the median of 2 and 5
        HR_1: 4 * 3.5 + 2 * 1,
    }
    everything = list(states.values())
    assert seconds_left(everything) == 17 + 16 + 16, "one worker, because no run is running"
    assert seconds_left(everything, at_once=2) == 49 / 2
    assert seconds_left(everything, at_once=3) == 17, "at least the time of the longest run"
    with store.lock(CE_1), store.lock(HR_0):
        assert seconds_left(status(GRID, store)) == 49 / 2, "as many workers as running runs"

    train(store, HR_1, 2, [3, 4])  # median 3.5
    states = dict(zip(GRID.runs(), status(GRID, store), strict=True))
    assert states[HR_1].seconds_left == 2 * 3.5 + 2 * 1
    assert states[HR_0].seconds_left == 4 * 3.5 + 2 * 1, (
        "a run of the same loss is more similar than one of another loss"
    )


def test_time_left_is_unknown_until_an_epoch_has_been_timed(store: Store) -> None:
    train(store, CE_0, 2, [])
    states = status(GRID, store)
    assert {state.seconds_left for state in states} == {None}
    assert seconds_left(states) is None
    store.log(CE_0, "epoch", epoch=2, training=1.0, seconds=3.0)
    assert [state.seconds_left for state in status(GRID, store)] == [6, 12, 12, 12], (
        "evaluations without timing count as 0"
    )


def test_time_left_of_a_trained_run_is_unknown_until_an_evaluation_has_been_timed(store: Store) -> None:
    train(store, CE_0, 4, [1, 1, 1, 1])
    assert status(GRID, store)[0].seconds_left is None
    evaluate(store, CE_0, [0.25])
    assert status(GRID, store)[0].seconds_left == 0.25


def test_each_attack_has_its_own_timing(store: Store) -> None:
    for run in (CE_0, HR_0):
        train(store, run, 4, [1])
    evaluate(store, CE_0, [0.25])
    states = status(GRID, store)
    assert [(state.seconds_left, state.untimed) for state in states[:2]] == [(0.25, True), (0.5, True)], (
        "the attacks have not been timed"
    )
    evaluate(store, HR_0, [0.25, 8])
    states = status(GRID, store)
    assert [(state.seconds_left, state.untimed) for state in states[:2]] == [(8, False), (0, False)]
    assert states[2].seconds_left == 4 * 1 + 0.25 + 8


def test_no_time_is_left_when_all_runs_are_done(store: Store) -> None:
    for run in GRID.runs():
        train(store, run, 4, [1])
        evaluate(store, run, [1, 1])
    states = status(GRID, store)
    assert {state.state for state in states} == {"done"}
    assert seconds_left(states) == seconds_left(states, at_once=8) == 0


def test_a_damaged_file_is_named_and_not_counted(store: Store) -> None:
    train(store, CE_0, 4, [1])
    evaluate(store, CE_0, [1, 1])
    paths = [store.folder(CE_0) / name for name in ("curve.json", "records/none.safetensors", "log.jsonl")]
    paths[0].write_text("[{")
    paths[1].write_text("nothing")
    paths[2].write_bytes(b'\xff\n{"event": "epoch", "seconds": "x"}\n{"event"')
    state = status(GRID, store)[0]
    assert (state.state, state.epochs, state.records, state.accuracy) == ("started", 0, 1, None)
    assert state.error.startswith(f"{paths[0]} is not valid JSON (")
    assert f"; {paths[1]} cannot be read (" in state.error
    assert "".join(state.error.split()) in "".join(shown([state]).split())


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_the_status_of_a_read_only_store_is_shown() -> None:
    with tempfile.TemporaryDirectory() as name:  # other users have no access to pytest's folders
        store = Store(Path(name))
        train(store, CE_0, 2, [1])
        evaluate(store, CE_1, [1])
        with store.lock(CE_0):
            pass
        expected = status(GRID, store)
        folders = [path for path in (store.root, *store.root.rglob("*")) if path.is_dir()]
        user = os.geteuid()
        for folder in folders:
            folder.chmod(0o555)
        try:
            if user == 0:  # root may write to any folder
                os.seteuid(65534)
            with pytest.raises(PermissionError):
                (store.root / "new").touch()
            assert status(GRID, store) == expected
        finally:
            os.seteuid(user)
            for folder in folders:
                folder.chmod(0o700)


def test_runs_that_were_done_before_are_not_read_again(store: Store) -> None:
    train(store, CE_0, 4, [2])
    evaluate(store, CE_0, [1, 1])
    train(store, CE_1, 1, [2])
    before = status(GRID, store)
    (store.folder(CE_0) / "curve.json").unlink()
    train(store, CE_1, 2, [])
    after = status(GRID, store, before=before)
    assert after[0] == before[0]
    assert (after[2].epochs, after[2].seconds_left) == (2, 2 * 2 + 2 * 1), "its timings are still used"
    assert status(GRID, store)[0].state == "started"


def test_the_status_of_thousands_of_runs_takes_less_than_3_seconds(store: Store) -> None:
    grid = replace(GRID, seeds=tuple(range(2500)))
    train(store, CE_0, 1, [1])
    status(grid, store)  # computes and caches the keys
    start = time.process_time()
    assert seconds_left(status(grid, store)) == 3 * 1 + 4999 * 4 * 1
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5940, "99 min"),
        (5999, "1.7 h"),
        (12600, "3.5 h"),
        (100_000, "27.8 h"),
        (302_400, "3.5 days"),
    ],
)
def test_durations_are_shown_in_suitable_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_the_table_has_one_line_per_run_at_80_columns(store: Store) -> None:
    states = [
        RunStatus(CE_0, "done", 4, 2, 0.9876),
        RunStatus(HR_0, "running", 3, 0, 0.5, seconds_left=700.0),
        RunStatus(CE_1, "failed", 1, 0, error="benchmarks.training.TrainingError: the loss [x] became nan"),
        RunStatus(HR_1),
    ]
    text = shown(states)
    lines = [line.strip() for line in text.splitlines()]
    assert set(lines.pop(1)) == {"─"}
    assert lines == [
        "run                       state     epochs   records   accuracy   time left",
        "digits, CE, seed 0        done         4/4       2/2      0.988",
        "digits, HR(1.6), seed 0   running      3/4       0/2      0.500      12 min",
        "digits, CE, seed 1        failed       1/4       0/2                unknown",
        "digits, HR(1.6), seed 1   missing      0/4       0/2                unknown",
        "digits, CE, seed 1: benchmarks.training.TrainingError: the loss [x] became nan",
    ]
    long = [replace(state, run=replace(state.run, recipe=replace(RECIPE, epochs=1000))) for state in states]
    assert len(shown(long).splitlines()) == len(text.splitlines()), "four-digit numbers of epochs fit, too"
