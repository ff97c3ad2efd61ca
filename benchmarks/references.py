"""
A user's own things, from outside the package: `"file.py:name"` or `"package.module:name"`, with keyword parameters.

A grid, a network, a loss, an attack or a data set can be such a reference: `"my_models.py:build(width=8)"` stands for
what `build` returns when it is called with `width=8` and with what its place in an experiment gives it.
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
# No part of a user's source, even where the user works in a folder that holds them.
OURS = ("art_hrloss", "benchmarks")

# Folders of the files that are being loaded or called: what they refer to is looked for beside them.
_beside: list[Path] = []
# Files that are loaded, by path and hash; and of all files that were imported for them, the hash at that time.
_modules: dict[tuple[str, str], ModuleType] = {}
_imported: dict[Path, str] = {}


class ConfigError(ValueError):
    """A value that describes no experiment; says what was expected and what came."""


class Reference(str):
    """
    A reference as text, without the file's folder, which knows its source: two are equal if text and source are.

    It travels to other processes as it is; they look for the file under the same path, for the module on their import
    path, and refuse a source that is not the one that the reference was made from.
    """

    code: str
    """SHA-256 of the source: of the file, and of what it imports from beside it or, for a module, from its package."""
    path: str
    """Where the file is; empty for a module."""

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True and getattr(other, "code", self.code) == self.code

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return str.__hash__(self)

    @property
    def label(self) -> str:
        """The name with its parameters, for tables."""
        return _parts(self)[1]

    @property
    def slug(self) -> str:
        """A name for files: letters, digits, dots, dashes and underscores, with the beginning of the source's hash."""
        return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', self)[:80].strip('-.')}-{self.digest[:8]}"

    @property
    def digest(self) -> str:
        """SHA-256 of text and source."""
        return hashlib.sha256(f"{self!s}\n{self.code}".encode()).hexdigest()

    def make(self, kind: type[T], *arguments: object, **keywords: object) -> T:
        """
        Call what the reference names, with these arguments and its own parameters.

        :param kind: What it must return.
        :raises ConfigError: If its source is not there or is not as it was, it cannot be loaded, has no such name,
            fails, or returns something else.
        """
        module = self._module()
        _, call, parameters = _parts(self)
        name = call.partition("(")[0]
        function = getattr(module, name, None)
        if not callable(function):
            names = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
            raise ConfigError(f"expected a function or class {name} for {self}, but got only {', '.join(names)}")
        with _looking_beside(module):
            try:
                made = function(*arguments, **keywords, **parameters)
            except ConfigError:
                raise
            except Exception as error:
                raise ConfigError(f"{self} failed: {_told(error)}") from error
        if not isinstance(made, kind):
            raise ConfigError(
                f"expected {self} to return a {kind.__name__}, but got a {type(made).__name__}: {made!r:.60}"
            )
        return made

    def _module(self) -> ModuleType:
        """The loaded source, which is as it was when the reference was made."""
        source = _parts(self)[0]
        try:
            file, root, sources = _sources(source, self.path)
        except ConfigError as error:
            raise ConfigError(f"on {platform.node()}: {error}; every worker needs it under the same path") from error
        if _hash(sources) != self.code:
            raise ConfigError(
                f"expected {self} as it was when the command began, but its source {file} has changed since: give the "
                "command again"
            )
        hashes = {root / path: hashlib.sha256(text).hexdigest() for path, text in sources.items()}
        executed = (str(file), self.code)
        for path, digest in hashes.items():
            if _imported.get(path, digest) != digest and not (self.path and path == file):
                raise ConfigError(
                    f"{path} has changed since this process imported it for {self}: start the process again"
                )
        if executed not in _modules:
            _modules[executed] = _executed(self, file, root, sources) if self.path else _import(source)
            _imported.update({path: digest for path, digest in hashes.items() if not (self.path and path == file)})
        return _modules[executed]


def refer(text: str) -> Reference:
    """
    The reference that a text names; relative files are looked for beside the file that says so, then where we are.

    :raises ConfigError: If it is malformed, or the file or module is not there. Nothing but a module's parents is
        imported.
    """
    if isinstance(text, Reference):
        return text
    source, call, _ = _parts(text)
    path = ""
    if source.endswith(".py"):
        tried = [folder / Path(source).expanduser() for folder in (*_beside[-1:], Path.cwd())]
        file = next((file for file in tried if file.is_file()), None)
        if file is None:
            places = " or ".join(dict.fromkeys(str(file) for file in tried))
            raise ConfigError(f"expected for {text!r} a file {places}, but it is not there")
        path, source = str(file.resolve()), file.name
    reference = Reference(f"{source}:{call}")
    reference.path, reference.code = path, _hash(_sources(source, path)[2])
    return reference


