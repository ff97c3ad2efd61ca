"""Runs on a Dask cluster that is there already, placed by the resources that its workers declare."""

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
"""Amounts by name; a run asks for CPU, as many as it has threads, or for a GPU."""
PLACED_BY = ("CPU", "GPU")


class ClusterError(RuntimeError):
    """A cluster that cannot be used; says which and what to do."""


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
    def executor(self, asked: Iterable[Resources] = ()) -> Iterator[Executor]:
        """
        The cluster as an executor; leaving it by an error or an interrupt takes back what no worker has begun.

        Dask cannot end what a worker is at: that goes on to its end, and keeps its lock until then.

        Where a worker declares CPU or GPU (`dask worker --resources`), a call goes to a worker that has what the call's
        first argument asks for by its `resources`, such as {"CPU": 2}, and which other calls there have not taken.
        A worker that declares nothing then gets no such call. Where no worker declares either, and where none is there
        yet, a call goes to any worker with a free thread, as Dask does by itself.

        :param asked: What the calls will ask for, to be checked before any is sent; each is checked as it is sent, too.
        :raises ClusterError: If the cluster cannot be reached, its workers cannot do the work, or Dask is not
            installed; if no worker that is there has what is asked for, for which Dask would wait for ever; or if a
            worker would begin two runs at once, which take turns in one process. A job whose scheduler is lost fails
            with it, too.
        """
        with ExitStack() as stack:
            client = stack.enter_context(self._client())
            _check_workers(client, self.address)
            workers = _workers(client)
            _check_places(workers, asked, self.address)
            # Dask takes equal calls for one call, and the second would be given the result of the first.
            executor = client.get_executor(pure=False)
            try:
                yield _OnDask(executor, self.address, workers)
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
    """Dask's executor, with calls placed by resources, and with the errors that other executors have."""

    def __init__(self, executor: Executor, address: str, workers: tuple["_Worker", ...]) -> None:
        self._executor = executor
        self._address = address
        self._workers = workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send a call to the cluster, for a worker that has the `resources` of its first argument, if it has any."""
        asks: Resources = getattr(args[0], "resources", {}) if args else {}
        if asks and any(worker.declared for worker in self._workers):
            _check_places(self._workers, [asks], self._address)
            kwargs["resources"] = dict(asks)
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


@dataclass(frozen=True)
class _Worker:
    """One process of the cluster."""

    address: str
    threads: int
    """How many calls it does at once, if its resources allow."""
    declared: Resources
    """Those that runs are placed by: others are none of ours."""

    def has(self, asks: Resources) -> bool:
        return all(self.declared.get(name, 0) >= amount for name, amount in asks.items())


def _workers(client: "Client") -> tuple[_Worker, ...]:
    """The workers that are there now."""
    found = client.scheduler_info(n_workers=-1)["workers"]  # some versions leave all but five out unless asked for
    return tuple(
        _Worker(address, worker["nthreads"], {name: n for name, n in worker["resources"].items() if name in PLACED_BY})
        for address, worker in found.items()
    )


def _check_places(workers: tuple[_Worker, ...], asked: Iterable[Resources], address: str) -> None:
    """Make sure that, where workers declare resources, there is a worker for each call, and none for two at once."""
    if not any(worker.declared for worker in workers):
        return
    different = [dict(asks) for asks in dict.fromkeys(frozenset(asks.items()) for asks in asked)]
    for asks in different:
        if not any(worker.has(asks) for worker in workers):
            raise ClusterError(
                f"expected a worker with {_amounts(asks)} at {address}, which a run there asks for, but got "
                f"{_declared(workers)}; see `dask worker --resources`, and --threads and --device of this command"
            )
    # Two runs that Dask begins in one process take turns there, and the second would hold what it does not use.
    for one, other in combinations_with_replacement(different, 2):
        both = Counter(one) + Counter(other)
        for worker in workers:
            if worker.threads > 1 and worker.has(both):
                raise ClusterError(
                    f"expected workers that begin one run at a time, but {worker.address} has {worker.threads} threads "
                    f"and {_amounts(worker.declared)}, which is enough for one that asks for {_amounts(one)} and one "
                    f"for {_amounts(other)} at once; runs take turns in a process, so start more workers instead, each "
                    f"with --nthreads 1 and the resources of one run"
                )


def _amounts(resources: Resources) -> str:
    return ", ".join(f"{name}={amount:g}" for name, amount in sorted(resources.items())) or "no CPU or GPU declared"


def _declared(workers: tuple[_Worker, ...]) -> str:
    """What the workers have, such as: 3 with CPU=2, 1 with GPU=1."""
    counts = Counter(_amounts(worker.declared) for worker in workers)
    return ", ".join(f"{count} with {amounts}" for amounts, count in counts.items())
