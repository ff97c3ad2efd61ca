"""The commands and their options, as tyro reads them. What a command does is imported when it is called."""

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import grids
from benchmarks.cli._autoattack import AutoAttack
from benchmarks.cli._grid_options import GridOptions, changed
from benchmarks.cli._readings import Readings
from benchmarks.config import DATA_DIR, ConfigError


@dataclass(frozen=True)
class Run(GridOptions):
    """Train every run of a grid, attack it, and make the tables and figures."""

    NEEDS: ClassVar = ("benchmarks.cli._run",)

    data_dir: Path = DATA_DIR
    """Folder of the data sets, torchvision's own files or NAME.npz."""
    download: bool = False
    """Let torchvision download what is not there, into the data folder."""
    workers: int | None = None
    """Runs at once, each in a process of its own; by default as many as there are processors for."""
    together: int | None = None
    """Runs of one recipe that a worker trains at once; by default 10 on a GPU."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://127.0.0.1:8786, whose workers do the runs."""
    tls_ca: Path | None = None
    """For tls:// addresses: certificates of the authorities that are trusted, PEM."""
    tls_cert: Path | None = None
    """This client's certificate, PEM."""
    tls_key: Path | None = None
    """This client's private key, PEM."""

    def __call__(self, console: Console) -> int:
        """Run the grid; returns the exit status."""
        from benchmarks.cli._run import run

        return run(self, console)

    @property
    def resuming(self) -> str:
        """The same command, with where it finds and keeps things."""
        names = ("data_dir", "workers", "together", "scheduler", "tls_ca", "tls_cert", "tls_key")
        return super().resuming + changed(self, *names) + (" --download" if self.download else "")


@dataclass(frozen=True)
class Status(GridOptions):
    """Show how far a grid is: which runs are done, running, failed, begun or missing, and the time left."""

    NEEDS: ClassVar = ("benchmarks.cli._reading",)

    def __call__(self, console: Console) -> int:
        """Show the status; returns the exit status."""
        from benchmarks.cli._reading import show_status

        return show_status(self, console)


@dataclass(frozen=True)
class Report(GridOptions):
    """Make a grid's tables and figures from the results that are there, without training or attacking anything."""

    NEEDS: ClassVar = ("benchmarks.cli._reading",)

    def __call__(self, console: Console) -> int:
        """Make the report; returns the exit status."""
        from benchmarks.cli._reading import report

        return report(self, console)


@dataclass(frozen=True)
class Grids:
    """List the grids: what each is, how many trainings it has, and what it costs."""

    NEEDS: ClassVar = ()
    resuming: ClassVar = "python -m benchmarks grids"

    def __call__(self, console: Console) -> int:
        """Show the table; returns the exit status."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        table.add_column("grid", no_wrap=True)
        table.add_column("what")
        table.add_column("runs", justify="right", no_wrap=True)
        table.add_column("two cores", justify="right", no_wrap=True)
        for name, build in grids.GRIDS.items():
            what = (build.__doc__ or "").strip().splitlines()[0]
            table.add_row(name, what, str(len(build().runs())), grids.COSTS[name])
        console.print(table)
        return 0


@dataclass(frozen=True)
class Speed:
    """
    Measure how fast the loss, the attacks and training are, beside cross-entropy, loops by hand, ART and others.

    About 20 minutes on two cores. What is measured in turn is shown as ratios, with medians and quartiles; the machine
    should have nothing else to do.
    """

    NEEDS: ClassVar = ("benchmarks.speed.parts",)

    part: tuple[str, ...] = ("loss", "attacks", "growth", "training", "ways")
    """Only these parts, one or more of those that are the default."""
    output: Path = Path("hrloss-speed")
    """Folder for PART.md, PART.csv and the figures; those of parts that are not measured are left as they are."""
    data_dir: Path = DATA_DIR
    """Folder of the data sets MNIST and CIFAR-10, as for `run`; where they are not there, digits stand in for them."""
    seconds: float = 20.0
    """For the rounds of one case, of which there are three at least. More give more rounds."""
    quick: bool = False
    """Small sizes, one round and the digits, to see that all works: the timings say little."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where the loss is computed, and where networks are attacked and trained."""

    def __call__(self, console: Console) -> int:
        """Measure; returns the exit status."""
        import torch

        from benchmarks.execution import expect_gpu
        from benchmarks.speed import parts
        from benchmarks.speed.measuring import Settings

        if self.device == "gpu":
            expect_gpu("--device gpu")
        if not self.seconds > 0:
            raise ConfigError(f"expected seconds to be above 0, but got {self.seconds}")
        # Unlike Path's own, this leaves a path as it is where there is no home.
        output, device = Path(os.path.expanduser(self.output)), torch.device("cuda" if self.device == "gpu" else "cpu")
        settings = Settings(self.data_dir, self.quick, self.seconds, device)
        return parts.run(parts.chosen(self.part), settings, output, console, command=self.resuming)

    @property
    def resuming(self) -> str:
        """The same command, but for the parts."""
        quick = " --quick" if self.quick else ""
        return f"python -m benchmarks speed{quick}{changed(self, 'output', 'data_dir', 'seconds', 'device')}"


