"""Where runs are done: in this process, in a pool of processes, or on a Dask cluster that is there already."""

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from typing import TYPE_CHECKING, Any

from benchmarks.store import versions

if TYPE_CHECKING:
    from distributed import Client, Security


class ClusterError(RuntimeError):
    """A cluster that cannot be used; says which and what to do."""


class InProcess(Executor):
    """An executor that does each job at once, here."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the function and return its outcome as a future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Executor):
    """
    Spawned processes, each in a pool of its own: one that dies breaks its own job's future and no other.

    In a single ProcessPoolExecutor one death breaks every future there is, whosever fault it was.

    :param workers: How many; they start as there are jobs for them.
    """

    def __init__(self, workers: int) -> None:
        self._others = multiprocessing.active_children()
        self._futures: list[Future[Any]] = []
        self._feeders = ThreadPoolExecutor(workers, initializer=_keep_interrupts_from_children)
        # The one that was used last comes first: others need not start.
        self._idle: LifoQueue[ProcessPoolExecutor] = LifoQueue()
        for _ in range(workers):
            self._idle.put(_one_process())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have the next process that is idle call the function."""
        self._futures.append(self._feeders.submit(self._do, fn, args, kwargs))
        return self._futures[-1]

    def _do(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        process = self._idle.get()
        try:
            return process.submit(fn, *args, **kwargs).result()
        except BrokenExecutor:
            process.shutdown()
            process = _one_process()
            raise
        finally:
            self._idle.put(process)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; end the processes once they have done theirs."""
        self._feeders.shutdown(wait=wait, cancel_futures=cancel_futures)
        while wait and not self._idle.empty():
            self._idle.get().shutdown()

    def kill(self) -> None:
        """End the processes at once, whatever they do: what a run has kept is whole at any moment."""
        self._feeders.shutdown(wait=False, cancel_futures=True)
        while True:  # a process may be about to start
            for child in multiprocessing.active_children():
                if child not in self._others:
                    child.terminate()
            if all(future.done() for future in self._futures):
                break
            time.sleep(0.05)
        self.shutdown()


@contextmanager
def local(workers: int) -> Iterator[Executor]:
    """A pool of spawned processes; for a single worker, this process itself. An interrupt ends its workers at once."""
    if workers == 1:
        yield InProcess()
        return
    pool = Processes(workers)
    try:
        yield pool
    except BaseException:
        pool.kill()
        raise
    pool.shutdown()


@dataclass(frozen=True)
class Cluster:
    """A Dask cluster: the address of its scheduler, and for tls:// the files that prove who is who."""

    address: str
    """Such as tcp://127.0.0.1:8786 or tls://scheduler:8786."""
    tls_ca: Path | None = None
    """Certificates of the authorities that are trusted, PEM."""
    tls_cert: Path | None = None
    """This client's certificate, PEM."""
    tls_key: Path | None = None
    """This client's private key, PEM."""
    timeout: float = 20.0
    """Seconds to wait for the scheduler to answer."""

    @contextmanager
    def executor(self) -> Iterator[Executor]:
        """
        The cluster as an executor; leaving it by an error or an interrupt takes back what no worker has begun.

        Dask cannot end what a worker is at: that goes on to its end, and keeps its lock until then.

        :raises ClusterError: If the cluster cannot be reached, its workers cannot do the work, or Dask is not
            installed. A job whose scheduler is lost fails with it, too.
        """
        with ExitStack() as stack:
            client = stack.enter_context(self._client())
            _check_workers(client, self.address)
            # Dask takes equal calls for one call, and the second would be given the result of the first.
            executor = client.get_executor(pure=False)
            try:
                yield _OnDask(executor, self.address)
            finally:
                with suppress(OSError):  # the scheduler may be gone
                    executor.shutdown(wait=False)

    def _client(self) -> "Client":
        try:
            from distributed import Client, Security
        except ImportError as error:
            raise ClusterError(
                "expected Dask for --scheduler, but it is not installed: pip install 'art_hrloss[distributed]'"
            ) from error
        files = {"tls_ca_file": self.tls_ca, "tls_client_cert": self.tls_cert, "tls_client_key": self.tls_key}
        given = {name: str(path) for name, path in files.items() if path is not None}
        for path in given.values():
            if not os.path.isfile(path):
                raise ClusterError(f"expected a PEM file for the cluster's TLS, but {path} is none")
        try:
            security = Security(require_encryption=True if given else None, **given)
            # A client that cannot connect leaves threads behind, and the next one may wait for them for ever.
            asyncio.run(_reach(self.address, security, self.timeout))
            return Client(self.address, security=security, timeout=self.timeout, set_as_default=False)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ClusterError(
                f"expected a Dask scheduler at {self.address!r}, but got: {error}; an address is such as "
                "tcp://127.0.0.1:8786, and one with tls:// wants --tls-ca, --tls-cert and --tls-key as well"
            ) from error


class _OnDask(Executor):
    """Dask's executor, with the errors that other executors have."""

    def __init__(self, executor: Executor, address: str) -> None:
        self._executor = executor
        self._address = address

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send a call to the cluster."""
        future: Future[Any] = Future()
        self._executor.submit(fn, *args, **kwargs).add_done_callback(lambda done: self._hand_on(done, future))
        return future

    def _hand_on(self, done: Future[Any], future: Future[Any]) -> None:
        from distributed import KilledWorker

        if done.cancelled():
            future.set_exception(
                ClusterError(
                    f"the Dask scheduler at {self._address} was lost, or gave up the runs in progress: what is done is "
                    "kept, and the same command goes on from there once there is a scheduler again"
                )
            )
        elif (error := done.exception()) is None:
            future.set_result(done.result())
        else:
            future.set_exception(BrokenExecutor(str(error)) if isinstance(error, KilledWorker) else error)


async def _reach(address: str, security: "Security", timeout: float) -> None:
    """Connect to a scheduler as a client does, and hang up."""
    from distributed.comm.core import connect

    comm = await connect(address, timeout=timeout, **security.get_connection_args("client"))
    await comm.close()


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_workers(client: "Client", address: str) -> None:
    """Make sure that the workers that are there have this program, and the versions that this process has."""
    expected = versions()
    for worker, came in client.run(versions, on_error="return").items():
        if isinstance(came, OSError):  # it has just died, and is the scheduler's to replace
            continue
        if isinstance(came, Exception):
            raise ClusterError(
                f"expected workers at {address} that can import benchmarks, but {worker} answers: {came!r}; start them "
                "with `python -m dask worker` in the folder that holds it"
            ) from came
        if came != expected:
            raise ClusterError(f"expected {expected} on every worker, but {worker} has {came}")


def _one_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_the_parent)


def _end_with_the_parent() -> None:
    # A parent that is killed cannot end its workers, which would wait for its next job for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _keep_interrupts_from_children() -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides what becomes of its workers. A process inherits
    # the mask of the thread that starts it.
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
