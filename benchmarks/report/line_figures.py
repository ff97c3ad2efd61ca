"""Line figures with intervals: accuracy and bounds against the epoch, eps and alpha."""

from collections.abc import Sequence

from benchmarks.config import AttackSpec, LossSpec
from benchmarks.protocols import CE, HR
from benchmarks.record import UPPER_ALPHA
from benchmarks.report.drawing import (
    BLACK,
    BLUE,
    GREEN,
    VERMILLION,
    Line,
    Panel,
    Picture,
    line_figure,
    line_for,
    seeds_note,
    values_in_words,
)
from benchmarks.report.results import attacks
from benchmarks.report.selection import MAIN, Selection, fgsm, has_hardening, strong_attacks
from benchmarks.report.statistics import Interval

TEST_ACCURACY = "test accuracy (share of images)"
# The lines of the figure of Proposition 1 and their fields of ErrorBounds; P_e is first.
BOUNDS = {
    Line("P_e", BLACK, "o", "-", hollow=False, width=2.2, size=5): "error",
    Line("CE / log 2", BLUE, "o", "--", hollow=True, width=1.5, size=7): "log_markov_bound",
    Line("(1) at its best alpha", VERMILLION, "s", ":", hollow=False, width=1.8, size=5): "log_tightest_upper_bound",
    Line(f"(1) at alpha {UPPER_ALPHA:g}", GREEN, "^", "-.", hollow=True, width=1.5, size=7): "log_upper_bound",
}
# Titles of panels and their protocols.
PROTOCOLS = {"Exact-gradient protocol": "exact", "Paper protocol": "paper"}
EPS_LABEL = "eps (share of the pixel range)"
# An attack under which the means of all bounds are above this is not drawn: the bounds are vacuous.
VACUOUS = 0.99


def figure_1(selection: Selection) -> Picture | None:
    """Return the paper's Fig. 1: accuracy against epoch under the CE attack, a panel per protocol."""
    panels = []
    for title, name in PROTOCOLS.items():
        known = fgsm(selection.recipe.curve_attacks, name, "CE")
        lines = [
            (line_for(loss, f"{loss} trained, eps {attack.eps:g}", position), points)
            for loss in selection.losses
            for position, attack in enumerate(known)
            if (points := selection.by_epoch(loss, "accuracy", attack))
        ]
        panels.append(Panel(title, "epoch", TEST_ACCURACY, lines if len(known) > 1 else []))
    caption = (
        f"Accuracy on {_curve_images(selection)} under FGSM with CE gradients, by epoch of training; eps 0 is no "
        "attack. Exact-gradient protocol: the exact gradient of CE. Paper protocol: the gradient from clipped float32 "
        "probabilities."
    )
    return _picture(selection, "figure_1", "accuracy during training (the paper's Fig. 1)", caption, panels)


def bounds(selection: Selection) -> Picture | None:
    """Return the error probability and its upper bounds against epoch, a panel per training loss and attack."""
    panels, vacuous = [], []
    for attack in fgsm(selection.recipe.curve_attacks, "exact", "CE"):
        title = f"FGSM, eps {attack.eps:g}" if attack.eps else "no attack"
        drawn = [
            Panel(f"{loss} trained, {title}", "epoch", "P_e and bounds on it", lines, log=True, level=1.0)
            for loss in selection.losses
            if (lines := _bound_lines(selection, loss, attack))
        ]
        bounded = [point.mean for panel in drawn for _, points in panel.lines[1:] for point in points.values()]
        if attack.eps and bounded and min(bounded) > VACUOUS:
            vacuous.append(f"eps {attack.eps:g}")
        else:
            panels += drawn
    caption = (
        f"Error probability P_e on {_curve_images(selection)} by epoch of training, and three upper bounds on it: (1) "
        f"of Proposition 1 at alpha = {UPPER_ALPHA:g}, (1) at the alpha that gives the smallest bound, and CE / log 2 "
        "(Markov's inequality). A bound of 1 or more is vacuous; it is drawn as 1, at the grey line. An interval that "
        "contains 0 is shaded down to the lower edge."
    )
    if vacuous:
        caption += f" Not drawn: FGSM with CE gradients at {' and '.join(vacuous)}, where every bound is vacuous."
    return _picture(selection, "bounds", "Proposition 1 during training", caption, panels)


def _bound_lines(selection: Selection, loss: LossSpec, attack: AttackSpec) -> list[tuple[Line, dict[float, Interval]]]:
    lines = {line: selection.by_epoch(loss, f"labels.{field}", attack) for line, field in BOUNDS.items()}
    return [(line, points) for line, points in lines.items() if points]


def learning_curves(selection: Selection) -> Picture | None:
    """Return training loss and validation accuracy against epoch."""
    panels = []
    for title, y_label, field in (
        ("Training", "training loss (nats)", "train_loss"),
        ("Validation", "validation accuracy (share of images)", "validation_accuracy"),
    ):
        lines = [
            (line_for(loss, f"{loss} trained", position), points)
            for position, loss in enumerate(selection.losses)
            if (points := selection.by_epoch(loss, field))
        ]
        panels.append(Panel(title, "epoch", y_label, lines, log=field == "train_loss"))
    caption = (
        "Left: the loss that each network is trained with; CE and HR are different quantities, so only the shapes of "
        "their curves can be compared, not their heights. Right: accuracy on "
        f"{selection.recipe.validation_size} validation images. An interval of the loss that contains 0 is shaded down "
        "to the lower edge."
    )
    return _picture(selection, "learning_curves", "learning curves", caption, panels)


