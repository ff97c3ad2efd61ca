"""Fixtures: a browser, and reports to open in it."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
from playwright.sync_api import Browser, sync_playwright
from testing import made_up
from testing.browser import BROWSERS, FLAGS, Report

from benchmarks import grids
from benchmarks.protocols import TABLE_1_ATTACKS
from benchmarks.report import export


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        reason = f"expected a browser, one of {', '.join(BROWSERS)}, to open the page in"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def digits_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Return a report on two seeds and two epochs of the digits, with all their figures."""
    grid = grids.digits()
    recipes = tuple((name, replace(recipe, epochs=2, curve_every=1)) for name, recipe in grid.recipes)
    results = made_up.measured(replace(grid, seeds=(0, 1), recipes=recipes, attacks=TABLE_1_ATTACKS))
    command, facts = "python -m benchmarks run --grid digits", {"Made": "on a day"}
    return Report(results, export.write(results, tmp_path_factory.mktemp("digits"), command=command, facts=facts))


@pytest.fixture(scope="session")
def strong_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Return a report with the widest tables, with marks and intervals in every column."""
    folder = tmp_path_factory.mktemp("strong")
    results = made_up.results(grids.strong_digits(), zero=lambda run, attack: 5000)
    return Report(results, export.write(results, folder, command="python -m benchmarks run --grid strong-digits"))
