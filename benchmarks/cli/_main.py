"""Parsing of the arguments, execution of the command, and conversion of errors to messages and exit statuses."""

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

ABOUT = """Train and attack the networks of the paper's experiments, write tables and figures, and measure speed.

Without arguments: `run` with the grid digits, on scikit-learn's digits, in about two minutes.

With --version: print the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Execute the command line and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["run"]
    _remove_zero_columns()
    # Without markup, because a path may contain square brackets.
    console = Console(markup=False, highlight=False)
    command = None
    try:
        if arguments[0] == "--version":
            from benchmarks.store import versions  # imports torch, which takes seconds

            console.print(f"art_hrloss {versions()['art_hrloss']}")
            return 0
        _check_spelling(arguments)
        config = (tyro.conf.DisallowNone,)
        command = tyro.cli(Command, prog="python -m benchmarks", description=ABOUT, args=arguments, config=config)
        # Import before interrupts raise exceptions, which an import may swallow or wrap.
        for module in command.NEEDS:
            import_module(module)
        with _interrupts_raised():
            return command(console)
    except KeyboardInterrupt:
        message = "Interrupted. All results are stored, except the epochs in progress."
        if getattr(command, "scheduler", None):
            message += " The workers of the cluster finish the runs in progress."
        if command:
            message += f" To resume, run\n  {command.resuming}"
        console.print(message, soft_wrap=True)
        return 130
    except BrokenPipeError:  # the reader has closed the pipe: the caller handles it
        raise
    except Exception as error:
        if not isinstance(error, _expected_errors()):
            raise
        Console(stderr=True, markup=False, highlight=False).print(f"Error: {error}", style="red", soft_wrap=True)
        return 2


def _expected_errors() -> tuple[type[Exception], ...]:
    """
    Return the exception types whose messages are for users.

    A module that has not been imported cannot have raised its error, and is not imported here, which takes seconds.
    """
    names = {"data": "DataError", "store": "StoreError", "execution": "ClusterError"}
    modules = ((sys.modules.get(f"benchmarks.{module}"), name) for module, name in names.items())
    return ConfigError, OSError, *(getattr(module, name) for module, name in modules if hasattr(module, name))


def _check_spelling(arguments: Sequence[str]) -> None:
    """
    Check that the command and its options are known; tyro checks the values.

    :raises ConfigError: If one is unknown; the message suggests a similar one.
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


def _remove_zero_columns() -> None:
    """Remove COLUMNS=0 and LINES=0, which mean an unknown terminal size: rich would print nothing with 0 columns."""
    for name in ("COLUMNS", "LINES"):
        if not os.environ.get(name, "1").strip("0 "):
            del os.environ[name]


@contextmanager
def _interrupts_raised() -> Iterator[None]:
    """
    Make SIGINT and SIGTERM raise KeyboardInterrupt, so that worker processes are ended too.

    Cluster schedulers end a job by SIGTERM. A signal that is ignored from the start, as SIGINT is in the background of
    a shell without job control, stays ignored.
    """
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
