"""Store: atomic files, errors that name any damage, and no execution of code in files."""

import json
import os
import pickle
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from testing import made_up
from testing.processes import files_no_longer_than

from benchmarks.config import AttackSpec, LossSpec, Recipe, RunSpec
from benchmarks.record import Record
from benchmarks.store import DamagedError, Store, StoreError, write_bytes, write_json
from benchmarks.store._atomic import UnreadableError, append_line, set_aside
from benchmarks.store._schema import RECORD_VERSION, versions

RUN = RunSpec("digits", Recipe(model="small-cnn", epochs=3, batch_size=5, lr=0.1), LossSpec("ce"), 0)
ATTACK = AttackSpec("fgm", "hr", 0.1)
RECORD = made_up.record(3, 2, 0)
WEIGHTS = {"w": torch.arange(300.0), "b": torch.ones(2)}


def state_of(epochs: int) -> dict:
    rows = [{"epoch": epoch, "validation_accuracy": 0.5} for epoch in range(1, epochs + 1)]
    return {"model": {"w": torch.ones(500)}, "optimizer": {}, "order": torch.ones(3, dtype=torch.uint8), "curve": rows}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_reading_an_empty_store_creates_no_files(store: Store) -> None:
    assert store.load_state(RUN) is None
    assert store.record(RUN, ATTACK) is None
    assert store.error(RUN) is None
    assert (store.curve(RUN), store.epochs_done(RUN), store.log_entries(RUN)) == ([], 0, [])
    assert not store.is_trained(RUN)
    assert not store.is_done(RUN, (ATTACK,))
    assert not store.is_locked(RUN)
    assert list(store.damaged(RUN, (ATTACK,))) == []
    store.check(RUN, "data")
    assert not store.root.exists()


