"""References to a user's code: search, source hash, pickling, and errors."""

import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.config import AttackSpec, ConfigError, Grid, LossSpec, Recipe, RunSpec
from benchmarks.references import Reference, refer

SOURCE = "def build(**arguments):\n    return sorted(arguments.items())\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A user's Python file."""
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on the import path with a name that no other test uses."""
    folder = tmp_path / f"package_{tmp_path.name.replace('-', '_')}"
    folder.mkdir()
    (folder / "models.py").write_text("from .layers import WIDTH\ndef build():\n    return WIDTH\n")
    (folder / "layers.py").write_text("WIDTH = 3\n")
    (folder / "unused.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[name]


def run_of(path: Path, call: str = "build") -> RunSpec:
    return RunSpec("digits", Recipe(f"{path}:{call}", epochs=1, batch_size=1, lr=0.1), LossSpec("ce"), 0)


def copied(file: Path, folder: str, name: str = "mine.py", text: str = SOURCE) -> Path:
    path = file.parent / folder / name
    path.parent.mkdir()
    path.write_text(text)
    return path


def test_make_calls_the_named_function_with_its_parameters_and_the_arguments(file: Path) -> None:
    reference = refer(f"{file}:build(depth=2, names=['a', 'b'], wide=True)")
    assert reference.make(list, seed=1) == [("depth", 2), ("names", ("a", "b")), ("seed", 1), ("wide", True)]
    assert reference.label == "build(depth=2, names=('a', 'b'), wide=True)"


def test_a_key_depends_on_names_parameters_and_source_but_not_on_the_folder(file: Path) -> None:
    run = run_of(file, "build(a=1, b=2.0)")
    same = [run_of(copied(file, "elsewhere"), "build(a=1, b=2.0)"), run_of(file, "build(b=2.0, a=1)")]
    assert {other.key() for other in same} == {run.key()}
    assert set(same) == {run}
    others = [
        run_of(file, "build(a=1, b=2)"),
        run_of(file, "build"),
        run_of(file, "other(a=1, b=2.0)"),
        run_of(copied(file, "named", "other.py"), "build(a=1, b=2.0)"),
        run_of(copied(file, "changed", text=SOURCE + "#"), "build(a=1, b=2.0)"),
    ]
    assert len({other.key() for other in [run, *others]}) == len({run, *others}) == 6


def test_imports_from_a_files_folder_are_part_of_its_source(file: Path) -> None:
    file.write_text("import helper\ndef build():\n    import lazy_helper\n    from benchmarks import config\n")
    (file.parent / "helper.py").write_text("import deeper_helper\n")
    for name in ("lazy_helper", "deeper_helper", "not_imported"):
        (file.parent / f"{name}.py").write_text("")
    codes = [refer(f"{file}:build").code]
    for name in ("helper", "lazy_helper", "deeper_helper", "not_imported"):
        (file.parent / f"{name}.py").write_text("import deeper_helper\n# changed\n")
        codes.append(refer(f"{file}:build").code)
    assert len(set(codes)) == 4
    assert codes[3] == codes[4], "a file that is not imported is not part of the source"


def test_imports_from_a_modules_package_are_part_of_its_source(package: Path) -> None:
    reference = refer(f"{package.name}.models:build")
    assert reference.make(int) == 3
    (package / "unused.py").write_text("# changed")
    assert refer(f"{package.name}.models:build") == reference
    (package / "layers.py").write_text("WIDTH = 4\n")
    changed = refer(f"{package.name}.models:build")
    assert changed != reference
    # Python's cached module is the old one; using it would store its results under the new key.
    with pytest.raises(ConfigError, match=r"layers\.py has changed since this process"):
        changed.make(int)


def test_a_changed_file_is_loaded_again(file: Path) -> None:
    assert refer(f"{file}:build").make(list) == []
    file.write_text("def build():\n    return [1]\n")
    assert refer(f"{file}:build").make(list) == [1]


def test_an_unpickled_reference_refuses_a_changed_source(file: Path) -> None:
    sent = pickle.loads(pickle.dumps(run_of(file, "build(a=1)"))).recipe.model
    assert isinstance(sent, Reference)
    assert sent.make(list) == [("a", 1)]
    file.write_text(SOURCE + "# changed")
    with pytest.raises(ConfigError, match=r"mine\.py.* has changed"):
        sent.make(list)
    file.unlink()
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        sent.make(list)


def test_a_relative_file_is_searched_beside_the_referring_file_and_then_in_the_current_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = copied(
        file,
        "study",
        "study.py",
        "from benchmarks.references import refer\ndef grid():\n    return refer('mine.py:build')",
    )
    monkeypatch.chdir(file.parent)
    assert refer("study/study.py:grid").make(Reference).path == str(file)
    beside = study.with_name("mine.py")
    beside.write_text(SOURCE)
    assert refer("study/study.py:grid").make(Reference).path == str(beside)


def test_a_file_is_not_executed_before_make_is_called(file: Path) -> None:
    file.write_text("raise RuntimeError('executed')")
    reference = refer(f"{file}:build")
    with pytest.raises(ConfigError, match=r"RuntimeError: executed \(.*mine\.py, line 1\)"):
        reference.make(object)


UNUSABLE = ("build(", "build(1)", "build(**a)", "build(a=b)", "build(a={})", "build(a=1e999)", "build.more")


@pytest.mark.parametrize("call", ["", "1", *UNUSABLE])
def test_a_malformed_reference_is_refused(call: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"mine.py:{call}'")):
        refer(f"{file}:{call}")


@pytest.mark.parametrize("text", [":build", "no module:build", "a..b:build", "a/b:build", "https://a.b"])
def test_a_source_that_is_neither_a_file_nor_a_module_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(text))):
        refer(text)


@pytest.mark.parametrize("text", ["gone.py:build", "no_such_module:build", "no_such_package.module:build"])
def test_a_missing_source_is_named_in_the_error(text: str) -> None:
    with pytest.raises(ConfigError, match=text.partition(":")[0]):
        refer(text)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("other = len", "build.*other"),
        ("build = 3", "build"),
        ("def build():\n    return 'text'", "str.*text"),
        ("def build(a):\n    return []", "missing.*'a'"),
        ("def build():\n    return 1 / 0", r"ZeroDivisionError.*mine\.py, line 2"),
        ("def build(:", "mine.py"),
    ],
)
def test_a_reference_to_unusable_code_is_refused(source: str, words: str, file: Path) -> None:
    file.write_text(source)
    with pytest.raises(ConfigError, match=words):
        refer(f"{file}:build").make(list)


def test_the_key_of_a_users_attack_is_a_file_name_and_depends_on_its_source(file: Path) -> None:
    spec = AttackSpec(f"{file}:build(path='../a b')", eps=0.1, images=5)
    assert re.fullmatch(r"mine\.py-build-path-\.\.-a-b-[0-9a-f]{8}-0\.1-first-5", spec.key())
    assert AttackSpec(f"{copied(file, 'elsewhere')}:build(path='../a b')", eps=0.1, images=5).key() == spec.key()
    file.write_text(SOURCE + "#")
    assert AttackSpec(f"{file}:build(path='../a b')", eps=0.1, images=5).key() != spec.key()


def test_references_are_shown_without_their_folders(file: Path) -> None:
    loss, recipe = LossSpec(f"{file}:build(a=1)", margin=2), Recipe("lenet", epochs=1, batch_size=1, lr=0.1)
    assert str(loss) == "build(a=1), margin 2"
    grid = Grid("mine", ((f"{file}:build", recipe),), (loss,), (0,), (AttackSpec("none"),))
    assert str(grid.runs()[0]) == "mine.py:build, build(a=1), margin 2, seed 0"


@pytest.mark.parametrize("kind", ["smoothing", "margin", "steps", "source", "loss", "names"])
def test_options_that_a_reference_does_not_support_are_refused(kind: str, file: Path) -> None:
    user_loss, run = f"{file}:build", run_of(file)
    other = copied(file, "other", "other.py")
    refused = {
        "smoothing": lambda: LossSpec(user_loss, label_smoothing=0.1),
        "margin": lambda: replace(run, loss=LossSpec("ce", margin=1.0)),
        "steps": lambda: AttackSpec(user_loss, steps=3),
        "source": lambda: AttackSpec(user_loss, source=1),
        "loss": lambda: AttackSpec(user_loss, "mse"),
        "names": lambda: Grid(
            "a",
            (("digits", run.recipe),),
            (LossSpec(user_loss), LossSpec(f"{other}:build")),
            (0,),
            (AttackSpec("none"),),
        ),
    }
    with pytest.raises(ConfigError, match=kind):
        refused[kind]()
