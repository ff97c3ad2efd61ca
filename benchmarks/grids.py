"""The named grids. A grid is a value: copy one, change a field, and it has results of its own."""

from typing import get_args

from benchmarks.config import AttackLossName, AttackSpec, ConfigError, Grid, LossSpec, Recipe

CE = LossSpec("ce")
HR = LossSpec("hr", alpha=1.6)

SEEDS = (0, 1, 2, 3, 4)

# Table 1 of the paper: both losses as the attacker's, at both strengths, beside no attack at all; and both again in
# the numerics of torch and of clipped probabilities, to show what rounding hides.
TABLE_1_ATTACKS = (
    AttackSpec("none"),
    *(AttackSpec("fgm", loss, eps) for loss in get_args(AttackLossName) for eps in (0.1, 0.25)),
)


def digits() -> Grid:
    """
    Table 1 in small, on the 8 x 8 digits that come with scikit-learn: no download, 10 trainings.

    The network has the LeNet's shape. The learning rate times the epochs is 5, where the paper's MNIST has 1.
    About 20 seconds on two cores.
    """
    recipe = Recipe(model="small-cnn", epochs=50, batch_size=50, lr=0.1, validation_size=180)
    return Grid("digits", (("digits", recipe),), (CE, HR), SEEDS, TABLE_1_ATTACKS)


def mnist_short() -> Grid:
    """
    Table 1 on MNIST with a fiftieth of the paper's epochs: 10 trainings.

    The paper's 1000 epochs of SGD at learning rate 0.001 have the same product as 20 epochs at 0.05. Batches of 100 as
    in the paper; the widths and kernels, which it does not give, are the max-pool LeNet's; 5000 training images are
    held out. About 20 minutes on two cores.
    """
    recipe = Recipe(model="lenet", epochs=20, batch_size=100, lr=0.05)
    return Grid("mnist-short", (("mnist", recipe),), (CE, HR), SEEDS, TABLE_1_ATTACKS)


GRIDS = {"digits": digits, "mnist-short": mnist_short}


def get(name: str) -> Grid:
    """The grid of that name; an unknown one is an error that lists those there are."""
    if name not in GRIDS:
        raise ConfigError(f"expected grid to be one of {sorted(GRIDS)}, but got {name!r}")
    return GRIDS[name]()
