"""`python -m benchmarks.compatibility`: run every case, print the table, and with --write publish it."""

import sys

import torch
import tyro
from rich.console import Console
from rich.progress import track

from benchmarks.compatibility.cases import make_subject
from benchmarks.compatibility.findings import PUBLISHED, conditions, find, lacking, markdown, tables


def main(write: bool = False) -> None:
    """
    Run every attack and trainer of ART with the HR loss and print what came of it; about two minutes.

    :param write: Write the table to benchmarks/results/compatibility.md; this needs the packages that ART imports
           without installing them.
    """
    torch.set_num_threads(1)  # the fastest for networks this small, and the same sums in every run
    errors = Console(stderr=True)
    missing = sorted({need for case, hide in conditions() for need in lacking(case, hide=hide)})
    if missing and write:
        sys.exit(f"expected everything that a row needs, but these are missing: pip install {' '.join(missing)}")
    subject = make_subject()
    todo = [(case, hide) for case, hide in conditions() if not lacking(case, hide=hide)]
    findings = [find(case, subject, hide=hide) for case, hide in track(todo, "running", console=errors)]
    for part in tables(findings):
        Console().print(part.rich())
    if missing:
        errors.print(f"Rows left out for want of: {', '.join(missing)}")
    if write:
        PUBLISHED.write_text(markdown(findings))


if __name__ == "__main__":
    tyro.cli(main)
