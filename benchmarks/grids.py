"""The named grids. A grid is a value: a copy with another name or another field has separate results."""

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
# Number of test images for Fig. 1 in the short grids, so that its attacks take about a tenth of the training time.
CURVE_IMAGES = 2000
# Number of test images in the worst case at the paper's eps in units of [0, 255]: so small that nearly all images stay
# robust, and that every attack of the ensemble runs on them.
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
    """Return a grid of Table 1, the strong attacks and the worst case on the first test images, and reports."""
    attacks = [*TABLE_1_ATTACKS, AttackSpec("none", images=images)]
    attacks += [attack for eps in strengths for attack in strong(eps, images, steps)]
    attacks += [worst_case(eps, images, steps) for eps in EPS]
    if recipe[1].input_scale != 1:
        attacks += [worst_case(eps, min(images, IMAGES_OF_SMALL_EPS), steps, "data") for eps in EPS]
    attacks += [report for eps in reports for report in diagnostics(eps)]
    return Grid(name, (recipe,), (CE, HR), SEEDS, tuple(dict.fromkeys(attacks)))


def _with_curve(recipe: Recipe, every: int, *, images: int = 0) -> Recipe:
    """Return the recipe with Fig. 1's attacks at an interval of epochs, on a number of test images (0 for all)."""
    return replace(recipe, curve_every=every, curve_attacks=tuple(replace(a, images=images) for a in FIGURE_1_ATTACKS))


def _table_1(name: str, *recipes: tuple[str, Recipe]) -> Grid:
    return Grid(name, recipes, (CE, HR), SEEDS, TABLE_1_ATTACKS)


def digits() -> Grid:
    """
    Table 1 and a small worst case on the 8 x 8 digits that come with scikit-learn; no download.

    The network is a small LeNet. Learning rate times epochs is 5, and 1 in the paper's MNIST. The worst case uses the
    first 50 test images.
    """
    worst = tuple(AttackSpec("worst-case", eps=eps, steps=10, images=50) for eps in EPS)
    return replace(_table_1("digits", ("digits", _with_curve(DIGITS, 10))), attacks=(*TABLE_1_ATTACKS, *worst))


def mnist() -> Grid:
    """
    The paper's MNIST: the max-pool LeNet, 1000 epochs of SGD at learning rate 0.001 in batches of 100.

    Widths and kernels, which the paper does not state, are the standard LeNet's. 5000 training images are held out.
    """
    return _table_1("mnist", ("mnist", _with_curve(MNIST, 10)))


def cifar10() -> Grid:
    """
    The paper's CIFAR-10: ResNet-8, 200 epochs of Adam in batches of 128, no augmentation.

    Where the paper leaves a detail open, it is that of Keras's CIFAR-10 example.
    """
    return _table_1("cifar10", ("cifar10", _with_curve(CIFAR10, 10)))


def svhn() -> Grid:
    """
    The paper's SVHN: the recipe of cifar10, with pixels in [0, 255] and without subtracting their mean.

    In the paper protocol an eps of 0.1 is therefore 0.1/255 of the pixel range.
    """
    return _table_1("svhn", ("svhn", _with_curve(SVHN, 10)))


def paper_grid() -> Grid:
    """The grids mnist, cifar10 and svhn in one; results are shared with them."""
    return _table_1("paper", *mnist().recipes, *cifar10().recipes, *svhn().recipes)


def mnist_short() -> Grid:
    """The grid mnist with a fiftieth of the epochs, and the same product of learning rate and epochs."""
    return _table_1("mnist-short", ("mnist", _with_curve(MNIST_SHORT, 2, images=CURVE_IMAGES)))


def mnist_long() -> Grid:
    """
    The grid mnist-short with three times the epochs.

    Learning rate times epochs is three times the paper's: margins grow until gradients in the paper protocol are 0.
    """
    recipe = replace(MNIST_SHORT, epochs=60)
    return _table_1("mnist-long", ("mnist", _with_curve(recipe, 3, images=CURVE_IMAGES)))


def cifar10_short() -> Grid:
    """The grid cifar10 with 6 epochs instead of 200, and with learning rate drops in proportion."""
    return _table_1("cifar10-short", ("cifar10", _with_curve(CIFAR10_SHORT, 3, images=CURVE_IMAGES)))


def svhn_short() -> Grid:
    """The grid svhn with 3 epochs instead of 200, with learning rate drops in proportion, without Fig. 1."""
    return _table_1("svhn-short", ("svhn", SVHN_SHORT))


def svhn_grey() -> Grid:
    """
    The grid svhn on svhn_grey, a grey subset of SVHN, with 15 epochs and without Fig. 1.

    torchvision cannot download svhn_grey: it is read from svhn_grey.npz in the data folder.
    """
    return _table_1("svhn-grey", ("svhn_grey", SVHN_GREY))


