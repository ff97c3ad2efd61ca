"""Store of results on disk: one folder per run, with atomic writes and checks for damage."""

from benchmarks.store._atomic import (
    DamagedError,
    StoreError,
    UnreadableError,
    expect_writable,
    read_json,
    write_bytes,
    write_json,
)
from benchmarks.store._schema import RECORD_VERSION, versions
from benchmarks.store._store import Store

__all__ = [
    "RECORD_VERSION",
    "DamagedError",
    "Store",
    "StoreError",
    "UnreadableError",
    "expect_writable",
    "read_json",
    "versions",
    "write_bytes",
    "write_json",
]
