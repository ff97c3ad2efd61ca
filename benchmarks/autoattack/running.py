"""The command `autoattack`: evaluate each network by both methods, unless it is up to date, and write the tables."""

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
from benchmarks.protocols import eps_text
from benchmarks.store import Store, expect_writable, versions


def run(
    cases: Sequence[Case],
    evaluations: Sequence[Evaluation],
    store: Store,
    folder: Path,
    console: Console,
    *,
    data_dir: Path,
    command: str,
) -> int:
    """
    Evaluate the networks one after the other, and write the tables after each; results that are up to date are reused.

    :param cases: The networks.
    :param evaluations: The worst case, with each of its settings.
    :param store: The store of the trained runs; missing ones are trained into it.
    :param folder: The folder for the results and the tables.
    :param command: The command, for the head of the tables.
    :return: The exit status.
    :raises ConfigError: If AutoAttack's own code is not installed; this is checked before any training.
    :raises DataError: If a data set is missing; this is checked before any training.
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
        title = f"{number}/{len(cases)} {case.name}, eps {eps_text(case.eps)}, the first {case.images} images"
        started = time.perf_counter()
        if not store.is_trained(case.run):
            console.print(f"{title}: training {case.run}", soft_wrap=True)
        network, data = classifier(case, store, data_dir)
        console.print(f"{title}: network ready in {time.perf_counter() - started:.1f} s", soft_wrap=True)
        images, labels = (part[: case.images] for part in data.test.tensors(network.device))
        references = (Evaluation(AUTOATTACK, seed=evaluation.seed) for evaluation in evaluations)
        for evaluation in (*references, *evaluations):
            file = results.path(folder, case, evaluation)
            digest = fingerprint(evaluation, network, images, labels, case.eps, made_with)
            stored = results.load(file)
            if stored is not None and stored.fingerprint == digest:
                console.print(f"{title}: {_as_text(evaluation, stored.measured)}, done before", soft_wrap=True)
                continue
            measured = measure(evaluation, network, images, labels, case.eps)
            results.save(file, case, evaluation, digest, measured)
            console.print(f"{title}: {_as_text(evaluation, measured)}", soft_wrap=True)
        tables = results.write(folder, head)
    for table in tables:
        console.print(table.rich())
    console.print(f"Tables: {folder / 'autoattack.md'}; their values: the CSV files beside it", soft_wrap=True)
    return 0


def _made_with() -> str:
    known = versions() | {PACKAGE: metadata.version(PACKAGE)}
    return ", ".join(f"{name} {version}" for name, version in known.items())


def _as_text(evaluation: Evaluation, measured: Measured) -> str:
    cost = measured.cost
    robust = f"clean {measured.correct.mean():.3f}, robust {measured.robust.mean():.3f}"
    return f"{evaluation.method} ({evaluation}): {robust}, {cost.passes} passes, {cost.seconds:.1f} CPU seconds"
