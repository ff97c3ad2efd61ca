"""Store -> when, with what and on what the results of a grid were made."""

import platform
from collections.abc import Sequence

from benchmarks.config import Grid
from benchmarks.execution import available_cpus
from benchmarks.store import DamagedError, Store


def provenance(grid: Grid, store: Store) -> dict[str, str]:
    """
    Facts of the results that are there, as text by what they are; one that is not known is left out.

    :param grid: A grid.
    :param store: What there is of it.
    """
    times: set[str] = set()
    hosts: set[str] = set()
    versions: dict[str, set[str]] = {}
    for run in grid.runs():
        for entry in store.log_entries(run):
            times.add(str(entry.get("time", "")))
            hosts.add(str(entry.get("host", "")))
        try:
            began_with = store.made_with(run)
        except DamagedError:  # the page's notes name it
            continue
        for name, version in began_with.items():
            versions.setdefault(name, set()).add(str(version))
    made_with = ", ".join(f"{name} {' and '.join(sorted(several))}" for name, several in versions.items())
    facts = {
        "Made": _span(sorted(filter(None, times))),
        "Versions": made_with,
        "Machine": ", ".join(map(_described, sorted(filter(None, hosts)))),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _span(times: Sequence[str]) -> str:
    """The first and the last of ISO times, to the minute."""
    ends = (times[0], times[-1]) if times else ()
    texts = (f"{time[:16]} {time[19:]}".replace("T", " ").replace("+0000", "UTC") for time in ends)
    return " to ".join(dict.fromkeys(texts))


def _described(host: str) -> str:
    """A host by its name, and with what this process knows of it if it is this one."""
    if host != platform.node():
        return host
    return f"{host} ({platform.system()}, {platform.machine()}, {available_cpus()} CPUs)"
