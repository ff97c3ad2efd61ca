"""Trained networks to bounds on their robust accuracy, image by image; the store keeps each once it is finished."""

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.stats
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from rich.console import Console
from torch import nn

from art_hrloss import HRClassifier, ensemble, seeded, worst_case
from benchmarks import execution, grids
from benchmarks.certified.zonotopes import ZonotopeNetwork
from benchmarks.config import RunSpec
from benchmarks.data import Dataset
from benchmarks.evaluation import trained_classifier
from benchmarks.execution import Job, Outcome
from benchmarks.store import DamagedError, Store, StoreError, write_json
from benchmarks.store._atomic import expect_writable, read_json, set_aside

# By data set: the grids that have its CE- and HR-trained networks, and its adversarially trained one.
GRIDS = {
    "digits": (grids.digits, grids.hardening_digits),
    "mnist": (grids.mnist_long, grids.hardening_mnist),
}
# Of the published results: seeds, and test images.
SEEDS, IMAGES = {"digits": 5, "mnist": 2}, {"digits": 360, "mnist": 100}
EPS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
# Tried before all smaller eps: most images are certified at it, and so at those.
FIRST_EPS = 0.01
# In norm 2: radii of the attacks; standard deviations of the noise, of which a radius is certified up to 2.46 times.
RADII = {"digits": (0.1, 0.2, 0.3, 0.5, 0.7, 1.0), "mnist": (0.2, 0.4, 0.6, 0.8, 1.2, 2.0)}
SIGMAS = (0.25, 0.5)
# Of a smoothed classifier: samples to choose the class and to certify it, and the probability of a wrong certificate.
CHOOSING, SAMPLES, ALPHA = 100, 1000, 0.001
BATCH_SIZE = 250

Flags = npt.NDArray[np.bool_]
Kind = Literal["L-infinity", "L2", "smoothed"]


class BracketError(RuntimeError):
    """An attack that misclassifies a certified image: one of the two is wrong."""


@dataclass(frozen=True)
class Plan:
    """The measurements of each network."""

    dataset: str
    store: Path
    data_dir: Path
    seeds: int
    images: int
    """The first of the test images, for L-infinity."""
    smoothed_images: int
    """The same for norm 2."""
    max_iter: int
    """Steps of each white-box attack."""
    square_iter: int
    """Queries per image of the Square attack."""
    epochs: int | None = None
    """Of every network, in place of its recipe's."""

    @cached_property
    def runs(self) -> tuple[RunSpec, ...]:
        """The trainings, those of a seed together: CE, HR, and CE on adversarial images of Madry's training."""
        plain, hardened = (build() for build in GRIDS[self.dataset])
        madry = next(
            loss for loss in hardened.losses if loss.name == "ce" and getattr(loss.hardening, "name", "") == "madry"
        )
        pairs = [*((plain.recipes[0], loss) for loss in plain.losses), (hardened.recipes[0], madry)]
        changes: dict[str, Any] = {} if self.epochs is None else {"epochs": self.epochs}
        return tuple(
            RunSpec(dataset, replace(recipe, **changes), loss, seed)
            for seed in range(self.seeds)
            for (dataset, recipe), loss in pairs
        )

    @cached_property
    def chains(self) -> tuple[tuple["Step", ...], ...]:
        """The steps of each network: those of a chain need each other's results."""
        attacked = {"max_iter": self.max_iter, "square_iter": self.square_iter}
        along = {"L-infinity": (EPS, self.images), "L2": (RADII[self.dataset], self.smoothed_images)}
        growing = (
            tuple(Step(kind, sizes, images, **attacked) for sizes in accumulate((size,) for size in all_sizes))  # type: ignore[arg-type]
            for kind, (all_sizes, images) in along.items()
        )
        return (*growing, *((Step("smoothed", (sigma,), self.smoothed_images),) for sigma in SIGMAS))


