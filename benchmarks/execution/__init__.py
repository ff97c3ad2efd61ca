"""Execution of a grid's runs on any executor, with an estimate of the time and a display of the progress."""

from benchmarks.execution._dask import Cluster, ClusterError
from benchmarks.execution._estimate import costs
from benchmarks.execution._jobs import (
    Job,
    Outcome,
    WorkerDiedError,
    execute,
    execute_together,
    expect_gpu,
    load_data,
    threads,
)
from benchmarks.execution._local import InProcess, available_cpus, grouped, local, missing_runs, prepare, run_all
from benchmarks.execution._monitor import (
    STATES,
    RunStatus,
    Seconds,
    duration,
    following,
    seconds_left,
    status,
    table,
)

__all__ = [
    "STATES",
    "Cluster",
    "ClusterError",
    "InProcess",
    "Job",
    "Outcome",
    "RunStatus",
    "Seconds",
    "WorkerDiedError",
    "available_cpus",
    "costs",
    "duration",
    "execute",
    "execute_together",
    "expect_gpu",
    "following",
    "grouped",
    "load_data",
    "local",
    "missing_runs",
    "prepare",
    "run_all",
    "seconds_left",
    "status",
    "table",
    "threads",
]
