"""The named grids. A grid is a value: copy one, change a field, and it has results of its own."""

from dataclasses import replace

from benchmarks.config import AttackSpec, ConfigError, Grid, Hardening, LossSpec, Recipe
from benchmarks.protocols import (
    ALPHA_ATTACKS,
    ALPHAS,
    CE,
    EPS,
    FIGURE_1_ATTACKS,
    HR,
    STRONG_EPS,
    STRONG_EPS_OF_PHOTOGRAPHS,
    TABLE_1_ATTACKS,
    TRADES_BETAS,
    diagnostics,
    hardened,
    hardening_attacks,
    strong,
    worst_case,
)
from benchmarks.recipes import (
    CIFAR10,
    CIFAR10_SHORT,
    DIGITS,
    DIGITS_ADAM,
    MNIST,
    MNIST_ADAM,
    MNIST_SHORT,
    SVHN,
    SVHN_GREY,
    SVHN_SHORT,
)
from benchmarks.references import EXAMPLE, did_you_mean, refer

SEEDS = (0, 1, 2, 3, 4)
# Of the test images, those that Fig. 1's attacks of a short training have time for: a tenth of the training's.
CURVE_IMAGES = 2000
# Test images in the worst case at the paper's eps in units of [0, 255]: nearly all are left, and those are what costs.
IMAGES_OF_SMALL_EPS = 300


def _strong(
    name: str,
    recipe: tuple[str, Recipe],
    *,
    images: int,
    steps: int,
    reports: tuple[float, ...],
    strengths: tuple[float, ...] = STRONG_EPS,
) -> Grid:
    """Table 1 with the worst case beside it, and the strong attacks on the first of the test images."""
    attacks = [*TABLE_1_ATTACKS, AttackSpec("none", images=images)]
    attacks += [attack for eps in strengths for attack in strong(eps, images, steps)]
    attacks += [worst_case(eps, images, steps) for eps in EPS]
    if recipe[1].input_scale != 1:
        attacks += [worst_case(eps, min(images, IMAGES_OF_SMALL_EPS), steps, "data") for eps in EPS]
    attacks += [report for eps in reports for report in diagnostics(eps)]
    return Grid(name, (recipe,), (CE, HR), SEEDS, tuple(dict.fromkeys(attacks)))


def _with_curve(recipe: Recipe, every: int, *, images: int = 0) -> Recipe:
    """With Fig. 1's attacks on so many test images, 0 for all, after every so many epochs."""
    return replace(recipe, curve_every=every, curve_attacks=tuple(replace(a, images=images) for a in FIGURE_1_ATTACKS))


def _table_1(name: str, *recipes: tuple[str, Recipe]) -> Grid:
    return Grid(name, recipes, (CE, HR), SEEDS, TABLE_1_ATTACKS)


def digits() -> Grid:
    """
    Table 1 and a small worst case on the 8 x 8 digits that come with scikit-learn: no download.

    The network has the LeNet's shape. The learning rate times the epochs is 5, where the paper's MNIST has 1. The worst
    case is of the first 50 test images.
    """
    worst = tuple(AttackSpec("worst-case", eps=eps, steps=10, images=50) for eps in EPS)
    return replace(_table_1("digits", ("digits", _with_curve(DIGITS, 10))), attacks=(*TABLE_1_ATTACKS, *worst))


def mnist() -> Grid:
    """
    The paper's MNIST: the max-pool LeNet, 1000 epochs of SGD at learning rate 0.001 in batches of 100.

    The widths and kernels, which the paper does not give, are the well-known LeNet's; 5000 training images are held
    out.
    """
    return _table_1("mnist", ("mnist", _with_curve(MNIST, 10)))


def cifar10() -> Grid:
    """
    The paper's CIFAR-10: ResNet-8, 200 epochs of Adam in batches of 128, no augmentation.

    What the paper leaves open is as in Keras's own CIFAR-10 example.
    """
    return _table_1("cifar10", ("cifar10", _with_curve(CIFAR10, 10)))


def svhn() -> Grid:
    """
    The paper's SVHN: as cifar10, but from pixels in [0, 255] without their mean subtracted.

    In the paper protocol its eps of 0.1 is so 0.1/255 of the pixel range.
    """
    return _table_1("svhn", ("svhn", _with_curve(SVHN, 10)))


