"""The machine that timings are of, in words."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.execution import available_cpus

# As pip calls them, and as they are shown.
PACKAGES = (
    ("torch", "torch"),
    ("adversarial-robustness-toolbox", "ART"),
    ("numpy", "NumPy"),
    ("foolbox", "Foolbox"),
    ("torchattacks", "torchattacks"),
)
# Load per core from which on the machine is called busy.
BUSY = 0.3


@dataclass(frozen=True)
class Machine:
    """What timings depend on beside the code."""

    cpu: str
    cores: int
    """Those that this process may use."""
    load: float
    """Processes that ran or waited, averaged over the last minute; NaN where the system does not tell."""
    gpus: tuple[str, ...]
    versions: Mapping[str, str]
    """By name; "" for what is not installed."""

    @property
    def busy(self) -> bool:
        """Whether others use it too, so that timings are in doubt."""
        return self.load > BUSY * self.cores

    def notes(self) -> list[str]:
        """The machine in sentences, with a warning if it is busy."""
        versions = ", ".join(
            f"{name} {version}" if version else f"no {name}" for name, version in self.versions.items()
        )
        gpus = f"; {', '.join(self.gpus)}" if self.gpus else "; no GPU"
        notes = [
            f"Machine: {self.cpu}, {self.cores} cores{gpus}. Load at the start: {self.load:.2f}. Python "
            f"{platform.python_version()}, {versions}. Timings are of this machine: elsewhere they are others."
        ]
        if self.busy:
            notes.append(
                f"WARNING: the machine was busy at the start (load {self.load:.2f} on {self.cores} cores). Times are "
                "too long, and ratios spread more than on a quiet one."
            )
        return notes


def this_machine() -> Machine:
    """The machine as it is now."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    gpus = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return Machine(_cpu(), available_cpus(), load, gpus, {shown: _version(name) for name, shown in PACKAGES})


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cpu() -> str:
    """The model's name, which only Linux has in a file."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
