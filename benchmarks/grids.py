"""The named grids. A grid is a value: copy one, change a field, and it has results of its own."""

from dataclasses import replace
from typing import Literal

from benchmarks.config import AttackSpec, ConfigError, Grid, LossSpec, Recipe, SplitName

CE = LossSpec("ce")
HR = LossSpec("hr", alpha=1.6)

SEEDS = (0, 1, 2, 3, 4)
EPS = (0.1, 0.25)


def sound(loss: Literal["ce", "hr"], eps: float, split: SplitName = "test") -> AttackSpec:
    """The sound protocol: FGSM along the exact gradient of the per-example loss; eps is a share of the pixel range."""
    return AttackSpec("fgm", loss, eps, split=split) if eps else AttackSpec("none", split=split)


def torch_ce(eps: float) -> AttackSpec:
    """The sound protocol but for its numerics: torch's own float32 cross-entropy."""
    return AttackSpec("fgm", "torch-ce", eps)


def paper(loss: Literal["ce", "hr"], eps: float) -> AttackSpec:
    """The paper protocol as we read it: FGSM through clipped probabilities; eps in units of the network's input."""
    return AttackSpec("fgm", "clipped-ce" if loss == "ce" else "clipped-hr", eps, units="data")


# Table 1 of the paper: no attack, and both losses as the attacker's, at both strengths, in both protocols.
TABLE_1_ATTACKS = (
    AttackSpec("none"),
    *(sound(loss, eps) for loss in ("ce", "hr") for eps in EPS),
    *(torch_ce(eps) for eps in EPS),
    *(paper(loss, eps) for loss in ("ce", "hr") for eps in EPS),
)
# The strong attacks go on to where nothing stands.
STRONG_EPS = (0.1, 0.2, 0.3, 0.5)
# Fig. 1 has the cross-entropy attack alone.
FIGURE_1_ATTACKS = (
    AttackSpec("none"),
    *(protocol("ce", eps) for protocol in (sound, paper) for eps in EPS),
)
# The alphas that are tried, alpha = 1 being the limit H + KL, and the attacks: alpha is chosen on validation images in
# the sound protocol, and the choice shown on test images in both.
ALPHAS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0)
ALPHA_ATTACKS = (
    *(sound("ce", eps, split) for split in ("validation", "test") for eps in (0.0, *EPS)),
    *(paper("ce", eps) for eps in EPS),
)


def strong(eps: float, images: int, steps: int) -> tuple[AttackSpec, ...]:
    """
    From the paper's attack to the worst case, on the same images.

    FGSM in both protocols, Auto-PGD along each loss, and the worst case of an ensemble that has black boxes as well.
    """
    return (
        replace(paper("ce", eps), images=images),
        replace(sound("ce", eps), images=images),
        *(AttackSpec("apgd", loss, eps, steps=steps, images=images) for loss in ("ce", "hr", "margin", "dlr")),
        AttackSpec("worst-case", eps=eps, steps=steps, images=images),
    )


def _strong(name: str, recipe: tuple[str, Recipe], *, images: int, steps: int) -> Grid:
    attacks = (attack for eps in STRONG_EPS for attack in strong(eps, images, steps))
    return Grid(name, (recipe,), (CE, HR), SEEDS, (AttackSpec("none", images=images), *attacks))


def _with_curve(recipe: Recipe, every: int) -> Recipe:
    return replace(recipe, curve_every=every, curve_attacks=FIGURE_1_ATTACKS)


def _table_1(name: str, *recipes: tuple[str, Recipe]) -> Grid:
    return Grid(name, recipes, (CE, HR), SEEDS, TABLE_1_ATTACKS)


DIGITS = Recipe(model="small-cnn", epochs=50, batch_size=50, lr=0.1, validation_size=180)
MNIST = Recipe(model="lenet", epochs=1000, batch_size=100, lr=0.001)
# Keras's CIFAR-10 ResNet example, whose wording the paper follows, fills the gaps. It drops the rate in the epochs
# after number 80, 120, 160 and 180, counted from 0.
CIFAR10 = Recipe(
    model="resnet",
    blocks=1,
    epochs=200,
    batch_size=128,
    optimizer="adam",
    lr=0.001,
    lr_drops=((81, 0.1), (121, 0.01), (161, 0.001), (181, 0.0005)),
    l2=1e-4,
    subtract_pixel_mean=True,
)
# "The same, except that we do not perform data processing": neither the mean is subtracted nor, by our reading, are the
# pixels divided by 255.
SVHN = replace(CIFAR10, subtract_pixel_mean=False, input_scale=255.0)
# The learning rate times the epochs is that of the paper's 1000 epochs at 0.001.
MNIST_SHORT = replace(MNIST, epochs=20, lr=0.05)
# The rate drops after the same shares of the epochs as in the paper's 200.
CIFAR10_SHORT = replace(CIFAR10, epochs=6, lr_drops=((3, 0.1), (4, 0.01), (5, 0.001)))
SVHN_SHORT = replace(SVHN, epochs=3, lr_drops=((1, 0.1), (2, 0.01)))


