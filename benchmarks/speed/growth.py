"""Part "growth": how the cost of the loss and of the attacks grows with classes, batch, image size and steps."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

import art_hrloss.attacks
from art_hrloss import HRClassifier, HRLoss, seeded
from benchmarks.execution import threads
from benchmarks.report.markup import Table
from benchmarks.speed import attacks, losses
from benchmarks.speed.cases import (
    HOW,
    RATIO,
    SECONDS,
    Case,
    Findings,
    Part,
    Reading,
    Settings,
    remarks,
    shown,
    timed_readings,
)
from benchmarks.speed.growth_figure import growth_figure
from benchmarks.speed.subjects import AttackKind, Subject, resnet_for, subjects
from benchmarks.speed.timing import Call, interleaved

CLASSES, BATCHES = (10, 30, 100, 300, 1000, 3000, 10_000, 50_000), (16, 64, 256, 1024, 4096, 8192)
SIDES, STEPS = (16, 24, 32, 48, 64), (1, 3, 10, 30, 100)
QUICK_CLASSES, QUICK_BATCHES, QUICK_SIDES, QUICK_STEPS = (10, 100), (16, 64), (8, 16), (1, 3)
BY_CLASSES = "classes (batch 128)"
BY_BATCH = "batch (10 classes)"
BY_SIDE = "pixels of a side (PGD-3 on ResNet-8, 32 images)"
BY_STEPS = "steps (PGD on LeNet, one batch)"
OURS, HAND = attacks.OURS["HR"], attacks.HAND["HR"]
AGAINST = {losses.HR: losses.CE, OURS: HAND}
NOTES = (
    "On the CPU with one thread. Classes and batch: forward and backward of the loss alone, float32, eager. Sides and "
    "steps: the attack of art_hrloss.attacks with the HR loss beside the loop by hand. Ratios are to cross-entropy, "
    "or to the loop by hand.",
    HOW,
)


def _measure(case: str, x: float, calls: Mapping[str, Call], settings: Settings, note: str = "") -> list[Reading]:
    with threads(1), seeded(0):
        times = interleaved(
            calls,
            device=torch.device("cpu"),
            rounds=3 if settings.quick else 15,
            seconds=settings.seconds / 5,
            sample=0.001 if settings.quick else 0.005,
        )
    against = {name: (other,) for name, other in AGAINST.items() if name in calls}
    return timed_readings(case, times, against, x=x, note=note)


def _loss(case: str, size: tuple[int, int], settings: Settings) -> list[Reading]:
    logits, target = losses.example(size, torch.device("cpu"))
    eager = losses.eager()
    calls = {name: losses.step(eager[name], logits, target) for name in (losses.CE, losses.HR)}
    return _measure(case, float(size[1] if case == BY_CLASSES else size[0]), calls, settings)


def _attack(case: str, x: float, kind: AttackKind, subject: Callable[[], Subject], settings: Settings) -> list[Reading]:
    made = subject()
    network, shape = made.on(torch.device("cpu")), made.images.shape[1:]
    classifier = HRClassifier(network, HRLoss(), shape, made.classes, clip_values=(0.0, 1.0), device_type="cpu")
    ours = partial(attacks.generate, attacks.build(art_hrloss.attacks, kind, classifier, made))
    hand = attacks.by_hand(kind, network, made, HRLoss(reduction="none"))
    calls = {OURS: partial(attacks.seeded, ours, made), HAND: partial(attacks.seeded, hand, made)}
    return _measure(case, x, calls, settings, made.note)


def cases(settings: Settings) -> list[Case]:
    """Every point of every panel."""
    quick = settings.quick
    lenet = subjects(settings)[0]
    found = [
        Case(f"{classes} classes", partial(_loss, BY_CLASSES, (128, classes), settings))
        for classes in (QUICK_CLASSES if quick else CLASSES)
    ]
    found += [
        Case(f"batch {batch}", partial(_loss, BY_BATCH, (batch, 10), settings))
        for batch in (QUICK_BATCHES if quick else BATCHES)
    ]
    found += [
        Case(
            f"{side} x {side} pixels",
            partial(_attack, BY_SIDE, side, AttackKind("PGD", 3), partial(resnet_for, side), settings),
        )
        for side in (QUICK_SIDES if quick else SIDES)
    ]
    return found + [
        Case(f"{steps} steps", partial(_attack, BY_STEPS, steps, AttackKind("PGD", steps), lambda: lenet, settings))
        for steps in (QUICK_STEPS if quick else STEPS)
    ]


def findings(readings: Sequence[Reading]) -> Findings:
    """One table, a section per panel, and one figure of four panels."""
    ratios = {(r.case, r.x, r.contender): r for r in readings if r.quantity == RATIO}
    rows, panel = [], ""
    for reading in (r for r in readings if r.quantity == SECONDS):
        beside = shown(ratios.get((reading.case, reading.x, reading.contender)))
        first = "" if reading.case == panel else reading.case
        panel = reading.case
        rows.append((first, f"{reading.x:g}", reading.contender, shown(reading, 1e3), beside))
    header = ("what grows", "to", "contender", "ms", "ratio")
    return Findings(
        [Table("How cost grows", header, tuple(rows), (*remarks(readings), *NOTES))], [growth_figure(readings)]
    )


GROWTH = Part("growth", 2, cases, findings)
