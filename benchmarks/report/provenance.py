"""Provenance of a grid's results: dates, versions and machines, from the logs in the store."""

import platform
from collections.abc import Sequence

from benchmarks.config import Grid
from benchmarks.execution import available_cpus
from benchmarks.store import DamagedError, Store


def provenance(grid: Grid, store: Store) -> dict[str, str]:
    """
    Return the dates, versions and machines of a grid's results as text, by name; unknown ones are left out.

    :param grid: The grid.
    :param store: The store that holds its results.
    """
    times: set[str] = set()
    hosts: set[str] = set()
    versions: dict[str, set[str]] = {}
    for run in grid.runs():
        for entry in store.log_entries(run):
            times.add(str(entry.get("time", "")))
            hosts.add(str(entry.get("host", "")))
        try:
            versions_of_run = store.made_with(run)
        except DamagedError:  # the notes of the page name the file
            continue
        for name, version in versions_of_run.items():
            versions.setdefault(name, set()).add(str(version))
    facts = {
        "Made": _span(sorted(filter(None, times))),
        "Versions": ", ".join(f"{name} {' and '.join(sorted(each))}" for name, each in versions.items()),
        "Machine": ", ".join(map(_described, sorted(filter(None, hosts)))),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _span(times: Sequence[str]) -> str:
    """Return the first and the last of ISO times as text, to the minute."""
    ends = (times[0], times[-1]) if times else ()
    texts = (f"{time[:16]} {time[19:]}".replace("T", " ").replace("+0000", "UTC") for time in ends)
    return " to ".join(dict.fromkeys(texts))


def _described(host: str) -> str:
    """Return a host's name, with its system and number of CPUs if it is the host of this process."""
    if host != platform.node():
        return host
    return f"{host} ({platform.system()}, {platform.machine()}, {available_cpus()} CPUs)"
