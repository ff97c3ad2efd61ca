"""Where runs are done on one machine: in this process, or in a pool of processes."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from queue import LifoQueue
from typing import Any


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


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
