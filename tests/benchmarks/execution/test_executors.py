"""Executors: equal files from processes and from real Dask clusters, also if workers or schedulers die."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest
from dask import config as dask_config
from distributed import Client, LocalCluster, Nanny, Scheduler, Security, SpecCluster
from testing import studies

from benchmarks import grids, protocols
from benchmarks.__main__ import main
from benchmarks.config import AttackSpec, ConfigError, LossSpec, Recipe, RunSpec
from benchmarks.execution import Cluster, ClusterError, Job, Outcome, WorkerDiedError
from benchmarks.execution import _dask as cluster
from benchmarks.execution import _jobs as worker
from benchmarks.execution import _local as executors
from benchmarks.store import Store, StoreError

ROOT = Path(__file__).parents[3]
PATIENCE = 120.0
((DATASET, RECIPE),) = grids.get("digits").recipes
ATTACKS = (protocols.exact("ce", 0.0), protocols.exact("hr", 0.1))
RUNS = [
    RunSpec(DATASET, replace(RECIPE, epochs=2, curve_every=1), loss, seed)
    for seed in (0, 1)
    for loss in (protocols.CE, protocols.HR)
]
# Long enough that its process can be suspended during training.
LONG = replace(RUNS[0], recipe=replace(RUNS[0].recipe, epochs=20, curve_every=20))


class Deadly(RunSpec):
    """Run whose key() exits every process except the main one."""

    def key(self) -> str:
        if multiprocessing.parent_process() is not None:
            os._exit(1)
        return super().key()


def jobs(runs: list[RunSpec], store: Path) -> list[Job]:
    return [Job(run, ATTACKS, store, store) for run in runs]


def do(runs: list[RunSpec], store: Path, executor) -> dict[RunSpec, Outcome]:
    """Execute the runs, and return the outcome of each."""
    outcomes: dict[RunSpec, Outcome] = {}

    def on_end(run: RunSpec, outcome: Outcome) -> None:
        assert run not in outcomes, "each outcome is reported once"
        outcomes[run] = outcome

    failures = executors.run_all(jobs(runs, store), executor, on_end)
    assert set(outcomes) == set(runs)
    assert failures == sum(outcome.error is not None for outcome in outcomes.values())
    return outcomes


def files(store: Path, runs: list[RunSpec]) -> dict[str, bytes]:
    """Return the files of the runs by relative name, except logs, which contain times, and locks."""
    folders = [Store(store).folder(run) for run in runs]
    paths = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(store)): p.read_bytes() for p in paths if p.name not in ("log.jsonl", ".lock")}


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"expected within {PATIENCE:g} s: {what}"
        time.sleep(0.01)


def suspended_during_training(store: Path, run: RunSpec) -> psutil.Process:
    """Return the process that trains the run, suspended after its first epoch and before its last."""
    folder, processes = Store(store).folder(run), []

    def holders() -> list[psutil.Process]:
        for process in psutil.Process().children(recursive=True):
            try:
                if any(file.path == str(folder / ".lock") for file in process.open_files()):
                    processes.append(process)
            except psutil.Error:  # the process has just ended
                continue
        return processes

    eventually((folder / "state.pt").exists, f"an epoch of {run}")
    eventually(holders, f"a process that holds the lock of {run}")
    processes[0].suspend()
    assert not Store(store).is_trained(run), "training was too fast to be suspended"
    return processes[0]


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Call a function in a thread during the with block, and raise its exception after the block."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            act()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join(PATIENCE)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses on which a process or its children listen."""
    family = [process, *process.children(recursive=True)]
    return {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}


def in_process() -> AbstractContextManager[Executor]:
    return executors.local(1)


