"""Notes under the tables: data, seeds, columns and protocols, and how far an entry can be trusted."""

from collections.abc import Sequence

import pandas as pd

from benchmarks.config import AttackSpec, Grid, Recipe, Reference
from benchmarks.protocols import QUERIES_PER_STEP
from benchmarks.record import CONFIDENCE_BINS, LABEL_NOISE, LOWER_ALPHA, UPPER_ALPHA
from benchmarks.report.results import attacks
from benchmarks.report.selection import Selection

# An entry with a larger share of input gradients that are exactly 0 is marked: FGSM leaves those images unchanged, and
# part of the accuracy is then a failure of the attack.
ZERO_GRADIENT_LIMIT = 0.001
ZERO_GRADIENTS = (
    f"† On more than {ZERO_GRADIENT_LIMIT:.1%} of the images the gradient is exactly 0, and FGSM does not change them. "
    "This accuracy overstates robustness: compare it with that under FGSM with the exact gradient."
)
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}
LOSSES = "CE is cross-entropy; HR(a) is the HR loss with alpha = a."
PROTOCOLS = (
    "exact: FGSM with the exact gradient of the loss, eps as a share of the pixel range. paper: FGSM with the gradient "
    "of a loss that is computed from clipped float32 probabilities, eps in units of the network's input."
)
STRONG_PROTOCOLS = (
    "FGSM, exact: with the exact gradient of cross-entropy. FGSM, paper: with the gradient of a loss that is computed "
    "from clipped float32 probabilities, as in Table 1. An accuracy under FGSM that is above the worst case is not "
    "robustness: a stronger attack misclassifies these images."
)


def over_seeds(grid: Grid) -> str:
    """Return a sentence on the seeds of a grid and the intervals of its entries."""
    seeds = len(grid.seeds)
    return "One seed, so there is no interval." if seeds == 1 else f"Mean ± 95% t interval over {seeds} seeds."


def table_1(selection: Selection, cells: pd.DataFrame, labels: set[str], worst: pd.DataFrame) -> tuple[str, ...]:
    """Return the notes of Table 1, for the rows that it has."""
    scale = selection.recipe.input_scale
    units = "" if scale == 1 else f", whose pixels are in [0, {scale:g}]: eps 0.1 is 0.1/{scale:g} of the pixel range"
    cause = "gradient masking" if scale == 1 else "gradient masking or from the smaller eps"
    by_label = {
        "exact": "exact: FGSM with the exact gradient of the loss of each image; eps is a share of the pixel range.",
        "torch's CE": "torch's CE: as exact, but with the gradient of torch.nn.CrossEntropyLoss. In float32 this "
        "gradient loses the part of the true class when the margin is near 17.",
        "paper": "paper: the paper's protocol, as we understand it. The loss is computed from float32 probabilities "
        "that are clipped to [1e-7, 1 - 1e-7], as in Keras 2, and its gradient is exactly 0 when the margin is above "
        f"about 16. eps is in units of the network's input{units}. An accuracy above that of the row exact comes from "
        f"{cause}, not from robustness.",
        "printed": "printed: the numbers that the paper prints; we did not measure them.",
    }
    images = ", ".join(f"the first {n}" if n else "all" for n in sorted(set(worst.images)))
    on_images = [f"{worst_case(selection)} On {images} of the test images, at the eps of its row."]
    return (
        f"Data: {selection.dataset}, {cells.n.max()} test images. Entries: accuracy, the share of images that are "
        f"classified correctly. {over_seeds(selection.grid)} Columns: the loss that the networks are trained with, and "
        f"the loss whose gradient the attack uses; {LOSSES} FGSM, L-infinity norm. In brackets: the share of images "
        "whose input gradient is exactly 0.",
        *(note for label, note in by_label.items() if label in labels),
        "FGSM is a weak attack: these accuracies are upper bounds on robust accuracy, and no evidence of robustness.",
        *(on_images if len(worst) else []),
        *zero_gradients(cells),
        training(selection.recipe),
    )


def zero_gradients(cells: pd.DataFrame) -> tuple[str, ...]:
    """Return the note on entries that are marked for their zero gradients, if there are any."""
    return (ZERO_GRADIENTS,) if (cells.zero_gradient > ZERO_GRADIENT_LIMIT).any() else ()