def test_state_weights_and_records_are_stored_and_read(store: Store) -> None:
    store.open(RUN, "data")
    store.save_state(RUN, state_of(3))
    assert store.load_state(RUN)["model"]["w"].tolist() == [1] * 500
    assert store.epochs_done(RUN) == 3
    store.save_checkpoint(RUN, {"w": torch.arange(6.0).reshape(2, 3).T})
    assert store.load_checkpoint(RUN)["w"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert store.load_state(RUN) is None, "the state is deleted once the weights are stored"
    assert store.epochs_done(RUN) == 3
    assert not store.is_done(RUN, (ATTACK,))
    store.save_record(RUN, ATTACK, RECORD)
    assert made_up.same(store.record(RUN, ATTACK), RECORD)
    assert store.is_done(RUN, (ATTACK,))
    assert list(store.damaged(RUN, (ATTACK,))) == []


def test_a_run_with_other_data_of_the_same_name_is_refused(store: Store) -> None:
    store.open(RUN, "one")
    store.open(RUN, "one")
    with pytest.raises(StoreError, match=r"spec\.json has data with fingerprint one, .* now has two"):
        store.open(RUN, "two")


def test_the_specification_of_a_run_is_stored(store: Store) -> None:
    store.open(RUN, "data")
    spec = json.loads((store.folder(RUN) / "spec.json").read_text())
    assert spec["data"] == "data"
    assert spec["run"]["recipe"] == {"model": "small-cnn", "epochs": 3, "batch_size": 5, "lr": 0.1}
    assert (spec["run"]["loss"], spec["run"]["seed"]) == ({"name": "ce"}, 0)
    assert set(spec["made_with"]) == {"python", "art_hrloss", "torch", "adversarial-robustness-toolbox", "numpy"}


def test_an_old_error_is_deleted_when_the_run_starts_again(store: Store) -> None:
    store.save_error(RUN, "it broke")
    assert store.error(RUN) == "it broke"
    store.open(RUN, "data")
    assert store.error(RUN) is None


# Files that a killed process or a removed damaged file can leave, and the files after the run is opened again.
PARTIAL_RUNS = {
    "first curve, no state": (1, None, False, (0, False, False)),
    "curve ahead of its state": (2, 1, False, (1, True, False)),
    "curve lost, state complete": (None, 2, False, (2, True, False)),
    "state lost": (2, None, False, (0, False, False)),
    "weights saved, state not yet removed": (3, 3, True, (3, True, True)),
    "weights saved, state not yet removed, curve lost": (None, 3, True, (3, True, True)),
    "weights of an unfinished training": (2, 2, True, (2, True, False)),
    "curve lost, weights complete": (None, None, True, (0, False, False)),
    "curve too short, weights complete": (2, None, True, (0, False, False)),
    "all complete": (3, None, True, (3, False, True)),
}


@pytest.mark.parametrize(("curve", "state", "weights", "expected"), PARTIAL_RUNS.values(), ids=PARTIAL_RUNS)
def test_curve_state_and_weights_are_consistent_after_a_run_is_opened(
    store: Store, curve: int | None, state: int | None, weights: bool, expected: tuple
) -> None:
    folder = store.folder(RUN)
    if weights:
        store.save_checkpoint(RUN, WEIGHTS)
    if state is not None:
        store.save_state(RUN, state_of(state))
        (folder / "curve.json").unlink()
    if curve is not None:
        write_json(folder / "curve.json", state_of(curve)["curve"])
    store.open(RUN, "data")
    files = store.epochs_done(RUN), (folder / "state.pt").exists(), (folder / "model.safetensors").exists()
    assert files == expected
    assert store.is_trained(RUN) == (files == (3, False, True))


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_records_of_lost_weights_stay_valid_on_the_cpu_only(store: Store, device: str) -> None:
    run = replace(RUN, recipe=replace(RUN.recipe, device=device))
    store.save_record(run, ATTACK, RECORD)
    store.open(run, "data")
    assert (store.record(run, ATTACK) is not None) == (device == "cpu")
    assert (store.folder(run) / "records.bad").exists() == (device == "gpu")


def test_opening_a_run_deletes_partial_files_of_a_killed_writer(store: Store) -> None:
    for name in (".state.pt.0.part", "records/.none.json.1.part"):
        write_bytes(store.folder(RUN) / name, b"half")
    store.open(RUN, "data")
    assert not list(store.root.rglob("*.part"))


def test_a_truncated_state_is_named(store: Store) -> None:
    store.save_state(RUN, state_of(1))
    path = store.folder(RUN) / "state.pt"
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError, match=r"state\.pt cannot be read \(."):
            store.load_state(RUN)


def test_flipped_bits_in_a_state_are_detected_or_have_no_effect(store: Store) -> None:
    store.save_state(RUN, state_of(1))
    path, rng, seen = store.folder(RUN) / "state.pt", random.Random(0), 0
    whole = path.read_bytes()
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            state = store.load_state(RUN)
        except DamagedError:
            seen += 1
        else:
            assert torch.equal(state["model"]["w"], torch.ones(500)), (
                "the flipped bit is in a part of the file that is not read"
            )
            assert state["curve"] == state_of(1)["curve"]
    assert seen > 50


@pytest.mark.parametrize("archive", [False, True], ids=["pickle", "torch's archive"])
def test_code_in_a_state_is_not_executed(store: Store, tmp_path: Path, archive: bool) -> None:
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    path = store.folder(RUN) / "state.pt"
    write_bytes(path, pickle.dumps(Hostile(), protocol=2))
    if archive:
        torch.save(state_of(1) | {"version": 1, "model": Hostile()}, path)
    with pytest.raises(DamagedError, match=r"state\.pt cannot be read \(Weights only load failed"):
        store.load_state(RUN)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1], "should contain a dict, but contains a list"),
        ({}, "has version None, but this program reads version 1"),
        (state_of(1) | {"version": 2}, "has version 2, but this program reads version 1"),
        (
            {"version": 1, "model": {}, "optimizer": {}, "curve": []},
            "should contain order, a Tensor, but contains .'curve',",
        ),
        (state_of(1) | {"version": 1, "curve": [3]}, "should have the row of epoch 1 at position 1, but has 3"),
    ],
    ids=["list", "empty", "version", "missing key", "curve"],
)
def test_an_invalid_state_is_named(store: Store, state: object, message: str) -> None:
    store.folder(RUN).mkdir(parents=True)
    torch.save(state, store.folder(RUN) / "state.pt")
    with pytest.raises(DamagedError, match=rf"state\.pt {message}"):
        store.load_state(RUN)


