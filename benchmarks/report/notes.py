"""What stands under the tables: data, seeds, protocols, and what an entry does not say."""

from collections.abc import Iterable, Sequence

from benchmarks.config import AttackSpec, Grid, Hardening
from benchmarks.record import LABEL_NOISE, LOWER_ALPHA, UPPER_ALPHA
from benchmarks.report.results import Cell, Results

# Above this share of input gradients that are exactly 0 an entry is marked: part of its accuracy may be no robustness.
ZERO_GRADIENT_LIMIT = 0.001
PAPER_NOTE = (
    "FGSM, paper: through clipped probabilities, as in Table 1. What it leaves above the worst case is no robustness."
)
ZERO_NOTE = f"† On more than {ZERO_GRADIENT_LIMIT:.1%} of the images the gradient is exactly 0."
Rows = Iterable[Sequence[str]]


def over_seeds(grid: Grid) -> str:
    """What a note says of the seeds."""
    seeds = len(grid.seeds)
    return "One seed, so without an interval." if seeds == 1 else f"Mean and 95% t interval over {seeds} seeds."


def of_table_1(
    results: Results, dataset: str, shown: Sequence[Cell], labels: set[str], worst: Sequence[AttackSpec]
) -> tuple[str, ...]:
    """The notes of Table 1, for the rows that it has."""
    images = max((cell.images for cell in shown), default=0)
    scale = dict(results.grid.recipes)[dataset].input_scale
    units = "" if scale == 1 else f", which is given pixels in [0, {scale:g}]: eps 0.1 is 0.1/{scale:g} of their range"
    more = "masking" if scale == 1 else "masking or the smaller eps"
    by_label = {
        "sound": "sound: the exact gradient of the per-example loss; eps as a share of the pixel range.",
        "torch's CE": "torch's CE: as sound, but through torch.nn.CrossEntropyLoss, whose float32 gradient loses the "
        "true class as the margin nears 17.",
        "paper": "paper: the paper's protocol, as we read it. The gradient of a loss computed from float32 "
        "probabilities clipped to [1e-7, 1 - 1e-7], as in Keras 2, is exactly 0 past a margin of about 16; eps in "
        f"units of the network's input{units}. What this row leaves above sound is {more}, not robustness.",
        "printed": "printed: what the paper prints; no measurement of ours.",
    }
    few = ", ".join(f"the first {n}" if n else "all" for n in sorted({attack.images for attack in worst}))
    return (
        f"Data: {dataset}, {images} test images. {over_seeds(results.grid)} FGSM, L-infinity. In brackets: the share "
        "of images whose input gradient is exactly 0.",
        *(note for label, note in by_label.items() if label in labels),
        "FGSM is a weak attack: these figures bound robust accuracy from above and are no evidence of robustness.",
        *([f"{of_worst_case(worst)} On {few} of the test images, eps as in its row."] if worst else []),
        *of_flags(shown),
    )


def of_flags(shown: Sequence[Cell]) -> list[str]:
    """The note on entries that are marked for their gradients of 0, if any is."""
    if not any(cell.zero_gradient > ZERO_GRADIENT_LIMIT for cell in shown):
        return []
    return [
        f"† On more than {ZERO_GRADIENT_LIMIT:.1%} of the images the gradient is exactly 0, and the attack cannot "
        "move them: not to be quoted alone, and in Table 1 to be compared with the sound row."
    ]


def of_confusion(grid: Grid, dataset: str, eps: float, *, printed: bool) -> tuple[str, ...]:
    """The notes of the norms of confusion."""
    return (
        f"Data: {dataset}. C[i, j] is the mean probability of class i over the test images of class j; I - C is the "
        "zero matrix for a classifier that is right and certain. " + over_seeds(grid),
        "The attack is FGSM by the CE loss; sound and paper are the protocols of Table 1. A row CE - HR is the "
        "difference paired over the seeds.",
        *([f"printed: what the paper prints, under the CE attack at eps {eps:g}."] if printed else []),
    )


def of_alpha(grid: Grid, dataset: str, images: dict[str, int], shown: Sequence[Cell]) -> tuple[str, ...]:
    """The notes of the choice of alpha."""
    return (
        f"Data: {dataset}, {images['validation']} validation images, held out of training, and {images['test']} test "
        f"images. {over_seeds(grid)} FGSM by the CE loss, sound protocol, eps as a share of the pixel range. In "
        "brackets: the share of images whose input gradient is exactly 0.",
        "‡ The alpha chosen at this eps: the highest mean accuracy on validation, over the seeds that all alphas have.",
        *of_flags(shown),
    )


def of_strong(results: Results, dataset: str, made: Sequence[AttackSpec], rows: Rows) -> tuple[str, ...]:
    """The notes of strong attacks."""
    ways = {
        "pgd": "PGD: {} steps from a random start",
        "apgd": "Auto-PGD: {} steps from a random start",
        "square": "Square: {} queries per image",
        "transfer": "transfer: PGD of {} steps along CE, on another network that is trained alike with CE",
    }
    steps = {name: max((attack.steps for attack in made if attack.name == name), default=0) for name in ways}
    parts = "; ".join(way.format(steps[name]) for name, way in ways.items() if steps[name])
    return (
        f"{of_data(results, dataset, made)} A row HR - CE is the difference paired over the seeds.",
        f"{parts}. {of_worst_case(made)}" if parts else of_worst_case(made),
        PAPER_NOTE,
        *of_zero(rows),
    )


