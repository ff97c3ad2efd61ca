"""Runs that are trained together give the same results as runs that are trained alone."""

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from testing.graphs import StandIn
from testing.killed import KilledError, StoreKilledAfter

from art_hrloss.attacks._constraints import margins
from benchmarks import grids, protocols
from benchmarks.config import AttackSpec, Hardening, LossSpec, Recipe, RunSpec
from benchmarks.data import Dataset
from benchmarks.evaluation import trained_classifier
from benchmarks.execution import InProcess, Job, Outcome, grouped, load_data, run_all
from benchmarks.execution import _jobs as runner
from benchmarks.report.results import load
from benchmarks.store import Store, StoreError
from benchmarks.training import Recorded, train, train_together
from benchmarks.training import _loop as training
from benchmarks.training import _train as module
from benchmarks.training._vectorized import Branches, Products

CE, HR = LossSpec("ce"), LossSpec("hr", 1.6)
# The last batch has 20 images. The learning rates are exact in float32, the type in which a GPU receives them.
RECIPE = Recipe(model="small-cnn", epochs=1, batch_size=50, lr=0.125, validation_size=180)
ADAM = {"lr": 2**-10, "optimizer": "adam"}
KINDS = [
    pytest.param({}, id="sgd"),
    pytest.param({"momentum": 0.9, "l2": 1e-3}, id="momentum"),
    pytest.param(ADAM | {"l2": 1e-3}, id="adam"),
    pytest.param({"lr": 2**-7, "model": "resnet", "subtract_pixel_mean": True}, id="resnet"),
    pytest.param({"lr": 2**-13, "model": "resnet", "input_scale": 255.0}, id="scaled"),
    pytest.param(ADAM | {"model": "resnet", "subtract_pixel_mean": True}, id="resnet adam"),
]


def runs_of(*losses: LossSpec, seeds: int = 2, **changes) -> list[RunSpec]:
    return [RunSpec("digits", replace(RECIPE, **changes), loss, seed) for seed in range(seeds) for loss in losses]


def opened(store: Store, runs: list[RunSpec]) -> Store:
    """Return the store with the runs' folders, which exist before a run is trained."""
    for run in runs:
        store.lock(run)
    return store


def alone(runs: list[RunSpec], few: Dataset, root: Path) -> Store:
    for run in runs:
        train(run, few, Store(root))
    return Store(root)


def together(runs: list[RunSpec], few: Dataset, root: Path) -> Store:
    assert train_together(runs, few, opened(Store(root), runs)) == {}
    return Store(root)


def expect_equal_results(runs: list[RunSpec], one: Store, other: Store, *, within: float) -> None:
    """Check that curves and weights are equal, within a share of each array's largest value."""
    for run in runs:
        for row, expected in zip(one.curve(run), other.curve(run), strict=True):
            assert row.keys() == expected.keys()
            assert (row["epoch"], row["lr"]) == (expected["epoch"], expected["lr"])
            assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=within, abs=within)
            for name in ("train_accuracy", "validation_accuracy"):
                assert row[name] == pytest.approx(expected[name], abs=0.009)  # one image may change its class
        weights, expected = one.load_checkpoint(run), other.load_checkpoint(run)
        assert weights.keys() == expected.keys()
        for name, tensor in weights.items():
            scale = max(1.0, float(expected[name].double().abs().max()))
            difference = float((tensor - expected[name]).abs().max())
            assert difference <= within * scale, (str(run), name, difference, scale)


@pytest.fixture
def recorded(monkeypatch) -> StandIn:
    """Train runs as on a GPU: in recorded steps, with asynchronous writes of states."""
    gpu, state_writer = StandIn(), module._state_writer
    monkeypatch.setattr(module, "epoch_function", lambda trainings, _: Recorded(trainings, gpu=gpu).epoch)
    monkeypatch.setattr(module, "_state_writer", lambda store, asynchronous: state_writer(store, asynchronous=True))
    return gpu