def pool() -> AbstractContextManager[Executor]:
    return executors.local(2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """Store of the runs, executed in this process."""
    store = tmp_path_factory.mktemp("in-process")
    do([*RUNS, LONG], store, in_process)
    return store


def in_this_process(protocol: str, security: Security | None = None, **options: object) -> LocalCluster:
    """Start a cluster of one worker with two threads in this process, which is fast."""
    return LocalCluster(
        **{"n_workers": 1, **options},
        threads_per_worker=2,
        processes=False,
        host="127.0.0.1",
        protocol=protocol,
        security=security,
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
    )


@pytest.fixture(scope="module")
def dask() -> Iterator[SpecCluster]:
    """Cluster of two worker processes with one thread each, over TCP: "two" declares CPU=2, "one" CPU=1."""
    local = {"host": "127.0.0.1", "protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    # Two threads of torch on a busy machine stall where each keeps its core while it waits for the other.
    options = {**local, "nthreads": 1, "env": {"OMP_WAIT_POLICY": "passive"}}
    workers = {
        name: {"cls": Nanny, "options": {**options, "resources": {"CPU": cpus}}}
        for name, cpus in (("two", 2), ("one", 1))
    }
    # Forked, as a pool's, from a server that has imported torch and ART: spawned, each would import them for seconds.
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(executors.PRELOAD))
    forkserver.ensure_running()
    forked = dask_config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    with forked, SpecCluster(workers, {"cls": Scheduler, "options": local}) as cluster:
        yield cluster


def test_a_dask_cluster_gives_the_same_files_as_this_process(
    reference: Path, dask: SpecCluster, tmp_path: Path
) -> None:
    do(RUNS, tmp_path, Cluster(dask.scheduler_address).executor)
    assert files(tmp_path, RUNS) == files(reference, RUNS)
    assert len(files(tmp_path, RUNS)) == len(RUNS) * (3 + len(ATTACKS))
    assert listening(psutil.Process()) == {"127.0.0.1"}, "the test's cluster listens on the local address only"


def test_threads_of_one_worker_take_turns(reference: Path, tmp_path: Path, monkeypatch) -> None:
    active, counts, train_and_evaluate = [], [], worker._train_and_evaluate

    def counting(job: Job, store: Store) -> list[str]:
        active.append(job)
        counts.append(len(active))
        messages = train_and_evaluate(job, store)
        active.remove(job)
        return messages

    monkeypatch.setattr(worker, "_train_and_evaluate", counting)
    with in_this_process("tcp") as threads:
        assert threads.scheduler.total_nthreads == 2
        do(RUNS, tmp_path, Cluster(threads.scheduler_address).executor)
    assert counts == [1] * len(RUNS)
    assert files(tmp_path, RUNS) == files(reference, RUNS)


@pytest.mark.parametrize("where", ["pool", "dask"])
def test_a_run_whose_worker_died_is_retried_and_fails_only_if_it_kills_every_worker(
    where: str, reference: Path, dask: SpecCluster, tmp_path: Path, monkeypatch
) -> None:
    # Otherwise Dask would retry each run on four workers, whose start takes long.
    monkeypatch.setattr(dask.scheduler, "allowed_failures", 0)
    executor = pool if where == "pool" else Cluster(dask.scheduler_address).executor
    deadly, store = Deadly(DATASET, RECIPE, protocols.CE, 2), Store(tmp_path)
    with meanwhile(lambda: suspended_during_training(tmp_path, LONG).kill()):
        ended = do([LONG, deadly, *RUNS], tmp_path, executor)

    error = ended.pop(deadly).error
    assert isinstance(error, WorkerDiedError)
    assert "the worker of digits, CE, seed 2 died" in str(error)
    assert f"WorkerDiedError: {error}" in store.error(deadly)

    assert {outcome.error for outcome in ended.values()} == {None}
    assert files(tmp_path, [LONG, *RUNS]) == files(reference, [LONG, *RUNS])
    starts = [entry["from_epoch"] for entry in store.log_entries(LONG) if entry["event"] == "training"]
    assert len(starts) == 2, "the run of the killed worker is resumed"
    assert starts[0] == 1 < starts[1]


def test_an_interrupted_pool_whose_workers_have_shown_progress_ends_without_a_warning() -> None:
    script = (
        "from benchmarks.execution._local import local\n"
        "if __name__ == '__main__':\n"
        "    with local(2) as pool:\n"
        "        pool.submit(exec, 'from tqdm import tqdm; list(tqdm(range(2), disable=False))').result()\n"
        "        raise KeyboardInterrupt\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert "KeyboardInterrupt" in ended.stderr
    assert "2/2" in ended.stderr, "a bar was shown"
    assert "resource_tracker" not in ended.stderr


def test_a_pool_survives_the_death_of_a_process_and_ends_with_an_interrupt() -> None:
    def use(pool: Executor) -> None:
        long = pool.submit(time.sleep, 10 * PATIENCE)
        with pytest.raises(BrokenExecutor):
            pool.submit(os._exit, 1).result(PATIENCE)
        assert signal.SIGINT in pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result(PATIENCE)
        assert not long.done(), "the other process is not affected"
        futures.extend([long, *(pool.submit(time.sleep, 10 * PATIENCE) for _ in range(2))])
        raise KeyboardInterrupt

    futures: list[Future[None]] = []
    before = set(multiprocessing.active_children())
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), executors.local(2) as pool:
        use(pool)
    assert time.monotonic() - start < PATIENCE
    assert set(multiprocessing.active_children()) <= before
    assert isinstance(futures[0].exception(), BrokenExecutor)
    assert futures[-1].cancelled(), "no process had started it"


def test_worker_processes_exit_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from benchmarks.execution import local\n"
        "if __name__ == '__main__':\n"
        "    with local(2) as pool:\n"
        "        print(pool.submit(__import__('os').getpid).result(), flush=True)\n"
        "        sys.stdin.read()\n"
    )
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the end of the child")


