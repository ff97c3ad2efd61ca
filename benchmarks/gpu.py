"""
Prepared run for a machine with one GPU that is available for minutes: python -m benchmarks gpu.

The run consists of stages, the most valuable first. Each is a command with a time limit, and all end before a deadline.
OUTPUT/NAME.log has the output of a stage, OUTPUT/stages.json the state of each stage, and OUTPUT/summary.md all results
so far. A stage that is done is skipped, so the same command resumes an interrupted run. docs/gpu.md describes the
preparation of the machine.
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
from benchmarks.store import Store, StoreError, expect_writable, read_json, versions, write_bytes, write_json

ROOT = Path(__file__).parents[1]
# Seconds that an interrupted stage has to store its state, and the minimum remaining seconds to start a stage.
GRACE, MIN_SECONDS = 20.0, 10.0
# Number of last output lines that are shown for a stage that did not finish.
SHOWN_LINES = 15
NOT_STARTED: Mapping[str, Any] = {"state": "not started", "seconds": None}
# Properties that are queried from nvidia-smi.
QUERIES = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,temperature.gpu"


@dataclass(frozen=True)
class Stage:
    """Command with a time limit."""

    command: Sequence[str]
    seconds: float = 3600.0
    """Time limit; the deadline of the run may be earlier."""
    done: tuple[int, ...] = (0,)
    """Exit statuses of a completed command. For tests they include 1: the run completed, and some tests failed."""


@dataclass(frozen=True)
class Plan:
    """Settings of the run."""

    folder: Path
    """Folder of all output."""
    data_dir: Path
    """Folder of the data sets."""
    device: Literal["cpu", "gpu"]
    quick: bool
    """Whether to use small sizes, as a trial."""
    grids: Mapping[str, tuple[str, Grid]]
    """The command that executes a grid's runs in the folder's store, and the grid, by the name of the stage."""

    def stages(self) -> dict[str, Stage]:
        """Return the stages by name, the most valuable first."""
        python, data = [sys.executable, "-m"], ["--data-dir", str(self.data_dir)]
        paths = ["--output", str(self.folder), *data, "--device", self.device, *(["--quick"] if self.quick else [])]
        tests = [ROOT / "tests/benchmarks/test_gpu.py"] if self.quick else sorted(ROOT.glob("tests/**/test_*.py"))
        # Only the files with GPU tests: other files may import packages that are not installed.
        gpu_tests = [str(path) for path in tests if "mark.gpu" in path.read_text()]
        # Parallel tests save time, because most of the time is spent on compiling kernels.
        processes = min(8, available_cpus()) if find_spec("xdist") and not self.quick else 0
        options = ["-n", str(processes)] if processes else []
        options += ["-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default", "-p", "no:cacheprovider"]
        completed = (0, 1) if find_spec("pytest") else (0,)  # without pytest Python itself ends with status 1
        stages = {
            "machine": Stage([*python, "benchmarks.gpu", str(self.folder / "machine.json")], 60),
            "tests": Stage([*python, "pytest", "-q", "-m", "gpu", *options, *gpu_tests], 240, completed),
        }
        for part, seconds, limit in (("ways", 4, 90), ("loss", 4, 180), ("attacks", 3, 150), ("training", 3, 150)):
            command = [*python, "benchmarks", "speed", "--part", part, "--seconds", str(seconds), *paths]
            stages[part] = Stage(command, limit, (0, 1))
        for name, (line, _) in self.grids.items():
            stages[name] = Stage([sys.executable, *shlex.split(line)[1:]])
        # The speed of training is the last stage, because the log of the grids contains training times already.
        return stages | {"training": stages.pop("training")}


def run(plan: Plan, names: Sequence[str], minutes: float, console: Console) -> int:
    """
    Execute the stages that are not done yet, until the deadline, and write the summary.

    :param names: Names of the stages; an empty sequence for all.
    :param minutes: Minutes until the deadline.
    :return: The exit status: 0 if all stages are done.
    :raises ConfigError: If a name is unknown.
    :raises StoreError: If the folder cannot be written; this is checked before the first stage.
    """
    deadline, stages = time.monotonic() + 60 * minutes, plan.stages()
    for name in names:
        if name not in stages:
            raise ConfigError(
                f"expected a stage to be one of {list(stages)}, but got {name!r}{did_you_mean(name, stages)}"
            )
    expect_writable(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)
    state_file = plan.folder / "stages.json"
    states: dict[str, dict[str, Any]] = read_json(state_file, dict) or {}
    selected = [name for name in stages if name in names or not names]
    try:
        for name in selected:
            if states.get(name, {}).get("done"):
                console.print(f"{name}: already done")
                continue
            seconds = min(stages[name].seconds, deadline - GRACE - time.monotonic())
            if seconds < MIN_SECONDS:
                console.print(f"{name}: no time left")
                continue
            console.print(f"{name}: time limit {seconds:.0f} s", soft_wrap=True)
            log = plan.folder / f"{name}.log"
            state = states[name] = {"done": False, "state": "interrupted", "seconds": None}
            try:
                state |= _execute(stages[name], seconds, log)
            finally:
                write_json(state_file, states)
            console.print(f"{name}: {state['state']}, {state['seconds']:.0f} s", soft_wrap=True)
            if state["state"] != "done":
                last_lines = log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
                console.print("\n".join(last_lines), soft_wrap=True)
    finally:
        rows = (
            (name, str(state["state"]), "-" if state["seconds"] is None else f"{state['seconds']:.0f}")
            for name, state in (dict.fromkeys(stages, NOT_STARTED) | states).items()
        )
        table = Table("Stages", ("stage", "state", "seconds"), tuple(rows), ())
        write_bytes(plan.folder / "summary.md", _summary(plan, table).encode())
        console.print(table.rich())
        console.print(f"Summary: {plan.folder / 'summary.md'}", soft_wrap=True)
    return 0 if all(states.get(name, {}).get("done") for name in selected) else 1


def _execute(stage: Stage, seconds: float, log: Path) -> dict[str, Any]:
    """Execute a stage's command, append its output to the log, and return the stage's state."""
    start = time.monotonic()
    # The command runs in the project's folder, where pytest finds its settings, so relative paths become absolute.
    paths = [str(ROOT), *map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
    with log.open("ab") as output:
        output.write(f"$ {' '.join(stage.command)}\n".encode())
        output.flush()
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        # In the background of a shell SIGINT may be ignored. A child would inherit that, and could not be interrupted.
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(
            stage.command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        state = ""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            state = f"stopped after {seconds:.0f} s"
        finally:  # also if this process is interrupted
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    state += ", killed"
    status = process.returncode
    done = not state and status in stage.done
    state = state or ("done" if status == 0 else f"done, exit {status}" if done else f"failed, exit {status}")
    return {"done": done, "state": state, "seconds": round(time.monotonic() - start, 1)}


def _summary(plan: Plan, stages: Table) -> str:
    """Return all results so far as Markdown."""
    facts: dict[str, str] = read_json(plan.folder / "machine.json", dict) or {}
    machine = Table("Machine", ("property", "value"), tuple((name, str(value)) for name, value in facts.items()), ())
    sections = ["# Run on a GPU", machine.markdown(), stages.markdown()]
    tests = plan.folder / "tests.log"
    if tests.exists():
        sections.append(f"Tests: {tests.read_text(errors='replace').rstrip().splitlines()[-1]}\n")
    sections += [_curves(grid, Store(plan.folder / "store")).markdown() for _, grid in plan.grids.values()]
    files = (plan.folder / f"{part}.md" for part in ("ways", "loss", "attacks", "training"))
    sections += [file.read_text().replace("# ", "## ", 1) for file in files if file.exists()]
    return "\n".join(sections)


def _curves(grid: Grid, store: Store) -> Table:
    """Return the progress of each run of a grid, with the last row of its learning curve."""
    rows = []
    for run in grid.runs():
        curve: list[dict[str, Any]] = []
        with suppress(StoreError):  # the run itself reports a damaged curve
            curve = store.curve(run)
        if curve:
            accuracies: dict[str, float] = next((row["attacks"] for row in reversed(curve) if "attacks" in row), {})
            metrics = (f"{curve[-1][name]:.4f}" for name in ("train_loss", "train_accuracy", "validation_accuracy"))
            attacked = ", ".join(f"{accuracy:.3f}" for accuracy in accuracies.values()) or "-"
            rows.append((str(run), f"{len(curve)} of {run.recipe.epochs}", *metrics, attacked))
    header = ("run", "epochs", "training loss", "training accuracy", "validation accuracy", "under Fig. 1's attacks")
    return Table(f"Grid {grid.name}", header, tuple(rows), ())


def machine() -> dict[str, Any]:
    """Return the device, its driver and clocks, and the versions of the libraries."""
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