def test_on_the_cpu_runs_have_the_same_bits_together_and_alone(few: Dataset, tmp_path: Path) -> None:
    curve = {"curve_every": 2, "curve_attacks": (AttackSpec("fgm", "ce", 0.1),)}
    runs = runs_of(CE, HR, LossSpec("hr", 1.6, hardening=Hardening("noise", 0.1)), epochs=3, momentum=0.5, **curve)
    expected = alone(runs, few, tmp_path / "alone")
    with pytest.raises(KilledError):  # the first run has two epochs, the others have one
        train_together(runs, few, StoreKilledAfter(tmp_path / "together", 2))
    expect_equal_results(runs, together(runs, few, tmp_path / "together"), expected, within=0.0)


@pytest.mark.parametrize("way", [Branches, Products])
@pytest.mark.parametrize("changes", KINDS)
def test_in_float64_a_recorded_epoch_equals_an_epoch_of_networks_alone(few: Dataset, changes: dict, way: type) -> None:
    runs = runs_of(CE, HR, LossSpec("hr", 2.0, label_smoothing=0.1), **changes, lr_drops=((1, 0.125),))
    recipe = runs[0].recipe
    alone, recorded = ([in_float64(run, few) for run in runs] for _ in range(2))
    if not way.fits(alone[0]):
        pytest.skip("a way for LeNets and plain SGD alone")
    gpu = StandIn()
    steps = Recorded(recorded, ways=(way,), gpu=gpu)
    # Adam divides a gradient by its size plus 1e-8. A rounding error of 1e-14 may become 1e-6 of a step.
    within = 1e-6 * recipe.lr if recipe.optimizer == "adam" else 1e-12
    for epoch in (0, 1):  # the second epoch has another learning rate
        rows = steps.epoch(epoch)
        for one, other, row in zip(alone, recorded, rows, strict=True):
            assert row == pytest.approx(one.epoch(epoch), rel=1e-11)
            for name, tensor in one.model.state_dict().items():
                torch.testing.assert_close(other.model.state_dict()[name], tensor, rtol=1e-11, atol=within)
    assert gpu.recordings == 2, "one recording for each size of batch, and no new ones in the second epoch"


def in_float64(run: RunSpec, data: Dataset) -> training.Training:
    """Return a run in training with float64 arithmetic."""
    one = training.Training(run, data)
    one.model.double()
    one.optimizer = training.build_optimizer(run.recipe, one.model)
    images, labels = data.train.tensors(one.device)
    one.train = images.double(), labels
    return one


@pytest.mark.parametrize("changes", KINDS)
def test_recorded_float32_steps_differ_by_rounding_only(few: Dataset, changes: dict) -> None:
    """The distance to float64 is that of a run alone up to a factor, because sums have another order."""
    runs = runs_of(CE, HR, **changes)
    exact, alone, recorded = (
        [in_float64(run, few) for run in runs],
        *([training.Training(run, few) for run in runs] for _ in range(2)),
    )
    way = Products if Products.fits(recorded[0]) else Branches
    Recorded(recorded, ways=(way,), gpu=StandIn()).epoch(0)
    for true, one, other in zip(exact, alone, recorded, strict=True):
        for each in (true, one):
            each.epoch(0)
        truth = torch.cat([p.detach().flatten() for p in true.model.parameters()])
        strays = [
            float((torch.cat([p.detach().flatten() for p in each.model.parameters()]).double() - truth).norm())
            for each in (one, other)
        ]
        assert strays[1] <= 3 * strays[0]


def test_the_kind_of_step_is_chosen_by_timing_and_the_trials_change_no_state(few: Dataset) -> None:
    runs = runs_of(CE, HR)
    tried, fresh = ([training.Training(run, few) for run in runs] for _ in range(2))
    steps = Recorded(tried, gpu=StandIn())
    assert steps.seconds.keys() == {"branches", "products"}
    assert steps.way == min(steps.seconds, key=lambda way: steps.seconds[way])
    assert not Recorded([training.Training(run, few) for run in runs_of(CE, momentum=0.9)], gpu=StandIn()).seconds
    for one, other in zip(tried, fresh, strict=True):
        assert all(map(torch.equal, one.model.state_dict().values(), other.model.state_dict().values()))
        assert torch.equal(one.order.get_state(), other.order.get_state())