@dataclass(frozen=True)
class Gpu:
    """
    Do the prepared run for a machine with one GPU: its tests, how fast all is, and as much of the paper as time allows.

    In stages, the most valuable first: machine, tests, ways, loss, attacks, paper-mnist, paper-cifar10 and training.
    What is done is not done again. docs/gpu.md says how to prepare the machine.
    """

    NEEDS: ClassVar = ("benchmarks.gpu",)

    output: Path = Path("hrloss-gpu")
    """Folder for all that is made, with the store of the paper's grids."""
    minutes: float = 10.0
    """Until all must be over."""
    data_dir: Path = DATA_DIR
    """Folder of the data sets, as for `run`."""
    stage: tuple[str, ...] = ()
    """Only these stages."""
    device: Literal["cpu", "gpu"] = "gpu"
    """The CPU is to try the run where there is no GPU."""
    quick: bool = False
    """Small sizes and the digits, to see that all works."""
    pack: Path | None = None
    """Do nothing but write MNIST and CIFAR-10 from the data folder into this one, as small files in parts."""

    def __call__(self, console: Console) -> int:
        """Do the stages; returns the exit status."""
        from benchmarks import data, gpu
        from benchmarks.execution import expect_gpu

        data_dir, output = (Path(os.path.expanduser(folder)).resolve() for folder in (self.data_dir, self.output))
        if self.pack is not None:
            for name in ("mnist", "cifar10"):
                for path in data.pack(name, data_dir=data_dir, folder=Path(os.path.expanduser(self.pack))):
                    console.print(f"{path}, {path.stat().st_size / 1e6:.1f} MB", soft_wrap=True)
            return 0
        if self.device == "gpu":
            expect_gpu("--device gpu")
        if not self.minutes > 0:
            raise ConfigError(f"expected minutes to be above 0, but got {self.minutes}")
        grids = {}
        for name in ("digits",) if self.quick else ("mnist", "cifar10"):
            precision: Literal["tf32"] | None = "tf32" if self.device == "gpu" else None
            options = GridOptions(name, output / "store", device=self.device, precision=precision)
            if self.quick:
                options = replace(options, seeds=1, epochs=1)
            # In this process, on the CPU as on a GPU.
            command = f"{options.resuming} --workers 1 --data-dir {shlex.quote(str(data_dir))}"
            grids[f"paper-{name}"] = command, options.resolve()
        plan = gpu.Plan(output, data_dir, self.device, self.quick, grids)
        return gpu.run(plan, self.stage, self.minutes, console)

    @property
    def resuming(self) -> str:
        """The same command."""
        quick = " --quick" if self.quick else ""
        return f"python -m benchmarks gpu{changed(self, 'stage')}{quick}" + changed(
            self, "output", "minutes", "data_dir", "device"
        )


@dataclass(frozen=True)
class Certify:
    """
    Bracket robust accuracy: certified from below, attacked from above, of CE-, HR- and adversarially trained networks.

    Networks of the digits or of MNIST, trained where the store lacks them; zonotopes and attacks in L-infinity, and
    randomized smoothing in norm 2. On two cores about half an hour for the digits and hours for MNIST.
    """

    NEEDS: ClassVar = ("benchmarks.cli._certify",)

    dataset: Literal["digits", "mnist"] = "digits"
    """Whose networks: those of the grids digits and hardening-digits, or mnist-long and hardening-mnist."""
    store: Path = Path("hrloss-store")
    """Folder of trained networks, as for `run`; every measurement is kept there once it is finished."""
    output: Path = Path("hrloss-certified")
    """Folder for certified-DATASET.md, .csv, .png and .svg."""
    seeds: int | None = None
    """Use the seeds 0, 1, ... so many of them; by default 5 for the digits, 2 for MNIST."""
    images: int | None = None
    """Test images in L-infinity, from the first; by default all 360 of the digits, 100 of MNIST."""
    smoothed_images: int = 100
    """Test images in norm 2, from the first."""
    max_iter: int = 100
    """Steps of each white-box attack."""
    square_iter: int = 1000
    """Queries per image of the Square attack."""
    epochs: int | None = None
    """Train every network for so many epochs instead of its grid's."""
    workers: int | None = None
    """Networks at once, each in a process of its own; by default as many as there are processors."""
    data_dir: Path = DATA_DIR
    """Folder of the data sets, as for `run`."""

    def __call__(self, console: Console) -> int:
        """Measure what is missing and write all; returns the exit status."""
        from benchmarks.cli._certify import certify

        return certify(self, console)

    @property
    def command(self) -> str:
        """The command that makes these results from nothing, to stand above the tables."""
        names = ("dataset", "seeds", "images", "smoothed_images", "max_iter", "square_iter", "epochs")
        return f"python -m benchmarks certify{changed(self, *names)}"

    @property
    def resuming(self) -> str:
        """The same command, with where it finds and keeps things."""
        return self.command + changed(self, "store", "output", "workers", "data_dir")


COMMANDS = {
    "run": Run,
    "status": Status,
    "report": Report,
    "grids": Grids,
    "speed": Speed,
    "autoattack": AutoAttack,
    "certify": Certify,
    "readings": Readings,
    "gpu": Gpu,
}

Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Grids, tyro.conf.subcommand("grids")]
    | Annotated[Speed, tyro.conf.subcommand("speed")]
    | Annotated[AutoAttack, tyro.conf.subcommand("autoattack")]
    | Annotated[Certify, tyro.conf.subcommand("certify")]
    | Annotated[Readings, tyro.conf.subcommand("readings")]
    | Annotated[Gpu, tyro.conf.subcommand("gpu")]
)
