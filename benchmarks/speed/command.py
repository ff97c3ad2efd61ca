"""`python -m benchmarks speed`."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from benchmarks.config import ConfigError


@dataclass(frozen=True)
class Speed:
    """
    Measure how fast the loss, the attacks and training are, beside cross-entropy, loops by hand, ART and others.

    About 20 minutes on two cores. What is measured in turn is shown as ratios, with medians and quartiles; the machine
    should have nothing else to do.
    """

    NEEDS: ClassVar = ("benchmarks.speed.parts",)

    part: tuple[str, ...] = ("loss", "attacks", "growth", "training")
    """Only these parts, one or more of those that are the default."""
    output: Path = Path("hrloss-speed")
    """Folder for PART.md, PART.csv and the figures; those of parts that are not measured are left as they are."""
    data_dir: Path = Path("~/.cache/art_hrloss")
    """Folder of the data sets MNIST and CIFAR-10, as for `run`; where they are not there, digits stand in for them."""
    seconds: float = 20.0
    """For the rounds of one case, of which there are three at least. More give more rounds."""
    quick: bool = False
    """Small sizes, few rounds and the digits, to see that all works: the timings say little."""

    def __call__(self, console: Console) -> int:
        """Measure; returns the exit status."""
        from benchmarks.speed import parts
        from benchmarks.speed.cases import Settings

        if not self.seconds > 0:
            raise ConfigError(f"expected seconds to be above 0, but got {self.seconds}")
        settings = Settings(Path(os.path.expanduser(self.data_dir)), self.quick, self.seconds)
        selected = parts.chosen(self.part)
        return parts.run(selected, settings, Path(os.path.expanduser(self.output)), console, command=self.resuming)

    @property
    def resuming(self) -> str:
        """The same command, but for the parts."""
        names = ("output", "data_dir", "seconds")
        given = {name: value for name in names if (value := getattr(self, name)) != getattr(Speed, name)}
        options = (f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items())
        return "python -m benchmarks speed" + (" --quick" if self.quick else "") + "".join(options)
