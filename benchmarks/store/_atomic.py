"""Files that are whole or absent: written beside their place and moved there; what is wrong with one is named."""

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
    """A file of the store that cannot be used or written; says which and what to do."""


class DamagedError(StoreError):
    """A file that cannot be used as it is, but can be made again."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}")
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:  # it comes back from workers, and has more than a message
        return type(self), (self.path, str(self).removeprefix(f"{self.path} "))


class UnreadableError(DamagedError):
    """A file that the system does not let us read; it may be sound, so it is left where it is."""


def write_json(path: Path, value: Any) -> None:
    """
    Write a value as JSON, whole or not at all.

    :raises StoreError: As :func:`write_bytes`, or if a number in it is not finite, for which JSON has no word.
    """
    try:
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise StoreError(f"{path} is not written: expected finite numbers, but got a NaN or an infinity") from error
    write_bytes(path, (text + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """
    Write a file, whole or not at all: beside its place first, then moved there once it is on disk.

    :raises StoreError: If the disk is full, or the place cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: on a shared disk another machine may have a process of the same number.
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """
    Add a line to a file, below a half one that a killed process may have left.

    :raises StoreError: If the disk is full, or the place cannot be written.
    """
    with writing(path), path.open("ab+") as file:
        torn = b""
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = b"" if file.read(1) == b"\n" else b"\n"
        file.write(torn + line.encode() + b"\n")


def expect_folder(path: Path) -> None:
    """
    Make sure that a path is a folder, or can become one.

    :raises StoreError: If something else is there.
    """
    existing = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise StoreError(f"expected a folder at {path}, but {existing} is none: give another")


def expect_writable(path: Path) -> None:
    """
    Make sure that files can be made in a folder, which need not be there yet, and leave none.

    :raises StoreError: If the disk is full, or the place cannot be written.
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
    """Turn what the system says against writing a file into a :class:`StoreError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}): {_remedy(path, error)}, and give the same command again; "
            "what was there before is as it was"
        ) from error


def read_bytes(path: Path) -> bytes | None:
    """
    What a file holds; None if it is not there.

    :raises DamagedError: If it is no file.
    :raises UnreadableError: If the system does not let us read it.
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
    The value in a JSON file; None if it is not there.

    :raises DamagedError: As :func:`read_bytes`, or if it is not JSON of that kind.
    """
    data = read_bytes(path)
    if data is None:
        return None
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f"is not valid JSON ({error})") from error
    if not isinstance(value, kind):
        raise DamagedError(path, f"should hold a {kind.__name__}, but holds a {type(value).__name__}")
    return value


def expect_kind(path: Path, *, folder: bool = False) -> None:
    """
    Make sure that what is there, if anything, is a file, or a folder.

    :raises DamagedError: If it is the other.
    """
    if path.exists() and path.is_dir() != folder:
        raise DamagedError(path, f"should be a {_KINDS[folder]}, but is a {_KINDS[not folder]}")


def set_aside(path: Path) -> Path:
    """Rename a file to NAME.bad, in place of one that was set aside before; returns where it is now."""
    aside = path.with_name(f"{path.name}.bad")
    with writing(aside):
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)
        os.replace(path, aside)
    return aside


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _remedy(path: Path, error: OSError) -> str:
    if error.errno == errno.EFBIG:
        return "raise the limit on the size of files (ulimit -f)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        there = next(folder for folder in path.absolute().parents if folder.exists())
        return f"make room ({shutil.disk_usage(there).free / 1e6:.1f} MB are free on its disk)"
    return "make it writable"
