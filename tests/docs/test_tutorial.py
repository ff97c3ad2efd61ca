"""
The tutorial executes from its first cell to its last, and its sentences hold for what it computes.

`python tests/docs/test_tutorial.py` executes it in place and stores its outputs.
"""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
# What the text of the tutorial says, in its own variables.
CLAIMS = """
import json

paper, exact = ({name: fgsm[name, protocol] for name in classifiers} for protocol in protocols)
masked, margin = zero["HR", "paper protocol"], margins(classifiers["HR"], x_test, y_test)
flagged = {protocol: {flag.name for flag in report.flags} for protocol, report in reports.items()}
limits = bounds.to_frame().set_index("kind")["value"]
claims = {
    "both classifiers are accurate without an attack": min(clean.values()) > 0.9,
    "in the paper protocol the HR loss looks like a defence": paper["HR"] > paper["CE"],
    "with exact gradients the accuracy of HR is far lower": exact["HR"] < paper["HR"] - 0.05,
    "the worst case is lower still": all(worst[name] < exact[name] <= paper[name] for name in classifiers),
    "in the worst case both lose all": max(curves[name, "worst case"][-1] for name in classifiers) < 0.02,
    "in the paper protocol the curve of HR becomes flat": curves["HR", "paper protocol"][-1] > 0.2,
    "many gradients of HR are zero in the paper protocol": masked.mean() > zero["CE", "paper protocol"].mean() + 0.05,
    "no exact gradient is zero": not any(zero[name, "exact gradients"].any() for name in classifiers),
    # log(1e7) is 16.1; float32 rounds just below 1, and there may be several likely other classes.
    "zero gradients begin near log(1e7)": margin[masked & (margin > 0)].min() > 14 and margin[~masked].max() < 19,
    "where the gradient is zero the image is unchanged": (attacked["HR", "paper protocol"] == x_test)[masked].all(),
    "the report flags the paper protocol": {"zero gradients", "masked gradients"} <= flagged["paper protocol"],
    "it does not flag exact gradients": not flagged["exact gradients"],
    "adversarial training helps": all(defended_worst[name] > worst[name] + 0.1 for name in classifiers),
    "the error is at most each upper bound": bounds.error <= limits["upper bound"].min(),
    "the error is at least each lower bound": bounds.error >= limits["lower bound"].max(),
    "attacks lower the accuracy of the reader's network": my_worst.accuracy < my_worst.accuracy_after["no attack"],
}
print(json.dumps({claim: bool(holds) for claim, holds in claims.items()}))
"""


def execute(notebook: Any, folder: str) -> Any:
    """Execute a notebook in a kernel of its own, without times among its metadata."""
    options = {"timeout": 900, "record_timing": False, "resources": {"metadata": {"path": folder}}}
    return NotebookClient(notebook, **options).execute()


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> Counter[str]:
    """Count a cell's outputs by their kind: the richest of the forms that a reader sees, or a stream's name."""
    forms = ("image/png", "text/html", "text/plain")
    return Counter(
        next((form for form in forms if form in out.get("data", {})), out.get("name")) for out in cell.outputs
    )


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_valid_and_stored_with_the_outputs_of_one_run(stored: Any) -> None:
    nbformat.validate(stored)
    cells = code_cells(stored)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any("execution" in cell.metadata for cell in cells)
    # An error has the kind None, a warning "stderr".
    assert {kind for cell in cells for kind in kinds(cell)} == {"image/png", "text/html", "stdout"}


def test_stored_outputs_have_no_widgets_and_no_paths(stored: Any) -> None:
    assert "widgets" not in stored.metadata
    outputs = [out for cell in code_cells(stored) for out in cell.outputs]
    shown = json.dumps([{**out.get("data", out), "image/png": ""} for out in outputs])
    assert not re.search(r"widget-view|0x[0-9a-f]{6}|\.py\b|/(home|tmp|root|usr|work|Users)/", shown)


def test_headings_are_one_hierarchy_below_one_title(stored: Any) -> None:
    text = "\n".join(cell.source for cell in stored.cells if cell.cell_type == "markdown")
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(lower - upper <= 1 for upper, lower in pairwise(levels))


def test_every_code_cell_follows_a_paragraph_and_every_figure_has_alt_text(stored: Any) -> None:
    for before, cell in pairwise(stored.cells):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown"
            assert bool(kinds(cell)["image/png"]) == bool(cell.metadata.get("mystnb", {}).get("image", {}).get("alt"))


@pytest.mark.slow
def test_what_the_tutorial_says_holds_in_a_fresh_run_with_outputs_of_the_stored_kinds(
    stored: Any, tmp_path: Path
) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CLAIMS))
    *fresh, last = code_cells(execute(notebook, str(tmp_path)))
    assert [kinds(cell) for cell in fresh] == [kinds(cell) for cell in code_cells(stored)]
    claims = json.loads(last.outputs[0].text)
    assert not [claim for claim, holds in claims.items() if not holds]


if __name__ == "__main__":
    nbformat.write(execute(nbformat.read(NOTEBOOK, as_version=4), str(NOTEBOOK.parent)), NOTEBOOK)