def digits() -> Grid:
    """
    Table 1 in small, on the 8 x 8 digits that come with scikit-learn: no download, 10 trainings.

    The network has the LeNet's shape. The learning rate times the epochs is 5, where the paper's MNIST has 1.
    About half a minute on two cores.
    """
    return _table_1("digits", ("digits", _with_curve(DIGITS, 5)))


def mnist() -> Grid:
    """
    The paper's MNIST: the max-pool LeNet, 1000 epochs of SGD at learning rate 0.001 in batches of 100; 10 trainings.

    The widths and kernels, which the paper does not give, are the well-known LeNet's; 5000 training images are held
    out. About 17 hours on two cores.
    """
    return _table_1("mnist", ("mnist", _with_curve(MNIST, 10)))


def cifar10() -> Grid:
    """
    The paper's CIFAR-10: ResNet-8, 200 epochs of Adam in batches of 128, no augmentation; 10 trainings.

    What the paper leaves open is as in Keras's own CIFAR-10 example. About 18 hours on two cores.
    """
    return _table_1("cifar10", ("cifar10", _with_curve(CIFAR10, 10)))


def svhn() -> Grid:
    """
    The paper's SVHN: as cifar10, but from pixels in [0, 255] without their mean subtracted; 10 trainings.

    In the paper protocol its eps of 0.1 is so 0.1/255 of the pixel range. About 30 hours on two cores.
    """
    return _table_1("svhn", ("svhn", _with_curve(SVHN, 10)))


def paper_grid() -> Grid:
    """The grids mnist, cifar10 and svhn together, sharing their results: 30 trainings, nearly 3 days on two cores."""
    return _table_1("paper", *mnist().recipes, *cifar10().recipes, *svhn().recipes)


def mnist_short() -> Grid:
    """
    As mnist, with a fiftieth of the epochs: 10 trainings.

    20 epochs at learning rate 0.05 have the same product as the paper's 1000 at 0.001. About 30 minutes on two cores.
    """
    return _table_1("mnist-short", ("mnist", _with_curve(MNIST_SHORT, 2)))


def cifar10_short() -> Grid:
    """
    As cifar10, with 6 epochs in place of 200 and the learning rate dropping in proportion: 10 trainings.

    About 55 minutes on two cores.
    """
    return _table_1("cifar10-short", ("cifar10", _with_curve(CIFAR10_SHORT, 3)))


def svhn_short() -> Grid:
    """
    As svhn, with 3 epochs in place of 200, the learning rate dropping in proportion, and no Fig. 1: 10 trainings.

    About 50 minutes on two cores.
    """
    return _table_1("svhn-short", ("svhn", SVHN_SHORT))


def _alpha(name: str, *recipes: tuple[str, Recipe]) -> Grid:
    return Grid(name, recipes, (CE, *(LossSpec("hr", alpha) for alpha in ALPHAS)), SEEDS, ALPHA_ATTACKS)


def alpha() -> Grid:
    """
    The choice of alpha, from 1 to 4, on the validation images of MNIST, CIFAR-10 and SVHN: 150 trainings.

    Schedules as in the short grids; --dataset takes one of the three. About 10 hours on two cores.
    """
    return _alpha("alpha", ("mnist", MNIST_SHORT), ("cifar10", CIFAR10_SHORT), ("svhn", SVHN_SHORT))


def alpha_digits() -> Grid:
    """
    The choice of alpha, from 1 to 4, on the validation images of scikit-learn's digits: 50 trainings.

    About two minutes on two cores.
    """
    return _alpha("alpha-digits", ("digits", DIGITS))


def strong_digits() -> Grid:
    """
    The networks of digits under strong attacks, at eps from 0.1 to 0.5: 10 trainings, shared with digits.

    All 360 test images; 50 steps. About 4 minutes on two cores.
    """
    return _strong("strong-digits", digits().recipes[0], images=360, steps=50)


def strong_mnist() -> Grid:
    """
    The networks of mnist-short under strong attacks, at eps from 0.1 to 0.5: 10 trainings, shared with mnist-short.

    The first 300 test images; 50 steps. About 20 minutes on two cores, and 30 more for the trainings.
    """
    return _strong("strong-mnist", mnist_short().recipes[0], images=300, steps=50)


GRIDS = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "svhn": svhn,
    "paper": paper_grid,
    "mnist-short": mnist_short,
    "cifar10-short": cifar10_short,
    "svhn-short": svhn_short,
    "alpha": alpha,
    "alpha-digits": alpha_digits,
    "strong-digits": strong_digits,
    "strong-mnist": strong_mnist,
}


def get(name: str) -> Grid:
    """The grid of that name; an unknown one is an error that lists those there are."""
    if name not in GRIDS:
        raise ConfigError(f"expected grid to be one of {sorted(GRIDS)}, but got {name!r}")
    return GRIDS[name]()