def confusion(selection: Selection, eps: float, *, printed: bool) -> tuple[str, ...]:
    """Return the notes of the norms of confusion."""
    return (
        f"Data: {selection.dataset}. Entries: the Frobenius norm of I - C, where C[i, j] is the mean probability of "
        "class i over the test images of class j. It is 0 for a classifier that is always right and certain: smaller "
        f"is better. {over_seeds(selection.grid)}",
        f"Rows: the loss that the networks are trained with; {LOSSES} A row with a minus sign is the difference of two "
        f"losses, paired over the seeds. Columns: no attack, and FGSM with the CE loss in two protocols. {PROTOCOLS}",
        *([f"printed: the number that the paper prints, under the CE attack at eps {eps:g}."] if printed else []),
    )


def calibration(selection: Selection, images: int, *, scaled: bool) -> tuple[str, ...]:
    """Return the notes of calibration."""
    scale = selection.recipe.input_scale
    units = "" if scale == 1 else f" The pixels of the network's input are in [0, {scale:g}]."
    notes = {
        f"Data: {selection.dataset}, {images} test images. {over_seeds(selection.grid)} Rows: the loss that the "
        f"networks are trained with; {LOSSES} A row with a minus sign is the difference of two losses, paired over the "
        "seeds.": True,
        f"Attacks: FGSM with the CE loss, L-infinity norm. {PROTOCOLS}{units}": True,
        "confidence: the mean probability of the predicted class. confidence - accuracy: above 0 for an over-confident "
        "network. NLL: the negative log-likelihood, in nats. Brier: the Brier score, summed over the classes, from 0 "
        f"to 2. ECE: the expected calibration error, with {CONFIDENCE_BINS} bins of equal width of the predicted "
        "class's probability. For NLL, Brier and ECE smaller is better.": True,
        "AUROC: how well the confidence separates right from wrong predictions. 1: perfectly; 0.5: not at all; below "
        "0.5: wrong predictions have the higher confidence. Images are ordered by the log-odds of the predicted class, "
        "which keeps the order where the probability itself rounds to 1.": True,
        f"T: the temperature that minimises the NLL on {selection.recipe.validation_size} validation images without "
        "attack, fitted for each network. NLL at T and ECE at T: with the logits divided by T, which changes no "
        "prediction. A network without misclassified validation images has no T.": scaled,
        "-: the metric has no value, such as the AUROC if all predictions are wrong. n: the number of seeds with a "
        "value, if it is not all.": True,
    }
    return tuple(note for note, applies in notes.items() if applies)


def alpha(selection: Selection, cells: pd.DataFrame, name: str) -> tuple[str, ...]:
    """Return the notes of the choice of alpha in a protocol."""
    of_input = f"in units of the network's input, whose pixels are in [0, {selection.recipe.input_scale:g}]"
    units = "as a share of the pixel range" if name == "exact" else of_input
    gradient = "exact gradient" if name == "exact" else "gradient from clipped float32 probabilities"
    images = cells.groupby("split").n.max()
    return (
        f"Data: {selection.dataset}, {images['validation']} validation images, which are not used in training, and "
        f"{images.get('test', 0)} test images. Entries: accuracy, the share of images that are classified correctly. "
        f"{over_seeds(selection.grid)} Rows: the training loss; HR(a) is the HR loss with alpha = a. The attack is "
        f"FGSM with the CE loss, {name} protocol ({gradient}), eps {units}. In brackets: the share of images whose "
        "input gradient is exactly 0.",
        "‡ The alpha that is chosen at this eps: it has the highest mean accuracy on the validation images, over the "
        "seeds for which all alphas have been evaluated.",
        *zero_gradients(cells),
    )


def own_attacks(selection: Selection, known: Sequence[AttackSpec], cells: pd.DataFrame) -> tuple[str, ...]:
    """Return the notes of a user's own attacks."""
    names = dict.fromkeys(attack.name for attack in known if isinstance(attack.name, Reference))
    return (
        f"Data: {selection.dataset}. Entries: accuracy, the share of test images that are classified correctly. "
        f"{over_seeds(selection.grid)} eps: the largest allowed change of a pixel; it is empty for an attack that "
        "has its own bound, or none.",
        f"The user's own attacks: {', '.join(f'{name} (SHA-256 {name.code[:16]}...)' for name in names)}.",
        *zero_gradients(cells),
    )


