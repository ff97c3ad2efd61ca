"""Records -> tables. A report is a pure function of the store: nothing is trained or attacked for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table as RichTable

from benchmarks.config import AttackLossName, AttackSpec, Grid, LossSpec
from benchmarks.statistics import Interval, mean_interval
from benchmarks.store import Store, write_bytes

# Above this share of input gradients that are exactly 0 an entry is marked: part of its accuracy may be no robustness.
ZERO_GRADIENT_LIMIT = 0.001

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


# The rows of Table 1: how the loss behind a column's gradient is computed.
NUMERICS: Mapping[str, Mapping[str, AttackLossName]] = {
    "sound": {"ce": "ce", "hr": "hr"},
    "torch's CE": {"ce": "torch-ce"},
    "clipped": {"ce": "clipped-ce", "hr": "clipped-hr"},
}


@dataclass(frozen=True)
class Cell:
    """A table entry: the evaluations of one training loss under one attack, over the seeds."""

    dataset: str
    trained: LossSpec
    attack: AttackSpec
    accuracy: Interval | None
    """None where no seed has been evaluated yet."""
    zero_gradient: float
    """Share of test images, over all seeds, whose input gradient is exactly 0; NaN without attack."""
    images: int
    """Test images per seed."""

    @property
    def flagged(self) -> bool:
        """Whether more than ZERO_GRADIENT_LIMIT of the images cannot be moved by the attack."""
        return self.zero_gradient > ZERO_GRADIENT_LIMIT


@dataclass(frozen=True)
class Table:
    """A table as text: a title, a header, rows, and notes to be read with it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}\n\n" + "\n\n".join(self.notes) + "\n"

    def rich(self) -> RichTable:
        """The table for a terminal."""
        table = RichTable(
            box=box.SIMPLE_HEAD,
            padding=0,
            show_edge=False,
            title=self.title,
            title_justify="left",
            caption="\n".join(self.notes),
            caption_justify="left",
        )
        for name in self.header:
            table.add_column(name)
        for row, following in pairwise([*self.rows, ("end",)]):
            table.add_row(*row, end_section=following[0] != "")
        return table


def cell(grid: Grid, store: Store, dataset: str, trained: LossSpec, attack: AttackSpec) -> Cell:
    """One entry, from the records that are there."""
    runs = [run for run in grid.runs() if run.dataset == dataset and run.loss == trained]
    records = [record for record in (store.record(run, attack) for run in runs) if record is not None]
    images = sum(record["n"] for record in records)
    return Cell(
        dataset,
        trained,
        attack,
        mean_interval([record["correct"] / record["n"] for record in records]) if records else None,
        sum(record["zero_gradient"] for record in records) / images if records and attack.loss else math.nan,
        records[0]["n"] if records else 0,
    )


def table_1(grid: Grid, store: Store, dataset: str) -> Table:
    """
    Test accuracy in the layout of the paper's Table 1.

    For each eps a row of what a sound attack leaves; below it what the same attack leaves in the numerics of torch and
    of clipped probabilities, and what the paper prints, where it has this data set.

    :param grid: Says which entries there are.
    :param store: Holds the records.
    :param dataset: One of the grid's data sets.
    """
    # The pairs (training loss, attack loss) in the paper's order.
    columns = [*((loss, "ce") for loss in grid.losses), *((loss, "hr") for loss in reversed(grid.losses))]
    rows: list[tuple[str, ...]] = []
    shown: list[Cell | None] = []
    for eps in sorted({attack.eps for attack in grid.attacks}):
        for label, names in NUMERICS.items():
            if eps == 0 and label != "sound":
                continue
            row = [_entry(grid, store, dataset, trained, names.get(loss), eps) for trained, loss in columns]
            if not any(row):
                continue
            rows.append((f"{eps:g}" if label == "sound" else "", label, *(_text(entry, grid) for entry in row)))
            if label == "clipped":
                rows.append(("", "zero grad.", *(_share(entry) for entry in row)))
            shown += row
        if eps in PAPER_TABLE_1.get(dataset, {}):
            printed = dict(zip(PAPER_COLUMNS, PAPER_TABLE_1[dataset][eps], strict=True))
            values = [printed.get((str(trained), loss)) for trained, loss in columns]
            rows.append(("", "paper", *("" if value is None else f"{value:.3f}" for value in values)))
    header = ("eps", "", *(f"{trained} trained, {loss.upper()} attack" for trained, loss in columns))
    notes = _notes(grid, dataset, [entry for entry in shown if entry])
    return Table(f"Table 1 on {dataset}: test accuracy", header, tuple(rows), notes)


