"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it, and rename it into place.

    The folder is synced too, so that the new name outlives a power failure.

    Raises:
        UserError: the folder cannot be written or the disk is full; ``path`` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write {path}: {reason}; free space or choose another folder"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder, before the work whose result will lie there.

    Raises:
        UserError: nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write into {folder}: {reason}; choose another folder") from error


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete temporary files that killed writers left in a folder, of all files or of one.

    Call it only where no other process may be writing them.
    """
    for temporary in folder.glob(f".{'*' if name is None else glob.escape(name)}.*.tmp"):
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically.

    A surrogate (a byte of a file's name that is not UTF-8) becomes ``\\udcXX``, which JSON reads
    back.
    """
    write_atomic(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically, indented, in the given order.

    Raises:
        ValueError: the data hold NaN or an infinity.
        UserError: as :func:`write_atomic`.
    """
    write_text(path, json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing, is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); delete it and measure again"
        ) from error
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; delete it") from None


def output_stem(path: Path) -> Path:
    """The path that a user gives for files without their suffixes.

    Raises:
        UserError: it ends in no name.
    """
    if path.name in ("", ".."):
        raise UserError(f"--output {path} names no file: give a name too, e.g. {path / 'figure'}")
    return path


def claim_record(path: Path, content: dict[str, Any]) -> None:
    """Check that the JSON file beside a figure, if it exists, has the same ``content``.

    Raises:
        UserError: it describes another figure, or cannot be read.
    """
    if not path.exists():
        return
    known = read_json(path)
    if not isinstance(known, dict) or {key: known.get(key) for key in content} != content:
        raise UserError(f"{path} describes another figure: delete it or choose another --output")


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    with contextlib.suppress(OSError):  # some file systems refuse it; the file is whole anyway
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