def strong(selection: Selection, cells: pd.DataFrame) -> tuple[str, ...]:
    """Return the notes of strong attacks."""
    settings = {
        "PGD": "PGD: {} steps from a random start",
        "Auto-PGD": "Auto-PGD: {} steps from a random start",
        "Square": "Square: {} queries per image",
        "transfer": "transfer: PGD of {} steps with the CE loss, on another network that was trained with CE",
    }
    steps = cells.groupby("protocol").steps.max()
    parts = "; ".join(text.format(steps[name]) for name, text in settings.items() if name in steps)
    return (
        f"{_data(selection, cells)} Rows: the loss that the networks are trained with; {LOSSES} A row with a minus "
        "sign is the difference of two losses, paired over the seeds.",
        f"{parts}. {worst_case(selection)}" if parts else worst_case(selection),
        STRONG_PROTOCOLS,
        *zero_gradients(cells),
        training(selection.recipe),
    )


def defences(selection: Selection, cells: pd.DataFrame) -> tuple[str, ...]:
    """Return the notes of networks that are trained with a defence."""
    names = {
        "noise": "noise: trained on images with uniform noise in every pixel, of at most the given eps.",
        "madry": "Madry: adversarial training, on adversarial images instead of the clean ones, with ART's trainer.",
        "trades": "TRADES: trained with the loss on the clean images plus beta times the divergence between the "
        "predictions on clean and on adversarial images, with ART's trainer. The losses differ in size, so the same "
        "beta gives the divergence less weight beside a larger loss.",
    }
    losses = selection.grid.losses
    applied = [loss.hardening for loss in losses if loss.hardening is not None]
    steps = " or ".join(str(steps) for steps in sorted({defence.steps for defence in applied if defence.steps}))
    margins = " or ".join(f"{margin:g}" for margin in sorted({loss.margin for loss in losses if loss.margin}))
    notes = {
        f"{_data(selection, cells)} Rows: the defence and the loss that the networks are trained with; {LOSSES} minus "
        "CE: the difference from networks that are trained with cross-entropy and the same defence, paired over the "
        "seeds. The intervals are not corrected for their number: without any difference, about one in twenty excludes "
        "0 by chance.": True,
        **{note: any(defence.name == name for defence in applied) for name, note in names.items()},
        f"Adversarial images in training have the eps beside the name and {steps} steps. They maximise the training "
        "loss of each image, so they differ between HR and CE; the authors of TRADES maximise the divergence "
        "instead.": bool(steps),
        "HR(1) is, with hard labels, cross-entropy plus the entropy of the prediction.": any(
            loss.alpha == 1 for loss in losses
        ),
        f"margin {margins}: after training, the logits are multiplied by a constant that makes this the median margin "
        "of the validation images. This changes no prediction: an accuracy under attack above that of the same network "
        "without it is a failure of the attack.": bool(margins),
        f"{STRONG_PROTOCOLS} {worst_case(selection)}": True,
    }
    shown = [note for note, applies in notes.items() if applies]
    return *shown, *zero_gradients(cells), training(selection.recipe)


def _data(selection: Selection, cells: pd.DataFrame) -> str:
    """Return sentences on the data, the entries, the seeds and eps of a table of attacks."""
    return (
        f"Data: {selection.dataset}, the first {cells.n.max()} test images. Entries: accuracy, the share of images "
        f"that are classified correctly. {over_seeds(selection.grid)} L-infinity norm, eps as a share of the pixel "
        "range."
    )


def worst_case(selection: Selection) -> str:
    """Return a sentence on the ensemble of the worst case and its budget."""
    known = attacks(selection.grid.attacks, "worst case")
    steps = [attack.steps for attack in known]
    budget, queries = (" or ".join(map(str, sorted({per * n for n in steps}))) for per in (1, QUERIES_PER_STEP))
    transfer = "a transfer attack from another network, " if any(attack.source is not None for attack in known) else ""
    return (
        "Worst case: the share of images that are classified correctly under every attack of the ensemble of "
        f"art_hrloss: Auto-PGD along CE and along the HR loss, targeted Auto-PGD to each of the 9 likeliest wrong "
        f"classes, at most {budget} steps each, {transfer}and Square, a black-box attack that uses no gradients, at "
        f"most {queries} queries per image. It is an upper bound on robust accuracy."
    )


