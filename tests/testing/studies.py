"""A small grid, which tests of the command line and of its processes name by reference: `--grid FILE:small`."""

from dataclasses import replace

from benchmarks import grids, protocols
from benchmarks.config import Grid

SMALL = f"{__file__}:small"


def small() -> Grid:
    """Table 1 on the digits after one epoch, two seeds, without the worst case, which takes most of the time."""
    ((dataset, recipe),) = grids.digits().recipes
    recipes = ((dataset, replace(recipe, epochs=1)),)
    return replace(grids.digits(), name="small", recipes=recipes, seeds=(0, 1), attacks=protocols.TABLE_1_ATTACKS)
