"""Processes that begin with everything imported, on Linux.

A process of ``python -m harness.run`` imports for seconds before it does anything. Here a server
imports once, without a thread or a device, and each process is a fork of it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path

#: What a run imports: by name, as some of it stands above this module.
IMPORTED = (
    *("torch._dynamo", "harness.runs.run", "harness.tasks.registry", "harness.images.patches"),
    *("harness.reporting.tables.printed", "harness.reporting.tables.tasks"),
)


def can_fork() -> bool:
    """Whether processes can begin so: elsewhere libraries do not survive a fork, or there is none.

    Users' programs that have no file, such as notebooks, are left alone too.
    """
    return sys.platform == "linux" and _is_module(sys.modules["__main__"])


class Forked:
    """A process of ``python -m MODULE``, with the part of ``subprocess.Popen`` that is needed.

    Args:
        module: what to run.
        words: its arguments.
        log: file to which its output is appended.
        folder: where it starts.
    """

    def __init__(self, module: str, words: Sequence[str], log: Path, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED))
        self._process = context.Process(
            target=_run, args=(module, tuple(words), str(log), str(folder), dict(os.environ))
        )
        with _deaf_server():
            self._process.start()

    def wait(self, timeout: float | None = None) -> int:
        """Exit status; -n if it was killed by signal n.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("python", timeout)
        return self._process.exitcode

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()


@contextlib.contextmanager
def _deaf_server() -> Iterator[None]:
    """Begin the server, if there is none yet, with SIGTERM blocked.

    A signal to the whole group, as ``timeout`` and Slurm send it, would end the server, and with it
    the exit statuses of its processes. It ends with this process.
    """
    resource_tracker.ensure_running()  # its own start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_module(main: object) -> bool:
    return getattr(main, "__spec__", None) is not None or bool(getattr(main, "__file__", None))


def _run(
    module: str, words: Sequence[str], log: str, folder: str, environment: dict[str, str]
) -> None:
    os.setsid()  # Ctrl-C reaches it only through its parent
    os.environ.clear()
    os.environ.update(environment)
    for one in (signal.SIGUSR1, signal.SIGUSR2):  # they announce preemption
        signal.signal(one, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, open(descriptor, "w", buffering=1, closefd=False))  # noqa: SIM115
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):
        os.chdir(folder)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    """Stop this process as SIGTERM does when its parent, which is not the server, has died."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
