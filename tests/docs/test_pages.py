"""The pages of the documentation: their examples run, their commands and tables name what exists."""

import importlib
import inspect
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tyro

import art_hrloss
from art_hrloss import attacks, bounds, diagnostics, losses
from art_hrloss.diagnostics._flags import REMEDIES
from benchmarks.cli._commands import Command
from benchmarks.cli._grid_options import GridOptions
from benchmarks.cli._main import _check_spelling

DOCS = Path(__file__).parents[2] / "docs"
# The pages with examples and commands of files that they ask the reader to write are tested with these files.
TESTED_ELSEWHERE = {"your_own_study.md": "tests/benchmarks/test_your_own_study.py"}
PAGES = {str(page.relative_to(DOCS)): page.read_text() for page in sorted(DOCS.rglob("*.md"))}
EXAMPLES = r"^```(?:python\n(?P<code>.*?)|\{literalinclude\} (?P<file>\S+\.py)\n)```$"
# A command ends at the end of its line, unless that is continued, at what a shell reads next, or at its backtick.
COMMAND = r"(?:python3?|torchrun [^\n]*) -m (benchmarks[\w.]*)((?:\\\n|[^`\n&|;#>])*)"


def examples(page: str) -> list[str | Path]:
    """Return the Python code of a page, block by block, and files that it shows."""
    blocks = re.finditer(EXAMPLES, PAGES[page], re.MULTILINE | re.DOTALL)
    return [block["code"] or (DOCS / page).parent.joinpath(block["file"]) for block in blocks]


@cache
def names_after(file: Path) -> dict[str, Any]:
    """Return the global names after a file that several pages show; it runs once, for none of them changes them."""
    return runpy.run_path(str(file))


def commands() -> Iterator[tuple[str, str, str]]:
    """Return page, module and options of each command that starts a module of the benchmarks."""
    for page, text in PAGES.items():
        if page not in TESTED_ELSEWHERE:
            for module, options in re.findall(COMMAND, text):
                yield page, module, options.replace("\\\n", " ").strip()


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page) and page not in TESTED_ELSEWHERE])
def test_the_examples_of_a_page_run_from_top_to_bottom(page: str) -> None:
    scope: dict[str, Any] = {"__name__": "example"}
    for number, code in enumerate(examples(page)):
        if isinstance(code, Path):
            scope |= names_after(code)
        else:
            exec(compile(code, f"{page}, example {number}", "exec"), scope)


@pytest.mark.parametrize(("page", "module", "options"), sorted(set(commands())))
def test_a_command_of_a_page_has_options_that_exist(page: str, module: str, options: str) -> None:
    arguments = shlex.split(options)
    if module == "benchmarks":
        if "--help" in arguments or "COMMAND" in arguments:  # asks for the list of options, whatever the command
            return
        _check_spelling(arguments or ["run"])
        command = tyro.cli(Command, args=arguments or ["run"], config=(tyro.conf.DisallowNone,))
        if isinstance(command, GridOptions):
            assert command.resolve().runs()
        return
    name = module if importlib.util.find_spec(module).submodule_search_locations is None else f"{module}.__main__"
    loaded = importlib.import_module(name)
    known = {field.name for field in fields(loaded.Options)} if hasattr(loaded, "Options") else set()
    known = known or set(inspect.signature(loaded.main).parameters)
    assert {word[2:].replace("-", "_") for word in arguments if word.startswith("--")} <= known


def test_the_page_on_gradient_masking_has_a_row_for_each_flag() -> None:
    table = PAGES["gradient_masking.md"].split("\n| flag |")[1].split("\n\n")[0]
    assert re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)[1:] == list(REMEDIES)


@pytest.mark.parametrize(
    "package", [art_hrloss, attacks, bounds, diagnostics, losses], ids=lambda package: package.__name__
)
def test_the_reference_lists_every_public_name(package: object) -> None:
    page = PAGES[f"api/{package.__name__.removeprefix('art_hrloss.')}.md"]
    listed = page.split(".. autosummary::\n   :nosignatures:\n\n")[1].split("\n\n")[0].split("```")[0]
    assert set(listed.split()) == set(package.__all__)
    for name in set(package.__all__):
        documented = rf"^\.\. auto(?:class|function):: (?:\S+\.)?{name}$"
        pages = [other for other, text in PAGES.items() if re.search(documented, text, re.MULTILINE)]
        assert len(pages) == 1, f"{name} is documented on {pages}"


def test_pages_that_are_tested_elsewhere_and_files_that_pages_show_exist() -> None:
    assert all((DOCS.parent / test).is_file() and page in PAGES for page, test in TESTED_ELSEWHERE.items())
    assert {path.name for path in (DOCS / "examples").iterdir() if path.suffix == ".py"} == {"digits_classifier.py"}


def test_the_files_that_the_architecture_names_exist() -> None:
    paths = set(re.findall(r"`((?:art_hrloss|benchmarks|tests)/[\w/.]+)`", PAGES["architecture.md"]))
    assert len(paths) > 10
    assert [path for path in sorted(paths) if not (DOCS.parent / path).exists()] == []
