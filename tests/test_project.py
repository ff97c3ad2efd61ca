"""What the README and the metadata say is so."""

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def modules(tree: str) -> Iterator[str]:
    """The modules that README lists under a package, by their dotted names, in its order."""
    folder = ""
    for indent, name, ending in re.findall(r"^( +)(\w+)(\.py|/)", tree, re.MULTILINE):
        if ending == "/":
            folder = name
        else:
            yield name if indent == "  " else f"{folder}.{name}"


# Data flow one way: a module or package imports only from itself and those above it.
HOUSE = re.findall(r"^  (\w+)(?:\.py|/)", README.split("benchmarks/        ")[1].split("\ntests/")[0], re.MULTILINE)


def imports(path: Path) -> set[str]:
    """All modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def test_readme_lists_every_module() -> None:
    parts = {p.stem for p in (ROOT / "benchmarks").glob("*.py")} | {
        p.parent.name for p in (ROOT / "benchmarks").glob("*/*.py")
    }
    assert sorted(HOUSE) == sorted(parts - {"__init__"})
    listed = modules(README.split("art_hrloss/        ")[1].split("benchmarks/")[0])
    files = [p.relative_to(ROOT / "art_hrloss").with_suffix("") for p in (ROOT / "art_hrloss").rglob("*.py")]
    assert sorted(listed) == sorted(".".join(file.parts) for file in files if file.name != "__init__")


@pytest.mark.parametrize("part", HOUSE)
def test_a_part_of_the_benchmarks_imports_only_those_above_it(part: str) -> None:
    root = ROOT / "benchmarks"
    files = [root / f"{part}.py"] if (root / f"{part}.py").exists() else (root / part).rglob("*.py")
    used = {name.split(".")[1] for file in files for name in imports(file) if name.startswith("benchmarks.")}
    assert not used & set(HOUSE[HOUSE.index(part) + 1 :])


def test_the_plugin_knows_nothing_of_the_benchmarks_and_needs_only_what_it_names() -> None:
    used = {name.split(".")[0] for p in (ROOT / "art_hrloss").rglob("*.py") for name in imports(p)}
    # pandas is for who asks for a DataFrame, and imported there; Triton comes with torch, where that has CUDA.
    ours = {"art", "art_hrloss", "numpy", "pandas", "scipy", "torch", "tqdm", "triton"}
    assert used - set(sys.stdlib_module_names) == ours


def test_the_mathematics_needs_torch_alone() -> None:
    for module in ("_numerics", "_functional", "_module"):
        used = {name.split(".")[0] for name in imports(ROOT / f"art_hrloss/losses/{module}.py")}
        assert used - set(sys.stdlib_module_names) <= {"art_hrloss", "torch"}


def test_one_version_everywhere() -> None:
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    version = metadata["metadata"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1) == version


def test_readme_example_runs_and_its_attack_bites(capsys) -> None:
    scope: dict = {}
    for example in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(example, "README.md", "exec"), scope)
    clean = (scope["classifier"].predict(scope["images"][1500:]).argmax(1) == scope["labels"][1500:]).mean()
    shown = capsys.readouterr().out
    assert f"P_e, the error probability             {1 - clean:.4g}\n" in shown
    accuracies = [float(value) for value in re.findall(r"gradients: ([\d.]+)", shown)]
    assert clean > 0.85
    assert len(accuracies) == 2
    assert max(accuracies) < clean - 0.2