@pytest.mark.parametrize("changes", [KINDS[1], KINDS[5]])
def test_a_resumed_recorded_run_has_the_bits_of_an_uninterrupted_run(
    few: Dataset, tmp_path: Path, recorded: StandIn, changes: dict
) -> None:
    runs = runs_of(CE, HR, **changes, epochs=3)
    whole = together(runs, few, tmp_path / "whole")
    with pytest.raises(KilledError):
        train_together(runs, few, opened(StoreKilledAfter(tmp_path / "parts", 1), runs))
    assert Store(tmp_path / "parts").epochs_done(runs[0]) == 1
    # Each run is resumed alone, with another number of branches.
    for run in runs:
        train(run, few, Store(tmp_path / "parts"))
    expect_equal_results(runs, Store(tmp_path / "parts"), whole, within=0.0)


def test_asynchronously_written_states_are_those_at_the_end_of_an_epoch(
    few: Dataset, tmp_path: Path, recorded: StandIn
) -> None:
    """A slow write has a copy of the state, which later epochs do not change."""

    class Slow(Store):
        def save_state(self, run: RunSpec, state: dict) -> None:
            time.sleep(0.3)
            super().save_state(run, state)
            seen[len(state["curve"])] = {name: tensor.clone() for name, tensor in state["model"].items()}

    seen: dict[int, dict[str, torch.Tensor]] = {}
    (run,) = runs_of(CE, seeds=1, epochs=12, momentum=0.5)
    train(run, few, opened(Slow(tmp_path), [run]))
    assert len(seen) < 12, "slow writes are skipped to limit their share of the time"
    for epochs in seen:
        # The state after an epoch does not depend on the number of later epochs.
        (shorter,) = runs_of(CE, seeds=1, epochs=epochs, momentum=0.5)
        train(shorter, few, opened(Store(tmp_path), [shorter]))
        weights = Store(tmp_path).load_checkpoint(shorter)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in seen[epochs].items())


def test_an_error_of_an_asynchronous_write_ends_the_training(few: Dataset, tmp_path: Path, recorded: StandIn) -> None:
    class Full(Store):
        def save_state(self, run: RunSpec, state: dict) -> None:
            raise StoreError("the disk is full")

    (run,) = runs_of(CE, seeds=1, epochs=3)
    with pytest.raises(StoreError, match="full"):
        train(run, few, opened(Full(tmp_path), [run]))
    assert not Store(tmp_path).is_trained(run)


def test_a_stored_state_has_the_tensors_of_one_run_only(few: Dataset, tmp_path: Path) -> None:
    runs = runs_of(CE, HR, seeds=4, epochs=2, momentum=0.5)
    sizes = []
    for some in (runs, runs[:1]):
        store = StoreKilledAfter(tmp_path / str(len(sizes)), 1)
        with pytest.raises(KilledError):
            train_together(some, few, store)
        sizes.append((store.folder(runs[0]) / "state.pt").stat().st_size)
    assert sizes[0] < 1.1 * sizes[1]


def test_tf32_is_used_in_training_and_not_in_evaluation(few: Dataset, tmp_path: Path, monkeypatch) -> None:
    """A recipe in TF32 allows it in epochs, and not in the evaluations after them."""
    run = runs_of(CE, seeds=1, epochs=2, curve_every=1, curve_attacks=(AttackSpec("none"),))[0]
    object.__setattr__(run.recipe, "precision", "tf32")  # Recipe refuses TF32 on the CPU
    seen: dict[str, set[tuple[bool, bool]]] = {}

    def wrap(name: str) -> None:
        of_module = getattr(training, name)

        def wrapped(*args, **options):
            allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            seen.setdefault(name, set()).add(allowed)
            return of_module(*args, **options)

        monkeypatch.setattr(training, name, wrapped)

    for name in ("train_epoch", "accuracy"):
        wrap(name)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    job = Job(run, (AttackSpec("none"),), tmp_path, tmp_path)
    assert runner.execute(job) == Outcome()
    assert seen == {"train_epoch": {(True, True)}, "accuracy": {(False, False)}}
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_a_run_with_a_nan_loss_fails_and_the_others_are_trained(few: Dataset, tmp_path: Path) -> None:
    runs = runs_of(CE, HR, epochs=2)
    healthy, store = together(runs, few, tmp_path / "healthy"), Store(tmp_path / "ill")
    for run in runs:
        with pytest.raises(KilledError):
            train(run, few, StoreKilledAfter(store.root, 1))
    state = store.load_state(runs[1])
    assert state is not None
    state["model"]["1.0.weight"].fill_(torch.nan)
    store.save_state(runs[1], state)
    failures = train_together(runs, few, store)
    assert list(failures) == [runs[1]]
    assert "became nan in epoch 2" in str(failures[runs[1]])
    assert not store.is_trained(runs[1])
    others = [runs[0], *runs[2:]]
    expect_equal_results(others, store, healthy, within=1e-4)


