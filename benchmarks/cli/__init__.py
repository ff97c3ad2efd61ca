"""Command line: options and implementations of the commands. Large libraries are imported when a command runs."""

from benchmarks.cli._grid_options import GridOptions
from benchmarks.cli._main import main

__all__ = ["GridOptions", "main"]
