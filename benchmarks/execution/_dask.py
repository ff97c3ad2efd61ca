"""Execution on an existing Dask cluster, with runs placed by the resources that its workers declare."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.store import versions

if TYPE_CHECKING:
    from distributed import Client, Security

Resources = Mapping[str, float]
"""Amounts by name. A run requests CPU, one per thread, or one GPU."""
PLACED_BY = ("CPU", "GPU")


class ClusterError(RuntimeError):
    """A cluster cannot be used; the message states the address and the remedy."""


@dataclass(frozen=True)
class Cluster:
    """Dask cluster: the address of its scheduler, and TLS files for tls:// addresses."""

    address: str
    """Address of the scheduler, such as tcp://127.0.0.1:8786 or tls://scheduler:8786."""
    tls_ca: Path | None = None
    """PEM file with the certificates of trusted authorities."""
    tls_cert: Path | None = None
    """PEM file with the client's certificate."""
    tls_key: Path | None = None
    """PEM file with the client's private key."""
    timeout: float = 20.0
    """Seconds to wait for an answer of the scheduler."""

    @contextmanager
    def executor(self, requests: Iterable[Resources] = ()) -> Iterator[Executor]:
        """
        Yield the cluster as an executor; an error or an interrupt cancels calls that no worker has started.

        Dask cannot end a call that a worker has started: the call continues to its end, and holds its run's lock.

        If a worker declares CPU or GPU (`dask worker --resources`), a call is sent to a worker with free resources of
        the amount that the `resources` of the call's first argument request, such as {"CPU": 2}. Workers that declare
        nothing then get no such call. If no worker declares CPU or GPU, or if there is no worker yet, a call is sent to
        any worker with a free thread, which is Dask's default.

        :param requests: Requests of the calls, which are checked before any call is sent. Each call is checked again.
        :raises ClusterError: If the cluster cannot be reached, its workers cannot execute runs, or Dask is not
            installed; if no worker has the requested resources, for which Dask would wait forever; or if a worker would
            start two runs in one process, where runs must take turns. If the scheduler is lost, the jobs fail with a
            ClusterError, too.
        """
        with ExitStack() as stack:
            client = stack.enter_context(self._client())
            _check_workers(client, self.address)
            workers = _workers(client)
            _check_placement(workers, requests, self.address)
            # With pure=True, Dask would treat equal calls as one call, and return the first result for the second.
            executor = client.get_executor(pure=False)
            try:
                yield _DaskExecutor(executor, self.address, workers)
            finally:
                with suppress(OSError):  # the connection to the scheduler may be lost
                    executor.shutdown(wait=False)

    def _client(self) -> "Client":
        try:
            from distributed import Client, Security
        except ImportError as error:
            raise ClusterError(
                "expected Dask for --scheduler, but it is not installed: pip install 'art_hrloss[distributed]'"
            ) from error
        files = {"tls_ca_file": self.tls_ca, "tls_client_cert": self.tls_cert, "tls_client_key": self.tls_key}
        paths = {name: str(path) for name, path in files.items() if path is not None}
        for path in paths.values():
            if not os.path.isfile(path):
                raise ClusterError(f"expected a PEM file for the cluster's TLS, but {path} is not a file")
        try:
            security = Security(require_encryption=True if paths else None, **paths)
            # A Client that cannot connect leaves threads behind, for which the next Client may wait forever. So the
            # connection is tested first.
            asyncio.run(_test_connection(self.address, security, self.timeout))
            return Client(self.address, security=security, timeout=self.timeout, set_as_default=False)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ClusterError(
                f"expected a Dask scheduler at {self.address!r}, but got: {error}; an address has the form "
                "tcp://127.0.0.1:8786, and a tls:// address needs --tls-ca, --tls-cert and --tls-key"
            ) from error


