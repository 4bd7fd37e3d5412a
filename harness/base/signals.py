"""SIGINT and SIGTERM: save, exit with 130 or 143, and say how to go on."""

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
    """A signal asked the program to end. ``except Exception`` lets it pass."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Held:
    """Whether a signal has come within :func:`held`; false until one has."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None


@contextmanager
def held() -> Iterator[Held]:
    """Hold signals back within the block, which looks at what this yields and ends by itself.

    Raises (on leaving the block):
        Stopped: a signal had come.
    """
    state = Held()

    def remember(signum: int, _: FrameType | None) -> None:
        state.signum = signum

    with _handler(remember):
        yield state
    if state.signum is not None:
        raise Stopped(state.signum)


def resumable(
    module: str, launcher: Callable[[], str] = lambda: "python -m", *, anew: bool = False
) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Decorate the ``main`` of ``python -m <module>``, which can be started again.

    SIGINT and SIGTERM raise :class:`Stopped`; the line to go on with is printed, and the exit
    status is 128 + the signal's number.

    Args:
        module: what ``-m`` starts.
        launcher: what stands before its name in that line, e.g. ``torchrun … -m --``.
        anew: it keeps nothing of what it has not finished, and begins from the start.
    """

    def decorate(main: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(main)
        def wrapped() -> None:
            try:
                with _handler(_stop):
                    main()
            except KeyboardInterrupt as error:
                signum = getattr(error, "signum", signal.SIGINT)
                start = launcher().split()
                if start[0] == "python":
                    start[0] = sys.executable
                line = shlex.join([*start, module, *sys.argv[1:]])
                name = signal.Signals(signum).name
                way = "begins anew" if anew else "goes on"
                print(f"stopped by {name}; this line {way}:\n{line}", file=sys.stderr)
                raise SystemExit(128 + signum) from None

        return wrapped

    return decorate


def _stop(signum: int, _: FrameType | None) -> None:
    raise Stopped(signum)


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
