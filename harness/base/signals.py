"""SIGINT and SIGTERM: when they stop a command, and the command that resumes it."""

from __future__ import annotations

import functools
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Exit status of a process that was killed (SIGKILL, which Windows has no name for).
KILLED = -getattr(signal, "SIGKILL", 9)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end. ``except Exception`` does not catch it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise :class:`Stopped` within the block as soon as a signal comes."""

    def stop(signum: int, _: FrameType | None) -> None:
        raise Stopped(signum)

    with _handler(stop):
        yield


class DeferredSignal:
    """Whether a signal has come within :func:`defer_signals`; false until one has."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None


@contextmanager
def defer_signals() -> Iterator[DeferredSignal]:
    """Defer signals to the end of the block, which looks at the yielded object and ends early.

    Raises (on leaving the block):
        Stopped: a signal had come.
    """
    deferred = DeferredSignal()

    def remember(signum: int, _: FrameType | None) -> None:
        deferred.signum = signum

    with _handler(remember):
        yield deferred
    if deferred.signum is not None:
        raise Stopped(deferred.signum)


def resumable(
    module: str, launcher: Callable[[], str] = lambda: "python -m"
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Decorate the ``main`` of ``python -m <module>``, which continues what an earlier call began.

    When a signal stops it, :func:`harness.base.commands.command_line` prints the command that
    resumes it.

    Args:
        module: what ``-m`` starts.
        launcher: what stands before the module in that command, e.g. ``torchrun … -m --``.
    """

    def decorate(main: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(main)
        def wrapped() -> None:
            try:
                main()
            except KeyboardInterrupt as stop:
                start = launcher().split()
                if start[0] == "python":
                    start[0] = sys.executable
                stop.add_note("resume with:\n" + shlex.join([*start, module, *sys.argv[1:]]))
                raise

        return wrapped

    return decorate


@contextmanager
def _handler(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Let a function handle the signals within the block, on the main thread alone.

    A signal that the parent set to be ignored (``nohup``, a shell's ``&``) stays ignored.
    """
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for one in _SIGNALS:
                if signal.getsignal(one) is not signal.SIG_IGN:
                    before[one] = signal.signal(one, handler)
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, old)
