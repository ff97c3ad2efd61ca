"""Settings of the documentation, built by `sphinx-build -W -b html docs docs/_build`."""

import logging
import os
import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import pandas as pd
from sphinx.util.nodes import make_refnode

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
sys.path.insert(0, str(DOCS.parent))  # the wheel does not contain benchmarks

project, author, copyright = "art_hrloss", "The art_hrloss developers", "The art_hrloss developers"
version = release = version_of("art_hrloss")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "myst_nb",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "examples", "jupyter_execute"]
html_theme = "furo"
html_title = f"art_hrloss {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
nb_execution_mode = "off"  # the notebook is stored with its output, and a test executes it
myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autoclass_content = "both"
autodoc_default_options = {"show-inheritance": True}
copybutton_exclude = ".linenos, .gp, .go"

# References to this package must resolve; those to other libraries resolve only where their inventories can be read.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!art_hrloss\.).*")]
if not os.environ.get("ART_HRLOSS_DOCS_OFFLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_timeout = 10
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "art": ("https://adversarial-robustness-toolbox.readthedocs.io/en/latest", None),
    }

# Tables and figures of a folder of results, in this order, as far as the folder has them: file, heading, text for
# readers who cannot see the figure. A star stands for the data set.
PUBLISHED = (
    ("headline.md", "Finding", ""),
    ("table_1.md", "Table 1", ""),
    ("figure_1-*.svg", "Figure 1", "Test accuracy against the epoch, in both protocols"),
    ("strong.md", "Strong attacks", ""),
    ("strong-*.svg", "Accuracy against eps", "Accuracy against eps under the paper's attack and in the worst case"),
    ("broken_by.md", "Attacks that found the adversarial examples", ""),
    ("hardening.md", "Defences", ""),
    ("hardening-*.svg", "Accuracy of the defences", "Accuracy of adversarially trained networks, CE beside HR"),
    ("alpha.md", "Choice of alpha", ""),
    ("alpha-*.svg", "Accuracy against alpha", "Accuracy against alpha on the validation images"),
    ("claims.md", "The paper's claims", ""),
    ("diagnostics.md", "Gradient masking", ""),
    ("margins-*.svg", "Margins", "Distribution of the margins of the test images"),
    ("calibration.md", "Calibration", ""),
    ("reliability-*.svg", "Reliability diagram", "Accuracy against confidence"),
    ("bounds.md", "Proposition 1", ""),
    ("bounds-*.svg", "Bounds during training", "Error and its upper bounds against the epoch"),
    ("confusion.md", "Confusion", ""),
    ("confusion-*.svg", "Confusion matrices", "Mean prediction for each class, CE beside HR"),
)


def published(name: str) -> str:
    """Return a folder of benchmarks/results as Markdown: its tables and figures, each under a heading, and its CSVs."""
    folder = RESULTS / name
    parts = []
    for pattern, heading, text in PUBLISHED:
        for file in sorted(folder.glob(pattern)):
            path = os.path.relpath(file, DOCS / "results")
            shown = f"![{text}]({path})" if text else f"```{{include}} {path}\n:relative-images:\n```"
            parts.append(f"## {heading}\n\n{shown}")
    files = [
        f"- {{download}}`{file.name} <{os.path.relpath(file, DOCS / 'results')}>`" for file in folder.glob("*.csv")
    ]
    return "\n\n".join([*parts, "## Files\n\n" + "\n".join(sorted(files))])


