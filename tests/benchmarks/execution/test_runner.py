"""The commands run, status and report in real processes, on real digits."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from testing import made_up, studies

from benchmarks import data, execution, grids
from benchmarks.cli import GridOptions, main
from benchmarks.config import AttackSpec, LossSpec, RunSpec
from benchmarks.data import Dataset
from benchmarks.execution import Outcome
from benchmarks.execution import _jobs as worker
from benchmarks.execution import _local as executors
from benchmarks.store import Store, StoreError
from benchmarks.store._schema import RECORD_VERSION

SMALL = ["--grid", studies.SMALL]
GRID = studies.small()


def files(root: Path) -> dict[str, bytes]:
    """Return all files of a store by relative name, except reports, locks and logs."""
    paths = (p for p in sorted((root / "runs").rglob("*")) if p.is_file() and p.name not in (".lock", "log.jsonl"))
    return {str(p.relative_to(root)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def pool_store(tmp_path_factory) -> Path:
    """Store of a small grid that a pool of two processes has executed."""
    root = tmp_path_factory.mktemp("pool")
    assert main(["run", *SMALL, "--store", str(root), "--workers", "2"]) == 0
    return root


def test_a_grid_gives_weights_curves_records_and_tables(pool_store: Path) -> None:
    stored = files(pool_store)
    keys = {run.key() for run in GRID.runs()}
    assert {name.split("/")[1] for name in stored} == keys
    for key in keys:
        names = {name.removeprefix(f"runs/{key}/") for name in stored if key in name}
        records = {f"records/{attack.key()}.safetensors" for attack in GRID.attacks}
        assert names == {"spec.json", "curve.json", "model.safetensors", *records}
    reports = pool_store / "reports" / "small"
    for name in ("table_1.md", "index.html"):
        assert f"python -m benchmarks run --grid {studies.SMALL}" in (reports / name).read_text()


def test_one_process_gives_the_same_files_as_a_pool(pool_store: Path, tmp_path: Path) -> None:
    assert main(["run", *SMALL, "--store", str(tmp_path), "--workers", "1"]) == 0
    assert files(tmp_path) == files(pool_store)


def test_existing_results_are_not_computed_again(pool_store: Path, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in (pool_store / "runs").rglob("*")}
    assert main(["run", *SMALL, "--store", str(pool_store)]) == 0
    assert "4 runs, 4 of them done in" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (pool_store / "runs").rglob("*")} == before


def test_a_report_needs_no_training(pool_store: Path, capsys) -> None:
    table = pool_store / "reports/small/table_1.md"
    text = table.read_text()
    table.unlink()
    assert main(["report", *SMALL, "--store", str(pool_store)]) == 0
    assert table.read_text() == text
    assert "Table 1 on digits" in capsys.readouterr().out


def test_a_failed_run_is_recorded_and_other_runs_are_executed(tmp_path: Path) -> None:
    good, bad = GRID.runs()[:2]
    bad = replace(bad, recipe=replace(bad.recipe, lr=1e30))
    jobs = [worker.Job(run, GRID.attacks, tmp_path, tmp_path) for run in (bad, good)]
    store, ended, trained = Store(tmp_path), {}, []

    def on_end(run: RunSpec, outcome: Outcome) -> None:
        ended[run] = outcome.error
        trained.append(store.is_trained(good))

    assert executors.run_all(jobs, lambda: executors.local(1), on_end) == 1
    assert trained == [False, True], "each outcome is reported when its run ends"
    assert "the loss of digits" in str(ended[bad])
    assert ended[good] is None
    assert "TrainingError: the loss of digits" in store.error(bad)
    assert store.record(good, GRID.attacks[-1]) is not None


def test_a_command_with_failed_runs_exits_with_1_and_names_the_errors(tmp_path: Path, monkeypatch, capsys) -> None:
    ((name, recipe),) = GRID.recipes
    broken = replace(GRID, name="broken", seeds=(0,), recipes=((name, replace(recipe, lr=1e30)),))
    monkeypatch.setitem(grids.GRIDS, "digits", lambda: broken)
    monkeypatch.setattr(execution, "available_cpus", lambda: 1)
    monkeypatch.chdir(tmp_path)
    # Without arguments: the default command, grid and store.
    assert main([]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "seed 0: failed: the loss of digits" in shown
    command = "python -m benchmarks status --grid digits --store hrloss-store"
    assert f"2 of 2 runs failed. To see the errors, run `{command}`." in shown
    assert len(list(tmp_path.glob("hrloss-store/runs/*/error.txt"))) == 2
    assert main(["status"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 failed" in shown
    assert "TrainingError" in shown


def job_of(run: RunSpec, store: Path) -> worker.Job:
    return worker.Job(run, GRID.attacks, store, store)


def test_a_job_that_is_submitted_again_computes_only_missing_records(
    pool_store: Path, tmp_path: Path, monkeypatch
) -> None:
    shutil.copytree(pool_store / "runs", tmp_path / "runs")
    store, run, attack = Store(tmp_path), GRID.runs()[0], GRID.attacks[-1]
    assert executors.missing_runs(GRID, store) == []
    whole = files(tmp_path)
    (store.folder(run) / "records" / f"{attack.key()}.safetensors").unlink()
    assert executors.missing_runs(GRID, store) == [run]
    monkeypatch.setattr(worker, "train", None)
    worker.execute(job_of(run, tmp_path))
    assert files(tmp_path) == whole


def test_a_run_that_was_started_with_other_versions_is_reported(pool_store: Path, tmp_path: Path) -> None:
    shutil.copytree(pool_store / "runs", tmp_path / "runs")
    store, run = Store(tmp_path), GRID.runs()[0]
    assert worker.execute(job_of(run, tmp_path)).messages == ()
    path = store.folder(run) / "spec.json"
    spec = json.loads(path.read_text())
    spec["made_with"]["torch"] = "0.1"
    path.write_text(json.dumps(spec))
    (message,) = worker.execute(job_of(run, tmp_path)).messages
    assert message.startswith("started with torch 0.1, and resumed with {")


SOURCE = 100
TRANSFER = AttackSpec("transfer", eps=0.1, steps=2, images=20, source=SOURCE)


def test_the_source_network_of_an_attack_is_trained_once_and_not_evaluated(tmp_path: Path, monkeypatch) -> None:
    first, second, *_ = GRID.runs()
    store, source, train, trained = Store(tmp_path), first.source(SOURCE), worker.train, []

    def noting(run: RunSpec, *args) -> None:
        trained.append(run)
        train(run, *args)

    monkeypatch.setattr(worker, "train", noting)
    for run in (first, second, first):
        assert worker.execute(worker.Job(run, (TRANSFER,), tmp_path, tmp_path)) == Outcome()
    assert trained == [source, first, second]
    assert all(store.record(run, TRANSFER) is not None for run in (first, second))
    assert not (store.folder(source) / "records").exists()
    assert not store.is_locked(source)


def test_a_pool_gives_the_same_transfer_attacks_as_one_process(tmp_path: Path) -> None:
    for name, workers in (("pool", 2), ("one", 1)):
        jobs = [worker.Job(run, (TRANSFER,), tmp_path / name, tmp_path) for run in GRID.runs()[:2]]
        assert executors.run_all(jobs, lambda workers=workers: executors.local(workers), lambda *_: None) == 0
    stored = files(tmp_path / "pool")
    assert stored == files(tmp_path / "one")
    assert len({name.split("/")[1] for name in stored}) == 3


def test_a_source_network_with_damaged_weights_is_reported_and_trained_again(tmp_path: Path) -> None:
    run, store = GRID.runs()[1], Store(tmp_path)
    job = worker.Job(run, (TRANSFER,), tmp_path, tmp_path)
    worker.execute(job)
    before, record = files(tmp_path), store.record(run, TRANSFER)
    weights = store.folder(run.source(SOURCE)) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (store.folder(run) / "records" / f"{TRANSFER.key()}.safetensors").unlink()
    (message,) = worker.execute(job).messages
    assert "model.safetensors" in message
    assert made_up.same(store.record(run, TRANSFER), record)
    assert {name: kept for name, kept in files(tmp_path).items() if not name.endswith(".bad")} == before


def test_a_source_network_that_cannot_be_trained_fails_the_runs_that_need_it(tmp_path: Path) -> None:
    ended, run = [], GRID.runs()[1]
    run = replace(run, recipe=replace(run.recipe, lr=1e30))
    jobs = [worker.Job(run, (TRANSFER,), tmp_path, tmp_path)]
    Store(tmp_path).save_error(run, "of another time")
    assert executors.run_all(jobs, lambda: executors.local(1), lambda run, outcome: ended.append(outcome.error)) == 1
    assert "the loss of digits, CE, seed 100 became" in str(ended[0])
    for failed in (run, run.source(SOURCE)):
        assert "TrainingError: the loss of digits, CE, seed 100" in Store(tmp_path).error(failed)


def test_a_job_checks_the_fingerprint_of_its_data(tmp_path: Path) -> None:
    run = GRID.runs()[0]
    Store(tmp_path).open(run, "other")
    with pytest.raises(StoreError, match="has data with fingerprint other"):
        worker.execute(job_of(run, tmp_path))


def test_a_job_uses_its_number_of_threads(tmp_path: Path, monkeypatch) -> None:
    def watch(run: RunSpec, dataset: Dataset, store: Store) -> None:
        seen.append(torch.get_num_threads())
        raise KeyError("a failure")

    seen: list[int] = []
    monkeypatch.setattr(worker, "train", watch)
    run, before = GRID.runs()[0], torch.get_num_threads()
    run = replace(run, recipe=replace(run.recipe, threads=before + 1))
    with pytest.raises(KeyError, match="a failure"):
        worker.execute(job_of(run, tmp_path))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before, "given back, even after a failure"


def test_data_are_split_by_the_recipe(tmp_path: Path) -> None:
    recipe = replace(GRID.recipes[0][1], validation_size=100, split_seed=7)
    expected = data.load("digits", data_dir=tmp_path, validation_size=100, split_seed=7)
    assert worker.load_data("digits", recipe, data_dir=tmp_path).fingerprint == expected.fingerprint


def test_data_are_downloaded_into_the_data_folder(tmp_path: Path, monkeypatch) -> None:
    asked = {}

    def no_network(name: str, **options) -> None:
        asked.update(options)
        raise data.DataError("no network")

    monkeypatch.setattr(data, "load", no_network)
    arguments = ["run", "--data-dir", str(tmp_path), "--store", str(tmp_path)]
    for download in (False, True):
        assert main([*arguments, "--download"] if download else arguments) == 2
        assert (asked["download"], asked["data_dir"]) == (download, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "workers"),
    [
        ([], 8),
        (["--threads", "4"], 2),
        (["--device", "gpu"], 1),
        (["--together", "4"], 3),  # groups of 4, 4 and 2 of the ten runs
        (["--workers", "3"], 3),
        (["--seeds", "2"], 4),  # not more than there are runs
        (["--seeds", "1", "--alpha", "3"], 2),
    ],
    ids=["default", "threads", "gpu", "together", "workers", "few runs", "alpha"],
)
def test_the_number_of_workers_follows_from_processors_and_options(
    arguments: list[str], workers: int, tmp_path: Path, monkeypatch
) -> None:
    pools: list[int] = []
    sent: list[worker.Job] = []
    monkeypatch.setattr(execution, "available_cpus", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(execution, "local", lambda workers: pools.append(workers) or nullcontext())
    monkeypatch.setattr(execution, "run_all", lambda jobs, *_, **__: sent.extend(jobs) or 0)
    monkeypatch.setattr(execution, "costs", lambda *_, **__: {})
    assert main(["run", *arguments, "--store", str(tmp_path)]) == 0
    assert pools == [workers]
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert {job.run.recipe.threads for job in sent} == {int(options.get("--threads", 1))}
    assert {job.run.recipe.device for job in sent} == {options.get("--device", "cpu")}


def test_more_threads_than_processors_are_refused(tmp_path: Path, capsys) -> None:
    cpus = execution.available_cpus()
    assert main(["run", "--threads", str(cpus + 1), "--store", str(tmp_path / "store")]) == 2
    assert f"at most {cpus}, the number of available processors, but got {cpus + 1}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_missing_gpu_is_reported(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["run", "--device", "gpu", "--store", str(tmp_path)]) == 2
    assert "expected a GPU that torch can use" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_report_names_the_number_of_incomplete_runs(pool_store: Path, capsys) -> None:
    assert main(["report", *SMALL, "--seeds", "3", "--store", str(pool_store)]) == 0
    assert "2 of 6 runs are not complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--grid", "mnits"], "expected grid to be one of ['alpha', "),
        (["run", "--grid", "mnist-short", "--data-dir", "nowhere"], "mnist"),
        (["run", "--seeds", "-1"], "expected seeds to be at least 1, but got -1"),
        (["run", "--epochs", "-1"], "epochs"),
        (["run", "--grid", "mine.py:grid"], "mine.py"),
        (["status", "--grid", "no_such_module:grid"], "no_such_module"),
        (["run", "--dataset", "mine.py:load"], "mine.py"),
        (["run", "--validation-size", "1500"], "--validation-size"),
        (["run", "--workers", "0"], "expected workers to be at least 1, but got 0"),
        (["run", "--threads", "0"], "expected threads above 0, but got 0"),
        (["run", "--batch-size", "0"], "expected batch_size above 0, but got 0"),
        (["run", "--alpha", "0"], "expected alpha above 0, but got 0.0"),
        (["run", "--dataset", "nothing"], "nothing.npz"),
        (["run", "--dataset", "../x"], "expected a grid's name of letters"),
        (["run", "--grid", "paper", "--dataset", "digits"], "expected dataset to be one of ['mnist', 'cifar10', "),
        (["run", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], "expected either --workers or --scheduler"),
        (["run", "--tls-ca", "ca.pem"], "expected --scheduler together with --tls-ca"),
        (["report", "--grid", ""], "but got ''"),
        (["status", "--grid", "mnits"], "expected grid to be one of"),
        (
            ["report"],
            "hrloss-store has no results of the grid digits: to compute them, run `python -m benchmarks run --grid",
        ),
    ],
    ids=[
        *("grid", "data", "seeds", "epochs", "own grid", "own module", "own data", "validation size", "workers"),
        *("threads", "batch size", "alpha", "no such data", "a path", "not the grid's data", "two ways", "no cluster"),
        *("no grid", "status", "no results"),
    ],
)
def test_invalid_options_are_refused_before_any_file_is_created(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_a_store_with_other_data_is_refused(pool_store: Path, tmp_path: Path, capsys) -> None:
    run = GRID.runs()[0]
    spec = tmp_path / "runs" / run.key() / "spec.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"run": {}, "data": "other"}))
    assert main(["run", *SMALL, "--store", str(tmp_path)]) == 2
    assert "has data with fingerprint other" in capsys.readouterr().err.replace("\n", " ")


def test_a_store_may_have_brackets_in_its_name(tmp_path: Path, capsys) -> None:
    assert main(["report", "--store", str(tmp_path / "[/x]")]) == 2
    assert "[/x] has no results" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_an_interrupt_ends_the_command_and_the_printed_command_resumes_it(
    pool_store: Path, tmp_path: Path, end: int
) -> None:
    command = [sys.executable, "-m", "benchmarks", "run", *SMALL, "--store", str(tmp_path), "--workers", "2"]
    # In a shell without job control SIGINT may be ignored from the start, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    # A new session, as in a terminal: the interrupt reaches the parent and its workers.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("curve.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    if end == signal.SIGINT:
        os.killpg(process.pid, end)
    else:
        process.send_signal(end)  # a cluster scheduler sends it to the parent only
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130, output
    assert "Interrupted." in output
    resuming = output.strip().splitlines()[-1].split()
    assert resuming[:3] == ["python", "-m", "benchmarks"]
    assert resuming[-2:] == ["--workers", "2"]
    assert main([*resuming[3:-1], "1"]) == 0
    assert files(tmp_path) == files(pool_store)


def test_overrides_are_part_of_the_keys_and_of_the_grids_name() -> None:
    plain = grids.digits()
    changes = {"epochs": 3, "batch_size": 10, "threads": 2, "device": "gpu", "alpha": 2.0, "dataset": "other"}
    for name, value in changes.items():
        grid = GridOptions(**{name: value}).resolve()
        assert grid.name == f"digits-{name.replace('_', '-')}-{value}"
        same = {run.key() for run in grid.runs()} & {run.key() for run in plain.runs()}
        # Another alpha does not change the runs with cross-entropy.
        assert len(same) == (5 if name == "alpha" else 0)
    assert {run.recipe.epochs for run in GridOptions(epochs=3).resolve().runs()} == {3}
    assert {run.recipe.validation_size for run in GridOptions(validation_size=7).resolve().runs()} == {7}
    assert [run.seed for run in GridOptions(seeds=2).resolve().runs()] == [0, 0, 1, 1]
    assert {str(run.loss) for run in GridOptions(alpha=2).resolve().runs()} == {"CE", "HR(2)"}
    assert [str(loss) for loss in GridOptions(grid="alpha-digits", alpha=2).resolve().losses] == ["CE", "HR(2)"]
    hardened = GridOptions(grid="hardening-digits", alpha=2).resolve().losses
    assert {loss.hardening for loss in hardened if loss.alpha} == {
        loss.hardening for loss in hardened if not loss.alpha
    }
    assert {loss.alpha for loss in hardened} == {None, 2.0}
    assert LossSpec("ce", margin=14.5) in hardened
    command = GridOptions(**changes).command
    assert command == (
        "python -m benchmarks run --grid digits --dataset other --epochs 3 --alpha 2.0 --batch-size 10 --threads 2 "
        "--device gpu"
    )


def test_a_users_data_set_is_named_in_the_report_and_in_the_command(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def load(): ...")
    options = GridOptions(dataset=f"{tmp_path}/mine.py:load(n='a b')")
    grid = options.resolve()
    assert grid.recipes[0][0] == "mine.py:load(n='a b')"
    assert grid.name.endswith("mine.py-load-n-a-b")
    assert shlex.split(options.command)[-1] == options.dataset


def test_dataset_selects_one_of_a_grids_data_sets() -> None:
    alone = GridOptions(grid="paper", dataset="cifar10").resolve()
    assert {run.key() for run in alone.runs()} == {run.key() for run in grids.cifar10().runs()}


def test_damaged_files_are_reported_and_computed_again(pool_store: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(pool_store / "runs", tmp_path / "runs")
    whole, run = files(tmp_path), GRID.runs()[1]
    folder = Store(tmp_path).folder(run)
    (folder / "model.safetensors").write_bytes(b"short")
    made_up.rewrite(folder / "records" / "none.safetensors", {"version": 0})
    assert main(["report", *SMALL, "--store", str(tmp_path)]) == 0
    assert "Ignored: " in capsys.readouterr().out
    assert main(["run", *SMALL, "--store", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "model.safetensors cannot be read" in shown
    assert f"none.safetensors has version 0, but this program reads version {RECORD_VERSION}" in shown
    for name in ("model.safetensors.bad", "records/none.safetensors.bad"):
        (folder / name).unlink()
    assert files(tmp_path) == whole


def test_status_shows_done_and_missing_runs_and_the_time_left(pool_store: Path, capsys) -> None:
    assert main(["status", *SMALL, "--seeds", "3", "--store", str(pool_store)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 done, 2 missing" in shown
    assert "Time left:" in shown
    assert f"run --grid {studies.SMALL} --seeds 3 --store {pool_store}`" in shown


def test_without_a_terminal_progress_is_printed_as_plain_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "run", *SMALL, "--seeds", "1", "--store", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.search(r"^0/2 runs, 0/2 epochs, time left: \d+ s$", shown, re.MULTILINE)
    assert "digits, CE, seed 0: accuracy 0." in shown
    assert "\x1b" not in shown