def test_truncated_weights_are_named(store: Store) -> None:
    write_json(store.folder(RUN) / "curve.json", state_of(3)["curve"])
    store.save_checkpoint(RUN, WEIGHTS)
    path = store.folder(RUN) / "model.safetensors"
    whole = path.read_bytes()
    assert store.is_done(RUN, ())
    for length in (0, 7, 8, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError, match=r"model\.safetensors cannot be read \(."):
            store.load_checkpoint(RUN)
        assert [error.path for error in store.damaged(RUN, (), quick=True)] == [path]
        assert not store.is_done(RUN, ())


def test_every_flipped_bit_of_the_weights_is_detected(store: Store) -> None:
    store.save_checkpoint(RUN, WEIGHTS)
    path, rng = store.folder(RUN) / "model.safetensors", random.Random(0)
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    # Every byte of the header's length and of the header, and a sample of the weights.
    for position in (*range(header), *rng.sample(range(header, len(whole)), 100)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(
            DamagedError, match=r"model\.safetensors (cannot be read|was modified after it was written)"
        ):
            store.load_checkpoint(RUN)


def test_missing_weights_are_named(store: Store) -> None:
    with pytest.raises(DamagedError, match=r"model\.safetensors does not exist"):
        store.load_checkpoint(RUN)


HEADER = {"version": RECORD_VERSION, "names": [], "flags": None}
REPORT = AttackSpec("diagnostics", "ce", 0.1, steps=5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"\xff" * 100), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07"), "was modified after it was written"),
        (lambda path: made_up.rewrite(path, {}), "has version None"),
        (lambda path: made_up.rewrite(path, HEADER | {"version": 99}), "has version 99"),
        (lambda path: made_up.rewrite(path, HEADER | {"names": 3}), "should have names and flags"),
        (lambda path: made_up.rewrite(path, HEADER | {"flags": ["zero gradients"]}), "should have names and flags"),
        (lambda path: made_up.rewrite(path, HEADER, drop="logits"), "lacks logits"),
        (lambda path: made_up.rewrite(path, HEADER, drop="zero_gradient"), "lacks zero_gradient"),
        (lambda path: made_up.rewrite(path, HEADER, labels=np.arange(2)), "for its 2 images"),
        (lambda path: made_up.rewrite(path, HEADER, labels=np.zeros(3)), "should contain labels as int64"),
        (lambda path: made_up.rewrite(path, HEADER, labels=np.array([0, 1, 2])), "should contain labels from 0 to 1"),
        (lambda path: made_up.rewrite(path, HEADER, sampled=np.array([0, 3])), "should contain sampled from 0 to 2"),
        (lambda path: made_up.rewrite(path, HEADER, found_by=np.array([-1, 0, 0])), "should contain found_by from -1"),
    ],
)
def test_a_damaged_record_is_named(store: Store, damage: Callable[[Path], object], message: str) -> None:
    store.save_record(RUN, ATTACK, RECORD)
    path = store.folder(RUN) / "records/fgm-hr-0.1.safetensors"
    damage(path)
    with pytest.raises(DamagedError, match=rf"fgm-hr-0\.1\.safetensors .*{message}") as caught:
        store.record(RUN, ATTACK)
    assert caught.value.path == path
    assert [str(error) for error in store.damaged(RUN, (ATTACK,))] == [str(caught.value)]


@pytest.mark.parametrize("header", [{}, HEADER | {"version": 2}])
def test_a_record_with_an_invalid_header_is_detected_by_the_quick_check(store: Store, header: object) -> None:
    store.save_checkpoint(RUN, WEIGHTS)
    write_json(store.folder(RUN) / "curve.json", state_of(3)["curve"])
    store.save_record(RUN, ATTACK, RECORD)
    assert store.is_done(RUN, (ATTACK,))
    made_up.rewrite(store.folder(RUN) / "records/fgm-hr-0.1.safetensors", header)
    assert not store.is_done(RUN, (ATTACK,))


