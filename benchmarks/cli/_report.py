"""Implementation of `status` and `report`, which read a store."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from benchmarks import execution
from benchmarks.cli._grid_options import GridOptions
from benchmarks.config import ConfigError
from benchmarks.report import export
from benchmarks.report.provenance import provenance
from benchmarks.report.results import Results, load
from benchmarks.report.selection import Selection
from benchmarks.report.tables import alpha_table, table_1
from benchmarks.store import Store, StoreError

if TYPE_CHECKING:
    from benchmarks.cli._commands import Report, Status


def store_of(options: GridOptions) -> Store:
    """
    Return the store of the options.

    :raises ConfigError: If its path is in a home directory that does not exist.
    :raises StoreError: If its path is not a folder.
    """
    folder = os.path.expanduser(options.store)
    if folder.startswith("~"):
        raise ConfigError(f"expected a home directory for the store {folder}, but there is none: set --store")
    return Store(Path(folder))


def show_status(options: "Status", console: Console) -> int:
    """Print the progress of a grid and return the exit status."""
    grid, store = options.resolve(), store_of(options)
    states = execution.status(grid, store)
    console.print(execution.table(grid, states))
    counts = {name: sum(state.state == name for state in states) for name in execution.STATES}
    console.print(", ".join(f"{count} {name}" for name, count in counts.items() if count))
    if counts["done"] < len(states):
        left = execution.duration(execution.seconds_left(states))
        console.print(f"Time left: {left}. To resume, run `{options.resuming}`.", soft_wrap=True)
    return 0


def report(options: "Report", console: Console) -> int:
    """Write a grid's report from the stored results and return the exit status."""
    grid, store = options.resolve(), store_of(options)
    results = load(grid, store)
    if not results.records:
        raise StoreError(
            f"{store.root} has no results of the grid {grid.name}: to compute them, run `{options.resuming}`"
        )
    if missing := execution.missing_runs(grid, store):
        console.print(
            f"{len(missing)} of {len(grid.runs())} runs are not complete. To resume, run `{options.resuming}`.",
            soft_wrap=True,
        )
    write_report(results, store, console, options.command)
    return 0


def write_report(results: Results, store: Store, console: Console, command: str) -> None:
    """Write the grid's tables and figures, and print the first table and the paths."""
    for problem in results.problems:
        console.print(f"Ignored: {problem}", soft_wrap=True)
    folder = store.report_folder(results.grid.name)
    page = export.write(results, folder, command=command, facts=provenance(results.grid, store))
    overview = export.write_index(folder.parent)
    for dataset in results.datasets:
        selection = Selection(results, dataset)
        for table in (table_1(selection), alpha_table(selection, "exact")):
            if table is not None:
                console.print(table.rich())
    console.print(f"Tables and figures: {folder}\nReport: {page}\nReports of all grids: {overview}", soft_wrap=True)
