"""
References to a user's code: `"file.py:name"` or `"package.module:name"`, with keyword parameters.

A grid, a network, a loss, an attack or a data set can be a reference. `"my_models.py:build(width=8)"` stands for the
result of `build(width=8, ...)`, where `...` are the arguments that the benchmarks add, such as the number of classes.
"""

import ast
import hashlib
import importlib
import importlib.util
import math
import platform
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

EXAMPLE = "'my_file.py:name', 'my_package.module:name' or, with keyword parameters, 'my_file.py:name(width=8)'"
# Packages of this project: never part of a user's source, even where the user's folder contains them.
PROJECT_PACKAGES = ("art_hrloss", "benchmarks")

# Stack of the folders of files that are being loaded or called: relative references in them are resolved there first.
_search_folders: list[Path] = []
# Loaded files by path and source hash; and the hash of every imported file at the time of its import.
_modules: dict[tuple[str, str], ModuleType] = {}
_imported: dict[Path, str] = {}


class ConfigError(ValueError):
    """An invalid value of a specification or an option; the message states what was expected and what it got."""


class Reference(str):
    """
    Reference to a user's code as text without the file's folder, with the hash of the source.

    Two references are equal if their texts and their sources are equal. A reference can be pickled and sent to other
    processes. They read the file under the same path, or find the module on their import path, and raise an error if
    the source is not the one that the reference was created from.
    """

    code: str
    """SHA-256 of the source: the file and what it imports from its folder; for a module, from its package."""
    path: str
    """Path of the file; empty for a module."""

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True and getattr(other, "code", self.code) == self.code

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return str.__hash__(self)

    @property
    def label(self) -> str:
        """The name with its parameters, for tables."""
        return _parse(self)[1]

    @property
    def slug(self) -> str:
        """A file name: letters, digits, dots, dashes and underscores, and the first digits of the reference's hash."""
        return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', self)[:80].strip('-.')}-{self.digest[:8]}"

    @property
    def digest(self) -> str:
        """SHA-256 of the text and the source."""
        return hashlib.sha256(f"{self!s}\n{self.code}".encode()).hexdigest()

    def make(self, kind: type[T], *arguments: object, **keywords: object) -> T:
        """
        Call the function or class that the reference names, with these arguments and the reference's parameters.

        :param kind: The required type of the result.
        :raises ConfigError: If the source is missing, has changed or cannot be loaded; if it has no such name; if the
            call fails, or returns another type.
        """
        module = self._module()
        _, call, parameters = _parse(self)
        name = call.partition("(")[0]
        function = getattr(module, name, None)
        if not callable(function):
            names = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
            raise ConfigError(f"expected a function or class {name} for {self}, but got only {', '.join(names)}")
        with _searching_beside(module):
            try:
                result = function(*arguments, **keywords, **parameters)
            except ConfigError:
                raise
            except Exception as error:
                raise ConfigError(f"{self} failed: {_describe(error)}") from error
        if not isinstance(result, kind):
            raise ConfigError(
                f"expected {self} to return a {kind.__name__}, but got a {type(result).__name__}: {result!r:.60}"
            )
        return result

    def _module(self) -> ModuleType:
        """Return the loaded module; raise a ConfigError if its source has changed since the reference was created."""
        source = _parse(self)[0]
        try:
            file, root, sources = _sources(source, self.path)
        except ConfigError as error:
            raise ConfigError(f"on {platform.node()}: {error}; every worker needs it under the same path") from error
        if _hash(sources) != self.code:
            raise ConfigError(
                f"expected the source of {self} to stay unchanged while the command runs, but {file} has changed: run "
                "the command again"
            )
        hashes = {root / path: hashlib.sha256(text).hexdigest() for path, text in sources.items()}
        executed = (str(file), self.code)
        for path, digest in hashes.items():
            if _imported.get(path, digest) != digest and not (self.path and path == file):
                raise ConfigError(f"{path} has changed since this process imported it for {self}: restart the process")
        if executed not in _modules:
            _modules[executed] = _execute(self, file, root, sources) if self.path else _import(source)
            _imported.update({path: digest for path, digest in hashes.items() if not (self.path and path == file)})
        return _modules[executed]


def refer(text: str) -> Reference:
    """
    Return the reference that a text describes, without executing the code; only a module's parents are imported.

    A relative file is searched in the folder of the file that contains the reference, then in the current folder.

    :raises ConfigError: If the text is malformed, or if the file or module does not exist.
    """
    if isinstance(text, Reference):
        return text
    source, call, _ = _parse(text)
    path = ""
    if source.endswith(".py"):
        candidates = [folder / Path(source).expanduser() for folder in (*_search_folders[-1:], Path.cwd())]
        file = next((file for file in candidates if file.is_file()), None)
        if file is None:
            paths = " or ".join(dict.fromkeys(str(file) for file in candidates))
            raise ConfigError(f"expected the file of {text!r} at {paths}, but it does not exist")
        path, source = str(file.resolve()), file.name
    reference = Reference(f"{source}:{call}")
    reference.path, reference.code = path, _hash(_sources(source, path)[2])
    return reference