def test_margins_of_runs_trained_together_are_scaled(digits: Dataset, tmp_path: Path) -> None:
    runs = runs_of(LossSpec("ce", margin=5.0), LossSpec("hr", 1.6, margin=3.0), epochs=2, optimizer="adam", lr=0.003)
    store = together(runs, digits, tmp_path)
    for run in runs:
        classifier = trained_classifier(run, digits, store)
        images, labels = digits.validation.tensors(torch.device("cpu"))
        values = margins(classifier.predict(images.numpy()).astype(np.float64), labels.numpy())
        assert np.median(values) == pytest.approx(run.loss.margin, rel=1e-5)


def test_runs_of_several_recipes_are_refused(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one data set and recipe"):
        train_together([*runs_of(CE), *runs_of(CE, lr=0.2)], few, Store(tmp_path))


def test_groups_have_one_recipe_and_keep_the_order(tmp_path: Path) -> None:
    hardened = LossSpec("ce", hardening=Hardening("noise", 0.1))
    runs = [*runs_of(CE, HR, hardened, seeds=3), *runs_of(CE, lr=0.2)]
    jobs = [Job(run, (), tmp_path, tmp_path) for run in runs]
    for number, sizes in ((1, [1] * 11), (4, [4, 1, 2, 1, 1, 2]), (10, [6, 1, 1, 1, 2])):
        groups = grouped(jobs, number)
        assert sorted((len(g.jobs) for g in groups), reverse=True) == sorted(sizes, reverse=True)
        assert {job for group in groups for job in group.jobs} == set(jobs)
        for group in groups:
            assert len({job.run.recipe for job in group.jobs}) == 1
            assert [jobs.index(job) for job in group.jobs] == sorted(jobs.index(job) for job in group.jobs)
            assert len(group.jobs) == 1 or not any(job.run.loss.hardening for job in group.jobs)


def test_a_grid_that_is_trained_together_has_the_same_files_and_nearly_the_same_records(tmp_path: Path) -> None:
    grid = replace(grids.digits(), seeds=(0, 1), attacks=protocols.TABLE_1_ATTACKS)
    recipe = replace(grid.recipes[0][1], epochs=2, curve_every=2)
    small = replace(grid, recipes=(("digits", recipe),))
    runs = small.runs()
    ended: dict[int, list[Outcome]] = {1: [], 3: []}
    for together, outcomes in ended.items():
        jobs = [Job(run, grid.attacks, tmp_path / str(together), tmp_path) for run in runs]
        failures = run_all(
            jobs,
            lambda: nullcontext(InProcess()),
            lambda run, outcome, outcomes=outcomes: outcomes.append(outcome),
            together=together,
        )
        assert failures == 0
        assert outcomes == [Outcome()] * 4

    def names(root: Path) -> list[str]:
        return sorted(str(path.relative_to(root)) for path in root.rglob("*"))

    assert names(tmp_path / "1") == names(tmp_path / "3")
    stores = [Store(tmp_path / str(together)) for together in ended]
    logged = [entry.get("together") for entry in stores[1].log_entries(runs[0]) if entry["event"] == "epoch"]
    assert logged == [3, 3]
    assert load(small, stores[1]).epoch_seconds.keys() == {runs[3]}  # the only run that was trained alone
    for run in runs:
        for attack in grid.attacks:
            one, other = (store.record(run, attack) for store in stores)
            assert one is not None
            assert other is not None
            assert one.n == other.n
            assert abs(int(one.right.sum()) - int(other.right.sum())) <= 4  # of 360 images, after 44 steps


def test_a_failure_in_a_group_does_not_affect_the_other_runs(tmp_path: Path) -> None:
    runs = runs_of(CE, HR, seeds=1)
    lost = RunSpec(
        "digits", runs[0].recipe, LossSpec("ce", margin=5.0), 1
    )  # its median margin is not above 0 after so few steps
    jobs = [Job(run, (AttackSpec("none"),), tmp_path, tmp_path) for run in (*runs, lost)]
    store = Store(tmp_path)
    with store.lock(runs[1]):  # as if another process executed it
        outcomes = runner.execute_together(runner.Group(tuple(jobs)))
    assert outcomes[0] == Outcome()
    assert outcomes[1] == Outcome(busy=True)
    assert isinstance(outcomes[2].error, training.TrainingError)
    assert "median margin above 0" in (store.error(lost) or "")
    assert store.record(runs[0], AttackSpec("none")) is not None
    assert store.record(runs[1], AttackSpec("none")) is None


@pytest.mark.gpu
@pytest.mark.parametrize("changes", KINDS)
@pytest.mark.parametrize("way", [Branches, Products])
def test_on_a_gpu_a_recorded_epoch_equals_an_epoch_of_networks_alone(few: Dataset, changes: dict, way: type) -> None:
    runs = runs_of(CE, HR, **changes, device="gpu", lr_drops=((1, 0.125),))
    alone, recorded = ([in_float64(run, few) for run in runs] for _ in range(2))
    if not way.fits(alone[0]):
        pytest.skip("a way for LeNets and plain SGD alone")
    steps = Recorded(recorded, ways=(way,))
    within = 1e-5 * runs[0].recipe.lr if runs[0].recipe.optimizer == "adam" else 1e-11
    for epoch in (0, 1):
        for one, other, row in zip(alone, recorded, steps.epoch(epoch), strict=True):
            assert row == pytest.approx(one.epoch(epoch), rel=1e-9)
            for name, tensor in one.model.state_dict().items():
                torch.testing.assert_close(other.model.state_dict()[name], tensor, rtol=1e-9, atol=within)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_on_a_gpu_a_grid_is_trained_killed_resumed_and_evaluated(tmp_path: Path, precision: str) -> None:
    attacks = (AttackSpec("none"), AttackSpec("fgm", "ce", 0.1), AttackSpec("fgm", "clipped-ce", 0.1))
    curve = {"curve_every": 2, "curve_attacks": attacks}
    runs = runs_of(CE, HR, epochs=8, device="gpu", precision=precision, **curve)
    data = load_data("digits", runs[0].recipe, data_dir=tmp_path)
    with pytest.raises(KilledError):
        train_together(runs, data, opened(StoreKilledAfter(tmp_path, 1), runs))
    assert 0 < Store(tmp_path).epochs_done(runs[0]) < 8
    jobs = [Job(run, attacks, tmp_path, tmp_path) for run in runs]
    ended: list[Outcome] = []
    assert run_all(jobs, lambda: nullcontext(InProcess()), lambda _, o: ended.append(o), together=4) == 0
    assert ended == [Outcome()] * 4
    for run in runs:
        entries = [entry for entry in Store(tmp_path).log_entries(run) if entry["event"] == "recorded"]
        assert [entry["way"] for entry in entries] == [
            min(e["milliseconds"], key=e["milliseconds"].get) for e in entries
        ]
        assert len(entries) == 2, "one at the start, and one when the run was resumed"
        row = Store(tmp_path).curve(run)[-1]
        assert row["train_accuracy"] > 0.5
        records = {attack.key(): Store(tmp_path).record(run, attack) for attack in attacks}
        assert row["attacks"] == {key: record.accuracy for key, record in records.items() if record is not None}
