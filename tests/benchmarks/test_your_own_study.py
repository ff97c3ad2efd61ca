"""The documentation of a user's study: its code and its command are executed unchanged."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import execution, grids
from benchmarks.store import Store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your_own_study.md").read_text()
FILES = dict(re.findall(r", `(my_\w+\.py)`:.*?```python\n(.*?)```", PAGE, re.DOTALL))
*_, PIPELINE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(COMMAND,) = re.findall(r"```bash\npython (.*?)\n```", PAGE)


def write(folder: Path) -> Path:
    folder.mkdir()
    for name, code in FILES.items():
        (folder / name).write_text(code)
    return folder


def python(arguments: Sequence[str], folder: Path) -> str:
    """Return the output of Python in a folder, with only this project on its path."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the page's files, in which the page's command has been executed."""
    folder = write(tmp_path_factory.mktemp("user") / "study")
    python([*COMMAND.split(), "--workers", "1"], folder)
    return folder


def test_the_page_has_one_file_of_each_kind_with_about_40_lines_of_code() -> None:
    assert list(FILES) == ["my_data.py", "my_models.py", "my_losses.py", "my_attacks.py", "my_study.py"]
    lines = [line for code in (*FILES.values(), PIPELINE) for line in code.splitlines() if line]
    assert len(lines) <= 45


def test_the_report_shows_the_users_loss_and_attack_and_names_the_command(study: Path) -> None:
    folder = study / "hrloss-store" / "reports" / "my-study"
    table = (folder / "own_attacks.md").read_text()
    assert "Focal(gamma=2.0)" in table
    assert "Noise(tries=3)" in table
    assert "not yet" not in table
    assert f"python {COMMAND}" in table
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in folder.iterdir()), (
        "file names are valid on every file system"
    )


def test_two_spawned_workers_give_the_same_results_from_files_in_another_folder(study: Path, tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere")
    command = COMMAND.replace("my_study.py", str(elsewhere / "my_study.py"))
    python([*command.split(), "--workers", "2"], tmp_path)
    for pattern, count in (("model.safetensors", 4), ("spec.json", 4), ("records/*.safetensors", 12)):
        paths = [path.relative_to(study) for path in sorted(study.glob(f"hrloss-store/runs/*/{pattern}"))]
        assert len(paths) == count
        assert all((tmp_path / path).read_bytes() == (study / path).read_bytes() for path in paths)


def test_the_trained_network_is_loaded_in_one_line(study: Path) -> None:
    assert python(["-c", PIPELINE], study) == "HRClassifier (1, 8, 8) 10\n"


@pytest.mark.parametrize(
    ("file", "untrained"), [("my_losses.py", 2), ("my_models.py", 4), ("my_data.py", 4), ("my_study.py", 0)]
)
def test_a_changed_file_requires_new_runs_only_where_it_is_used(
    file: str, untrained: int, study: Path, tmp_path: Path
) -> None:
    folder, store = write(tmp_path / "study"), Store(study / "hrloss-store")
    assert not execution.missing_runs(grids.get(f"{folder}/my_study.py:my_grid"), store)
    (folder / file).write_text(FILES[file] + "\n# changed\n")
    grid = grids.get(f"{folder}/my_study.py:my_grid")
    assert sum(not store.is_trained(run) for run in grid.runs()) == untrained


def test_a_changed_attack_is_computed_again_on_the_same_networks(study: Path, tmp_path: Path) -> None:
    folder, store = write(tmp_path / "study"), Store(study / "hrloss-store")
    (folder / "my_attacks.py").write_text(FILES["my_attacks.py"].replace("range(", "range(1 + "))
    grid = grids.get(f"{folder}/my_study.py:my_grid")
    assert len(execution.missing_runs(grid, store)) == 4
    assert all(store.is_trained(run) for run in grid.runs())
    assert all(store.is_done(run, grid.attacks[:2]) for run in grid.runs())
