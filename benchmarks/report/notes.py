"""What stands under the tables: data, seeds, protocols, and what an entry does not say."""

from collections.abc import Sequence

import pandas as pd

from benchmarks.config import AttackSpec, Grid, Reference
from benchmarks.record import CONFIDENCE_BINS, LABEL_NOISE, LOWER_ALPHA, UPPER_ALPHA
from benchmarks.report.selection import Selection, where

# Above this share of input gradients that are exactly 0 an entry is marked: part of its accuracy may be no robustness.
ZERO_GRADIENT_LIMIT = 0.001
PAPER_NOTE = (
    "FGSM, paper: through clipped probabilities, as in Table 1. What it leaves above the worst case is no robustness."
)
ZERO = f"† On more than {ZERO_GRADIENT_LIMIT:.1%} of the images the gradient is exactly 0"
ZERO_IN_TABLE_1 = (
    f"{ZERO}, and the attack cannot move them: not to be quoted alone, and in Table 1 to be compared with the exact "
    "row."
)


def over_seeds(grid: Grid) -> str:
    """What a note says of the seeds."""
    seeds = len(grid.seeds)
    return "One seed, so without an interval." if seeds == 1 else f"Mean and 95% t interval over {seeds} seeds."


def of_table_1(selection: Selection, cells: pd.DataFrame, labels: set[str], worst: pd.DataFrame) -> tuple[str, ...]:
    """The notes of Table 1, for the rows that it has."""
    scale = selection.recipe.input_scale
    units = "" if scale == 1 else f", which is given pixels in [0, {scale:g}]: eps 0.1 is 0.1/{scale:g} of their range"
    more = "masking" if scale == 1 else "masking or the smaller eps"
    by_label = {
        "exact": "exact: the exact gradient of the per-example loss; eps as a share of the pixel range.",
        "torch's CE": "torch's CE: as exact, but through torch.nn.CrossEntropyLoss, whose float32 gradient loses the "
        "true class as the margin nears 17.",
        "paper": "paper: the paper's protocol, as we read it. The gradient of a loss computed from float32 "
        "probabilities clipped to [1e-7, 1 - 1e-7], as in Keras 2, is exactly 0 past a margin of about 16; eps in "
        f"units of the network's input{units}. What this row leaves above exact is {more}, not robustness.",
        "printed": "printed: what the paper prints; no measurement of ours.",
    }
    few = ", ".join(f"the first {n}" if n else "all" for n in sorted(set(worst.images)))
    return (
        f"Data: {selection.dataset}, {cells.n.max()} test images. {over_seeds(selection.grid)} FGSM, L-infinity. In "
        "brackets: the share of images whose input gradient is exactly 0.",
        *(note for label, note in by_label.items() if label in labels),
        "FGSM is a weak attack: these figures bound robust accuracy from above and are no evidence of robustness.",
        *([f"{of_worst_case(worst.source)} On {few} of the test images, eps as in its row."] if len(worst) else []),
        *of_flags(cells),
    )


def of_flags(cells: pd.DataFrame, note: str = ZERO_IN_TABLE_1) -> tuple[str, ...]:
    """The note on entries that are marked for their gradients of 0, if any is."""
    return (note,) if (cells.zero_gradient > ZERO_GRADIENT_LIMIT).any() else ()


def of_confusion(selection: Selection, eps: float, *, printed: bool) -> tuple[str, ...]:
    """The notes of the norms of confusion."""
    return (
        f"Data: {selection.dataset}. C[i, j] is the mean probability of class i over the test images of class j; I - C "
        "is the zero matrix for a classifier that is right and certain. " + over_seeds(selection.grid),
        "The attack is FGSM by the CE loss; exact and paper are the protocols of Table 1. A row CE - HR is the "
        "difference paired over the seeds.",
        *([f"printed: what the paper prints, under the CE attack at eps {eps:g}."] if printed else []),
    )


def of_calibration(selection: Selection, images: int, *, scaled: bool) -> tuple[str, ...]:
    """The notes of calibration."""
    scale = selection.recipe.input_scale
    units = "" if scale == 1 else f", in [0, {scale:g}]"
    found = {
        f"Data: {selection.dataset}, {images} test images. {over_seeds(selection.grid)} A row with a "
        "minus sign is the difference paired over the seeds.": True,
        "FGSM by the CE loss, L-infinity; exact and paper are the protocols of Table 1, with eps as a share of the "
        f"pixel range and in units of the network's input{units}.": True,
        "confidence: the mean probability of the predicted class; less the accuracy it is above 0 for an "
        "over-confident network. NLL: the negative log-likelihood, in nats. Brier: the Brier score, summed over the "
        f"classes, from 0 to 2. ECE: the expected calibration error, over {CONFIDENCE_BINS} bins of equal width of the "
        "predicted class's probability. Of these three less is better.": True,
        "AUROC: how well confidence tells right predictions from wrong ones, 0.5 for not at all, below it for wrong "
        "ones with the higher confidence. Images are ordered by the log-odds of the predicted class, which is the "
        "order of its probability where that rounds to 1.": True,
        f"T: the temperature, fitted for each network to {selection.recipe.validation_size} validation images without "
        "attack by the least NLL. Logits are divided by it under every attack, and no prediction changes. There is "
        "none where no validation image is misclassified.": scaled,
        "-: has no value, such as the AUROC where all predictions are wrong; n: the seeds that have one.": True,
    }
    return tuple(note for note, applies in found.items() if applies)