def accuracy_vs_eps(selection: Selection) -> Picture | None:
    """Return accuracy against eps for each training loss and each loss of the attack, a panel per protocol."""
    panels = []
    for title, name in PROTOCOLS.items():
        lines = [
            (line_for(loss, f"{loss} trained, {attacker} attack", position), points)
            for loss in selection.losses
            for position, attacker in enumerate(("CE", "HR"))
            if max(points := selection.by_eps(loss, fgsm(selection.grid.attacks, name, attacker)), default=0) > 0
        ]
        units = f"eps (units of the network's input, 0 to {selection.recipe.input_scale:g})"
        panels.append(Panel(title, units if name == "paper" else EPS_LABEL, TEST_ACCURACY, lines, ticks=True))
    caption = (
        f"Accuracy on {selection.images} under FGSM (L-infinity norm) with the gradients of CE or HR; eps 0 is no "
        "attack. Exact-gradient protocol: the exact gradient of the loss. Paper protocol: the gradient from clipped "
        "float32 probabilities."
    )
    return _picture(selection, "accuracy_vs_eps", "accuracy against eps", caption, panels)


def strong(selection: Selection) -> Picture | None:
    """Return accuracy against eps, from the paper's attack to the worst case; None without one, or with defences."""
    grid = selection.grid
    by_eps = {} if has_hardening(grid) else strong_attacks(grid)
    images = max((row["worst case"].images for row in by_eps.values()), default=0)
    unattacked = attacks(grid.attacks, "no attack", images=images)
    lines = []
    for loss in selection.losses:
        for position, name in enumerate(MAIN):
            points = selection.by_eps(loss, [*unattacked, *(row[name] for row in by_eps.values() if name in row)])
            if max(points, default=0) > 0:
                lines.append((line_for(loss, f"{loss} trained, {name}", position), points))
    shown = f"the first {images} test images" if images else selection.images
    caption = (
        f"Accuracy on {shown} (L-infinity norm). FGSM, paper: with the gradient from clipped float32 probabilities. "
        "FGSM, exact: with the exact gradient of cross-entropy. Worst case: the share of images that are classified "
        "correctly under every attack of an ensemble of strong attacks. eps 0 is no attack."
    )
    title = "From the paper's attack to the worst case"
    panel = Panel(title, EPS_LABEL, TEST_ACCURACY, lines, ticks=True)
    return _picture(selection, "strong", "accuracy under increasingly strong attacks", caption, [panel])


def alpha(selection: Selection) -> Picture | None:
    """Return accuracy against the alpha of the HR loss, validation and test; None for a grid with a single alpha."""
    if not selection.alpha_eps:
        return None
    panels = []
    tried = {loss.alpha: loss for loss in selection.grid.losses if loss.plain and loss.alpha is not None}
    for split in ("validation", "test"):
        ce_lines, hr_lines = [], []
        for position, attack in enumerate(fgsm(selection.grid.attacks, "exact", "CE", split)):
            cells = {a: selection.cell(tried[a], attack).accuracy for a in sorted(tried)}
            if points := {a: accuracy for a, accuracy in cells.items() if accuracy.n}:
                hr_lines.append((line_for(HR, f"HR trained, eps {attack.eps:g}", position), points))
            if (level := selection.cell(CE, attack).accuracy).n:
                ce_lines.append(
                    (line_for(CE, f"CE trained, eps {attack.eps:g}", position), {min(tried): level, max(tried): level})
                )
        axes = f"{split.capitalize()} images", "alpha of the HR loss", "accuracy (share of images)"
        panels.append(Panel(*axes, ce_lines + hr_lines, ticks=True))
    caption = (
        f"Accuracy on {selection.recipe.validation_size} validation images, on which alpha is chosen, and on "
        f"{selection.images}, under FGSM with CE gradients (exact-gradient protocol); eps 0 is no attack. CE has no "
        "alpha, so its lines are horizontal."
    )
    return _picture(selection, "alpha", "the choice of alpha", caption, panels, left_out="")


def _curve_images(selection: Selection) -> str:
    """Return a description of the images that are attacked during training."""
    first = selection.recipe.curve_attacks[0].images if selection.recipe.curve_attacks else 0
    return f"the first {first} test images" if first else selection.images


def _picture(
    selection: Selection, name: str, title: str, caption: str, panels: Sequence[Panel], *, left_out: str | None = None
) -> Picture | None:
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        return None
    seeds = [point.n for panel in panels for _, points in panel.lines for point in points.values()]
    note = f"{seeds_note(seeds, intervals='shaded')}{selection.left_out if left_out is None else left_out}"
    return Picture(
        f"{name}-{selection.dataset}",
        f"{selection.dataset}: {title}",
        f"Data: {selection.dataset}. {caption} {note}",
        f"Lines, in {len(panels)} panel{'s' * (len(panels) > 1)}. {values_in_words(panels)}",
        line_figure(panels),
    )
