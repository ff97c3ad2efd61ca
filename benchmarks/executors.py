"""Where runs are done: in this process, in a pool of processes, or on a Dask cluster that is there already."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


@contextmanager
def local(workers: int) -> Iterator[Executor]:
    """A pool of spawned processes; for a single worker, this process itself. An interrupt ends its workers at once."""
    if workers == 1:
        yield InProcess()
        return
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_interrupts_to_the_parent) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # The pool would wait for its workers to end their runs; what those have kept is whole at any moment.
            for worker in multiprocessing.active_children():
                if worker not in others:
                    worker.terminate()
            raise


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

    @contextmanager
    def executor(self) -> Iterator[Executor]:
        """
        The cluster as an executor; an interrupt takes back what no worker has begun.

        :raises ClusterError: If the cluster cannot be reached, or Dask is not installed.
        """
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
        security = Security(require_encryption=True, **given) if given else None
        try:
            client = Client(self.address, security=security, timeout=20)
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(
                f"expected a Dask scheduler at {self.address}, but got: {error}; "
                "tls:// addresses want --tls-ca, --tls-cert and --tls-key as well"
            ) from error
        with client, client.get_executor() as executor:
            try:
                yield executor
            except BaseException:
                executor.shutdown(wait=False)
                raise


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_interrupts_to_the_parent() -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
