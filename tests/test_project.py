"""README's example, the dependencies that are declared, and the version."""

import ast
import configparser
import re
import sys
from pathlib import Path

import art_hrloss

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def libraries(path: Path) -> set[str]:
    """Return the top-level packages that a file imports anywhere, without the standard library."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


def test_the_plugin_imports_the_libraries_that_it_declares() -> None:
    # pandas is imported only to return a DataFrame; Triton comes with torch, where that has CUDA.
    allowed = {"art", "art_hrloss", "numpy", "pandas", "scipy", "torch", "tqdm", "triton"}
    assert set().union(*map(libraries, (ROOT / "art_hrloss").rglob("*.py"))) == allowed


def test_the_mathematics_needs_torch_alone() -> None:
    for module in ("_numerics", "_functional", "_module"):
        assert libraries(ROOT / f"art_hrloss/losses/{module}.py") <= {"art_hrloss", "torch"}


def test_the_version_and_the_address_are_those_of_setup_cfg() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    metadata = parser["metadata"]
    assert art_hrloss.__version__ == metadata["version"]
    assert f"version: {metadata['version']}\n" in (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[([\d.]+)\]", changelog, re.MULTILINE).group(1) == metadata["version"]
    links = re.findall(r"^\[[\w.]+\]: (\S+)", changelog, re.MULTILINE)
    assert links
    assert all(link.startswith(f"{metadata['url']}/") for link in links)


def test_files_and_names_of_contributing_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    sources = [path for folder in ("art_hrloss", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
    paths = [path.relative_to(ROOT).as_posix() for path in sources]
    files = set(re.findall(r"`([\w./]+\.py)`", text))
    assert len(files) > 20
    missing = {file for file in files if not any(f"/{path}".endswith(f"/{file}") for path in paths)}
    assert missing - {"tests/attacks/test_NAME.py"} == set()
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
    code = set(re.findall(r"\w+", "\n".join(path.read_text() for path in sources)))
    assert set(re.findall(r"`(\w+)`", text)) - code - {"pypi"} == set()


def test_readme_example_runs_and_its_attack_bites(capsys) -> None:
    scope: dict = {}
    for example in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(example, "README.md", "exec"), scope)
    clean = (scope["classifier"].predict(scope["images"][1500:]).argmax(1) == scope["labels"][1500:]).mean()
    shown = capsys.readouterr().out
    accuracies = [float(value) for value in re.findall(r"gradient: ([\d.]+)", shown)]
    assert clean > 0.85
    assert len(accuracies) == 2
    assert max(accuracies) < clean - 0.2
