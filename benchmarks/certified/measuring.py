"""Bounds on the robust accuracy of trained networks, for each image; every finished measurement is stored."""

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
from benchmarks.store import DamagedError, Store, StoreError, expect_writable, read_json, write_json
from benchmarks.store._atomic import set_aside

# The grids of the CE- and HR-trained networks, and of the adversarially trained one, by data set.
GRIDS = {
    "digits": (grids.digits, grids.hardening_digits),
    "mnist": (grids.mnist_long, grids.hardening_mnist),
}
# Seeds and test images of the published results.
SEEDS, IMAGES = {"digits": 5, "mnist": 2}, {"digits": 360, "mnist": 100}
EPS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
# This eps is tried before all smaller ones: most images are certified at it, and then also at every smaller eps.
FIRST_EPS = 0.01
# Norm 2: radii of the attacks, and standard deviations of the noise of smoothed classifiers. With SAMPLES and ALPHA,
# randomized smoothing cannot certify a radius above 2.46 times the standard deviation.
RADII = {"digits": (0.1, 0.2, 0.3, 0.5, 0.7, 1.0), "mnist": (0.2, 0.4, 0.6, 0.8, 1.2, 2.0)}
SIGMAS = (0.25, 0.5)
# A smoothed classifier: samples to choose the class and to certify it, and the probability of a wrong certificate.
CHOOSING, SAMPLES, ALPHA = 100, 1000, 0.001
BATCH_SIZE = 250

Flags = npt.NDArray[np.bool_]
Kind = Literal["L-infinity", "L2", "smoothed"]


class BracketError(RuntimeError):
    """Adversarial example of a certified image, which means that the certificate or the attack is wrong."""


@dataclass(frozen=True)
class Plan:
    """Networks and measurements of the command `certify`."""

    dataset: str
    store: Path
    data_dir: Path
    seeds: int
    images: int
    """Number of test images for L-infinity, counted from the first."""
    smoothed_images: int
    """Number of test images for norm 2, counted from the first."""
    max_iter: int
    """Steps of each white-box attack."""
    square_iter: int
    """Queries per image of the Square attack."""
    epochs: int | None = None
    """Training epochs of every network; None for those of its recipe."""

    @cached_property
    def runs(self) -> tuple[RunSpec, ...]:
        """The training runs, seed by seed: CE, HR, and CE with Madry's adversarial training."""
        plain, defended = (build() for build in GRIDS[self.dataset])
        madry = next(
            loss for loss in defended.losses if loss.name == "ce" and getattr(loss.hardening, "name", "") == "madry"
        )
        pairs = [*((plain.recipes[0], loss) for loss in plain.losses), (defended.recipes[0], madry)]
        changes: dict[str, Any] = {} if self.epochs is None else {"epochs": self.epochs}
        return tuple(
            RunSpec(dataset, replace(recipe, **changes), loss, seed)
            for seed in range(self.seeds)
            for (dataset, recipe), loss in pairs
        )

    @cached_property
    def chains(self) -> tuple[tuple["Step", ...], ...]:
        """The steps of each network, in chains: a step needs the result of the step before it in its chain."""
        settings = {"max_iter": self.max_iter, "square_iter": self.square_iter}
        by_kind = {"L-infinity": (EPS, self.images), "L2": (RADII[self.dataset], self.smoothed_images)}
        by_radius = (
            tuple(Step(kind, sizes, images, **settings) for sizes in accumulate((size,) for size in all_sizes))  # type: ignore[arg-type]
            for kind, (all_sizes, images) in by_kind.items()
        )
        return (*by_radius, *((Step("smoothed", (sigma,), self.smoothed_images),) for sigma in SIGMAS))