def test_an_interrupt_cancels_the_runs_that_no_worker_of_the_cluster_has_started(
    dask: SpecCluster, tmp_path: Path
) -> None:
    runs = [replace(LONG, seed=seed) for seed in range(8)]

    def interrupt(run: RunSpec, outcome: Outcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executors.run_all(jobs(runs, tmp_path), Cluster(dask.scheduler_address).executor, interrupt)
    eventually(lambda: not dask.scheduler.tasks, "a scheduler without tasks")
    store = Store(tmp_path)
    eventually(lambda: not any(store.is_locked(run) for run in runs), "the end of the runs in progress")
    assert 1 <= sum(store.is_trained(run) for run in runs) <= 5


def test_equal_calls_are_executed_separately(dask: SpecCluster) -> None:
    cluster = Cluster(dask.scheduler_address)
    with cluster.executor() as one, cluster.executor() as other:
        answers = {executor.submit(uuid.uuid4).result(PATIENCE) for executor in (one, one, other)}
    assert len(answers) == 3


def test_a_worker_without_access_to_the_store_fails(tmp_path: Path) -> None:
    (job,) = jobs(RUNS[:1], tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"expected the store .*elsewhere on .*, but it does not exist"):
        worker.execute(job)
    assert not list(tmp_path.iterdir())


def test_an_exception_of_a_call_is_raised_by_its_future(dask: SpecCluster) -> None:
    with Cluster(dask.scheduler_address).executor() as executor, pytest.raises(ValueError, match="invalid literal"):
        executor.submit(int, "x").result(PATIENCE)


@pytest.mark.parametrize("address", ["", "nonsense", "foo://127.0.0.1:1", "tcp://127.0.0.1:1", "tls://127.0.0.1:1"])
def test_an_address_without_a_scheduler_is_refused(address: str) -> None:
    with (
        pytest.raises(ClusterError, match=f"expected a Dask scheduler at '{address}', but got: "),
        Cluster(address, timeout=0.5).executor(),
    ):
        pass


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> dict[str, list[Path]]:
    """Files of authority, certificate and key, for two authorities."""
    folder = tmp_path_factory.mktemp("tls")
    files: dict[str, list[Path]] = {}
    for name in ("ours", "theirs"):
        credentials = Security.temporary()
        for part, text in (
            ("ca", credentials.tls_ca_file),
            ("cert", credentials.tls_client_cert),
            ("key", credentials.tls_client_key),
        ):
            (folder / f"{name}-{part}.pem").write_text(text)
            files.setdefault(name, []).append(folder / f"{name}-{part}.pem")
    return files


@pytest.fixture(scope="module")
def tls(certificates: dict[str, list[Path]]) -> Iterator[str]:
    """Address of a cluster that accepts clients with the certificate "ours"."""
    ca, cert, key = map(str, certificates["ours"])
    parts = {
        f"tls_{part}_{what}": path
        for part in ("scheduler", "worker", "client")
        for what, path in (("cert", cert), ("key", key))
    }
    with in_this_process("tls", Security(tls_ca_file=ca, require_encryption=True, **parts)) as cluster:
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        yield cluster.scheduler_address


def test_tls_accepts_a_client_with_the_certificate(
    tls: str, certificates: dict[str, list[Path]], reference: Path, tmp_path: Path
) -> None:
    do(RUNS[:1], tmp_path, Cluster(tls, *certificates["ours"]).executor)
    assert files(tmp_path, RUNS[:1]) == files(reference, RUNS[:1])


@pytest.mark.parametrize("given", ["none", "authority", "theirs", "theirs under our authority", "unencrypted"])
def test_tls_refuses_a_client_without_the_certificate(
    given: str, tls: str, certificates: dict[str, list[Path]]
) -> None:
    address = tls.replace("tls:", "tcp:") if given == "unencrypted" else tls
    parts = {
        "authority": certificates["ours"][:1],
        "theirs": certificates["theirs"],
        "theirs under our authority": certificates["ours"][:1] + certificates["theirs"][1:],
    }
    with (
        pytest.raises(ClusterError, match=f"expected a Dask scheduler at '{address}'"),
        Cluster(address, *parts.get(given, []), timeout=1).executor(),
    ):
        pass


def test_the_command_line_connects_to_a_cluster_with_certificates(
    tls: str, certificates: dict[str, list[Path]], tmp_path: Path, capsys
) -> None:
    command = ["run", "--grid", studies.SMALL, "--seeds", "1", "--store", str(tmp_path), "--scheduler", tls]
    assert main(command) == 2
    assert f"expected a Dask scheduler at '{tls}', but got: TLS expects" in capsys.readouterr().err
    ca, cert, key = map(str, certificates["ours"])
    assert main([*command, "--tls-ca", ca, "--tls-cert", cert, "--tls-key", key]) == 0
    assert f"Starting 2 runs on the cluster at {tls}." in capsys.readouterr().out
    assert len(list(tmp_path.glob("runs/*/model.safetensors"))) == 2


def test_an_invalid_certificate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    for message in (
        r"expected a PEM file for the cluster's TLS, but .*ca\.pem is not a file",
        "expected .* but got: .*SSL",
    ):
        with pytest.raises(ClusterError, match=message), Cluster("tls://127.0.0.1:1", path, timeout=1).executor():
            pass
        path.write_text("no certificate")


def test_workers_of_other_versions_are_refused(dask: SpecCluster, monkeypatch) -> None:
    def sham() -> dict[str, str]:
        return {"torch": "0"} if multiprocessing.parent_process() is None else {"torch": "1"}

    monkeypatch.setattr(cluster, "versions", sham)
    with (
        pytest.raises(
            ClusterError, match=r"expected \{'torch': '0'\} on every worker, but tcp://.* has \{'torch': '1'\}"
        ),
        Cluster(dask.scheduler_address).executor(),
    ):
        pass


def test_workers_that_cannot_import_the_package_are_refused(dask: SpecCluster, monkeypatch) -> None:
    def fails() -> None:
        import benchmarks_of_another_folder  # noqa: F401

    monkeypatch.setattr(cluster, "versions", lambda: {} if multiprocessing.parent_process() is None else fails())
    with (
        pytest.raises(ClusterError, match=r"workers .* that can import benchmarks, but tcp://.*ModuleNotFoundError"),
        Cluster(dask.scheduler_address).executor(),
    ):
        pass


def with_threads(threads: int, runs: list[RunSpec]) -> list[RunSpec]:
    return [replace(run, recipe=replace(run.recipe, threads=threads)) for run in runs]


def reads(cluster: SpecCluster) -> dict[str, tuple[int, int]]:
    """Return, by worker, the numbers of data sets that were read from files and from the cache."""
    with Client(cluster.scheduler_address, set_as_default=False) as client:
        infos = client.run(worker._load.cache_info)
    workers = cluster.scheduler.workers
    return {workers[address].name: (info.misses, info.hits) for address, info in infos.items()}


def since(before: dict[str, tuple[int, int]], cluster: SpecCluster) -> dict[str, tuple[int, int]]:
    """Return the differences of `reads` to an earlier result."""
    return {name: (read - before[name][0], again - before[name][1]) for name, (read, again) in reads(cluster).items()}


def test_runs_are_placed_by_their_threads_and_reported_one_by_one(
    reference: Path, dask: SpecCluster, tmp_path: Path
) -> None:
    before = reads(dask)
    short = [replace(run, recipe=replace(run.recipe, epochs=1)) for run in RUNS[:3]]
    *_, last = runs = with_threads(2, [*short, RUNS[3]])
    store, done = Store(tmp_path), []

    def on_end(run: RunSpec, outcome: Outcome) -> None:
        assert outcome == Outcome()
        assert store.is_done(run, ATTACKS), "its records are stored when its outcome is reported"
        done.append([run for run in runs if store.is_done(run, ATTACKS)])

    assert executors.run_all(jobs(runs, tmp_path), Cluster(dask.scheduler_address).executor, on_end) == 0
    assert last not in done[0], "the outcome was reported before the last run ended"
    assert len(done) == len(runs)
    assert since(before, dask) == {"two": (1, len(runs) - 1), "one": (0, 0)}

    do(RUNS, tmp_path, Cluster(dask.scheduler_address).executor)
    assert files(tmp_path, RUNS) == files(reference, RUNS)
    (read, again), (read_by_one, again_by_one) = (since(before, dask)[name] for name in ("two", "one"))
    assert read == read_by_one == 1, "each worker reads the data once"
    assert again + again_by_one + 2 == len(runs) + len(RUNS)


@pytest.mark.parametrize(
    ("recipe", "asked"),
    [(replace(RECIPE, threads=3), "CPU=3"), (replace(RECIPE, device="gpu"), "GPU=1")],
    ids=["threads", "gpu"],
)
def test_a_run_without_a_suitable_worker_is_refused_before_any_run_starts(
    recipe: Recipe, asked: str, dask: SpecCluster, tmp_path: Path
) -> None:
    address = dask.scheduler_address
    too_large = replace(RUNS[0], recipe=recipe)
    message = f"expected a worker with {asked} at {address}, .* but got 1 with CPU=[12], 1 with CPU=[12]; see"
    with pytest.raises(ClusterError, match=message):
        do([too_large], tmp_path, Cluster(address).executor)
    asks = [job.resources for job in jobs([*RUNS, too_large], tmp_path)]
    with pytest.raises(ClusterError, match=message), Cluster(address).executor(asks):
        pytest.fail("the other runs could have been started")
    assert not list(tmp_path.rglob("*.json"))
    assert not dask.scheduler.tasks


def test_a_worker_that_could_start_two_runs_is_refused(tmp_path: Path) -> None:
    one, two = (jobs(with_threads(threads, RUNS[:1]), tmp_path)[0] for threads in (1, 2))
    gpu = Job(replace(RUNS[0], recipe=replace(RECIPE, device="gpu")), ATTACKS, tmp_path, tmp_path)
    with in_this_process("tcp", resources={"CPU": 2, "GPU": 1, "MEMORY": 10}) as both:
        executor = Cluster(both.scheduler_address).executor
        with executor([two.resources]) as opened:
            assert opened.submit(type, two).result(PATIENCE) is Job
            assert opened.submit(type, gpu).result(PATIENCE) is Job
            with pytest.raises(
                ClusterError, match=r"has 2 threads and CPU=2, GPU=1, .* requests CPU=1 and a run that requests CPU=1;"
            ):
                opened.submit(type, one)
        with (
            pytest.raises(ClusterError, match="a run that requests CPU=2 and a run that requests GPU=1"),
            executor([two.resources, gpu.resources]),
        ):
            pytest.fail("both runs could have been started")


def test_without_declared_resources_runs_are_placed_on_any_worker(tmp_path: Path) -> None:
    gpu = Job(replace(RUNS[0], recipe=replace(RECIPE, device="gpu")), ATTACKS, tmp_path, tmp_path)
    with in_this_process("tcp", n_workers=0, resources={"MEMORY": 10}) as empty:
        executor = Cluster(empty.scheduler_address).executor
        with executor([gpu.resources]) as opened:
            early = opened.submit(type, gpu)
            assert not early.done()
            empty.scale(1)
            assert early.result(PATIENCE) is Job
        with executor([gpu.resources]) as opened:
            assert opened.submit(type, gpu).result(PATIENCE) is Job


@contextmanager
def started(*arguments: str) -> Iterator[psutil.Process]:
    """Start a command of Dask in the project's folder."""
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    process = psutil.Popen([sys.executable, "-m", "dask", *arguments], cwd=ROOT, env=environment)
    try:
        yield process
    finally:
        family = [process, *process.children(recursive=True)] if process.is_running() else []
        for member in family:
            member.kill()
        process.wait(PATIENCE)


def test_a_lost_scheduler_raises_a_cluster_error(reference: Path, tmp_path: Path) -> None:
    scheduler_file = tmp_path / "scheduler.json"
    local = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(scheduler_file))
    with (
        started("scheduler", "--port", "0", *local) as scheduler,
        started("worker", *local, "--nworkers", "1", "--nthreads", "1") as workers,
    ):
        eventually(scheduler_file.exists, "the scheduler's address")
        eventually(lambda: scheduler_file.read_text().endswith("}"), "the whole of it")
        cluster = Cluster(json.loads(scheduler_file.read_text())["address"])
        do(RUNS[:2], tmp_path, cluster.executor)
        assert listening(scheduler) == listening(workers) == {"127.0.0.1"}
        assert files(tmp_path, RUNS[:2]) == files(reference, RUNS[:2])

        def kill() -> None:
            trainer = suspended_during_training(tmp_path, LONG)
            scheduler.kill()
            trainer.resume()

        with meanwhile(kill), pytest.raises(ClusterError, match=r"scheduler at tcp://127\.0\.0\.1:\d+ was lost"):
            do([LONG], tmp_path, cluster.executor)
    assert Store(tmp_path).error(LONG) is None, "the run itself has not failed"


