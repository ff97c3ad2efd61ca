"""What `autoattack` does: each network under both evaluations, as far as that is missing, and the table."""

import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from rich.console import Console

from benchmarks.autoattack import results
from benchmarks.autoattack.measuring import (
    AUTOATTACK,
    PACKAGE,
    Evaluation,
    Measured,
    fingerprint,
    library,
    measure,
)
from benchmarks.autoattack.networks import Case, classifier
from benchmarks.execution import load_data
from benchmarks.store import Store, versions
from benchmarks.store._atomic import expect_writable


def run(
    cases: Sequence[Case],
    ours: Sequence[Evaluation],
    store: Store,
    folder: Path,
    console: Console,
    *,
    data_dir: Path,
    command: str,
) -> int:
    """
    Measure what is missing, network by network, and write the table after each.

    :param cases: The networks.
    :param ours: The worst case, with each of its settings.
    :param store: Of the trained runs; missing ones are trained into it.
    :param folder: For the results and the table.
    :param command: The command, to stand in the table.
    :return: The exit status.
    :raises ConfigError: If AutoAttack's own code is not installed, before anything is trained.
    :raises DataError: If a data set is not there, before anything is trained.
    :raises StoreError: If the folder or the store cannot be written, or a run or a result cannot be used.
    """
    library()
    expect_writable(folder)
    expect_writable(store.root)
    for dataset, recipe in {case.run.dataset: case.run.recipe for case in cases}.items():
        load_data(dataset, recipe, data_dir=data_dir)
    made_with = _made_with()
    head = [f"Made by `{command}`.", f"Versions: {made_with}."]
    tables = []
    for number, case in enumerate(cases, start=1):
        title = f"{number}/{len(cases)} {case.name}, eps {case.eps:.3g}, the first {case.images} images"
        begun = time.perf_counter()
        if not store.is_trained(case.run):
            console.print(f"{title}: training {case.run}", soft_wrap=True)
        network, data = classifier(case, store, data_dir)
        console.print(f"{title}: network ready in {time.perf_counter() - begun:.1f} s", soft_wrap=True)
        images, labels = (part[: case.images] for part in data.test.tensors(network.device))
        theirs = (Evaluation(AUTOATTACK, seed=evaluation.seed) for evaluation in ours)
        for evaluation in (*theirs, *ours):
            file = results.path(folder, case, evaluation)
            digest = fingerprint(evaluation, network, images, labels, case.eps, made_with)
            kept = results.load(file)
            if kept is not None and kept.fingerprint == digest:
                console.print(f"{title}: {_shown(evaluation, kept.measured)}, done before", soft_wrap=True)
                continue
            measured = measure(evaluation, network, images, labels, case.eps)
            results.save(file, case, evaluation, digest, measured)
            console.print(f"{title}: {_shown(evaluation, measured)}", soft_wrap=True)
        tables = results.write(folder, head)
    for table in tables:
        console.print(table.rich())
    console.print(f"Tables: {folder / 'autoattack.md'}, and the values beside it", soft_wrap=True)
    return 0


def _made_with() -> str:
    known = versions() | {PACKAGE: metadata.version(PACKAGE)}
    return ", ".join(f"{name} {version}" for name, version in known.items())


def _shown(evaluation: Evaluation, measured: Measured) -> str:
    cost = measured.cost
    robust = f"clean {measured.correct.mean():.3f}, robust {measured.robust.mean():.3f}"
    return f"{evaluation.method} ({evaluation}): {robust}, {cost.passes} passes, {cost.seconds:.1f} CPU seconds"