def first_table(name: str) -> str:
    """Return the first table of a Markdown file of benchmarks/results with its footnote and command, without links."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", (RESULTS / name).read_text())
    table = r"(?:^\|.*\n)+(?:\n\\\*(?:.+\n)+)?"  # a footnote begins with an escaped star
    parts = re.search(table, text, re.MULTILINE), re.search(r"^Made by .*", text, re.MULTILINE)
    return "\n".join(part[0] for part in parts if part)


def claims_table(folders: str) -> str:
    """Return the verdicts on the paper's claims in the claims.csv of several folders, one column per data set."""
    from benchmarks.report.claims import CLAIMS, overall

    frames = {name: pd.read_csv(RESULTS / name / "claims.csv", keep_default_na=False) for name in folders.split()}
    judged = pd.concat([frame.assign(folder=name) for name, frame in frames.items()])
    lines = [("claim", "under", *(f"[{frame.dataset[0]}](results/{name}.md)" for name, frame in frames.items()))]
    lines.append(("---",) * len(lines[0]))
    for (claim, protocol), rows in judged.groupby(["claim", "protocol"], sort=False):
        cells = []
        for name in frames:
            verdicts = rows[rows.folder == name].verdict
            counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.value_counts().items())
            one = verdicts.nunique() == 1
            cells.append("" if verdicts.empty else overall(verdicts) + f" ({len(verdicts) if one else counts})")
        lines.append((f"{claim}: {CLAIMS[claim][0]}", protocol, *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grids_table(_: str) -> str:
    """Return a table of the grids, their trainings and their cost."""
    from benchmarks import grids

    rows = [("grid", "what it is", "trainings", "cost"), ("---",) * 4]
    for name, build in grids.GRIDS.items():
        cost = grids.COSTS[name].replace(" ", "\u00a0")  # a number and its unit stay on one line
        rows.append((f"`{name}`", summary(build.__doc__), str(len(build().runs())), cost))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def summary(docstring: str | None) -> str:
    """Return the first paragraph of a docstring as Markdown on one line."""
    paragraph = " ".join((docstring or "").strip().split("\n\n")[0].split())
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", paragraph).replace("|", r"\|").replace("``", "`")


GENERATED = {
    "published": published,
    "first-table": first_table,
    "claims": claims_table,
    "grids": grids_table,
}


def insert_generated(app: Any, page: str, source: list[str]) -> None:
    """Replace each block such as `{published} FOLDER` of a page by what its function in GENERATED returns."""
    names = "|".join(GENERATED)
    source[0] = re.sub(rf"```{{({names})}} ?(.*)\n```", lambda match: GENERATED[match[1]](match[2]), source[0])


# Kinds of objects that a module has, in the words of Sphinx.
TOP_LEVEL = ("class", "function", "data", "exception")


def resolve_alias(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Resolve a name under which an object is not documented, such as art_hrloss.HRLoss, to where it is documented."""
    *module, name = node.get("reftarget", "").split(".")
    if node.get("refdomain") != "py" or module[:1] not in ([], ["art_hrloss"]):
        return None
    objects = env.domains["py"].objects.items()
    found = [entry for full, entry in objects if full.rsplit(".", 1)[-1] == name and entry.objtype in TOP_LEVEL]
    places = {(entry.docname, entry.node_id) for entry in found}
    if len(places) != 1:
        return None
    ((page, anchor),) = places
    return make_refnode(app.builder, node["refdoc"], page, anchor, content, node["reftarget"])


def hide_private_bases(app: Any, name: str, obj: type, options: Any, bases: list[Any]) -> None:
    """Show in place of a private base class the base classes that it has itself."""
    while private := [
        base for base in bases if "art_hrloss" in base.__module__ and base.__name__ not in public_names()
    ]:
        bases[:] = [each for base in bases for each in (base.__bases__ if base in private else (base,))]
    bases[:] = [base for base in dict.fromkeys(bases) if base is not object] or [object]


def public_names() -> set[str]:
    """Return the names that the packages of art_hrloss export."""
    packages = (module for name, module in sys.modules.items() if name.split(".")[0] == "art_hrloss")
    return {name for package in packages for name in getattr(package, "__all__", ())}


class Unreachable(logging.Filter):
    """Log as information that no inventory of another project could be read: its site may be down."""

    def filter(self, record: logging.LogRecord) -> bool:
        if "failed to reach any of the inventories" in str(record.msg):
            record.levelno, record.levelname = logging.INFO, "INFO"
        return True


def setup(app: Any) -> None:
    """Register the functions above."""
    app.connect("source-read", insert_generated)
    app.connect("missing-reference", resolve_alias)
    app.connect("autodoc-process-bases", hide_private_bases)
    logging.getLogger("sphinx.sphinx.ext.intersphinx").addFilter(Unreachable())
