"""Commands and their options, as tyro reads them. The implementation of a command is imported when it is called."""

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
from benchmarks.cli._grid_options import GridOptions, changed, default
from benchmarks.cli._readings import Readings
from benchmarks.config import DATA_DIR, ConfigError


@dataclass(frozen=True)
class Run(GridOptions):
    """Train and attack every run of a grid, and write its tables and figures."""

    NEEDS: ClassVar = ("benchmarks.cli._run",)

    data_dir: Path = DATA_DIR
    """Folder of the data sets: torchvision's files or NAME.npz."""
    download: bool = False
    """Download missing data sets of torchvision into the data folder."""
    workers: Annotated[int | None, default("1 on a GPU, else processors / threads")] = None
    """Number of worker processes."""
    together: Annotated[int | None, default("10 on a GPU, else 1")] = None
    """Number of runs of one recipe that a worker trains together."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://127.0.0.1:8786. Its workers execute the runs."""
    tls_ca: Path | None = None
    """PEM file of trusted authorities, for tls:// addresses."""
    tls_cert: Path | None = None
    """PEM file of the client's certificate, for tls:// addresses."""
    tls_key: Path | None = None
    """PEM file of the client's private key, for tls:// addresses."""

    def __call__(self, console: Console) -> int:
        """Run the grid and return the exit status."""
        from benchmarks.cli._run import run

        return run(self, console)

    @property
    def resuming(self) -> str:
        """The command with its paths, which resumes the run."""
        names = ("data_dir", "workers", "together", "scheduler", "tls_ca", "tls_cert", "tls_key")
        return super().resuming + changed(self, *names) + (" --download" if self.download else "")


@dataclass(frozen=True)
class Status(GridOptions):
    """Show the progress of a grid: which runs are done, running, failed, started or missing, and the time left."""

    NEEDS: ClassVar = ("benchmarks.cli._report",)

    def __call__(self, console: Console) -> int:
        """Print the status and return the exit status."""
        from benchmarks.cli._report import show_status

        return show_status(self, console)


@dataclass(frozen=True)
class Report(GridOptions):
    """Write a grid's tables and figures from the stored results, without training or attacks."""

    NEEDS: ClassVar = ("benchmarks.cli._report",)

    def __call__(self, console: Console) -> int:
        """Write the report and return the exit status."""
        from benchmarks.cli._report import report

        return report(self, console)


@dataclass(frozen=True)
class Grids:
    """List the grids: description, number of runs, and time on two cores."""

    NEEDS: ClassVar = ()
    resuming: ClassVar = "python -m benchmarks grids"

    def __call__(self, console: Console) -> int:
        """Print the table and return the exit status."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
        table.add_column("grid", no_wrap=True)
        table.add_column("description")
        table.add_column("runs", justify="right", no_wrap=True)
        table.add_column("two cores", justify="right", no_wrap=True)
        for name, build in grids.GRIDS.items():
            description = (build.__doc__ or "").strip().splitlines()[0]
            table.add_row(name, description, str(len(build().runs())), grids.COSTS[name])
        console.print(table)
        return 0


@dataclass(frozen=True)
class Speed:
    """
    Measure the speed of the loss, the attacks and training, compared with cross-entropy, plain loops, ART and others.

    About 20 minutes on two cores. Alternating measurements are shown as ratios, with medians and quartiles. Run it on
    an idle machine.
    """

    NEEDS: ClassVar = ("benchmarks.speed.parts",)

    part: tuple[str, ...] = ("loss", "attacks", "growth", "training", "ways")
    """Parts to measure, one or more of the default."""
    output: Path = Path("hrloss-speed")
    """Folder for PART.md, PART.csv and figures. Files of other parts are not changed."""
    data_dir: Path = DATA_DIR
    """Folder of MNIST and CIFAR-10, the same as for `run`. If they are missing, the digits are used."""
    seconds: float = 20.0
    """Time for the rounds of one case. There are at least three rounds."""
    quick: bool = False
    """Small sizes, one round and the digits, as a trial. The timings are not reliable."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Device of all computations."""

    def __call__(self, console: Console) -> int:
        """Measure the parts and return the exit status."""
        import torch

        from benchmarks.execution import expect_gpu
        from benchmarks.speed import parts
        from benchmarks.speed.measuring import Settings

        if self.device == "gpu":
            expect_gpu("--device gpu")
        if not self.seconds > 0:
            raise ConfigError(f"expected seconds to be above 0, but got {self.seconds}")
        # Path.expanduser would raise an error without a home directory; os.path.expanduser does not.
        output, device = Path(os.path.expanduser(self.output)), torch.device("cuda" if self.device == "gpu" else "cpu")
        settings = Settings(self.data_dir, self.quick, self.seconds, device)
        return parts.run(parts.chosen(self.part), settings, output, console, command=self.resuming)

    @property
    def resuming(self) -> str:
        """The command without its parts."""
        quick = " --quick" if self.quick else ""
        return f"python -m benchmarks speed{quick}{changed(self, 'output', 'data_dir', 'seconds', 'device')}"