def of_alpha(selection: Selection, cells: pd.DataFrame, name: str) -> tuple[str, ...]:
    """The notes of the choice of alpha in a protocol."""
    of_input = f"in units of the network's input, of which the pixel range has {selection.recipe.input_scale:g}"
    units = "as a share of the pixel range" if name == "exact" else of_input
    images = cells.groupby("split").n.max()
    return (
        f"Data: {selection.dataset}, {images['validation']} validation images, held out of training, and "
        f"{images.get('test', 0)} test images. {over_seeds(selection.grid)} FGSM by the CE loss, {name} "
        f"protocol of Table 1, eps {units}. In brackets: the share of images whose input gradient is exactly 0.",
        "‡ The alpha chosen at this eps: the highest mean accuracy on validation, over the seeds that all alphas have.",
        *of_flags(cells),
    )


def of_own_attacks(selection: Selection, known: Sequence[AttackSpec], cells: pd.DataFrame) -> tuple[str, ...]:
    """The notes of a user's own attacks."""
    names = dict.fromkeys(attack.name for attack in known if isinstance(attack.name, Reference))
    return (
        f"Data: {selection.dataset}. {over_seeds(selection.grid)} eps: the largest change of a pixel that an attack is "
        "held to; without it the attack has a bound of its own, or none.",
        f"The user's own attacks: {', '.join(f'{name} (SHA-256 {name.code[:16]}...)' for name in names)}.",
        *of_flags(cells),
    )


def of_strong(selection: Selection, cells: pd.DataFrame) -> tuple[str, ...]:
    """The notes of strong attacks."""
    ways = {
        "PGD": "PGD: {} steps from a random start",
        "Auto-PGD": "Auto-PGD: {} steps from a random start",
        "Square": "Square: {} queries per image",
        "transfer": "transfer: PGD of {} steps along CE, on another network that is trained alike with CE",
    }
    steps = cells.groupby("protocol").steps.max()
    parts = "; ".join(way.format(steps[name]) for name, way in ways.items() if name in steps)
    worst = of_worst_case(where(cells, protocol="worst case").source)
    return (
        f"{of_data(selection, cells)} A row HR - CE is the difference paired over the seeds.",
        f"{parts}. {worst}" if parts else worst,
        PAPER_NOTE,
        *of_flags(cells, f"{ZERO}."),
    )


def of_hardening(selection: Selection, cells: pd.DataFrame) -> tuple[str, ...]:
    """The notes of hardened networks."""
    names = {
        "noise": "noise: trained on images with uniform noise in every pixel, of at most the eps beside it.",
        "madry": "Madry: trained on adversarial images in place of the clean ones, by ART's trainer.",
        "trades": "TRADES: the loss of the clean images, and beta times the divergence of the predictions at "
        "adversarial ones, by ART's trainer. Losses differ in size, so one beta weighs less beside a larger loss.",
    }
    losses, worst = selection.grid.losses, of_worst_case(where(cells, protocol="worst case").source)
    hardened = [loss.hardening for loss in losses if loss.hardening is not None]
    steps = " or ".join(str(steps) for steps in sorted({kind.steps for kind in hardened if kind.steps}))
    margins = " or ".join(f"{margin:g}" for margin in sorted({loss.margin for loss in losses if loss.margin}))
    found = {
        f"{of_data(selection, cells)} Less CE's: the difference, paired over the seeds, from cross-entropy that is "
        "hardened alike. The intervals are not corrected for their number: of twenty differences where there is none "
        "one misses 0 by chance.": True,
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
        f"{PAPER_NOTE} {worst}": True,
    }
    return *(note for note, applies in found.items() if applies), *of_flags(cells, f"{ZERO}.")


def of_data(selection: Selection, cells: pd.DataFrame) -> str:
    """What a note says of the data, the seeds and eps."""
    return (
        f"Data: {selection.dataset}, the first {cells.n.max()} test images. {over_seeds(selection.grid)} L-infinity, "
        "eps as a share of the pixel range."
    )


def of_worst_case(sources: pd.Series) -> str:
    """What a note says of the worst cases among attacks, from their sources."""
    elsewhere = "images made on another network, " if sources.notna().any() else ""
    return (
        "Worst case: image by image, what is left by the ensemble of art_hrloss: Auto-PGD along CE, along HR and "
        f"towards each other class, {elsewhere}and the Square attack, which sees no gradients."
    )


def of_found(selection: Selection) -> tuple[str, ...]:
    """The notes of what the attacks of the ensemble found."""
    return (
        f"Data: {selection.dataset}; images of all seeds together. Each attack is tried on what those on its left left "
        "over, within eps of the original (L-infinity, a share of the pixel range): 0 says that it added nothing to "
        "them, not that it finds nothing alone. no attack: misclassified without one.",
    )


def of_bounds(selection: Selection, images: int, what: str) -> tuple[str, ...]:
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
        f"Data: {selection.dataset}, {images} test images; FGSM by the CE loss (exact-gradient protocol). "
        f"{over_seeds(selection.grid)} A mean of bounds bounds the mean."
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
        "projected gradient descent. paper: an attacker through clipped probabilities. exact: along the exact gradient "
        "of cross-entropy.",
        "A flag is about the attack: what it leaves standing is not to be believed. No flag is no proof of robustness.",
    )
