"""Killed, damaged, out of room, or two at once: a store ends with the bytes of an undisturbed one."""

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
# Far beyond what anything here takes: reached only by what hangs.
DEADLINE = 120

RECIPE = replace(recipes.DIGITS, epochs=2, curve_every=1, curve_attacks=(protocols.exact("ce", 0.1),))
ATTACKS = (AttackSpec("none"), protocols.exact("ce", 0.1), protocols.paper("hr", 0.1))
GRID = Grid("small", (("digits", RECIPE),), (protocols.CE, protocols.HR), (0, 1), ATTACKS)
FIRST, SECOND, *_ = GRID.runs()

LONG = RunSpec("digits", replace(RECIPE, epochs=24, batch_size=100, curve_every=6), protocols.HR, 0)
MANY_ATTACKS = tuple(protocols.exact("ce", eps / 200) for eps in range(1, 41))


@pytest.fixture(scope="module")
def elsewhere() -> multiprocessing.context.BaseContext:
    """Processes that begin within a moment, being forked from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*executors.PRELOAD, "testing.processes"])
    return context


@pytest.fixture
def start(elsewhere) -> Iterator[Callable[..., BaseProcess]]:
    """Begin a process there: (function, *arguments). None outlives the test."""
    begun: list[BaseProcess] = []

    def start(function: Callable, *arguments: object) -> BaseProcess:
        begun.append(elsewhere.Process(target=function, args=arguments, daemon=True))
        begun[-1].start()
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.join(DEADLINE)


def jobs_of(runs: list[RunSpec], root: Path, attacks: tuple[AttackSpec, ...] = ATTACKS) -> list[runner.Job]:
    root.mkdir(exist_ok=True)
    return [runner.Job(run, attacks, root, root) for run in runs]


def run_all(runs: list[RunSpec], root: Path) -> tuple[int, dict[RunSpec, runner.Outcome]]:
    """Do the runs here, one after the other; how many failed, and how each ended."""
    outcomes: dict[RunSpec, runner.Outcome] = {}
    return runner.run_all(jobs_of(runs, root), lambda: executors.local(1), outcomes.__setitem__), outcomes


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """An undisturbed store of the small grid."""
    root = tmp_path_factory.mktemp("small")
    assert run_all(GRID.runs(), root)[0] == 0
    return root


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """An undisturbed store of the long run."""
    root = tmp_path_factory.mktemp("long")
    (job,) = jobs_of([LONG], root, MANY_ATTACKS)
    runner.execute(job)
    return root


def files(root: Path) -> dict[str, bytes]:
    """All that a store has of its runs, but the log, which tells times, and the lock; by relative name."""
    found = (path for path in sorted((root / "runs").rglob("*")) if path.name not in ("log.jsonl", ".lock"))
    return {str(path.relative_to(root)): path.read_bytes() for path in found if not path.is_dir()}


def copy(store: Path, to: Path) -> Store:
    shutil.copytree(store / "runs", to / "runs")
    return Store(to)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "nothing happens any more"
        time.sleep(0.001)


def kill(process: BaseProcess) -> bool:
    """Whether the process was killed; it may have ended by itself before."""
    process.kill()
    process.join(DEADLINE)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def logged(store: Store, run: RunSpec, event: str) -> list[dict]:
    return [entry for entry in store.log_entries(run) if entry["event"] == event]


def pace(root: Path, event: str) -> float:
    """Seconds that the long run took for each, undisturbed."""
    return sum(entry["seconds"] for entry in logged(Store(root), LONG, event)) / len(logged(Store(root), LONG, event))


def killed_again_and_again(
    start: Callable[..., BaseProcess],
    job: runner.Job,
    begun: Callable[[int, tuple[int, int, int]], bool],
    seconds: float,
) -> Counter[str]:
    """
    Kill a job so many times, each time going on in the same store; if it was done before that, from anew.

    :param begun: Whether to kill it now, but for a random moment of up to `seconds`; told how often it was killed so
        far, and its progress before this time.
    :return: How often it was killed where.
    """
    store, rng, met = Store(job.store), random.Random(0), Counter[str]()
    end = time.monotonic() + 5 * DEADLINE
    while met.total() < KILLS:
        assert time.monotonic() < end, f"killed only {met}"
        if store.is_done(job.run, job.attacks):
            shutil.rmtree(store.folder(job.run) / "records" if job.attacks else store.folder(job.run))
        kills, before = met.total(), progress(store, job)
        process = start(runner.execute, job)
        wait_until(partial(begun_or_ended, begun, kills, before, process))
        time.sleep(rng.uniform(0, seconds) if kills else 0.0)
        if kill(process):
            met[where(store, job)] += 1
    return met


def begun_or_ended(begun: Callable, kills: int, before: tuple[int, int, int], process) -> bool:
    return begun(kills, before) or not process.is_alive()


def progress(store: Store, job: runner.Job) -> tuple[int, int, int]:
    """Trainings begun, epochs and records."""
    folder = store.folder(job.run) / "records"
    records = len(list(folder.glob("*.safetensors"))) if folder.exists() else 0
    return len(logged(store, job.run, "training")), store.epochs_done(job.run), records


def where(store: Store, job: runner.Job) -> str:
    _, epochs, records = progress(store, job)
    if store.is_trained(job.run):
        return "amid records" if records else "before the first record"
    return "amid epochs" if epochs else "before the first epoch"


def test_a_trainer_killed_twenty_times_ends_in_the_same_bytes(start, long: Path, tmp_path: Path) -> None:
    (job,) = jobs_of([LONG], tmp_path, ())
    store = Store(tmp_path)

    def begun(kills: int, before: tuple[int, int, int]) -> bool:
        trainings, epochs, _ = progress(store, job)
        # By turns: as soon as it trains, and after one more epoch.
        return trainings > before[0] if kills < 4 or kills % 2 else epochs > before[1]

    met = killed_again_and_again(start, job, begun, pace(long, "epoch"))
    assert min(met["before the first epoch"], met["amid epochs"]) > 0, met
    runner.execute(job)
    assert files(tmp_path) == {name: data for name, data in files(long).items() if "/records/" not in name}


def test_an_evaluator_killed_twenty_times_ends_in_the_same_bytes(start, long: Path, tmp_path: Path) -> None:
    (job,) = jobs_of([LONG], tmp_path, MANY_ATTACKS)
    store = copy(long, tmp_path)
    shutil.rmtree(store.folder(LONG) / "records")

    def begun(kills: int, before: tuple[int, int, int]) -> bool:
        # At first as soon as it is there, and then by turns after one, two or three more records.
        return store.is_locked(LONG) if kills < 2 else progress(store, job)[2] > before[2] + kills % 3

    met = killed_again_and_again(start, job, begun, 2 * pace(long, "record"))
    assert set(met) <= {"before the first record", "amid records"}, met
    assert min(met["before the first record"], met["amid records"]) > 0, met
    runner.execute(job)
    assert files(tmp_path) == files(long)


def test_a_writer_killed_twenty_times_leaves_a_whole_file_of_one_version(start, tmp_path: Path) -> None:
    store, rng, last = Store(tmp_path), random.Random(0), 0
    path = store.folder(FIRST) / "curve.json"

    def read() -> int:
        """Which version is there, in whole."""
        kept = read_json(path, list) or []
        assert kept == processes.version(kept[0] if kept else 0)
        return kept[0] if kept else 0

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
    assert list(path.parent.glob(".curve.json.*.part")), "one kill at least came amid a write"
    path.unlink()
    store.open(FIRST, "data")
    assert [left.name for left in path.parent.iterdir()] == ["spec.json"], "which the next process clears"


def test_a_run_killed_before_any_step_on_its_files_ends_in_the_same_bytes(start, small: Path, tmp_path: Path) -> None:
    run = replace(FIRST, recipe=replace(RECIPE, epochs=1))
    (whole,) = jobs_of([run], tmp_path / "whole", ATTACKS[:1])
    runner.execute(whole)
    left: list[set[str]] = []
    while True:
        (job,) = jobs_of([run], tmp_path / str(len(left)), ATTACKS[:1])
        process = start(processes.execute_and_die, job, len(left) + 1)
        process.join(DEADLINE)
        if process.exitcode == 0:  # it has fewer steps than that
            break
        assert process.exitcode == -signal.SIGKILL
        left.append({path.name for path in Store(job.store).folder(run).iterdir()})
        runner.execute(job)
        assert files(job.store) == files(whole.store), f"killed before step {len(left)}"
        assert len(left) < 100
    assert len(left) > 10
    assert any({"model.safetensors", "state.pt"} <= names for names in left), "the weights saved, the state not removed"


def test_two_processes_on_one_store_share_its_runs(start, elsewhere, small: Path, tmp_path: Path) -> None:
    together = elsewhere.Barrier(2)
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


def test_the_run_of_a_killed_process_is_taken_over(start, long: Path, tmp_path: Path) -> None:
    (job,) = jobs_of([LONG], tmp_path, MANY_ATTACKS[:1])
    store = Store(tmp_path)
    first = start(runner.execute, job)
    wait_until(lambda: store.epochs_done(LONG) >= 2)
    os.kill(first.pid, signal.SIGSTOP)  # it lives, and holds its lock, for as long as the rest takes
    assert runner.execute(job).busy, "left alone while the other lives"
    second = start(runner.execute, replace(job, wait=True))
    assert kill(first)
    second.join(DEADLINE)
    assert second.exitcode == 0
    epochs = [entry["epoch"] for entry in logged(store, LONG, "epoch")]
    assert sorted(set(epochs)) == epochs, "none is done twice"
    # The first may have been stopped between an epoch's curve and its state.
    assert logged(store, LONG, "training")[1]["from_epoch"] >= 2
    kept = files(tmp_path)
    assert kept == {name: data for name, data in files(long).items() if name in kept}
    assert store.is_done(LONG, job.attacks)


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def cut(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def becomes(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def flip(place: int) -> Callable[[Path], object]:
    def flip_there(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 4
        path.write_bytes(data)

    return flip_there


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


def another_version(path: Path) -> None:
    made_up.rewrite(path, {"version": 99})


RECORD = "records/none.safetensors"
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "spec, garbage": ("spec.json", becomes("%!"), "is not valid JSON"),
    "spec, cut": ("spec.json", cut(0.5), "is not valid JSON"),
    "spec, list": ("spec.json", becomes("[]"), "should hold a dict, but holds a list"),
    "spec, empty dict": ("spec.json", becomes("{}"), "should hold run and data"),
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
    "record, of another version": (RECORD, another_version, "is of version 99, where this program writes"),
    "record, directory": (RECORD, directory, "should be a file, but is a directory"),
}


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_to_a_run_that_was_done_is_told_set_aside_and_made_good(
    small: Path, tmp_path: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    store = copy(small, tmp_path)
    path = store.folder(FIRST) / name
    damage(path)
    (store.folder(SECOND) / RECORD).unlink()
    assert runner.missing_runs(GRID, store) == [FIRST, SECOND]
    made_good(small, store, path, message)


def test_weights_changed_by_a_bit_are_not_attacked(small: Path, tmp_path: Path) -> None:
    store = copy(small, tmp_path)
    path = store.folder(FIRST) / "model.safetensors"
    flip(-1000)(path)
    (store.folder(FIRST) / RECORD).unlink()  # or the weights were of no more use
    made_good(small, store, path, "was changed after it was written (its checksum is another)")


STATES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut(0.5), "cannot be read"),
    "garbage": (becomes("state"), "cannot be read"),
    "a bit of its weights": (flip(60_000), "was changed after it was written"),
    "hostile": (lambda path: path.write_bytes(pickle.dumps(Hostile(path.parent / "run"), 2)), "cannot be read"),
    "of another version": (other_state, "is of version 99, where this program writes version 1"),
    "without the order": (state_without_order, "should hold order, a Tensor"),
    "directory": (directory, "should be a file, but is a directory"),
}


@pytest.fixture(scope="module")
def stopped(elsewhere, tmp_path_factory) -> Path:
    """A store whose first run was killed right after its first epoch, before the second was kept."""
    root = tmp_path_factory.mktemp("stopped")
    (job,) = jobs_of([FIRST], root)
    for place in range(1, 100):
        process = elsewhere.Process(target=processes.execute_and_die, args=(job, place), daemon=True)
        process.start()
        process.join(DEADLINE)
        if (Store(root).folder(FIRST) / "state.pt").exists():
            return root
        shutil.rmtree(root / "runs")
    raise AssertionError("no state was kept")


@pytest.mark.parametrize(("damage", "message"), STATES.values(), ids=STATES)
def test_a_damaged_state_is_told_set_aside_and_training_begun_again(
    small: Path, stopped: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    store = copy(stopped, tmp_path)
    assert store.load_state(FIRST)["curve"] == store.curve(FIRST) != []
    path = store.folder(FIRST) / "state.pt"
    damage(path)
    made_good(small, store, path, message)
    assert not list(tmp_path.rglob("run")), "no code was run"
    assert [entry["from_epoch"] for entry in logged(store, FIRST, "training")][-1] == 1


def made_good(small: Path, store: Store, path: Path, message: str) -> None:
    """Do the first two runs, of which the first is damaged, and look at what is told and what is left."""
    failures, outcomes = run_all([FIRST, SECOND], store.root)
    assert failures == 0
    (told,) = outcomes[FIRST].messages
    assert told.startswith(f"{path} {message}")
    assert told.endswith(f": set aside as {path.name}.bad, and made again")
    assert outcomes[SECOND] == runner.Outcome(), "and the rest went on"
    assert [entry["message"] for entry in logged(store, FIRST, "set aside")] == [told.split(": set aside")[0]]
    aside = path.with_name(f"{path.name}.bad")
    shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    expected = {name: data for name, data in files(small).items() if FIRST.key() in name or SECOND.key() in name}
    assert {name: data for name, data in files(store.root).items() if name in expected} == expected
    assert set(files(store.root)) <= set(files(small))


def test_a_damaged_log_is_no_reason_to_do_anything(small: Path, tmp_path: Path) -> None:
    store = copy(small, tmp_path)
    with (store.folder(FIRST) / "log.jsonl").open("ab") as log:
        log.write(b'\x00\xff\n{"event": "epoch"}\n{"event": "rec')
    assert runner.missing_runs(GRID, store) == []
    assert run_all(GRID.runs(), tmp_path)[0] == 0
    assert files(tmp_path) == files(small)


def test_a_full_disk_fails_what_does_not_fit_and_the_rest_goes_on(small: Path, tmp_path: Path) -> None:
    store = copy(small, tmp_path)
    shutil.rmtree(store.folder(FIRST))
    (store.folder(SECOND) / RECORD).unlink()
    with processes.files_no_longer_than(50_000):  # enough for a record, too little for training's state
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


def test_a_disk_without_room_for_a_record_keeps_the_trained_weights(small: Path, tmp_path: Path) -> None:
    store = copy(small, tmp_path)
    shutil.rmtree(store.folder(FIRST) / "records")
    with processes.files_no_longer_than(1_000):
        failures, outcomes = run_all(GRID.runs(), tmp_path)
    assert failures == 1
    assert "records/none.safetensors cannot be written (File too large)" in str(outcomes[FIRST].error)
    assert store.is_trained(FIRST)
    assert run_all(runner.missing_runs(GRID, store), tmp_path)[0] == 0
    assert files(tmp_path) == files(small)
    assert len(logged(store, FIRST, "training")) == 1, "nothing was trained again"