def _parse(text: str) -> tuple[str, str, dict[str, Any]]:
    """Return a reference's file or module, its name with sorted parameters, and the parameters."""
    match = re.fullmatch(r"(.+?):([^\W\d]\w*(?:\(.*\))?)", text, re.DOTALL)
    try:
        if not match or not re.fullmatch(r".*[^/\\]\.py|[^\W\d]\w*(\.[^\W\d]\w*)*", match[1], re.DOTALL):
            raise ValueError("a file.py or a module must precede the colon, and a name must follow it")
        call = ast.parse(match[2], mode="eval").body
        if isinstance(call, ast.Name):
            return match[1], call.id, {}
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError("every parameter needs a name")
        parameters = {str(item.arg): _checked_parameter(ast.literal_eval(item.value)) for item in call.keywords}
    except (ValueError, SyntaxError, RecursionError) as error:
        raise ConfigError(f"expected a reference such as {EXAMPLE}, but got {str(text)!r}: {error}") from error
    arguments = ", ".join(f"{name}={value!r}" for name, value in sorted(parameters.items()))
    return match[1], f"{call.func.id}({arguments})" if arguments else call.func.id, parameters


def _checked_parameter(value: object) -> object:
    """Return a parameter with its lists as tuples; raise a ValueError if it cannot be part of a key."""
    if isinstance(value, list | tuple):
        return tuple(_checked_parameter(element) for element in value)
    if not isinstance(value, bool | int | float | str | None) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError(f"parameters must be numbers, strings, True, False, None or lists of these, not {value!r}")
    return value


def _sources(source: str, path: str) -> tuple[Path, Path, dict[str, bytes]]:
    """Return a reference's file, the root folder of its imports, and the contents of its source by relative path."""
    if path:
        file, root = Path(path), Path(path).parent
        if not file.is_file():
            raise ConfigError(f"expected the file {file}, but it does not exist")
        return file, root, _closure(file, root)
    importlib.invalidate_caches()  # otherwise a module that has just been written may not be found
    try:
        spec = importlib.util.find_spec(source)
    except Exception as error:  # find_spec imports the parent packages, which can raise anything
        raise ConfigError(f"expected to import the module {source}, but got {_describe(error)}") from error
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ConfigError(
            f"expected the module {source}, but it is not on the import path: add its folder to PYTHONPATH"
        )
    file = Path(spec.origin)
    levels = source.count(".") + (file.name == "__init__.py")
    return file, file.parents[levels], _closure(file, file.parents[levels])


def _closure(file: Path, root: Path) -> dict[str, bytes]:
    """
    Return the contents of a file and of everything that it imports from a folder, without executing anything.

    For an installed library it returns the file only, because versions of libraries are not part of keys.
    """
    installed = {"site-packages", "dist-packages"} & set(root.parts)
    contents: dict[str, bytes] = {}
    queue = [file]
    while queue:
        path = queue.pop()
        name = path.relative_to(root).as_posix()
        if name not in contents:
            contents[name] = path.read_bytes()
            if not installed:
                queue += _local_imports(path, contents[name], root)
    return contents


def _local_imports(path: Path, text: bytes, root: Path) -> Iterator[Path]:
    """Yield the files under a folder that a file imports, with the __init__.py of their packages."""
    package = path.relative_to(root).parent.parts
    names = [".".join(package)]
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"expected Python in {path}, but got {_describe(error)}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else ()
            imported = ".".join([*parents, *([node.module] if node.module else [])])
            names += [imported, *(f"{imported}.{alias.name}".lstrip(".") for alias in node.names)]
    for name in filter(None, names):
        levels = name.split(".")
        for depth in range(1, len(levels) + 1) if levels[0] not in PROJECT_PACKAGES else ():
            base = root.joinpath(*levels[:depth])
            yield from (file for file in (base / "__init__.py", base.with_name(f"{base.name}.py")) if file.is_file())


def _hash(sources: Mapping[str, bytes]) -> str:
    lines = (f"{hashlib.sha256(text).hexdigest()} {path}\n" for path, text in sorted(sources.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _execute(reference: Reference, file: Path, root: Path, sources: Mapping[str, bytes]) -> ModuleType:
    """Execute a file as a module with a unique name, which cannot conflict with a module of the same file name."""
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))  # as Python does for a script
    module = ModuleType(f"{file.stem}_{reference.code[:16]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses and pickle look the module up here
    with _searching_beside(module):
        try:
            exec(compile(sources[file.name], str(file), "exec"), module.__dict__)
        except Exception as error:
            del sys.modules[module.__name__]
            raise ConfigError(f"expected a file that Python can load, but {file} failed: {_describe(error)}") from error
    return module


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigError(f"expected to import the module {name}, but got {_describe(error)}") from error


@contextmanager
def _searching_beside(module: ModuleType) -> Iterator[None]:
    """Resolve the relative references in a module in the module's folder first."""
    _search_folders.append(Path(module.__file__ or "").parent)
    try:
        yield
    finally:
        _search_folders.pop()


def _describe(error: Exception) -> str:
    """Return an error with its file and line in the user's code, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if Path(frame.filename) != Path(__file__)), None)
    return f"{type(error).__name__}: {error}" + (f" ({last.filename}, line {last.lineno})" if last else "")


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """
    Return a question for the most similar known name, to end a message about an unknown name; or an empty string.

    >>> did_you_mean("mnits", ["mnist", "svhn"]), did_you_mean("x", ["mnist", "svhn"])
    (": did you mean 'mnist'?", '')
    """
    similar = get_close_matches(str(value), list(known), n=1)
    return f": did you mean {similar[0]!r}?" if similar else ""