def _alpha(name: str, *recipes: tuple[str, Recipe]) -> Grid:
    return Grid(name, recipes, (CE, *(LossSpec("hr", alpha) for alpha in ALPHAS)), SEEDS, ALPHA_ATTACKS)


def alpha() -> Grid:
    """
    The choice of alpha, from 1 to 4, on the validation images of MNIST, CIFAR-10 and SVHN.

    Training schedules are those of the short grids. The option --dataset selects one of the three data sets.
    """
    return _alpha("alpha", ("mnist", MNIST_SHORT), ("cifar10", CIFAR10_SHORT), ("svhn", SVHN_SHORT))


def alpha_digits() -> Grid:
    """The choice of alpha, from 1 to 4, on the validation images of scikit-learn's digits."""
    return _alpha("alpha-digits", ("digits", DIGITS))


def strong_digits() -> Grid:
    """
    The networks of digits under strong attacks, at eps from 0.1 to 0.25; training runs are shared with digits.

    All 360 test images; 50 steps; reports on gradient masking at every eps.
    """
    return _strong("strong-digits", digits().recipes[0], images=360, steps=50, reports=STRONG_EPS)


def strong_mnist() -> Grid:
    """
    The networks of mnist-long under strong attacks, at eps from 0.1 to 0.25; training runs are shared with mnist-long.

    The first 1000 test images; 50 steps; reports on gradient masking at eps 0.2.
    """
    return _strong("strong-mnist", mnist_long().recipes[0], images=1000, steps=50, reports=(0.2,))


def strong_cifar10() -> Grid:
    """
    The networks of cifar10-short under strong attacks, at eps from 1/255 to 8/255; training runs are shared with it.

    The first 1000 test images; 50 steps; reports on gradient masking at eps 2/255.
    """
    recipe, eps = cifar10_short().recipes[0], STRONG_EPS_OF_PHOTOGRAPHS
    return _strong("strong-cifar10", recipe, images=1000, steps=50, reports=(2 / 255,), strengths=eps)


def strong_svhn_grey() -> Grid:
    """
    The networks of svhn-grey under strong attacks, at eps from 1/255 to 8/255; training runs are shared with svhn-grey.

    Attacks and reports are those of strong-cifar10. In addition, the worst case at the paper's eps in the paper's
    units, 0.1/255 and 0.25/255 of the pixel range, on 300 images.
    """
    recipe, eps = svhn_grey().recipes[0], STRONG_EPS_OF_PHOTOGRAPHS
    return _strong("strong-svhn-grey", recipe, images=1000, steps=50, reports=(2 / 255,), strengths=eps)


def hardening_digits() -> Grid:
    """
    Defences with CE and HR on the digits: noise, adversarial training (Madry) and TRADES at eps 0.1.

    Alpha is 1 (cross-entropy plus entropy), 1.6 and 3; TRADES has three values of beta. For comparison: label
    smoothing, and cross-entropy whose median margin is scaled to about that of HR(1.6) with this recipe. The first 200
    test images.
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
    Defences with CE and HR on MNIST: adversarial training (Madry) and TRADES at eps 0.2.

    TRADES has three values of beta; 5 epochs of Adam. The first 100 test images.
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
# Approximate time of each grid on two cores, training included.
COSTS = {
    "digits": "2 min",
    "mnist": "17 h",
    "cifar10": "18 h",
    "svhn": "30 h",
    "paper": "65 h",
    "mnist-short": "20 min",
    "mnist-long": "80 min",
    "cifar10-short": "55 min",
    "svhn-short": "50 min",
    "svhn-grey": "75 min",
    "alpha": "10 h",
    "alpha-digits": "2 min",
    "strong-digits": "4 min",
    "strong-mnist": "2 h",
    "strong-cifar10": "1 h",
    "strong-svhn-grey": "2 h",
    "hardening-digits": "50 min",
    "hardening-mnist": "4 h",
}


def get(name: str) -> Grid:
    """Return a grid by its name, or the grid that a reference such as "my_study.py:my_grid" returns."""
    if ":" in name:
        grid = refer(name).make(Grid)
        if grid.name in GRIDS and grid != GRIDS[grid.name]():  # its report would replace the built-in grid's report
            raise ConfigError(f"expected {name} to return a grid with a new name, but got the built-in {grid.name!r}")
        return grid
    if name not in GRIDS:
        advice = did_you_mean(name, GRIDS) or f"; to use your own function, write {EXAMPLE}"
        raise ConfigError(f"expected grid to be one of {sorted(GRIDS)}, but got {name!r}{advice}")
    return GRIDS[name]()
