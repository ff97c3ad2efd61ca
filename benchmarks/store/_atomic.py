"""Atomic writes: a file is written under a temporary name and renamed; errors name the file and the remedy."""

import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_KINDS = {False: "file", True: "directory"}


class StoreError(RuntimeError):
    """A file of the store cannot be used or written; the message names the file and the remedy."""


class DamagedError(StoreError):
    """A file is damaged, and can be computed again."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path} {problem}")
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:  # workers send this error by pickle, which needs both arguments
        return type(self), (self.path, str(self).removeprefix(f"{self.path} "))


class UnreadableError(DamagedError):
    """A file cannot be read for lack of permission; its content may be valid, so it is not replaced."""


def write_json(path: Path, value: Any) -> None:
    """
    Write a value as JSON, atomically.

    :raises StoreError: If the file cannot be written, or if a number is not finite, which JSON cannot represent.
    """
    try:
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise StoreError(f"{path} cannot be written: expected finite numbers, but got a NaN or an infinity") from error
    write_bytes(path, (text + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """
    Write a file atomically: readers see the old or the new content, also if the process is killed.

    :raises StoreError: If the disk is full, or the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A random name: a process ID would not be unique among the machines that share a disk. The temporary file is in
        # the same folder, because a rename is atomic within a file system only.
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # the content must reach the disk before the rename does
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """
    Append a line to a file; a partial line that a killed process has left is ended first.

    :raises StoreError: If the disk is full, or the file cannot be written.
    """
    with writing(path), path.open("ab+") as file:
        separator = b""
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            separator = b"" if file.read(1) == b"\n" else b"\n"
        file.write(separator + line.encode() + b"\n")


def expect_folder(path: Path) -> None:
    """
    Make sure that a path is a folder, or can be created as one.

    :raises StoreError: If the path or one of its parents is not a folder.
    """
    existing = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise StoreError(f"expected a folder at {path}, but {existing} is not a folder: use another path")


def expect_writable(path: Path) -> None:
    """
    Make sure that files can be created in a folder, or in its parent if it does not exist; no file is left behind.

    :raises StoreError: If the disk is full, or the folder cannot be written.
    """
    expect_folder(path)
    with (
        writing(path),
        tempfile.TemporaryFile(
            dir=next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
        ) as file,
    ):
        file.write(b"0")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an OSError during a write into a :class:`StoreError` that states the remedy."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}): {_remedy(path, error)}, and run the same command again; "
            "existing files are unchanged"
        ) from error


def read_bytes(path: Path) -> bytes | None:
    """
    Return the content of a file; None if the file does not exist.

    :raises DamagedError: If the path is not a file.
    :raises UnreadableError: If the file cannot be read for lack of permission.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        expect_kind(path)
        raise UnreadableError(path, f"cannot be read ({error.strerror}): make it readable") from error


def read_json(path: Path, kind: type) -> Any:
    """
    Return the value in a JSON file; None if the file does not exist.

    :raises DamagedError: If the path is not a file, or the file has no JSON value of that type.
    :raises UnreadableError: If the file cannot be read for lack of permission.
    """
    data = read_bytes(path)
    if data is None:
        return None
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f"is not valid JSON ({error})") from error
    if not isinstance(value, kind):
        raise DamagedError(path, f"should contain a {kind.__name__}, but contains a {type(value).__name__}")
    return value


def expect_kind(path: Path, *, folder: bool = False) -> None:
    """
    Make sure that an existing path is a file, or a folder.

    :raises DamagedError: If it is a folder instead of a file, or a file instead of a folder.
    """
    if path.exists() and path.is_dir() != folder:
        raise DamagedError(path, f"should be a {_KINDS[folder]}, but is a {_KINDS[not folder]}")


def set_aside(path: Path) -> Path:
    """Rename a damaged file to NAME.bad, replace an older NAME.bad, and return the new path."""
    backup = path.with_name(f"{path.name}.bad")
    with writing(backup):
        if backup.is_dir():
            shutil.rmtree(backup)
        else:
            backup.unlink(missing_ok=True)
        os.replace(path, backup)
    return backup


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a finite number")


def _remedy(path: Path, error: OSError) -> str:
    if error.errno == errno.EFBIG:
        return "raise the limit on the size of files (ulimit -f)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        return f"free disk space ({shutil.disk_usage(existing).free / 1e6:.1f} MB are free)"
    return "make it writable"
