"""The command line: its options, and what each command does. Torch and the like are imported once a command runs."""

from benchmarks.cli._grid_options import GridOptions
from benchmarks.cli._main import main

__all__ = ["GridOptions", "main"]