def paper_grid() -> Grid:
    """The grids mnist, cifar10 and svhn together, sharing their results."""
    return _table_1("paper", *mnist().recipes, *cifar10().recipes, *svhn().recipes)


def mnist_short() -> Grid:
    """
    As mnist, with a fiftieth of the epochs.

    20 epochs at learning rate 0.05 have the same product as the paper's 1000 at 0.001.
    """
    return _table_1("mnist-short", ("mnist", _with_curve(MNIST_SHORT, 2, images=CURVE_IMAGES)))


def mnist_long() -> Grid:
    """
    As mnist-short, with three times its epochs.

    60 epochs at learning rate 0.05 are three times the product of the paper's 1000 at 0.001, long enough for margins
    that float32 rounds away.
    """
    recipe = replace(MNIST_SHORT, epochs=60)
    return _table_1("mnist-long", ("mnist", _with_curve(recipe, 3, images=CURVE_IMAGES)))


def cifar10_short() -> Grid:
    """As cifar10, with 6 epochs in place of 200 and the learning rate dropping in proportion."""
    return _table_1("cifar10-short", ("cifar10", _with_curve(CIFAR10_SHORT, 3, images=CURVE_IMAGES)))


def svhn_short() -> Grid:
    """As svhn, with 3 epochs in place of 200, the learning rate dropping in proportion, and no Fig. 1."""
    return _table_1("svhn-short", ("svhn", SVHN_SHORT))


def svhn_grey() -> Grid:
    """
    As svhn, on svhn_grey, a grey part of SVHN and not SVHN, and with 15 epochs.

    Its file is not one that torchvision fetches: it is an npz file in the data folder. No Fig. 1.
    """
    return _table_1("svhn-grey", ("svhn_grey", SVHN_GREY))


def _alpha(name: str, *recipes: tuple[str, Recipe]) -> Grid:
    return Grid(name, recipes, (CE, *(LossSpec("hr", alpha) for alpha in ALPHAS)), SEEDS, ALPHA_ATTACKS)


def alpha() -> Grid:
    """
    The choice of alpha, from 1 to 4, on the validation images of MNIST, CIFAR-10 and SVHN.

    Schedules as in the short grids; --dataset takes one of the three.
    """
    return _alpha("alpha", ("mnist", MNIST_SHORT), ("cifar10", CIFAR10_SHORT), ("svhn", SVHN_SHORT))


def alpha_digits() -> Grid:
    """The choice of alpha, from 1 to 4, on the validation images of scikit-learn's digits."""
    return _alpha("alpha-digits", ("digits", DIGITS))


def strong_digits() -> Grid:
    """
    digits, and its networks under strong attacks, at eps from 0.1 to 0.25; trainings shared with digits.

    All 360 test images; 50 steps; reports on masked gradients at every eps.
    """
    return _strong("strong-digits", digits().recipes[0], images=360, steps=50, reports=STRONG_EPS)


def strong_mnist() -> Grid:
    """
    mnist-long, and its networks under strong attacks, at eps from 0.1 to 0.25; trainings shared with mnist-long.

    The first 1000 test images; 50 steps; reports on masked gradients at eps 0.2.
    """
    return _strong("strong-mnist", mnist_long().recipes[0], images=1000, steps=50, reports=(0.2,))


def strong_cifar10() -> Grid:
    """
    cifar10-short, and its networks under strong attacks, at eps from 1/255 to 8/255; trainings shared with it.

    The first 1000 test images; 50 steps; reports on masked gradients at eps 2/255.
    """
    recipe, eps = cifar10_short().recipes[0], STRONG_EPS_OF_PHOTOGRAPHS
    return _strong("strong-cifar10", recipe, images=1000, steps=50, reports=(2 / 255,), strengths=eps)


def strong_svhn_grey() -> Grid:
    """
    svhn-grey, and its networks under strong attacks, at eps from 1/255 to 8/255; trainings shared with svhn-grey.

    svhn_grey is a grey part of SVHN and not SVHN. Attacks and reports as in strong-cifar10, and worst cases of 300
    images at the paper's eps in its own units, which are 0.1/255 and 0.25/255 of the range.
    """
    recipe, eps = svhn_grey().recipes[0], STRONG_EPS_OF_PHOTOGRAPHS
    return _strong("strong-svhn-grey", recipe, images=1000, steps=50, reports=(2 / 255,), strengths=eps)


