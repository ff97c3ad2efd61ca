"""A small grid, which tests of the command line and of its processes name by reference: `--grid FILE:small`."""

from dataclasses import replace

from benchmarks import grids, protocols
from benchmarks.config import AttackSpec, Grid

SMALL = f"{__file__}:small"


def small() -> Grid:
    """Return a grid of the digits with one epoch, two seeds and the fast attacks of Table 1."""
    ((dataset, recipe),) = grids.digits().recipes
    recipes = ((dataset, replace(recipe, epochs=1)),)
    attacks = (AttackSpec("none"), protocols.paper("ce", 0.1), protocols.paper("hr", 0.1))
    return replace(grids.digits(), name="small", recipes=recipes, seeds=(0, 1), attacks=attacks)