@dataclass(frozen=True)
class Step:
    """Measurement of one network at one radius or standard deviation."""

    kind: Kind
    sizes: tuple[float, ...]
    """All radii from the smallest to that of this step; or the standard deviation of the noise."""
    images: int
    max_iter: int = 0
    square_iter: int = 0
    samples: tuple[int, int, float] = field(default=(CHOOSING, SAMPLES, ALPHA))

    @property
    def size(self) -> float:
        """The radius or the standard deviation of this step."""
        return self.sizes[-1]

    def path(self, store: Path, run: RunSpec) -> Path:
        """Return the path of its result in a store."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
        return store / "certified" / run.key() / f"{digest}.json"

    def __str__(self) -> str:
        return f"{self.kind} {self.size:g}"


def stored(step: Step, store: Path, run: RunSpec) -> dict[str, Any] | None:
    """Return a step's stored result, or None if there is none; a damaged file is renamed and counted as missing."""
    path = step.path(store, run)
    try:
        result: dict[str, Any] | None = read_json(path, dict)
    except DamagedError:
        set_aside(path)
        return None
    return result


class Subject:
    """Trained network, with the images on which its robust accuracy is bounded."""

    def __init__(self, classifier: HRClassifier, data: Dataset) -> None:
        images, labels = data.test.tensors(classifier.device)
        self.classifier, self.images, self.labels = classifier, images, labels.cpu().numpy()

    def correct(self, images: int) -> Flags:
        """Return, for each of the first images, whether it is classified correctly without attack."""
        logits = self.classifier.predict_tensor(self.images[:images], batch_size=BATCH_SIZE)
        return np.asarray(logits.argmax(1).cpu().numpy() == self.labels[:images])

    def measured(self, step: Step, previous: dict[str, Any] | None) -> dict[str, Any]:
        """
        Return a step's result: lists with an entry per image, and seconds.

        :param previous: The result at the next smaller radius, if there is one. Images misclassified there count as
            misclassified in this step, and images not certified there are not tried again.
        :raises BracketError: If an attack misclassifies an image that is certified.
        """
        correct = self.correct(step.images)
        if step.kind == "smoothed":
            started = time.perf_counter()
            radius = self._smoothed_radius(step)
            return _plain({"correct": correct, "radius": radius, "seconds": time.perf_counter() - started})
        certified, certifying = np.zeros(step.images, bool), {}
        if step.kind == "L-infinity":
            started = time.perf_counter()
            reach, tried = self._reach(step, np.array(previous["reach"]) if previous else np.where(correct, 0.0, -1.0))
            certified, seconds = reach >= step.size, time.perf_counter() - started
            certifying = {"certified": certified, "reach": reach, "tried": tried, "certifying_seconds": seconds}
        started = time.perf_counter()
        robust = self._attacked(step, np.array(previous["robust"]) if previous else correct, certified)
        if (violated := np.flatnonzero(certified & ~robust)).size:
            raise BracketError(
                f"expected no adversarial example of a certified image, but got one within eps {step.size:g} of the "
                f"test images {violated.tolist()}: the certificate or the attack is wrong"
            )
        seconds = time.perf_counter() - started
        return _plain({"correct": correct, "robust": robust, "seconds": seconds, **certifying})

    def _reach(self, step: Step, previous: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], int]:
        """
        Return the largest eps at which each image is certified so far, and the number of zonotopes that were computed.

        :param previous: These eps after the step before; -1 for images that are misclassified without attack.
        """
        reach, tried, network = previous.copy(), 0, ZonotopeNetwork(self.classifier.model)
        # Certificates are monotonic: only images that were certified at the step before are tried.
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
        Return, for each image, whether it is a candidate that no attack misclassifies.

        :param certified: True for certified images. Only a few attacks are run on them, as a check of the certificates:
            no attack can succeed.
        """
        robust, norm = candidates.copy(), np.inf if step.kind == "L-infinity" else 2
        options: dict[str, Any] = {"eps": step.size, "norm": norm, "batch_size": BATCH_SIZE}
        # Square in norm 2 does not support images as small as the digits.
        full: dict[str, Any] = {"square_iter": step.square_iter if step.kind == "L-infinity" else 0}
        few = {"square_iter": 0, "target_classes": 0}
        for group, strength in ((~certified, full), (certified, few)):
            if (rows := np.flatnonzero(candidates & group)).size:
                images, labels = self.images[rows].cpu().numpy(), self.labels[rows]
                attacks = ensemble(self.classifier, max_iter=step.max_iter, **strength, **options)
                result = worst_case(self.classifier, images, labels, attacks=attacks, verbose=False, **options)
                robust[rows] = result.robust
        return robust

    def _smoothed_radius(self, step: Step) -> npt.NDArray[np.float64]:
        """Return the certified radius in norm 2 of each image; -1 if the smoothed classifier returns another label."""
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
    """Return a result with lists and Python's numbers in place of NumPy's, for JSON."""
    return {name: np.asarray(value).tolist() for name, value in result.items()}


class _Smoothed(PyTorchRandomizedSmoothing):
    """Randomized smoothing of ART with the Clopper-Pearson bound of SciPy, for which ART itself needs statsmodels."""

    def _lower_confidence_bound(self, n_class_samples: int, n_total_samples: int) -> float:
        test = scipy.stats.binomtest(int(n_class_samples), n_total_samples, alternative="greater")
        return float(test.proportion_ci(1 - self.alpha, method="exact").low)


def measure(plan: Plan, run: RunSpec, chain: Sequence[Step]) -> None:
    """Measure the steps of a chain that are not stored yet, and print a line for each."""
    store = Store(plan.store)
    data = execution.load_data(run.dataset, run.recipe, data_dir=plan.data_dir)
    subject, previous = Subject(trained_classifier(run, data, store), data), None
    with execution.threads(run.recipe.threads):
        for step in chain:
            started, result = time.perf_counter(), stored(step, plan.store, run)
            if result is None:
                result = subject.measured(step, previous)
                write_json(step.path(plan.store, run), result)
                shares: dict[str, Any] = {key: np.mean(result[key]) for key in ("certified", "robust") if key in result}
                shares |= {"correct label": np.mean(np.array(result["radius"]) >= 0)} if "radius" in result else {}
                text = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
                # print, not the console of the command: this may run in the process of a worker.
                print(f"{run}, {step}: {text} ({time.perf_counter() - started:.0f} s)", flush=True)
            previous = result


def measure_all(plan: Plan, workers: int, console: Console) -> None:
    """
    Train the networks that are missing, and run the measurements that are not stored yet.

    :param workers: Number of processes.
    :raises StoreError: If a network cannot be trained.
    :raises BracketError: If an attack misclassifies an image that is certified.
    """
    expect_writable(plan.store)
    store = Store(plan.store)
    jobs = [Job(run, (), plan.store, plan.data_dir) for run in plan.runs if not store.is_done(run, ())]
    console.print(f"Networks: {len(plan.runs)}; still to train: {len(jobs)}.")

    def trained(run: RunSpec, outcome: Outcome) -> None:
        console.print(f"{run}: {'trained' if outcome.error is None else outcome.error}", soft_wrap=True)

    if jobs and execution.run_all(jobs, partial(execution.local, workers), trained):
        raise StoreError(f"expected all networks trained in {plan.store}, but some failed: see the errors above")
    chains = [(run, chain) for run in plan.runs for chain in plan.chains]
    missing = [(run, chain) for run, chain in chains if any(stored(step, plan.store, run) is None for step in chain)]
    console.print(f"Measurements: {len(chains)}; still to run: {len(missing)}.")
    with execution.local(workers) as executor:
        futures = (executor.submit(measure, plan, *chain) for chain in missing)
        # With a single worker a call runs in this process at its submission: a list would delay all reports to the end.
        for i, future in enumerate(futures if workers == 1 else as_completed(list(futures)), start=1):
            future.result()
            console.print(f"{i}/{len(missing)} done")
