"""What tests do in other processes, in modules' functions so that these can be sent there, and limits on this one."""

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
    """A disk that is full, for this process: the system refuses to write files beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def version(number: int) -> list[int]:
    """What the writer writes as its so-manieth file: each is larger than the one before."""
    return [number] * (200 * number)


def write_versions(path: Path) -> None:
    """Write one version after the other, from the one after that which is there."""
    number = (read_json(path, list) or [0])[0]
    while True:
        number += 1
        write_json(path, version(number))


def write_and_die(path: Path) -> None:
    """Write a file, but be killed right before it is moved to its place."""
    sys.addaudithook(lambda event, arguments: os.kill(os.getpid(), signal.SIGKILL) if event == "os.rename" else None)
    write_json(path, version(1))


def execute_and_die(job: runner.Job, place: int) -> None:
    """Do a job, but be killed right before the so-manieth file or folder is moved or removed, counted from 1."""
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
    """Do all jobs in this process, beginning when the others do; exit with the number that failed."""
    together.wait(60)
    sys.exit(runner.run_all(jobs, partial(executors.local, 1), lambda run, outcome: None))
