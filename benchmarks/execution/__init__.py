"""A plan through any executor into the store, how long it will take, and how far it is."""

from benchmarks.execution._dask import Cluster, ClusterError
from benchmarks.execution._estimate import costs, to_probe
from benchmarks.execution._jobs import (
    Group,
    Job,
    Outcome,
    WorkerDiedError,
    execute,
    execute_together,
    load_data,
    threads,
)
from benchmarks.execution._local import InProcess, available_cpus, local
from benchmarks.execution._progress import following
from benchmarks.execution._runner import grouped, missing_runs, prepare, run_all
from benchmarks.execution._status import STATES, Cost, RunStatus, duration, seconds_left, status, table

__all__ = [
    "STATES",
    "Cluster",
    "ClusterError",
    "Cost",
    "Group",
    "InProcess",
    "Job",
    "Outcome",
    "RunStatus",
    "WorkerDiedError",
    "available_cpus",
    "costs",
    "duration",
    "execute",
    "execute_together",
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
    "to_probe",
]
