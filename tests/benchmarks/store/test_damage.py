"""After kills, damage, a full disk or concurrent processes, a store ends with the same bytes as an undisturbed one."""

import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from testing import made_up, processes

from benchmarks import execution as runner
from benchmarks import protocols, recipes
from benchmarks.config import AttackSpec, Grid, RunSpec
from benchmarks.execution import _local as executors
from benchmarks.store import Store
from benchmarks.store._atomic import read_json

KILLS = 20
# Seconds after which a process counts as hanging.
DEADLINE = 120

RECIPE = replace(recipes.DIGITS, epochs=2, curve_every=1, curve_attacks=(protocols.exact("ce", 0.1),))
ATTACKS = (AttackSpec("none"), protocols.exact("ce", 0.1), protocols.paper("hr", 0.1))
GRID = Grid("small", (("digits", RECIPE),), (protocols.CE, protocols.HR), (0, 1), ATTACKS)
FIRST, SECOND, *_ = GRID.runs()

LONG = RunSpec("digits", replace(RECIPE, epochs=24, batch_size=100, curve_every=6), protocols.HR, 0)
MANY_ATTACKS = tuple(protocols.exact("ce", eps / 200) for eps in range(1, 41))


@pytest.fixture(scope="module")
def forkserver() -> multiprocessing.context.BaseContext:
    """Multiprocessing context whose processes start quickly, because the server has imported all modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*executors.PRELOAD, "testing.processes"])
    return context


@pytest.fixture
def start(forkserver) -> Iterator[Callable[..., BaseProcess]]:
    """Return a function (function, *arguments) that starts a process; all processes are killed after the test."""
    started: list[BaseProcess] = []

    def start(function: Callable, *arguments: object) -> BaseProcess:
        started.append(forkserver.Process(target=function, args=arguments, daemon=True))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join(DEADLINE)


def jobs_of(runs: list[RunSpec], root: Path, attacks: tuple[AttackSpec, ...] = ATTACKS) -> list[runner.Job]:
    root.mkdir(exist_ok=True)
    return [runner.Job(run, attacks, root, root) for run in runs]


def run_all(runs: list[RunSpec], root: Path) -> tuple[int, dict[RunSpec, runner.Outcome]]:
    """Execute the runs in this process; return the number of failures, and the outcome of each run."""
    outcomes: dict[RunSpec, runner.Outcome] = {}
    return runner.run_all(jobs_of(runs, root), lambda: executors.local(1), outcomes.__setitem__), outcomes


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Store of the small grid without disturbances."""
    root = tmp_path_factory.mktemp("small")
    assert run_all(GRID.runs(), root)[0] == 0
    return root


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """Store of the long run without disturbances."""
    root = tmp_path_factory.mktemp("long")
    (job,) = jobs_of([LONG], root, MANY_ATTACKS)
    runner.execute(job)
    return root


def files(root: Path) -> dict[str, bytes]:
    """Return all files of a store's runs, by relative name, except logs, which contain times, and locks."""
    paths = (path for path in sorted((root / "runs").rglob("*")) if path.name not in ("log.jsonl", ".lock"))
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if not path.is_dir()}


def copy(store: Path, to: Path) -> Store:
    shutil.copytree(store / "runs", to / "runs")
    return Store(to)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.001)


def kill(process: BaseProcess) -> bool:
    """Kill a process, and return False if it had ended by itself before."""
    process.kill()
    process.join(DEADLINE)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def logged(store: Store, run: RunSpec, event: str) -> list[dict]:
    return [entry for entry in store.log_entries(run) if entry["event"] == event]


def pace(root: Path, event: str) -> float:
    """Return the mean seconds of an event in the undisturbed long run."""
    return sum(entry["seconds"] for entry in logged(Store(root), LONG, event)) / len(logged(Store(root), LONG, event))


def kill_repeatedly(
    start: Callable[..., BaseProcess],
    job: runner.Job,
    ready: Callable[[int, tuple[int, int, int]], bool],
    seconds: float,
) -> Counter[str]:
    """
    Kill a job KILLS times, and resume it each time; delete its results and restart it whenever it has completed.

    :param ready: Whether to kill it now, after a random delay of up to `seconds`. Its arguments are the number of kills
        so far, and the progress before the job was resumed.
    :return: The number of kills in each phase.
    """
    store, rng, kills_by_phase = Store(job.store), random.Random(0), Counter[str]()
    end = time.monotonic() + 5 * DEADLINE
    while kills_by_phase.total() < KILLS:
        assert time.monotonic() < end, f"killed only {kills_by_phase}"
        if store.is_done(job.run, job.attacks):
            shutil.rmtree(store.folder(job.run) / "records" if job.attacks else store.folder(job.run))
        kills, before = kills_by_phase.total(), progress(store, job)
        process = start(runner.execute, job)
        wait_until(partial(ready_or_ended, ready, kills, before, process))
        time.sleep(rng.uniform(0, seconds) if kills else 0.0)
        if kill(process):
            kills_by_phase[phase(store, job)] += 1
    return kills_by_phase