def _parts(text: str) -> tuple[str, str, dict[str, Any]]:
    """Where a reference's source is, its name with the parameters in order, and the parameters."""
    match = re.fullmatch(r"(.+?):([^\W\d]\w*(?:\(.*\))?)", text, re.DOTALL)
    try:
        if not match or not re.fullmatch(r".*[^/\\]\.py|[^\W\d]\w*(\.[^\W\d]\w*)*", match[1], re.DOTALL):
            raise ValueError("neither a file.py nor a module before the colon, or no name after it")
        call = ast.parse(match[2], mode="eval").body
        if isinstance(call, ast.Name):
            return match[1], call.id, {}
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError("parameters without a name")
        parameters = {str(one.arg): _plain(ast.literal_eval(one.value)) for one in call.keywords}
    except (ValueError, SyntaxError, RecursionError) as error:
        raise ConfigError(f"expected a reference such as {EXAMPLE}, but got {str(text)!r}: {error}") from error
    given = ", ".join(f"{name}={value!r}" for name, value in sorted(parameters.items()))
    return match[1], f"{call.func.id}({given})" if given else call.func.id, parameters


def _plain(value: object) -> object:
    """A parameter, which a key must be able to hold."""
    if isinstance(value, list | tuple):
        return tuple(_plain(one) for one in value)
    if not isinstance(value, bool | int | float | str | None) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError(f"parameters are numbers, texts, True, False, None and lists of these, and not {value!r}")
    return value


def _sources(source: str, path: str) -> tuple[Path, Path, dict[str, bytes]]:
    """The file of a reference, the folder that its imports are looked for in, and what is there by relative path."""
    if path:
        file, root = Path(path), Path(path).parent
        if not file.is_file():
            raise ConfigError(f"expected the file {file}, but it is not there")
        return file, root, _closure(file, root)
    importlib.invalidate_caches()  # it may just have been written
    try:
        spec = importlib.util.find_spec(source)
    except Exception as error:  # its parents are imported, and can raise anything
        raise ConfigError(f"expected to import the module {source}, but got {_told(error)}") from error
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise ConfigError(
            f"expected the module {source}, but it is not on the import path: put its folder on PYTHONPATH"
        )
    file = Path(spec.origin)
    levels = source.count(".") + (file.name == "__init__.py")
    return file, file.parents[levels], _closure(file, file.parents[levels])


def _closure(file: Path, root: Path) -> dict[str, bytes]:
    """
    The contents of a file and of all that it imports from a folder, in whatever order; nothing is executed.

    Of an installed library it is the file alone: the versions of libraries are no part of keys.
    """
    installed = {"site-packages", "dist-packages"} & set(root.parts)
    contents: dict[str, bytes] = {}
    left = [file]
    while left:
        path = left.pop()
        name = path.relative_to(root).as_posix()
        if name not in contents:
            contents[name] = path.read_bytes()
            if not installed:
                left += _local_imports(path, contents[name], root)
    return contents


def _local_imports(path: Path, text: bytes, root: Path) -> Iterator[Path]:
    """The files under a folder that a file imports, with the packages that they are in."""
    package = path.relative_to(root).parent.parts
    names = [".".join(package)]
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"expected Python in {path}, but got {_told(error)}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
    for name in filter(None, names):
        parts = name.split(".")
        for depth in range(1, len(parts) + 1) if parts[0] not in OURS else ():
            place = root.joinpath(*parts[:depth])
            yield from (file for file in (place / "__init__.py", place.with_name(f"{place.name}.py")) if file.is_file())


def _hash(sources: Mapping[str, bytes]) -> str:
    lines = (f"{hashlib.sha256(text).hexdigest()} {path}\n" for path, text in sorted(sources.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _executed(reference: Reference, file: Path, root: Path, sources: Mapping[str, bytes]) -> ModuleType:
    """A file as a module of a name of its own, so that no other of that name is in its way."""
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))  # as Python does for a script
    module = ModuleType(f"{file.stem}_{reference.code[:16]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # which dataclasses and pickles look for
    with _looking_beside(module):
        try:
            exec(compile(sources[file.name], str(file), "exec"), module.__dict__)
        except Exception as error:
            del sys.modules[module.__name__]
            raise ConfigError(f"expected a file that Python can load, but {file} failed: {_told(error)}") from error
    return module


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigError(f"expected to import the module {name}, but got {_told(error)}") from error


@contextmanager
def _looking_beside(module: ModuleType) -> Iterator[None]:
    """Look for the files that a module refers to in its folder first."""
    _beside.append(Path(module.__file__ or "").parent)
    try:
        yield
    finally:
        _beside.pop()


def _told(error: Exception) -> str:
    """An error with the place in the user's code, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if Path(frame.filename) != Path(__file__)), None)
    return f"{type(error).__name__}: {error}" + (f" ({last.filename}, line {last.lineno})" if last else "")


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """
    Return the end of a message about an unknown name: a question for the most similar known one, or nothing.

    >>> did_you_mean("mnits", ["mnist", "svhn"]), did_you_mean("x", ["mnist", "svhn"])
    (": did you mean 'mnist'?", '')
    """
    similar = get_close_matches(str(value), list(known), n=1)
    return f": did you mean {similar[0]!r}?" if similar else ""
