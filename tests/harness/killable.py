"""``python killable.py FOLDER PHASE CHANGE ARGUMENTS``: harness.run that shows how far it is.

The first byte of ``FOLDER/phase`` is the index of the present one of :data:`PHASES`, whenever the
process is killed; further bytes tell of each whether it has begun. The process kills itself with
SIGKILL before the CHANGE-th change of the file system that it makes under FOLDER in PHASE; -1:
never. If it comes to its end, ``FOLDER/measured.json`` tells seconds and changes of each phase.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

#: Functions that are phases of their own.
_MARKED = {
    "harness.images.sources:training_cache": "decoding",
    "harness.training.trainer:Trainer.train": "training",
    "harness.training.trainer:save_checkpoint": "saving",
    "harness.runs.run:save_weights": "saving",
    "harness.runs.run:evaluate": "evaluating",
    "harness.runs.run:save_record": "recording",
    "harness.runs.run:_claim": "recording",
    "harness.training.trainer:Trainer.discard_state": "recording",
    "harness.runs.run:measure_cost": "counting",
}
PHASES = ("importing", "preparing", *dict.fromkeys(_MARKED.values()))

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.truncate"}


def watch_changes(folder: Path, on_change: Callable[[], None]) -> None:
    """Call a function before every change that this process makes to the files of a folder."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in _CHANGES) and str(arguments[0]).startswith(str(folder)):
            on_change()

    sync = os.fsync

    def counted_sync(descriptor: int) -> None:
        on_change()
        sync(descriptor)

    os.fsync = counted_sync
    sys.addaudithook(hook)


class Phases:
    """The present phase, in a file that survives the process; seconds and changes of each."""

    def __init__(self, folder: Path, kill_in: str, kill_at: int) -> None:
        self.kill_in, self.kill_at = kill_in, kill_at
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.changes = dict.fromkeys(PHASES, 0)
        with (folder / "phase").open("w+b") as file:
            file.write(bytes(1 + len(PHASES)))
            file.flush()
            self._shown = mmap.mmap(file.fileno(), 0)
        self._since = time.monotonic()
        self.now = PHASES[0]

    def enter(self, phase: str) -> str:
        """Begin a phase; gives the one that it ends."""
        before, now = self.now, time.monotonic()
        self.seconds[before] += now - self._since
        self.now, self._since = phase, now
        self._shown[0] = PHASES.index(phase)
        self._shown[1 + PHASES.index(phase)] = 1
        return before

    def count(self) -> None:
        """A change of the file system is about to be made."""
        if (self.now, self.changes[self.now]) == (self.kill_in, self.kill_at):
            os.kill(os.getpid(), signal.SIGKILL)
        self.changes[self.now] += 1

    def mark(self, path: str, phase: str) -> None:
        """Let a function or method be a phase of its own."""
        function = pkgutil.resolve_name(path)
        place, _, name = path.replace(":", ".").rpartition(".")

        def marked(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return function(*arguments, **named)
            before = self.enter(phase)
            try:
                return function(*arguments, **named)
            finally:
                self.enter(before)

        setattr(pkgutil.resolve_name(place), name, marked)


# -- for those who start it -----------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    """Of a process under ``folder``: an image cache of its own, this checkout, and no git.

    Somebody may commit while a test goes on, and records hold the commit.
    """
    own = {"GIT_DIR": os.devnull, "SR_CACHE": str(folder / "cache")}
    return os.environ | own | {"PYTHONPATH": str(Path(__file__).parents[2])}


def start(
    folder: Path,
    words: Sequence[str],
    kill_in: str = "",
    kill_at: int = -1,
    *,
    forked: bool = False,
) -> subprocess.Popen[bytes] | Forked:
    """Start it; see the module's text. What it says on stderr is in ``folder/told``.

    Args:
        forked: fork it off this process, which has imported everything already, as seconds go
            by otherwise until it does anything.
    """
    folder.mkdir(exist_ok=True)
    (folder / "phase").unlink(missing_ok=True)  # of the one before it
    arguments = [str(folder), kill_in, str(kill_at), *words]
    if forked:
        process = Forked(target=_main_forked, args=(folder, arguments))
        process.start()
        return process
    with (folder / "told").open("wb") as told:
        return subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=told,
            env=environment(folder),
        )


class Forked(ForkProcess):
    """Much like ``subprocess.Popen``."""

    @property
    def returncode(self) -> int | None:
        return self.exitcode

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int:
        self.join()
        assert self.exitcode is not None
        return self.exitcode

    def send_signal(self, signum: int, /) -> None:
        if self.poll() is None:
            os.kill(self.ident, signum)


def _main_forked(folder: Path, arguments: list[str]) -> None:
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = (folder / "told").open("w", buffering=1)
    os.environ.update(environment(folder))
    sys.argv = [__file__, *arguments]
    main()


def phase_of(folder: Path) -> str:
    """How far a process is, or was when it was killed."""
    try:
        return PHASES[(folder / "phase").read_bytes()[0]]
    except (OSError, IndexError):  # it has only just begun
        return PHASES[0]


def _begun(folder: Path, flag: int) -> bool:
    shown = (folder / "phase").read_bytes() if (folder / "phase").exists() else b""
    return flag == 1 or (len(shown) > flag and bool(shown[flag]))


def send(
    process: subprocess.Popen[bytes] | Forked,
    folder: Path,
    phase: str,
    seconds: float,
    signum: signal.Signals,
) -> None:
    """Send a signal so long after a phase has begun, unless the process ends before."""
    at, flag = math.inf, 1 + PHASES.index(phase)
    pause = min(max(seconds / 20, 0.002), 0.02)
    while process.poll() is None and time.monotonic() < at:
        if at == math.inf and _begun(folder, flag):
            at = time.monotonic() + seconds
        time.sleep(pause)
    process.send_signal(signum)


def main() -> None:
    """See the module's text."""
    folder = Path(sys.argv[1])
    phases = Phases(folder, sys.argv[2], int(sys.argv[3]))
    watch_changes(folder, phases.count)

    from harness.run import main as main_job

    for function, phase in _MARKED.items():
        phases.mark(function, phase)
    phases.enter("preparing")
    sys.argv = ["harness.run", *sys.argv[4:]]
    main_job()
    phases.enter("importing")
    measured = {"seconds": phases.seconds, "changes": phases.changes}
    (folder / "measured.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
