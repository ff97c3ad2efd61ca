"""Arguments -> a command, and whatever becomes of it -> an exit status and a sentence."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module

import tyro
from rich.console import Console

from benchmarks.cli._commands import COMMANDS, Command
from benchmarks.config import ConfigError
from benchmarks.references import did_you_mean

ABOUT = """Train and attack the paper's grid, make its tables and figures, and measure how fast all is.

Without arguments: `run`, on the digits that come with scikit-learn, in about two minutes.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["run"]
    _expect_columns()
    # Without markup: a path may hold brackets.
    console = Console(markup=False, highlight=False)
    command = None
    try:
        _check_spelling(arguments)
        config = (tyro.conf.DisallowNone,)
        command = tyro.cli(Command, prog="python -m benchmarks", description=ABOUT, args=arguments, config=config)
        for module in command.NEEDS:  # before interrupts are raised, which an import may swallow or wrap
            import_module(module)
        with _interrupts_raised():
            return command(console)
    except KeyboardInterrupt:
        cluster = "; the cluster's workers go on with what they are at" if getattr(command, "scheduler", None) else ""
        resuming = f"; the same command goes on from there:\n  {command.resuming}" if command else "."
        console.print(f"Interrupted. All is kept but the epochs in progress{cluster}{resuming}", soft_wrap=True)
        return 130
    except BrokenPipeError:  # whoever read the output has enough of it
        raise
    except Exception as error:
        if not isinstance(error, _expected_errors()):
            raise
        Console(stderr=True, markup=False, highlight=False).print(f"Error: {error}", style="red", soft_wrap=True)
        return 2


def _expected_errors() -> tuple[type[Exception], ...]:
    """The errors that say what to do; of a module that is not loaded, and would take seconds, none was raised."""
    names = {"data": "DataError", "store": "StoreError", "execution": "ClusterError"}
    modules = ((sys.modules.get(f"benchmarks.{module}"), name) for module, name in names.items())
    return ConfigError, OSError, *(getattr(module, name) for module, name in modules if hasattr(module, name))


def _check_spelling(arguments: Sequence[str]) -> None:
    """
    Make sure that the command and its options are known; what follows an option is tyro's to read.

    :raises ConfigError: If one is not; says which may be meant.
    """
    name, *rest = arguments
    if name in ("-h", "--help"):
        return
    if name not in COMMANDS:
        expected = f"expected a command, one of {', '.join(COMMANDS)}, before any option"
        raise ConfigError(f"{expected}, but got {name!r}{'' if name[:1] == '-' else did_you_mean(name, COMMANDS)}")
    options = ["--help", *(f"--{field.name.replace('_', '-')}" for field in fields(COMMANDS[name]))]
    for argument in rest:
        option = argument.split("=")[0].replace("_", "-")
        if option.startswith("--") and option not in options and option.replace("--no-", "--", 1) not in options:
            raise ConfigError(f"expected an option of {name}, but got {option!r}{did_you_mean(option, options)}")


def _expect_columns() -> None:
    """Have a terminal of 0 columns count as one of unknown size, as programs in C do; rich would write nothing."""
    for name in ("COLUMNS", "LINES"):
        if not os.environ.get(name, "1").strip("0 "):
            del os.environ[name]


@contextmanager
def _interrupts_raised() -> Iterator[None]:
    """
    Have SIGINT and SIGTERM raise KeyboardInterrupt, so that no worker is left behind.

    A scheduler ends a job by SIGTERM. An interrupt that is ignored from the start, as in the background of a shell
    without job control, stays ignored.
    """
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