class _DaskExecutor(Executor):
    """Dask's executor, with calls placed by resources, and with the same exception types as other executors."""

    def __init__(self, executor: Executor, address: str, workers: tuple["_Worker", ...]) -> None:
        self._executor = executor
        self._address = address
        self._workers = workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send a call to the cluster, to a worker with the `resources` that its first argument requests, if any."""
        request: Resources = getattr(args[0], "resources", {}) if args else {}
        if request and any(worker.declared for worker in self._workers):
            _check_placement(self._workers, [request], self._address)
            kwargs["resources"] = dict(request)
        future: Future[Any] = Future()
        self._executor.submit(fn, *args, **kwargs).add_done_callback(lambda done: self._transfer(done, future))
        return future

    def _transfer(self, done: Future[Any], future: Future[Any]) -> None:
        from distributed import KilledWorker

        if done.cancelled():
            future.set_exception(
                ClusterError(
                    f"the Dask scheduler at {self._address} was lost, or cancelled the runs in progress; all results "
                    "are stored: to resume, start a scheduler and run the same command again"
                )
            )
        elif (error := done.exception()) is None:
            future.set_result(done.result())
        else:
            future.set_exception(BrokenExecutor(str(error)) if isinstance(error, KilledWorker) else error)


async def _test_connection(address: str, security: "Security", timeout: float) -> None:
    """Connect to a scheduler as a client does, and disconnect."""
    from distributed.comm.core import connect

    comm = await connect(address, timeout=timeout, **security.get_connection_args("client"))
    await comm.close()


def _check_workers(client: "Client", address: str) -> None:
    """Make sure that the present workers can import this package, and have the same versions as this process."""
    expected = versions()
    for worker, actual in client.run(versions, on_error="return").items():
        if isinstance(actual, OSError):  # the worker has just died, and the scheduler replaces it
            continue
        if isinstance(actual, Exception):
            raise ClusterError(
                f"expected workers at {address} that can import benchmarks, but {worker} raised {actual!r}; start them "
                "with `python -m dask worker` in the folder that contains benchmarks"
            ) from actual
        if actual != expected:
            raise ClusterError(f"expected {expected} on every worker, but {worker} has {actual}")


@dataclass(frozen=True)
class _Worker:
    """Worker process of the cluster."""

    address: str
    threads: int
    """Maximum number of simultaneous calls, if the resources suffice."""
    declared: Resources
    """Declared resources by which runs are placed; other resources are ignored."""

    def has(self, request: Resources) -> bool:
        return all(self.declared.get(name, 0) >= amount for name, amount in request.items())


def _workers(client: "Client") -> tuple[_Worker, ...]:
    """Return the present workers."""
    workers = client.scheduler_info(n_workers=-1)["workers"]  # some versions return only five workers by default
    return tuple(
        _Worker(address, worker["nthreads"], {name: n for name, n in worker["resources"].items() if name in PLACED_BY})
        for address, worker in workers.items()
    )


def _check_placement(workers: tuple[_Worker, ...], requests: Iterable[Resources], address: str) -> None:
    """Make sure that each request has a worker, and that no worker can start two, if workers declare resources."""
    if not any(worker.declared for worker in workers):
        return
    distinct = [dict(items) for items in dict.fromkeys(frozenset(request.items()) for request in requests)]
    for request in distinct:
        if not any(worker.has(request) for worker in workers):
            raise ClusterError(
                f"expected a worker with {_amounts(request)} at {address}, which a run requests, but got "
                f"{_declared(workers)}; see `dask worker --resources`, and --threads and --device of this command"
            )
    # Two runs in one process take turns, and the waiting run would occupy resources that it does not use.
    for first, second in combinations_with_replacement(distinct, 2):
        total = Counter(first) + Counter(second)
        for worker in workers:
            if worker.threads > 1 and worker.has(total):
                raise ClusterError(
                    f"expected workers that execute one run at a time, but {worker.address} has {worker.threads} "
                    f"threads and {_amounts(worker.declared)}, enough for a run that requests {_amounts(first)} and a "
                    f"run that requests {_amounts(second)}; runs in one process take turns: start more workers, each "
                    f"with --nthreads 1 and the resources of one run"
                )


def _amounts(resources: Resources) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in sorted(resources.items())) or "no CPU or GPU declared"


def _declared(workers: tuple[_Worker, ...]) -> str:
    """Return the declared resources of the workers as text, such as: 3 with CPU=2, 1 with GPU=1."""
    counts = Counter(_amounts(worker.declared) for worker in workers)
    return ", ".join(f"{count} with {amounts}" for amounts, count in counts.items())