def ready_or_ended(ready: Callable, kills: int, before: tuple[int, int, int], process) -> bool:
    return ready(kills, before) or not process.is_alive()


def progress(store: Store, job: runner.Job) -> tuple[int, int, int]:
    """Return the numbers of started trainings, finished epochs and records."""
    folder = store.folder(job.run) / "records"
    records = len(list(folder.glob("*.safetensors"))) if folder.exists() else 0
    return len(logged(store, job.run, "training")), store.epochs_done(job.run), records


def phase(store: Store, job: runner.Job) -> str:
    _, epochs, records = progress(store, job)
    if store.is_trained(job.run):
        return "during records" if records else "before the first record"
    return "during epochs" if epochs else "before the first epoch"


def test_a_training_that_is_killed_twenty_times_ends_with_the_same_bytes(start, long: Path, tmp_path: Path) -> None:
    (job,) = jobs_of([LONG], tmp_path, ())
    store = Store(tmp_path)

    def ready(kills: int, before: tuple[int, int, int]) -> bool:
        trainings, epochs, _ = progress(store, job)
        # Alternately: when training starts, and after one more epoch.
        return trainings > before[0] if kills < 4 or kills % 2 else epochs > before[1]

    kills_by_phase = kill_repeatedly(start, job, ready, pace(long, "epoch"))
    assert min(kills_by_phase["before the first epoch"], kills_by_phase["during epochs"]) > 0, kills_by_phase
    runner.execute(job)
    assert files(tmp_path) == {name: data for name, data in files(long).items() if "/records/" not in name}


def test_an_evaluation_that_is_killed_twenty_times_ends_with_the_same_bytes(start, long: Path, tmp_path: Path) -> None:
    (job,) = jobs_of([LONG], tmp_path, MANY_ATTACKS)
    store = copy(long, tmp_path)
    shutil.rmtree(store.folder(LONG) / "records")

    def ready(kills: int, before: tuple[int, int, int]) -> bool:
        # The first kills when the run is locked, the next ones after one, two or three more records.
        return store.is_locked(LONG) if kills < 2 else progress(store, job)[2] > before[2] + kills % 3

    kills_by_phase = kill_repeatedly(start, job, ready, 2 * pace(long, "record"))
    assert set(kills_by_phase) <= {"before the first record", "during records"}, kills_by_phase
    assert min(kills_by_phase["before the first record"], kills_by_phase["during records"]) > 0, kills_by_phase
    runner.execute(job)
    assert files(tmp_path) == files(long)


def test_a_writer_that_is_killed_twenty_times_leaves_a_complete_file_of_one_version(start, tmp_path: Path) -> None:
    store, rng, last = Store(tmp_path), random.Random(0), 0
    path = store.folder(FIRST) / "curve.json"

    def read() -> int:
        """Return the version in the file, which must be complete."""
        content = read_json(path, list) or []
        assert content == processes.version(content[0] if content else 0)
        return content[0] if content else 0

    for _ in range(KILLS):
        process = start(processes.write_versions, path)
        wait_until(lambda last=last: read() > last)
        time.sleep(rng.uniform(0, 0.02))
        assert kill(process)
        assert read() > last
        last = read()
    process = start(processes.write_and_die, path)
    process.join(DEADLINE)
    assert process.exitcode == -signal.SIGKILL
    assert read() == last
    assert list(path.parent.glob(".curve.json.*.part")), "one kill at least came during a write"
    path.unlink()
    store.open(FIRST, "data")
    assert [left.name for left in path.parent.iterdir()] == ["spec.json"], "the next process deletes partial files"


def test_a_run_that_is_killed_before_any_file_operation_ends_with_the_same_bytes(
    start, small: Path, tmp_path: Path
) -> None:
    run = replace(FIRST, recipe=replace(RECIPE, epochs=1))
    (whole,) = jobs_of([run], tmp_path / "whole", ATTACKS[:1])
    runner.execute(whole)
    left: list[set[str]] = []
    while True:
        (job,) = jobs_of([run], tmp_path / str(len(left)), ATTACKS[:1])
        process = start(processes.execute_and_die, job, len(left) + 1)
        process.join(DEADLINE)
        if process.exitcode == 0:  # it has fewer file operations than that
            break
        assert process.exitcode == -signal.SIGKILL
        left.append({path.name for path in Store(job.store).folder(run).iterdir()})
        runner.execute(job)
        assert files(job.store) == files(whole.store), f"killed before file operation {len(left)}"
        assert len(left) < 100
    assert len(left) > 10
    assert any({"model.safetensors", "state.pt"} <= names for names in left), (
        "one kill was after the weights were saved and before the state was deleted"
    )


