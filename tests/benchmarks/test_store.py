"""Files are whole or absent, damage is named, and nothing in them is run."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from benchmarks.config import AttackSpec, LossSpec, Recipe, RunSpec
from benchmarks.store import Store, StoreError, write_bytes, write_json

RUN = RunSpec("digits", Recipe(model="small-cnn", epochs=3, batch_size=5, lr=0.1), LossSpec("ce"), 0)
ATTACK = AttackSpec("fgm", "hr", 0.1)
STATE = {"model": {"w": torch.ones(2)}, "curve": [{"epoch": 1}]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def full_disk(descriptor: int) -> None:
    """In place of os.fsync."""
    raise OSError(28, "No space left on device")


def test_a_new_store_holds_nothing(store: Store) -> None:
    assert store.load_state(RUN) is None
    assert store.record(RUN, ATTACK) is None
    assert store.epochs_done(RUN) == 0
    assert not store.is_trained(RUN)
    assert not store.root.exists(), "looking makes no folders"


def test_what_is_kept_comes_back(store: Store) -> None:
    store.open(RUN, "data")
    store.save_state(RUN, STATE)
    assert store.load_state(RUN)["model"]["w"].tolist() == [1, 1]
    assert store.epochs_done(RUN) == 1
    store.save_checkpoint(RUN, {"w": torch.arange(6.0).reshape(2, 3).T})
    assert store.load_checkpoint(RUN)["w"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert store.load_state(RUN) is None, "the state goes once the weights are there"
    assert store.epochs_done(RUN) == 3
    store.save_record(RUN, ATTACK, {"n": 2})
    assert store.record(RUN, ATTACK) == {"n": 2}


def test_a_store_knows_its_data_again(store: Store) -> None:
    store.open(RUN, "one")
    store.open(RUN, "one")
    with pytest.raises(StoreError, match=r"spec\.json was made from data with fingerprint one, .* now has two"):
        store.open(RUN, "two")


def test_an_old_error_goes_when_the_run_starts_again(store: Store) -> None:
    store.save_error(RUN, "it broke")
    store.open(RUN, "data")
    assert not (store.folder(RUN) / "error.txt").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_damaged_state_is_set_aside(store: Store, damage: str) -> None:
    store.save_state(RUN, STATE)
    path = store.folder(RUN) / "state.pt"
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"not a state"}[damage])
    assert store.load_state(RUN) is None
    assert not path.exists()
    assert path.with_name("state.pt.bad").exists()


def test_a_state_that_would_run_code_is_set_aside_and_not_run(store: Store, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    write_bytes(store.folder(RUN) / "state.pt", pickle.dumps(Hostile()))
    assert store.load_state(RUN) is None
    torch.save({"model": Hostile()}, store.folder(RUN) / "state.pt")
    assert store.load_state(RUN) is None
    assert not (tmp_path / "run").exists()


def test_damaged_weights_are_named(store: Store) -> None:
    store.save_checkpoint(RUN, {"w": torch.ones(100)})
    path = store.folder(RUN) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(StoreError, match=r"model\.safetensors cannot be read"):
        store.load_checkpoint(RUN)


def test_a_damaged_record_is_named(store: Store) -> None:
    store.save_record(RUN, ATTACK, {"n": 2})
    (store.folder(RUN) / "records/fgm-hr-0.1.json").write_text('{"n": ')
    with pytest.raises(StoreError, match=r"fgm-hr-0\.1\.json is not valid JSON"):
        store.record(RUN, ATTACK)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "value.json"
    write_json(path, 1)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_json(path, 2)
    assert path.read_text() == "1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_the_state_stays_until_the_weights_are_there(store: Store, monkeypatch) -> None:
    store.save_state(RUN, STATE)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.save_checkpoint(RUN, {"w": torch.ones(2)})
    assert store.load_state(RUN) is not None
    assert not store.is_trained(RUN)


def test_two_processes_can_write_one_file_at_once(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "value.json"
    sync = os.fsync

    def while_another_writes(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        with monkeypatch.context() as another:
            another.setattr(os, "getpid", lambda: 0)
            write_json(path, "theirs")
        assert path.read_text() == '"theirs"\n'
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", while_another_writes)
    write_json(path, "ours")
    assert path.read_text() == '"ours"\n'
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_run_says_what_it_is(store: Store) -> None:
    store.open(RUN, "data")
    kept = json.loads((store.folder(RUN) / "spec.json").read_text())
    assert kept["data"] == "data"
    assert kept["run"]["recipe"] == {"model": "small-cnn", "epochs": 3, "batch_size": 5, "lr": 0.1}
    assert (kept["run"]["loss"], kept["run"]["seed"]) == ({"name": "ce"}, 0)