def test_a_report_is_stored_and_read_and_one_without_its_verdicts_is_refused(store: Store) -> None:
    report = Record(np.array([1, 0]), robust=np.array([True, False]), flags={"zero gradients": "half"})
    store.save_record(RUN, REPORT, report)
    loaded = store.record(RUN, REPORT)
    assert made_up.same(loaded, report)
    assert (loaded.n, loaded.accuracy) == (2, 0.5)
    made_up.rewrite(store.folder(RUN) / f"records/{REPORT.key()}.safetensors", HEADER, drop="robust")
    with pytest.raises(DamagedError, match="lacks robust"):
        store.record(RUN, REPORT)


def test_record_files_of_an_older_format_are_ignored(store: Store) -> None:
    write_json(store.folder(RUN) / "records/fgm-hr-0.1.json", {"version": 2, "n": 3, "correct": 2})
    assert store.record(RUN, ATTACK) is None
    assert list(store.damaged(RUN, (ATTACK,))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"epoch": 1,', "is not valid JSON"),
        ("{}", "should contain a list, but contains a dict"),
        ("[1, 2, 3]", "should have the row of epoch 1 at position 1, but has 1"),
        (
            '[{"epoch": 2, "validation_accuracy": 0.5}]',
            "should have the row of epoch 1 at position 1, but has {'epoch': 2",
        ),
        ('[{"epoch": 1}]', "should have a validation_accuracy for epoch 1, but has none"),
    ],
    ids=["cut", "dict", "numbers", "order", "accuracy"],
)
def test_a_damaged_curve_is_named(store: Store, text: str, message: str) -> None:
    write_bytes(store.folder(RUN) / "curve.json", text.encode())
    with pytest.raises(DamagedError, match=rf"curve\.json {message}"):
        store.curve(RUN)


def test_invalid_log_entries_are_skipped(store: Store) -> None:
    store.open(RUN, "data")
    store.log(RUN, "epoch", epoch=1, training=0.5, seconds=0.75)
    path = store.folder(RUN) / "log.jsonl"
    useless = [b'{"event": "epoch"}', b'{"event": "record", "seconds": NaN}', b"[1]", b'{"event": 3}', b"\xff\x00\xfe"]
    useless += [b'{"event": "epoch", "epoch": 1, "training": "long", "seconds": 1}', b"[" * 100_000, b""]
    path.write_bytes(b"\n".join([*useless, path.read_bytes().rstrip(), b'{"event": "rec']))
    store.log(RUN, "record", attack="none", seconds=0.25)
    entries = store.log_entries(RUN)
    assert [entry["event"] for entry in entries] == ["epoch", "record"], "the entry after a partial line is read"
    assert entries[0]["training"] == 0.5
    assert path.read_bytes().startswith(b"\n".join(useless[:5])), "existing lines are not changed"


@pytest.mark.parametrize("name", ["state.pt", "curve.json", "model.safetensors", "records/fgm-hr-0.1.safetensors"])
def test_a_directory_instead_of_a_file_is_set_aside(store: Store, name: str) -> None:
    path = store.folder(RUN) / name
    for _ in range(2):  # the second replaces the first
        (path / "inside").mkdir(parents=True)
        (message,) = store.set_damaged_aside(RUN, (ATTACK,))
        assert f"{path} should be a file, but is a directory: renamed to {path.name}.bad, and computed again" in message
        assert not path.exists()
        assert (path.with_name(f"{path.name}.bad") / "inside").is_dir()


def test_files_instead_of_directories_and_directories_instead_of_files_are_set_aside_and_logged(store: Store) -> None:
    folder = store.folder(RUN)
    (folder / "log.jsonl").mkdir(parents=True)
    (folder / "error.txt").mkdir()
    write_bytes(folder / "records", b"")
    assert "is a directory" in store.error(RUN)
    assert store.log_entries(RUN) == []
    assert [message.split(" should ")[0] for message in store.set_damaged_aside(RUN, (ATTACK,))] == [
        str(folder / name) for name in ("log.jsonl", "error.txt", "records")
    ]
    assert [entry["event"] for entry in store.log_entries(RUN)] == ["set aside"] * 3
    store.save_record(RUN, ATTACK, RECORD)