def test_two_processes_on_one_store_divide_its_runs(start, forkserver, small: Path, tmp_path: Path) -> None:
    together = forkserver.Barrier(2)
    both = [start(processes.run_jobs, jobs_of(GRID.runs(), tmp_path), together) for _ in "ab"]
    for process in both:
        process.join(DEADLINE)
    assert [process.exitcode for process in both] == [0, 0]
    assert files(tmp_path) == files(small)
    store = Store(tmp_path)
    for run in GRID.runs():
        assert [entry["from_epoch"] for entry in logged(store, run, "training")] == [1]
        assert [entry["epoch"] for entry in logged(store, run, "epoch")] == [1, 2]
        assert sorted(entry["attack"] for entry in logged(store, run, "record")) == sorted(a.key() for a in ATTACKS)


def test_another_process_resumes_the_run_of_a_killed_process(start, long: Path, tmp_path: Path) -> None:
    (job,) = jobs_of([LONG], tmp_path, MANY_ATTACKS[:1])
    store = Store(tmp_path)
    first = start(runner.execute, job)
    wait_until(lambda: store.epochs_done(LONG) >= 2)
    os.kill(first.pid, signal.SIGSTOP)  # it stays alive and holds its lock
    assert runner.execute(job).busy, "a run that another process has locked is left to it"
    second = start(runner.execute, replace(job, wait=True))
    assert kill(first)
    second.join(DEADLINE)
    assert second.exitcode == 0
    epochs = [entry["epoch"] for entry in logged(store, LONG, "epoch")]
    assert sorted(set(epochs)) == epochs, "no epoch is repeated"
    # The first may have been stopped between an epoch's curve and its state.
    assert logged(store, LONG, "training")[1]["from_epoch"] >= 2
    stored = files(tmp_path)
    assert stored == {name: data for name, data in files(long).items() if name in stored}
    assert store.is_done(LONG, job.attacks)


