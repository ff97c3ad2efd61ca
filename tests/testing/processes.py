"""Functions that tests run in other processes, at module level so that they can be pickled, and a file size limit."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks import execution as runner
from benchmarks.execution import _local as executors
from benchmarks.store._atomic import read_json, write_json


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Simulate a full disk for this process: writing a file beyond `size` bytes fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def version(number: int) -> list[int]:
    """Return the content of the file with a number; each version is larger than the previous one."""
    return [number] * (200 * number)


def write_versions(path: Path) -> None:
    """Write versions without end, starting after the version that exists."""
    number = (read_json(path, list) or [0])[0]
    while True:
        number += 1
        write_json(path, version(number))


def write_and_die(path: Path) -> None:
    """Write a file, but kill this process right before the file is moved to its final path."""
    sys.addaudithook(lambda event, arguments: os.kill(os.getpid(), signal.SIGKILL) if event == "os.rename" else None)
    write_json(path, version(1))


def execute_and_die(job: runner.Job, place: int) -> None:
    """Run a job, but kill this process right before the n-th file or folder, n = `place`, is moved or removed."""
    left = place

    def die(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in ("os.rename", "os.remove") and job.run.key() in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    runner.execute(job)


def run_jobs(jobs: list[runner.Job], together: Barrier) -> None:
    """Run all jobs in this process, starting together with the other processes; exit with the number of failures."""
    together.wait(60)
    sys.exit(runner.run_all(jobs, partial(executors.local, 1), lambda run, outcome: None))
