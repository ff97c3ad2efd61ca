"""Implementation of `certify`: computes missing bounds on robust accuracy, and writes their table and figure."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from benchmarks.certified import measuring, publishing
from benchmarks.cli._grid_options import expect_at_least
from benchmarks.config import ConfigError
from benchmarks.execution import available_cpus, load_data
from benchmarks.store import expect_writable

if TYPE_CHECKING:
    from benchmarks.cli._commands import Certify


def certify(options: "Certify", console: Console) -> int:
    """Compute the missing bounds, write table and figure, and return the exit status."""
    expect_at_least(options, 1, "seeds", "images", "smoothed_images", "max_iter", "epochs", "workers")
    expect_at_least(options, 0, "square_iter")
    store, output, data_dir = (
        Path(os.path.expanduser(folder)).absolute() for folder in (options.store, options.output, options.data_dir)
    )
    plan = measuring.Plan(
        options.dataset,
        store,
        data_dir,
        seeds=options.seeds or measuring.SEEDS[options.dataset],
        images=options.images or measuring.IMAGES[options.dataset],
        smoothed_images=options.smoothed_images,
        max_iter=options.max_iter,
        square_iter=options.square_iter,
        epochs=options.epochs,
    )
    available = len(load_data(plan.dataset, plan.runs[0].recipe, data_dir=data_dir).test)
    if (images := max(plan.images, plan.smoothed_images)) > available:
        raise ConfigError(f"expected at most {available} images, the test images of {plan.dataset}, but got {images}")
    expect_writable(output)
    measuring.measure_all(plan, options.workers or available_cpus(), console)
    tables, files = publishing.write(plan, output, options.command)
    for table in tables:
        console.print(table.rich())
    console.print(f"Files: {', '.join(map(str, files))}", soft_wrap=True)
    return 0
