"""One process at a time: locks that the operating system releases when their owner dies."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError
from .files import read_json, write_json


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` within the block; wait while another process holds it.

    Before it waits, one line says which process that is. The lock is the kernel's (``flock``) and
    ends with its owner, however that dies. On NFS it holds between machines if the server runs its
    lock service, as NFSv4 always does. If the file system has no ``flock``, filelock warns and
    uses the file's existence, which a killed owner on another machine leaves behind.

    Args:
        path: lock file, created here and left in place; a file beside it names the owner.
        what: what runs within the block, e.g. ``NLA seed 0``; for the line.

    Raises:
        UserError: the file cannot be created or locked.
    """
    owner = path.with_suffix(".owner.json")
    file_lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file_lock.acquire(timeout=0.5)  # the owner needs a moment to write who it is
        except Timeout:
            print(f"{what}: already running in {_describe(owner)}; waiting", file=sys.stderr)
            file_lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot write {path}: {reason}; choose a folder that can be written and locked"
        ) from error
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        who = {"process": os.getpid(), "host": socket.gethostname(), "since": now}
        write_json(owner, who)
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        file_lock.release()


def _describe(owner: Path) -> str:
    try:
        who = read_json(owner)
        return f"process {who['process']} on {who['host']} (since {who['since']})"
    except (UserError, KeyError, TypeError):
        return "another process"  # it has only just begun, or ended
