"""
The prepared run for a machine with one GPU that is there for minutes: python -m benchmarks gpu.

Stages, the most valuable first, each a command of its own with a time limit, before a deadline. What a stage prints is
in OUTPUT/NAME.log, how each ended in OUTPUT/stages.json, and all that is known so far in OUTPUT/summary.md. One that is
done is not done again, so the same command goes on where the last one ended. docs/gpu.md has the preparations.
"""

import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from benchmarks.config import ConfigError, Grid
from benchmarks.execution import available_cpus
from benchmarks.references import did_you_mean
from benchmarks.report.markup import Table
from benchmarks.store import Store, StoreError, write_bytes, write_json
from benchmarks.store._atomic import expect_writable, read_json
from benchmarks.store._schema import versions

ROOT = Path(__file__).parents[1]
# Seconds that a stage which is interrupted has for keeping its state, and that are worth beginning one.
GRACE, LEAST = 20.0, 10.0
# Lines of what a stage printed that are shown if it was not done.
SHOWN = 15
NOT_BEGUN: Mapping[str, Any] = {"state": "not begun", "seconds": None}
# What nvidia-smi is asked for.
QUERIES = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,temperature.gpu"


@dataclass(frozen=True)
class Stage:
    """A command, and how long it may take."""

    command: Sequence[str]
    seconds: float = 3600.0
    """At most; the deadline comes before."""
    done: tuple[int, ...] = (0,)
    """Exit statuses of a stage that came to its end, such as 1 of tests that fail."""


@dataclass(frozen=True)
class Plan:
    """What is to be done, and where."""

    folder: Path
    """Of all output."""
    data_dir: Path
    device: Literal["cpu", "gpu"]
    quick: bool
    """Small sizes, to see that all works."""
    grids: Mapping[str, tuple[str, Grid]]
    """By the name of the stage, the command that does a grid's runs in the folder's store, and the grid."""

    def stages(self) -> dict[str, Stage]:
        """Return the stages by name, the most valuable first."""
        python, data = [sys.executable, "-m"], ["--data-dir", str(self.data_dir)]
        where = ["--output", str(self.folder), *data, "--device", self.device, *(["--quick"] if self.quick else [])]
        tests = [ROOT / "tests/benchmarks/test_gpu.py"] if self.quick else sorted(ROOT.glob("tests/**/test_*.py"))
        # Only files with such tests, for others may want packages that are not there.
        wanting = [str(path) for path in tests if "mark.gpu" in path.read_text()]
        at_once = min(8, available_cpus()) if find_spec("xdist") and not self.quick else 0
        options = ["-n", str(at_once)] if at_once else []  # most of the time kernels are compiled
        options += ["-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default", "-p", "no:cacheprovider"]
        stages = {
            "machine": Stage([*python, "benchmarks.gpu", str(self.folder / "machine.json")], 60),
            "tests": Stage([*python, "pytest", "-q", "-m", "gpu", *options, *wanting], 240, (0, 1)),
        }
        for part, seconds, limit in (("ways", 4, 90), ("loss", 4, 180), ("attacks", 3, 150), ("training", 3, 150)):
            command = [*python, "benchmarks", "speed", "--part", part, "--seconds", str(seconds), *where]
            stages[part] = Stage(command, limit, (0, 1))
        for name, (line, _) in self.grids.items():
            stages[name] = Stage([sys.executable, *shlex.split(line)[1:]])
        return stages | {"training": stages.pop("training")}  # last, for the grids show what it is worth


def run(plan: Plan, names: Sequence[str], minutes: float, console: Console) -> int:
    """
    Do the stages that are not done yet, until the deadline, and write the summary.

    :param names: Of the stages; none for all.
    :param minutes: Until the deadline, from now.
    :return: The exit status: 0 if all are done.
    :raises ConfigError: If there is no stage of such a name.
    :raises StoreError: If the folder cannot be written to, before anything is done.
    """
    deadline, stages = time.monotonic() + 60 * minutes, plan.stages()
    for name in names:
        if name not in stages:
            raise ConfigError(
                f"expected a stage to be one of {list(stages)}, but got {name!r}{did_you_mean(name, stages)}"
            )
    expect_writable(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)
    kept = plan.folder / "stages.json"
    states: dict[str, dict[str, Any]] = read_json(kept, dict) or {}
    wanted = [name for name in stages if name in names or not names]
    try:
        for name in wanted:
            if states.get(name, {}).get("done"):
                console.print(f"{name}: done before")
                continue
            seconds = min(stages[name].seconds, deadline - GRACE - time.monotonic())
            if seconds < LEAST:
                console.print(f"{name}: no time left")
                continue
            console.print(f"{name}: at most {seconds:.0f} s", soft_wrap=True)
            log = plan.folder / f"{name}.log"
            state = states[name] = {"done": False, "state": "interrupted", "seconds": None}
            try:
                state |= _do(stages[name], seconds, log)
            finally:
                write_json(kept, states)
            console.print(f"{name}: {state['state']}, {state['seconds']:.0f} s", soft_wrap=True)
            if state["state"] != "done":
                console.print("\n".join(log.read_text(errors="replace").splitlines()[-SHOWN:]), soft_wrap=True)
    finally:
        rows = (
            (name, str(state["state"]), "-" if state["seconds"] is None else f"{state['seconds']:.0f}")
            for name, state in (dict.fromkeys(stages, NOT_BEGUN) | states).items()
        )
        table = Table("Stages", ("stage", "state", "seconds"), tuple(rows), ())
        write_bytes(plan.folder / "summary.md", _summary(plan, table).encode())
        console.print(table.rich())
        console.print(f"All of it: {plan.folder / 'summary.md'}", soft_wrap=True)
    return 0 if all(states.get(name, {}).get("done") for name in wanted) else 1