def training(recipe: Recipe) -> str:
    """Return a sentence on the recipe by which the networks are trained."""
    epochs = f"{recipe.epochs} epoch{'s' * (recipe.epochs > 1)}"
    drops = "".join(f", times {factor:g} from epoch {start + 1}" for start, factor in recipe.lr_drops)
    momentum = f", momentum {recipe.momentum:g}" if recipe.momentum else ""
    penalty = f", L2 penalty {recipe.l2:g}" if recipe.l2 else ""
    scale = f" Pixels in [0, {recipe.input_scale:g}]." if recipe.input_scale != 1 else ""
    mean = " The training images' mean is subtracted." if recipe.subtract_pixel_mean else ""
    return (
        f"Training: network {recipe.model}, {epochs} of {OPTIMIZERS[recipe.optimizer]} in batches of "
        f"{recipe.batch_size}, learning rate {recipe.lr:g}{drops}{momentum}{penalty}. No augmentation.{scale}{mean} "
        f"{recipe.validation_size} training images are held out for validation."
    )


def ensemble(selection: Selection) -> tuple[str, ...]:
    """Return the notes on the attacks of an ensemble."""
    return (
        f"Data: {selection.dataset}. Entries: numbers of test images, summed over the seeds. trained: the loss "
        f"that the networks are trained with; {LOSSES} no attack: images that are misclassified without an attack. The "
        "attacks run in the order of their columns, each only on the images that are not yet misclassified; its column "
        "counts the images for which it finds an adversarial example within eps (L-infinity norm, eps as a share of "
        "the pixel range). 0 means that an attack adds nothing to those before it, not that it would find nothing "
        "alone. robust: images that no attack misclassifies.",
    )


def bounds(selection: Selection, images: int, side: str) -> tuple[str, ...]:
    """Return the notes of the upper or the lower bounds."""
    common = (
        f"Data: {selection.dataset}, {images} test images. P_e: the error probability, here the share of misclassified "
        f"images; the other columns are {side} bounds on it, numbered as in the paper. Attack: FGSM with the exact "
        f"gradient of CE. {over_seeds(selection.grid)} The mean of the bounds is a bound on the mean of P_e."
    )
    upper = (
        f"alpha is {UPPER_ALPHA:g}, except in the last two columns, which have the alpha of the smallest bound. A "
        "bound of 1 or more is vacuous: it holds for every classifier. If no alpha gives a bound below 1, the best "
        "bound is 1. (5), (1) and (11) are successive steps in the paper, each weaker than the one before. CE / log 2 "
        "is Markov's inequality and not from the paper."
    )
    lower = (
        f"alpha is {LOWER_ALPHA:g}, except in the last column, which has the alpha of the largest bound. With the true "
        "labels every lower bound is 0 and thus vacuous. So each label is replaced, with probability "
        f"{LABEL_NOISE:g}, by a class drawn at random from all classes; P_e and its bounds are for these labels."
    )
    return common, upper if side == "upper" else lower


def diagnostics(dataset: str, images: int, reports: Sequence[AttackSpec]) -> tuple[str, ...]:
    """Return the notes of the reports on gradient masking."""
    steps = " or ".join(str(steps) for steps in sorted({report.steps for report in reports}))
    return (
        f"Data: {dataset}, the first {images} test images; L-infinity norm, eps as a share of the pixel range. "
        f"trained: the loss that the networks are trained with; {LOSSES} attacker: the gradient that the tested attack "
        "uses; exact is the exact gradient of cross-entropy, paper is the gradient of a loss that is computed from "
        "clipped float32 probabilities. In brackets: the number of seeds that raise the flag.",
        f"Each verdict is that of gradient_masking_report of art_hrloss, with {steps} steps of PGD. It tests whether "
        "input gradients are zero, whether other losses or black-box attacks find more adversarial examples than the "
        "attacker's own gradient, whether the accuracy falls with more steps and larger eps as it should, and other "
        "signs of an attack that fails.",
        "A flag means that the attack fails: accuracy under this attack is not evidence of robustness. The absence of "
        "flags does not prove robustness.",
    )