def test_dask_is_imported_only_for_a_scheduler() -> None:
    program = (
        "import sys; from benchmarks.execution import local\n"
        "from benchmarks.cli import _run\n"
        "with local(1), local(2): pass\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('dask', 'distributed')])"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


OWN = """
import numpy as np
from torch import nn

class Loss(nn.CrossEntropyLoss):
    pass

class Attack:
    def __init__(self, classifier, eps):
        self.eps = eps
    def generate(self, x, y):
        return np.clip(x + self.eps * np.sign(np.random.normal(size=x.shape)), 0, 1)

def build(image_shape, classes, seed):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


def test_a_users_code_is_used_by_a_cluster_and_refused_after_a_change(dask: SpecCluster, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    recipe = replace(RECIPE, model=f"{file}:build", epochs=1, curve_every=0, curve_attacks=())
    run = RunSpec(DATASET, recipe, LossSpec(f"{file}:Loss"), 0)
    attacks = (AttackSpec(f"{file}:Attack", eps=0.1),)
    stores = [tmp_path / name for name in ("here", "there", "later")]
    errors: list[BaseException | None] = []
    for store, executor in zip(stores, [in_process, *[Cluster(dask.scheduler_address).executor] * 2], strict=True):
        if store.name == "later":
            file.write_text(OWN + "# changed")
        executors.run_all(
            [Job(run, attacks, store, store)], executor, lambda run, outcome: errors.append(outcome.error)
        )
    assert errors[:2] == [None, None]
    assert files(stores[0], [run]) == files(stores[1], [run])
    assert isinstance(errors[2], ConfigError)
    assert "mine.py" in str(errors[2])
