"""Command `python -m benchmarks.compatibility`: run every case and print the table; with --write, write the page."""

import sys

import torch
import tyro
from rich.console import Console
from rich.progress import track

from benchmarks.compatibility.cases import make_subject
from benchmarks.compatibility.findings import PUBLISHED, conditions, find, lacking, markdown, tables


def main(write: bool = False) -> None:
    """
    Run every attack and trainer of ART with the HR loss and print the results. This takes about two minutes.

    :param write: Write the table to benchmarks/results/compatibility.md. This needs optional packages that ART imports
           but does not install.
    """
    torch.set_num_threads(1)  # the fastest for networks this small, and the same rounding in every run
    errors = Console(stderr=True)
    missing = sorted({need for case, hide in conditions() for need in lacking(case, hide=hide)})
    if missing and write:
        sys.exit(f"expected all packages that the rows need, but some are missing: pip install {' '.join(missing)}")
    subject = make_subject()
    runnable = [(case, hide) for case, hide in conditions() if not lacking(case, hide=hide)]
    findings = [find(case, subject, hide=hide) for case, hide in track(runnable, "running", console=errors)]
    for part in tables(findings):
        Console().print(part.rich())
    if missing:
        errors.print(f"Some rows are left out, because these packages are missing: {', '.join(missing)}")
    if write:
        PUBLISHED.write_text(markdown(findings))


if __name__ == "__main__":
    tyro.cli(main)
