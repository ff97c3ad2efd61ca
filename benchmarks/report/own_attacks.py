"""Results -> accuracy under a user's own attacks, which no other table knows, as a table."""

from benchmarks.config import AttackSpec, Reference
from benchmarks.report.markup import Table
from benchmarks.report.notes import of_flags, over_seeds
from benchmarks.report.results import Results
from benchmarks.report.tables import cell_text


def own_attacks_table(results: Results, dataset: str) -> Table | None:
    """
    Test accuracy of each training loss under each attack of the user's own, below that without attack.

    :param results: What there is of a grid.
    :param dataset: One of its data sets.
    :return: None for a grid without such attacks.
    """
    attacks = [attack for attack in results.grid.attacks if attack.split == "test" and attack.name != "diagnostics"]
    own = [attack for attack in attacks if isinstance(attack.name, Reference)]
    if not own:
        return None
    images = {attack.images for attack in own}
    clean = [attack for attack in attacks if attack.name == "none" and attack.images in images]
    shown = [*clean, *sorted(own, key=lambda attack: attack.eps)]
    cells = {attack: [results.cell(dataset, loss, attack) for loss in results.grid.losses] for attack in shown}
    rows = tuple(
        (*_names(attack), str(row[0].images or ""), *(cell_text(cell, results.grid) for cell in row))
        for attack, row in cells.items()
    )
    names = dict.fromkeys(attack.name for attack in own if isinstance(attack.name, Reference))
    sources = [f"{name} (SHA-256 {name.code[:16]}...)" for name in names]
    every = [cell for row in cells.values() for cell in row]
    notes = (
        f"Data: {dataset}. {over_seeds(results.grid)} eps: the largest change of a pixel that an attack is held to; "
        "without it the attack has a bound of its own, or none.",
        f"The user's own attacks: {', '.join(sources)}.",
        *of_flags(every),
    )
    header = ("eps", "attack", "test images", *(f"{loss} trained" for loss in results.grid.losses))
    return Table(f"Own attacks on {dataset}: test accuracy", header, rows, notes)


def _names(attack: AttackSpec) -> tuple[str, str]:
    if not isinstance(attack.name, Reference):
        return "0", "no attack"
    eps = f"{attack.eps:g}" + (" of the input's units" if attack.units == "data" else "")
    label = attack.name.label + (f" by {attack.loss}" if attack.loss else "")
    return eps if attack.eps else "", label
