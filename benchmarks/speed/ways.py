"""Part "ways": time of a training step of several networks, by each way of training them together."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from benchmarks.config import RunSpec
from benchmarks.data import Dataset, Split
from benchmarks.protocols import CE, HR
from benchmarks.recipes import CIFAR10, MNIST
from benchmarks.report.markup import Table
from benchmarks.speed.measuring import (
    RATIO,
    SECONDS,
    Reading,
    Settings,
    at,
    entry,
    interleaved,
    reading,
    rounds,
    tabulated,
    timed_readings,
)
from benchmarks.speed.subjects import LENET, RESNET
from benchmarks.training import Branches, Products, Recorded, Training, tf32

# A function that trains networks of one recipe for an epoch; its argument counts epochs from 0.
Epoch = Callable[[int], object]
BY_TURNS, BRANCHES, PRODUCTS = "one after the other", "branches of a graph", "batched products"
RECIPES = {LENET: (MNIST, (1, 28, 28)), RESNET: (CIFAR10, (3, 32, 32))}
# Steps of an epoch that is timed.
STEPS = 20
NOTES = (
    "A step trains each network on its own batch of noise: 100 images for LeNet and 128 for ResNet-8, by the recipes "
    "of the paper's grids, half of the networks with each loss. One thread of the CPU, or the GPU if it is named. "
    f"Timed is an epoch of {STEPS} steps with all its work except validation and files. / {BY_TURNS}: the time divided "
    "by that of training the networks one after the other.",
)


def by_turns(trainings: Sequence[Training]) -> Epoch:
    """Return a function that trains the networks one after the other."""
    return lambda epoch: [training.epoch(epoch) for training in trainings]


def recorded(way: type[Branches | Products], trainings: Sequence[Training]) -> Epoch:
    """Return a function that trains networks together, in recorded steps."""
    return Recorded(trainings, ways=(way,)).epoch


def ways(training: Training) -> dict[str, Callable[[Sequence[Training]], Epoch]]:
    """Return the ways that support a network, by name: functions from untrained networks to one that trains them."""
    by_name: dict[str, Callable[[Sequence[Training]], Epoch]] = {BY_TURNS: by_turns}
    kinds: dict[str, type[Branches | Products]] = {BRANCHES: Branches, PRODUCTS: Products}
    for name, way in kinds.items():
        if training.device.type == "cuda" and way.fits(training):  # both need CUDA's streams and graphs
            by_name[name] = partial(recorded, way)
    return by_name


def trainings(architecture: str, number: int, settings: Settings) -> list[Training]:
    """Return networks with training images of noise, as many as the steps of a timed epoch need."""
    recipe, shape = RECIPES[architecture]
    recipe = replace(recipe, device=settings.device_name, batch_size=8 if settings.quick else recipe.batch_size)
    generator = np.random.default_rng(0)

    def noise(count: int) -> Split:
        return Split(generator.integers(0, 256, (count, *shape), np.uint8), generator.integers(0, 10, count))

    steps = 2 if settings.quick else STEPS
    data = Dataset("noise", 10, noise(steps * recipe.batch_size), noise(100), noise(100))
    return [Training(RunSpec("noise", recipe, HR if i % 2 else CE, seed=i // 2), data) for i in range(number)]


def measure(architecture: str, number: int, in_tf32: bool, settings: Settings) -> list[Reading]:
    """Return the time of a step in each way, and its ratio to that of the networks one after the other."""
    case = f"{architecture}, {number} networks"
    if settings.device.type == "cuda":
        case += ", TF32" if in_tf32 else ", float32"
    case, readings, epochs = at(case, settings.device), [], dict[str, Epoch]()
    with tf32(in_tf32):
        for name, way in ways(trainings(architecture, 1, settings)[0]).items():
            try:
                epoch = way(trainings(architecture, number, settings))
                epoch(0)  # compiles and records the steps that the timed epochs repeat
            except Exception as error:  # the other ways are still timed
                message = f"fails: {type(error).__name__}: {error}".splitlines()[0]
                readings.append(reading(case, name, SECONDS, (), note=message))
            else:
                epochs[name] = epoch
        times = interleaved(epochs, settings, rounds=20, share=1 / 4, warm=False)
    steps = 2 if settings.quick else STEPS
    each = {name: [seconds / steps for seconds in taken] for name, taken in times.items()}
    return readings + timed_readings(case, each, dict.fromkeys((BRANCHES, PRODUCTS), (BY_TURNS,)))


def cases(settings: Settings) -> dict[str, Callable[[], list[Reading]]]:
    """Return the measurements of two and ten networks of both architectures; on a GPU in TF32 and in float32."""
    return {
        f"{number} networks, {architecture}, {'TF32' if in_tf32 else 'float32'} ({settings.device.type})": partial(
            measure, architecture, number, in_tf32, settings
        )
        for architecture in RECIPES
        for number in ((2,) if settings.quick else (10, 2))
        for in_tf32 in ((True, False) if settings.device.type == "cuda" else (False,))
    }


def tables(readings: pd.DataFrame) -> list[Table]:
    """Return one table, with a section per architecture, number of networks and precision."""
    entries = {"ms per step": entry(SECONDS, factor=1e3), f"/ {BY_TURNS}": entry(RATIO), "rounds": rounds}
    return [tabulated("Ways of training several networks", readings, ("networks", "way"), entries, NOTES)]