@dataclass(frozen=True)
class Step:
    """One measurement of one network."""

    kind: Kind
    sizes: tuple[float, ...]
    """The radii up to this one, from the smallest; or the standard deviation of the noise."""
    images: int
    max_iter: int = 0
    square_iter: int = 0
    samples: tuple[int, int, float] = field(default=(CHOOSING, SAMPLES, ALPHA))

    @property
    def size(self) -> float:
        """Its own radius or standard deviation."""
        return self.sizes[-1]

    def path(self, store: Path, run: RunSpec) -> Path:
        """Return where its result is kept."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
        return store / "certified" / run.key() / f"{digest}.json"

    def __str__(self) -> str:
        return f"{self.kind} {self.size:g}"


def kept(step: Step, store: Path, run: RunSpec) -> dict[str, Any] | None:
    """Return a step's result, or None; one that is damaged is set aside."""
    path = step.path(store, run)
    try:
        result: dict[str, Any] | None = read_json(path, dict)
    except DamagedError:
        set_aside(path)
        return None
    return result


class Subject:
    """A trained network, and the images that its robust accuracy is bounded on."""

    def __init__(self, classifier: HRClassifier, data: Dataset) -> None:
        images, labels = data.test.tensors(classifier.device)
        self.classifier, self.images, self.labels = classifier, images, labels.cpu().numpy()

    def correct(self, images: int) -> Flags:
        """Return which of the first images are classified correctly as they are."""
        logits = self.classifier.predict_tensor(self.images[:images], batch_size=BATCH_SIZE)
        return np.asarray(logits.argmax(1).cpu().numpy() == self.labels[:images])

    def measured(self, step: Step, before: dict[str, Any] | None) -> dict[str, Any]:
        """
        Return a step's result: lists with an entry for each image, and seconds.

        :param before: The result at the next smaller radius, if there is one. What is misclassified there is here, and
               what is not certified there is not tried here.
        :raises BracketError: If an attack misclassifies an image that is certified.
        """
        correct = self.correct(step.images)
        if step.kind == "smoothed":
            begun = time.perf_counter()
            radius = self._smoothed_radius(step)
            return _plain({"correct": correct, "radius": radius, "seconds": time.perf_counter() - begun})
        certified, certifying = np.zeros(step.images, bool), {}
        if step.kind == "L-infinity":
            begun = time.perf_counter()
            reach, tried = self._reach(step, np.array(before["reach"]) if before else np.where(correct, 0.0, -1.0))
            certified, seconds = reach >= step.size, time.perf_counter() - begun
            certifying = {"certified": certified, "reach": reach, "tried": tried, "certifying_seconds": seconds}
        begun = time.perf_counter()
        robust = self._attacked(step, np.array(before["robust"]) if before else correct, certified)
        if (violated := np.flatnonzero(certified & ~robust)).size:
            raise BracketError(
                f"expected no adversarial example of a certified image, but got one within eps {step.size:g} of the "
                f"test images {violated.tolist()}: the certificate or the attack is wrong"
            )
        seconds = time.perf_counter() - begun
        return _plain({"correct": correct, "robust": robust, "seconds": seconds, **certifying})

    def _reach(self, step: Step, before: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], int]:
        """
        Return the largest eps that each image is certified at so far, and how many zonotopes that took.

        :param before: The same at the next smaller radius; -1 for images that are misclassified as they are.
        """
        reach, tried, network = before.copy(), 0, ZonotopeNetwork(self.classifier.model)
        least = step.sizes[-2] if len(step.sizes) > 1 else 0.0
        first = [FIRST_EPS] if len(step.sizes) == 1 and step.size < FIRST_EPS else []
        for eps in (*first, step.size):
            rows = np.flatnonzero((reach >= least) & (reach < step.size))
            certified = network.certified(self.images[rows].cpu(), self.labels[rows], eps)
            reach[rows[certified]] = eps
            tried += len(rows)
        return reach, tried

    def _attacked(self, step: Step, candidates: Flags, certified: Flags) -> Flags:
        """
        Return which of the candidates no attack misclassified.

        :param certified: Those that a few attacks are tried on, as a check: the whole ensemble would find nothing.
        """
        robust, norm = candidates.copy(), np.inf if step.kind == "L-infinity" else 2
        options: dict[str, Any] = {"eps": step.size, "norm": norm, "batch_size": BATCH_SIZE}
        # In norm 2 Square needs larger images than the digits.
        full: dict[str, Any] = {"square_iter": step.square_iter if step.kind == "L-infinity" else 0}
        few = {"square_iter": 0, "target_classes": 0}
        for of, strength in ((~certified, full), (certified, few)):
            if (rows := np.flatnonzero(candidates & of)).size:
                images, labels = self.images[rows].cpu().numpy(), self.labels[rows]
                attacks = ensemble(self.classifier, max_iter=step.max_iter, **strength, **options)
                result = worst_case(self.classifier, images, labels, attacks=attacks, verbose=False, **options)
                robust[rows] = result.robust
        return robust

    def _smoothed_radius(self, step: Step) -> npt.NDArray[np.float64]:
        """Return the radius in norm 2 that is certified for each image's label; -1 where it is not the class."""
        classifier = self.classifier
        choosing, samples, alpha = step.samples
        smoothed = _Smoothed(
            classifier.model,
            nn.CrossEntropyLoss(),
            input_shape=classifier.input_shape,
            nb_classes=classifier.nb_classes,
            device_type="gpu" if classifier.device.type == "cuda" else "cpu",
            sample_size=choosing,
            scale=step.size,
            alpha=alpha,
        )
        with seeded(0):
            images = self.images[: step.images].cpu().numpy()
            classes, radii = smoothed.certify(images, n=samples, batch_size=samples)
        return np.where(classes == self.labels[: step.images], radii, -1.0)


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result without arrays and NumPy's numbers, as JSON has it."""
    return {name: np.asarray(value).tolist() for name, value in result.items()}