class Hostile:
    """Object whose unpickling creates a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def cut(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def becomes(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def flip(position: int) -> Callable[[Path], object]:
    def flip_bit(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 4
        path.write_bytes(data)

    return flip_bit


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_state(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    torch.save(state | {"version": 99}, path)


def state_without_order(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    del state["order"]
    torch.save(state, path)


def other_record_version(path: Path) -> None:
    made_up.rewrite(path, {"version": 99})


RECORD = "records/none.safetensors"
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "spec, garbage": ("spec.json", becomes("%!"), "is not valid JSON"),
    "spec, cut": ("spec.json", cut(0.5), "is not valid JSON"),
    "spec, list": ("spec.json", becomes("[]"), "should contain a dict, but contains a list"),
    "spec, empty dict": ("spec.json", becomes("{}"), "should contain run and data"),
    "curve, cut": ("curve.json", cut(0.7), "is not valid JSON"),
    "curve, short": ("curve.json", becomes("[]"), "has 0 of 2 rows, though the run is trained"),
    "curve, numbers": ("curve.json", becomes("[1, 2]"), "should have the row of epoch 1"),
    "curve, directory": ("curve.json", directory, "should be a file, but is a directory"),
    "weights, empty": ("model.safetensors", cut(0), "cannot be read"),
    "weights, cut in the header": ("model.safetensors", cut(0.001), "cannot be read"),
    "weights, cut in half": ("model.safetensors", cut(0.5), "cannot be read"),
    "weights, header changed": ("model.safetensors", flip(12), "cannot be read"),
    "record, cut": (RECORD, cut(0.9), "cannot be read"),
    "record, null": (RECORD, becomes("null"), "cannot be read"),
    "record, other version": (RECORD, other_record_version, "has version 99, but this program reads"),
    "record, directory": (RECORD, directory, "should be a file, but is a directory"),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_of_a_finished_run_is_reported_set_aside_and_computed_again(
    small: Path, tmp_path: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    store = copy(small, tmp_path)
    path = store.folder(FIRST) / name
    damage(path)
    (store.folder(SECOND) / RECORD).unlink()
    assert runner.missing_runs(GRID, store) == [FIRST, SECOND]
    check_repair(small, store, path, message)


def test_weights_with_a_flipped_bit_are_not_attacked(small: Path, tmp_path: Path) -> None:
    store = copy(small, tmp_path)
    path = store.folder(FIRST) / "model.safetensors"
    flip(-1000)(path)
    (store.folder(FIRST) / RECORD).unlink()  # otherwise the weights would not be read
    check_repair(small, store, path, "was modified after it was written (wrong checksum)")


STATES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut(0.5), "cannot be read"),
    "garbage": (becomes("state"), "cannot be read"),
    "a bit of its weights": (flip(60_000), "was modified after it was written"),
    "hostile": (lambda path: path.write_bytes(pickle.dumps(Hostile(path.parent / "run"), 2)), "cannot be read"),
    "of another version": (other_state, "has version 99, but this program reads version 1"),
    "without the order": (state_without_order, "should contain order, a Tensor"),
    "directory": (directory, "should be a file, but is a directory"),
}


@pytest.fixture(scope="module")
def stopped(forkserver, tmp_path_factory) -> Path:
    """Store whose first run was killed after the first epoch was stored, and before the second."""
    root = tmp_path_factory.mktemp("stopped")
    (job,) = jobs_of([FIRST], root)
    for step in range(1, 100):
        process = forkserver.Process(target=processes.execute_and_die, args=(job, step), daemon=True)
        process.start()
        process.join(DEADLINE)
        if (Store(root).folder(FIRST) / "state.pt").exists():
            return root
        shutil.rmtree(root / "runs")
    raise AssertionError("no state was stored")


@pytest.mark.parametrize(("damage", "message"), STATES.values(), ids=STATES)
def test_a_damaged_state_is_reported_and_set_aside_and_training_restarts(
    small: Path, stopped: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    store = copy(stopped, tmp_path)
    assert store.load_state(FIRST)["curve"] == store.curve(FIRST) != []
    path = store.folder(FIRST) / "state.pt"
    damage(path)
    check_repair(small, store, path, message)
    assert not list(tmp_path.rglob("run")), "no code was executed"
    assert [entry["from_epoch"] for entry in logged(store, FIRST, "training")][-1] == 1


def check_repair(small: Path, store: Store, path: Path, message: str) -> None:
    """Execute two runs, the first of which is damaged, and check the message, the log and the files."""
    failures, outcomes = run_all([FIRST, SECOND], store.root)
    assert failures == 0
    (message_of_run,) = outcomes[FIRST].messages
    assert message_of_run.startswith(f"{path} {message}")
    assert message_of_run.endswith(f": renamed to {path.name}.bad, and computed again")
    assert outcomes[SECOND] == runner.Outcome(), "the other run is not affected"
    assert [entry["message"] for entry in logged(store, FIRST, "set aside")] == [message_of_run.split(": renamed")[0]]
    aside = path.with_name(f"{path.name}.bad")
    shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    expected = {name: data for name, data in files(small).items() if FIRST.key() in name or SECOND.key() in name}
    assert {name: data for name, data in files(store.root).items() if name in expected} == expected
    assert set(files(store.root)) <= set(files(small))


def test_a_damaged_log_does_not_cause_runs_to_be_repeated(small: Path, tmp_path: Path) -> None:
    store = copy(small, tmp_path)
    with (store.folder(FIRST) / "log.jsonl").open("ab") as log:
        log.write(b'\x00\xff\n{"event": "epoch"}\n{"event": "rec')
    assert runner.missing_runs(GRID, store) == []
    assert run_all(GRID.runs(), tmp_path)[0] == 0
    assert files(tmp_path) == files(small)


def test_a_full_disk_fails_only_the_runs_that_do_not_fit(small: Path, tmp_path: Path) -> None:
    store = copy(small, tmp_path)
    shutil.rmtree(store.folder(FIRST))
    (store.folder(SECOND) / RECORD).unlink()
    with processes.files_no_longer_than(50_000):  # enough for a record, too little for a training state
        failures, outcomes = run_all(GRID.runs(), tmp_path)
    assert failures == 1
    expected = f"{store.folder(FIRST) / 'state.pt'} cannot be written (File too large): raise the limit on the size"
    assert str(outcomes[FIRST].error).startswith(expected)
    assert expected in store.error(FIRST)
    assert runner.missing_runs(GRID, store) == [FIRST]
    assert not list(tmp_path.rglob("*.part"))
    assert store.epochs_done(FIRST) == 1
    assert run_all(runner.missing_runs(GRID, store), tmp_path)[0] == 0
    assert files(tmp_path) == files(small)


def test_trained_weights_are_kept_if_a_record_does_not_fit_on_the_disk(small: Path, tmp_path: Path) -> None:
    store = copy(small, tmp_path)
    shutil.rmtree(store.folder(FIRST) / "records")
    with processes.files_no_longer_than(1_000):
        failures, outcomes = run_all(GRID.runs(), tmp_path)
    assert failures == 1
    assert "records/none.safetensors cannot be written (File too large)" in str(outcomes[FIRST].error)
    assert store.is_trained(FIRST)
    assert run_all(runner.missing_runs(GRID, store), tmp_path)[0] == 0
    assert files(tmp_path) == files(small)
    assert len(logged(store, FIRST, "training")) == 1, "the network is not trained again"