def hardening_digits() -> Grid:
    """
    Does the HR loss add to a defence? Noise, Madry's training and TRADES at eps 0.1, with CE and HR.

    Alpha 1, which is cross-entropy plus entropy, 1.6 and 3; for TRADES three values of beta; and beside them label
    smoothing, and cross-entropy with its median margin scaled to about that of HR(1.6) after this recipe. The first 200
    test images of the digits.
    """
    alphas, eps, steps = (1.0, 1.6, 3.0), 0.1, 7
    low, usual, high = (Hardening("trades", eps, steps, beta) for beta in TRADES_BETAS)
    losses = (
        CE,
        LossSpec("ce", label_smoothing=0.1),
        LossSpec("ce", margin=14.5),
        *hardened(None, alphas)[1:],
        *hardened(Hardening("noise", eps), alphas),
        *hardened(Hardening("madry", eps, steps), alphas),
        *hardened(low, (1.6,)),
        *hardened(usual, alphas),
        *hardened(high, (1.6,)),
    )
    return Grid("hardening-digits", (("digits", DIGITS_ADAM),), losses, SEEDS, hardening_attacks((0.1, 0.2), 200, 50))


def hardening_mnist() -> Grid:
    """
    Does the HR loss add to a defence? Madry's training and TRADES at eps 0.2 on MNIST, with CE and HR.

    For TRADES three values of beta; 5 epochs of Adam. The first 100 test images.
    """
    eps, steps = 0.2, 7
    trades = (Hardening("trades", eps, steps, beta) for beta in TRADES_BETAS)
    kinds = (None, Hardening("madry", eps, steps), *trades)
    losses = tuple(loss for kind in kinds for loss in hardened(kind, (1.6,)))
    return Grid("hardening-mnist", (("mnist", MNIST_ADAM),), losses, SEEDS, hardening_attacks((0.1, 0.2), 100, 50))


GRIDS = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "svhn": svhn,
    "paper": paper_grid,
    "mnist-short": mnist_short,
    "mnist-long": mnist_long,
    "cifar10-short": cifar10_short,
    "svhn-short": svhn_short,
    "svhn-grey": svhn_grey,
    "alpha": alpha,
    "alpha-digits": alpha_digits,
    "strong-digits": strong_digits,
    "strong-mnist": strong_mnist,
    "strong-cifar10": strong_cifar10,
    "strong-svhn-grey": strong_svhn_grey,
    "hardening-digits": hardening_digits,
    "hardening-mnist": hardening_mnist,
}
# What each takes on two cores, about, trainings included.
COSTS = {
    "digits": "2 min",
    "mnist": "17 h",
    "cifar10": "18 h",
    "svhn": "30 h",
    "paper": "65 h",
    "mnist-short": "20 min",
    "mnist-long": "60 min",
    "cifar10-short": "55 min",
    "svhn-short": "50 min",
    "svhn-grey": "75 min",
    "alpha": "10 h",
    "alpha-digits": "2 min",
    "strong-digits": "6 min",
    "strong-mnist": "100 min",
    "strong-cifar10": "95 min",
    "strong-svhn-grey": "2 h",
    "hardening-digits": "50 min",
    "hardening-mnist": "4 h",
}


def get(name: str) -> Grid:
    """The grid of that name, or what a reference such as "my_study.py:my_grid" returns; an unknown one is an error."""
    if ":" in name:
        grid = refer(name).make(Grid)
        if grid.name in GRIDS and grid != GRIDS[grid.name]():  # whose report it would replace
            raise ConfigError(f"expected from {name} a grid of a name that is not taken, but got {grid.name!r}")
        return grid
    if name not in GRIDS:
        advice = did_you_mean(name, GRIDS) or f": one of your own is {EXAMPLE}"
        raise ConfigError(f"expected grid to be one of {sorted(GRIDS)}, but got {name!r}{advice}")
    return GRIDS[name]()