def of_hardening(
    results: Results, dataset: str, made: Sequence[AttackSpec], kinds: Sequence[Hardening | None], rows: Rows
) -> tuple[str, ...]:
    """The notes of hardened networks."""
    names = {
        "noise": "noise: trained on images with uniform noise in every pixel, of at most the eps beside it.",
        "madry": "Madry: trained on adversarial images in place of the clean ones, by ART's trainer.",
        "trades": "TRADES: the loss of the clean images, and beta times the divergence of the predictions at "
        "adversarial ones, by ART's trainer. Losses differ in size, so one beta weighs less beside a larger loss.",
    }
    hardened = [kind for kind in kinds if kind is not None]
    steps = " or ".join(str(steps) for steps in sorted({kind.steps for kind in hardened if kind.steps}))
    losses = results.grid.losses
    margins = " or ".join(f"{margin:g}" for margin in sorted({loss.margin for loss in losses if loss.margin}))
    found = {
        f"{of_data(results, dataset, made)} Less CE's: the difference, paired over the seeds, from cross-entropy "
        "that is hardened alike. The intervals are not corrected for their number: of twenty differences where there "
        "is none one misses 0 by chance.": True,
        **{note: any(kind.name == name for kind in hardened) for name, note in names.items()},
        f"Adversarial images in training: of the eps beside the name, {steps} steps. They climb the trained loss, "
        "example by example: for HR another than for CE, and for TRADES not the divergence, which its authors "
        "climb.": bool(steps),
        "HR(1), with hard labels: cross-entropy plus the entropy of the prediction.": any(
            loss.alpha == 1 for loss in losses
        ),
        f"margin {margins}: once trained, the logits are multiplied so that this is the median margin of the "
        "validation images. That changes no prediction: what any attack leaves above the same training without it is "
        "the attack's failure.": bool(margins),
        f"{PAPER_NOTE} {of_worst_case(made)}": True,
    }
    return *(note for note, applies in found.items() if applies), *of_zero(rows)


def of_data(results: Results, dataset: str, made: Sequence[AttackSpec]) -> str:
    """What a note says of the data, the seeds and eps."""
    grid = results.grid
    images = max(results.cell(dataset, loss, attack).images for loss in grid.losses for attack in made)
    return (
        f"Data: {dataset}, the first {images} test images. {over_seeds(grid)} L-infinity, eps as a share of the pixel "
        "range."
    )


def of_worst_case(made: Iterable[AttackSpec]) -> str:
    """What a note says of the worst cases among the attacks that are made."""
    elsewhere = any(attack.name == "worst-case" and attack.source is not None for attack in made)
    return (
        "Worst case: image by image, what is left by an ensemble of projected gradient descent along CE, Auto-PGD "
        f"along each loss, {'images made on another network, ' if elsewhere else ''}the Square attack and HopSkipJump. "
        "The last two see no gradients" + (", and images made elsewhere none of this network." if elsewhere else ".")
    )


def of_zero(rows: Rows) -> tuple[str, ...]:
    """The note on the mark of gradients that are 0, if it is in any row."""
    return (ZERO_NOTE,) if any("†" in text for row in rows for text in row) else ()


def of_bounds(grid: Grid, dataset: str, images: int, what: str) -> tuple[str, ...]:
    """The notes of the upper or the lower bounds."""
    upper = (
        f"Orders: alpha = {UPPER_ALPHA:g}, but for the last two columns. A bound of 1 or more says nothing; where no "
        "alpha gives less, the best is 1. (5), (1) and (11) are the paper's steps, each weaker than the one before; "
        "CE / log 2 is Markov's inequality, and no part of the paper."
    )
    lower = (
        f"Orders: alpha = {LOWER_ALPHA:g}, but for the last column. With certain labels every lower bound is 0: these "
        f"are for labels that are, with probability {LABEL_NOISE:g}, drawn anew from all classes, and P_e with them."
    )
    common = (
        f"Data: {dataset}, {images} test images; FGSM by the CE loss (sound protocol). "
        f"{over_seeds(grid)} A mean of bounds bounds the mean."
    )
    return common, upper if what == "upper" else lower


def of_diagnoses(dataset: str, images: int, reports: Sequence[AttackSpec]) -> tuple[str, ...]:
    """The notes of the reports on masked gradients."""
    steps = " or ".join(str(steps) for steps in sorted({report.steps for report in reports}))
    return (
        f"Data: {dataset}, the first {images} test images; L-infinity, eps as a share of the pixel range. In brackets: "
        "how many seeds raise the flag.",
        "Each verdict is that of art_hrloss's gradient_masking_report: whether input gradients vanish, whether other "
        "losses on the same network or attacks without gradients break more than the attacker's own gradient, whether "
        f"more steps and larger eps do what they must, and other signs of an attack that fails; {steps} steps of "
        "projected gradient descent. paper: an attacker through clipped probabilities. sound: along the exact gradient "
        "of cross-entropy.",
        "A flag is about the attack: what it leaves standing is not to be believed. No flag is no proof of robustness.",
    )