def _do(stage: Stage, seconds: float, log: Path) -> dict[str, Any]:
    """Do a stage, with what it prints added to its log; returns how it ended."""
    begun = time.monotonic()
    # In the project's folder, where pytest finds its settings; paths that were relative to this one are no longer so.
    paths = [str(ROOT), *map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
    with log.open("ab") as output:
        output.write(f"$ {' '.join(stage.command)}\n".encode())
        output.flush()
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        if ignored:  # as in the background of a shell, which children would inherit
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(
            stage.command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        how = ""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            how = f"stopped after {seconds:.0f} s"
        finally:  # an interrupt of this process, too
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    how += ", killed"
    status = process.returncode
    done = not how and status in stage.done
    how = how or ("done" if status == 0 else f"done, exit {status}" if done else f"failed, exit {status}")
    return {"done": done, "state": how, "seconds": round(time.monotonic() - begun, 1)}


def _summary(plan: Plan, stages: Table) -> str:
    """Return all that is known so far, in Markdown."""
    facts: dict[str, str] = read_json(plan.folder / "machine.json", dict) or {}
    machine = Table("Machine", ("what", "value"), tuple((name, str(value)) for name, value in facts.items()), ())
    parts = ["# Run on a GPU", machine.markdown(), stages.markdown()]
    tests = plan.folder / "tests.log"
    if tests.exists():
        parts.append(f"Tests: {tests.read_text(errors='replace').rstrip().splitlines()[-1]}\n")
    parts += [_curves(grid, Store(plan.folder / "store")).markdown() for _, grid in plan.grids.values()]
    files = (plan.folder / f"{part}.md" for part in ("ways", "loss", "attacks", "training"))
    parts += [file.read_text().replace("# ", "## ", 1) for file in files if file.exists()]
    return "\n".join(parts)


def _curves(grid: Grid, store: Store) -> Table:
    """Return how far each run of a grid is, and the last row of its curve."""
    rows = []
    for run in grid.runs():
        curve: list[dict[str, Any]] = []
        with suppress(StoreError):  # the run itself will meet it and tell
            curve = store.curve(run)
        if curve:
            attacked: dict[str, float] = next((row["attacks"] for row in reversed(curve) if "attacks" in row), {})
            last = (f"{curve[-1][value]:.4f}" for value in ("train_loss", "train_accuracy", "validation_accuracy"))
            under = ", ".join(f"{accuracy:.3f}" for accuracy in attacked.values()) or "-"
            rows.append((str(run), f"{len(curve)} of {run.recipe.epochs}", *last, under))
    header = ("run", "epochs", "training loss", "training accuracy", "validation accuracy", "under Fig. 1's attacks")
    return Table(f"Grid {grid.name}", header, tuple(rows), ())


def machine() -> dict[str, Any]:
    """Return the device, its driver and clocks, and the versions of what computes on it."""
    facts: dict[str, Any] = {"machine": f"{platform.platform()}, {available_cpus()} CPUs", **versions()}
    for package in ("triton", "torchvision"):
        facts[package] = __import__(package).__version__ if find_spec(package) else "none"
    facts |= {"CUDA": torch.version.cuda or "none", "cuDNN": torch.backends.cudnn.version() or "none", "GPU": "none"}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "GPU": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory, GiB": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
        }
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", f"--query-gpu={QUERIES}", "--format=csv,noheader"]
        values = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.splitlines()
        facts |= dict(zip(QUERIES.split(","), values[0].split(", "), strict=False)) if values else {}
    return facts


if __name__ == "__main__":
    write_json(Path(sys.argv[1]), machine())
    print(Path(sys.argv[1]).read_text())