class _Smoothed(PyTorchRandomizedSmoothing):
    """ART's, with Clopper and Pearson's lower bound from SciPy: ART's own wants statsmodels for it."""

    def _lower_confidence_bound(self, n_class_samples: int, n_total_samples: int) -> float:
        test = scipy.stats.binomtest(int(n_class_samples), n_total_samples, alternative="greater")
        return float(test.proportion_ci(1 - self.alpha, method="exact").low)


def measure(plan: Plan, run: RunSpec, chain: Sequence[Step]) -> None:
    """Do the steps of a chain that are not kept yet, with a line for each on the screen."""
    store = Store(plan.store)
    data = execution.load_data(run.dataset, run.recipe, data_dir=plan.data_dir)
    subject, before = Subject(trained_classifier(run, data, store), data), None
    with execution.threads(run.recipe.threads):
        for step in chain:
            begun, result = time.perf_counter(), kept(step, plan.store, run)
            if result is None:
                result = subject.measured(step, before)
                write_json(step.path(plan.store, run), result)
                shares: dict[str, Any] = {key: np.mean(result[key]) for key in ("certified", "robust") if key in result}
                shares |= {"of the right class": np.mean(np.array(result["radius"]) >= 0)} if "radius" in result else {}
                found = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
                # From a worker's process as from this one.
                print(f"{run}, {step}: {found} ({time.perf_counter() - begun:.0f} s)", flush=True)
            before = result


def measure_all(plan: Plan, workers: int, console: Console) -> None:
    """
    Train the networks that are missing, and measure what is not kept yet.

    :param workers: Processes.
    :raises StoreError: If a network cannot be trained.
    :raises BracketError: If an attack misclassifies an image that is certified.
    """
    expect_writable(plan.store)
    store = Store(plan.store)
    jobs = [Job(run, (), plan.store, plan.data_dir) for run in plan.runs if not store.is_done(run, ())]
    console.print(f"Networks: {len(plan.runs)}, of which {len(jobs)} are to be trained.")

    def trained(run: RunSpec, outcome: Outcome) -> None:
        console.print(f"{run}: {'trained' if outcome.error is None else outcome.error}", soft_wrap=True)

    if jobs and execution.run_all(jobs, partial(execution.local, workers), trained):
        raise StoreError(f"expected all networks trained in {plan.store}, but some failed: the lines above say why")
    chains = [(run, chain) for run in plan.runs for chain in plan.chains]
    left = [(run, chain) for run, chain in chains if any(kept(step, plan.store, run) is None for step in chain)]
    console.print(f"Measurements: {len(chains)}, of which {len(left)} are to be made.")
    with execution.local(workers) as executor:
        futures = (executor.submit(measure, plan, *chain) for chain in left)
        # In this process each is done as it is submitted.
        for i, future in enumerate(futures if workers == 1 else as_completed(list(futures)), start=1):
            future.result()
            console.print(f"{i}/{len(left)} done")
