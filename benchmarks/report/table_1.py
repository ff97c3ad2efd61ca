"""Results -> Table 1 of the paper, with the worst case beside it where there is one."""

from collections.abc import Callable, Mapping
from typing import Literal

from benchmarks.config import AttackSpec, Grid, LossSpec
from benchmarks.protocols import paper, sound, torch_ce
from benchmarks.report.cells import Cell, Results
from benchmarks.report.markup import Table
from benchmarks.report.strong import worst_case_note
from benchmarks.report.tables import cell_text, flag_notes, interval_text, of_test_images, over_seeds

# Table 1 as printed: data set -> eps -> accuracy for each pair (trained, attacked).
PAPER_COLUMNS = (("CE", "ce"), ("HR(1.6)", "ce"), ("HR(1.6)", "hr"), ("CE", "hr"))
PAPER_TABLE_1 = {
    "mnist": {
        0.0: (0.985, 0.986, 0.986, 0.985),
        0.1: (0.907, 0.945, 0.977, 0.977),
        0.25: (0.852, 0.861, 0.974, 0.972),
    },
    "cifar10": {
        0.0: (0.656, 0.685, 0.685, 0.656),
        0.1: (0.296, 0.337, 0.324, 0.288),
        0.25: (0.282, 0.320, 0.306, 0.271),
    },
    "svhn": {
        0.0: (0.865, 0.901, 0.901, 0.865),
        0.1: (0.797, 0.836, 0.835, 0.801),
        0.25: (0.672, 0.704, 0.698, 0.674),
    },
}
Attacker = Literal["ce", "hr"]

# The rows of Table 1: the attack along the gradient of a loss at an eps, or None where the row has none.
Rows = Mapping[str, Callable[[Attacker, float], AttackSpec | None]]
UNDER_ATTACK: Rows = {
    "sound": sound,
    "torch's CE": lambda loss, eps: torch_ce(eps) if loss == "ce" else None,
    "paper": paper,
}
WITHOUT_ATTACK: Rows = {"no attack": sound}


def table_1(results: Results, dataset: str) -> Table | None:
    """
    Test accuracy in the layout of the paper's Table 1.

    For each eps a row per protocol, and what the paper prints where it has this data set. Beside every entry under
    attack stands the share of images whose input gradient is exactly 0. Where the grid has worst cases at an eps, they
    stand in columns of their own, beside the protocol whose units of eps they have.

    :param results: What there is of a grid.
    :param dataset: One of its data sets.
    :return: None for a grid without any of its attacks.
    """
    grid, attacks = results.grid, of_test_images(results.grid)
    columns, worst = _columns(grid), _worst_cases(grid)
    rows: list[tuple[str, ...]] = []
    shown: list[Cell] = []
    for eps in sorted({attack.eps for attack in attacks}):
        first = f"{eps:g}"
        for label, attack_of in (UNDER_ATTACK if eps else WITHOUT_ATTACK).items():
            specs = [(trained, attack_of(loss, eps)) for trained, loss in columns]
            row = [results.cell(dataset, trained, spec) if spec in attacks else None for trained, spec in specs]
            if any(row):
                bound = worst.get((label, eps))
                left = [results.cell(dataset, loss, bound) if bound else None for loss in grid.losses if worst]
                texts = [
                    *("" if cell is None else cell_text(cell, grid) for cell in row),
                    *("" if cell is None else interval_text(cell.accuracy, grid) for cell in left),
                ]
                rows.append((first, label, *texts))
                shown += [cell for cell in row if cell is not None]
                first = ""
        if eps in PAPER_TABLE_1.get(dataset, {}):
            printed = dict(zip(PAPER_COLUMNS, PAPER_TABLE_1[dataset][eps], strict=True))
            values = [printed.get((str(trained), loss)) for trained, loss in columns]
            texts = ["" if value is None else f"{value:.3f}" for value in values]
            rows.append((first, "printed", *texts, *("" for _ in grid.losses if worst)))
    if not shown:
        return None
    header = ["eps", "protocol", *(f"{trained} trained, {loss.upper()} attack" for trained, loss in columns)]
    header += [f"{loss} trained, worst case" for loss in grid.losses if worst]
    notes = _notes(results, dataset, shown, {row[1] for row in rows})
    return Table(f"Table 1 on {dataset}: test accuracy", tuple(header), tuple(rows), notes)


def _columns(grid: Grid) -> list[tuple[LossSpec, Attacker]]:
    """The pairs (training loss, attack loss) in the paper's order, but for attack losses that the grid has not."""
    pairs: list[tuple[LossSpec, Attacker]] = [(loss, "ce") for loss in grid.losses]
    pairs += [(loss, "hr") for loss in reversed(grid.losses)]
    attackers = {attack.loss.split("-")[-1] for attack in of_test_images(grid) if attack.loss} or {"ce"}
    return [pair for pair in pairs if pair[1] in attackers]


def _worst_cases(grid: Grid) -> dict[tuple[str, float], AttackSpec]:
    """By protocol and eps, the worst cases of a grid."""
    units = {"range": "sound", "data": "paper"}
    return {(units[a.units], a.eps): a for a in of_test_images(grid) if a.name == "worst-case"}


def _notes(results: Results, dataset: str, shown: list[Cell], labels: set[str]) -> tuple[str, ...]:
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
    notes = [
        f"Data: {dataset}, {images} test images. {over_seeds(results.grid)} FGSM, L-infinity. In brackets: the share "
        "of images whose input gradient is exactly 0.",
        *(note for label, note in by_label.items() if label in labels),
        "FGSM is a weak attack: these figures bound robust accuracy from above and are no evidence of robustness.",
        *_worst_case_notes(results.grid),
        *flag_notes(shown),
    ]
    return tuple(notes)


def _worst_case_notes(grid: Grid) -> list[str]:
    """What worst cases are, and on how many images."""
    made = list(_worst_cases(grid).values())
    images = {attack.images for attack in made}
    few = ", ".join(f"the first {n}" if n else "all" for n in sorted(images))
    return [f"{worst_case_note(made)} On {few} of the test images, eps as in its row."] if made else []