def test_a_file_that_is_set_aside_replaces_an_older_one(tmp_path: Path) -> None:
    for text in ("first", "second"):
        (tmp_path / "x").write_text(text)
        assert set_aside(tmp_path / "x") == tmp_path / "x.bad"
    assert (tmp_path / "x.bad").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["x.bad"]


def test_a_nan_is_not_written_as_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(StoreError, match=r"x\.json cannot be written: expected finite numbers, but got a NaN"):
        write_json(tmp_path / "x.json", {"accuracy": float("nan")})
    assert (tmp_path / "x.json").read_text() == "1\n"


def test_a_write_beyond_the_file_size_limit_changes_no_file(store: Store) -> None:
    store.open(RUN, "data")
    store.save_state(RUN, state_of(1))
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}

    path = store.folder(RUN) / "model.safetensors"
    with files_no_longer_than(2000):
        with pytest.raises(StoreError) as caught:
            store.save_checkpoint(RUN, {"w": torch.ones(5000)})
        with pytest.raises(StoreError, match=r"log\.jsonl cannot be written \(File too large\)"):
            store.log(RUN, "long", message="x" * 5000)
    assert str(caught.value) == (
        f"{path} cannot be written (File too large): raise the limit on the size of files (ulimit -f), and run the "
        "same command again; existing files are unchanged"
    )
    (store.folder(RUN) / "log.jsonl").unlink()
    assert {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()} == before
    assert store.epochs_done(RUN) == 1, "the state is kept until the weights are stored"


def test_a_line_is_appended_below_a_partial_line(tmp_path: Path) -> None:
    append_line(tmp_path / "log", "one")
    with files_no_longer_than(10), pytest.raises(StoreError):
        append_line(tmp_path / "log", "much too long")
    assert (tmp_path / "log").read_text() == "one\nmuch t"
    append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\nmuch t\ntwo\n"


def test_a_store_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file, not a folder")
    with pytest.raises(StoreError, match=str(tmp_path / "store")):
        Store(tmp_path / "store")


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "runs").write_text("a file, not a folder")
    for use in (lambda: store.lock(RUN), lambda: store.save_error(RUN, "it broke")):
        with pytest.raises(StoreError, match=rf"{store.folder(RUN)}.* cannot be written \(Not a directory\)"):
            use()
    assert not store.is_locked(RUN)
    assert store.error(RUN) is None


@pytest.mark.parametrize("error", [DamagedError(Path("a/b"), "is no good"), UnreadableError(Path("a"), "is closed")])
def test_errors_can_be_pickled(error: DamagedError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), back.path) == (type(error), str(error), error.path)


def test_a_held_lock_is_visible_to_other_stores(store: Store) -> None:
    other = Store(store.root)
    with store.lock(RUN):
        assert other.is_locked(RUN)
        assert not other.is_locked(replace(RUN, seed=1))
    assert not other.is_locked(RUN)
    assert [path.name for path in store.folder(RUN).parent.iterdir()] == [RUN.key()]


def test_versions_are_found_without_package_metadata(tmp_path: Path) -> None:
    """A clone on Python's path, and packages without metadata, still have versions."""
    for path in Path(torch.__file__).parents[1].iterdir():
        if not path.name.endswith((".dist-info", ".pth")):
            (tmp_path / path.name).symlink_to(path)
    code = "import json; from benchmarks.store._schema import versions; print(json.dumps(versions()))"
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[3]}{os.pathsep}{tmp_path}"}
    # -S: without Python's own site-packages.
    command = [sys.executable, "-S", "-c", code]
    ended = subprocess.run(command, env=environment, check=True, capture_output=True)
    assert json.loads(ended.stdout) == versions()
    code = "import importlib.metadata; importlib.metadata.version('numpy')"
    assert subprocess.run([*command[:-1], code], env=environment, capture_output=True).returncode == 1