@dataclass(frozen=True)
class Gpu:
    """
    Run tests, speed measurements and the paper's grids on a machine with one GPU, within a time limit.

    Stages, in order: machine, tests, ways, loss, attacks, paper-mnist, paper-cifar10, training. Stages that are done
    are skipped. docs/gpu.md describes the preparation of the machine.
    """

    NEEDS: ClassVar = ("benchmarks.gpu",)

    output: Path = Path("hrloss-gpu")
    """Folder for all output, including the store of the paper's grids."""
    minutes: float = 10.0
    """Time limit of the whole run in minutes."""
    data_dir: Path = DATA_DIR
    """Folder of the data sets, the same as for `run`."""
    stage: tuple[str, ...] = ()
    """Stages to execute. Empty: all stages."""
    device: Literal["cpu", "gpu"] = "gpu"
    """Device. Use cpu for a trial on a machine without a GPU."""
    quick: bool = False
    """Small sizes and the digits, as a trial."""
    pack: Path | None = None
    """Write MNIST and CIFAR-10 from the data folder into this folder, as small files in parts, and exit."""

    def __call__(self, console: Console) -> int:
        """Execute the stages and return the exit status."""
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
            # One worker, so that the runs are executed in the command's process, on the CPU as on a GPU.
            command = f"{options.resuming} --workers 1 --data-dir {shlex.quote(str(data_dir))}"
            grids[f"paper-{name}"] = command, options.resolve()
        plan = gpu.Plan(output, data_dir, self.device, self.quick, grids)
        return gpu.run(plan, self.stage, self.minutes, console)

    @property
    def resuming(self) -> str:
        """The command, which resumes the run."""
        quick = " --quick" if self.quick else ""
        return f"python -m benchmarks gpu{changed(self, 'stage')}{quick}" + changed(
            self, "output", "minutes", "data_dir", "device", "pack"
        )


@dataclass(frozen=True)
class Certify:
    """
    Bound robust accuracy from below by certificates and from above by attacks.

    CE-, HR- and adversarially trained networks of the digits or MNIST; missing ones are trained. Zonotopes and attacks
    in L-infinity, randomized smoothing in norm 2. On two cores: half an hour for the digits, hours for MNIST.
    """

    NEEDS: ClassVar = ("benchmarks.cli._certify",)

    dataset: Literal["digits", "mnist"] = "digits"
    """Data set. Networks are those of the grids digits and hardening-digits, or mnist-long and hardening-mnist."""
    store: Path = Path("hrloss-store")
    """Folder of the trained networks, the same as for `run`. Each finished measurement is stored there."""
    output: Path = Path("hrloss-certified")
    """Folder for certified-DATASET.md, .csv, .png and .svg."""
    seeds: Annotated[int | None, default("5 for the digits, 2 for MNIST")] = None
    """Number of seeds: 0, 1, ..."""
    images: Annotated[int | None, default("all 360 of the digits, 100 of MNIST")] = None
    """Number of test images in L-infinity, from the first."""
    smoothed_images: int = 100
    """Number of test images in norm 2, from the first."""
    max_iter: int = 100
    """Number of steps of each white-box attack."""
    square_iter: int = 1000
    """Number of queries per image of the Square attack."""
    epochs: Annotated[int | None, default("the grid's")] = None
    """Number of training epochs."""
    workers: Annotated[int | None, default("the number of processors")] = None
    """Number of worker processes."""
    data_dir: Path = DATA_DIR
    """Folder of the data sets, the same as for `run`."""

    def __call__(self, console: Console) -> int:
        """Compute the missing bounds, write table and figure, and return the exit status."""
        from benchmarks.cli._certify import certify

        return certify(self, console)

    @property
    def command(self) -> str:
        """The command that reproduces the results, without paths, for display above the tables."""
        names = ("dataset", "seeds", "images", "smoothed_images", "max_iter", "square_iter", "epochs")
        return f"python -m benchmarks certify{changed(self, *names)}"

    @property
    def resuming(self) -> str:
        """The command with its paths, which resumes the run."""
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
