"""A small grid, which tests of the command line and of its processes name by reference: `--grid FILE:small`."""

from dataclasses import replace

from benchmarks import grids, protocols
from benchmarks.config import AttackSpec, Grid

SMALL = f"{__file__}:small"


def small() -> Grid:
    """The digits, one epoch, two seeds, and of Table 1 what is quickly attacked and leaves little to draw."""
    ((dataset, recipe),) = grids.digits().recipes
    recipes = ((dataset, replace(recipe, epochs=1)),)
    attacks = (AttackSpec("none"), protocols.paper("ce", 0.1), protocols.paper("hr", 0.1))
    return replace(grids.digits(), name="small", recipes=recipes, seeds=(0, 1), attacks=attacks)