def _entry(
    grid: Grid, store: Store, dataset: str, trained: LossSpec, loss: AttackLossName | None, eps: float
) -> Cell | None:
    """An entry of Table 1, or None where the row or the grid has no such attack."""
    if loss is None:
        return None
    attack = AttackSpec("fgm", loss, eps) if eps > 0 else AttackSpec("none")
    return cell(grid, store, dataset, trained, attack) if attack in grid.attacks else None


def _share(entry: Cell | None) -> str:
    if entry is None:
        return ""
    return "not yet" if math.isnan(entry.zero_gradient) else f"{entry.zero_gradient:.1%}"


def _text(entry: Cell | None, grid: Grid) -> str:
    if entry is None:
        return ""
    if entry.accuracy is None:
        return "not yet"
    partial = f" (n = {entry.accuracy.n})" if entry.accuracy.n != len(grid.seeds) else ""
    return f"{entry.accuracy}{partial}{'†' if entry.flagged else ''}"


def _notes(grid: Grid, dataset: str, shown: list[Cell]) -> tuple[str, ...]:
    images, seeds = max(entry.images for entry in shown), len(grid.seeds)
    over = "one seed, so without an interval" if seeds == 1 else f"mean and 95% t interval over {seeds} seeds"
    notes = [
        f"Data: {dataset}, {images} test images; {over}. FGSM, L-infinity, eps as a share of the pixel range; HR "
        "gradients are those of the per-example loss.",
        "torch's CE and clipped: the same attacks on the same networks in other numerics. The float32 gradient of "
        "torch.nn.CrossEntropyLoss loses the true class as the margin nears 17; that of a loss computed from "
        "probabilities clipped to [1e-7, 1 - 1e-7], as in Keras 2, is exactly 0 past a margin of about 16 (zero grad.: "
        "the share of such images). What these rows leave above sound is masking, not robustness.",
        "FGSM is a weak attack: these figures bound robust accuracy from above and are no evidence of robustness.",
    ]
    if any(entry.flagged for entry in shown):
        notes.append(
            f"† On more than {ZERO_GRADIENT_LIMIT:.1%} of the images the gradient is exactly 0, and the attack cannot "
            "move them: compare with the sound row, and do not quote alone."
        )
    return tuple(notes)


def cells(grid: Grid, store: Store) -> list[Cell]:
    """Every training loss on every data set under every attack of the grid."""
    return [
        cell(grid, store, dataset, trained, attack)
        for dataset, _ in grid.recipes
        for trained in grid.losses
        for attack in grid.attacks
    ]


def write(grid: Grid, store: Store, *, command: str) -> list[Path]:
    """
    Write the grid's tables as Markdown and CSV, and the records behind them, each file whole or not at all.

    :param grid: Says which tables there are.
    :param store: Holds the records, and takes the tables.
    :param command: What makes them, to stand under the tables.
    :return: The files.
    """
    folder = store.report_folder(grid.name)
    tables = [table_1(grid, store, dataset).markdown() for dataset, _ in grid.recipes]
    texts = {
        "table_1.md": "\n".join(tables) + f"\nMade by `{command}`\n",
        "table_1.csv": cell_frame(grid, store).to_csv(index=False, float_format="%.6g"),
        "records.csv": record_frame(grid, store).convert_dtypes().to_csv(index=False),
    }
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())
    return [folder / name for name in texts]


def cell_frame(grid: Grid, store: Store) -> pd.DataFrame:
    """One row per table entry."""
    return pd.DataFrame(
        {
            "dataset": entry.dataset,
            "trained": str(entry.trained),
            "attack": entry.attack.name,
            "attack_loss": entry.attack.loss,
            "eps": entry.attack.eps,
            "accuracy": entry.accuracy.mean if entry.accuracy else math.nan,
            "half_width_95": entry.accuracy.half_width if entry.accuracy else math.nan,
            "seeds": entry.accuracy.n if entry.accuracy else 0,
            "test_images": entry.images,
            "zero_gradient": entry.zero_gradient,
        }
        for entry in cells(grid, store)
    )


def record_frame(grid: Grid, store: Store) -> pd.DataFrame:
    """One row per evaluation that is there: how many of n test images are classified right."""
    return pd.DataFrame(
        {
            "dataset": run.dataset,
            "trained": str(run.loss),
            "seed": run.seed,
            "attack": attack.name,
            "attack_loss": attack.loss,
            "eps": attack.eps,
            **record,
        }
        for run in grid.runs()
        for attack in grid.attacks
        if (record := store.record(run, attack)) is not None
    )
