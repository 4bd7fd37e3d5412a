"""A call in a new process, whose time does not depend on what ran before."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch

from ..base.progress import OnRun

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext


class ProcessEnded(RuntimeError):
    """The process ended before the call returned.

    Attributes:
        code: its exit status; minus the signal's number if a signal ended it.
    """

    def __init__(self, code: int | None) -> None:
        super().__init__(f"the process of a measurement ended early, with exit status {code}")
        self.code = code


def run_in_subprocess(
    function: Callable[..., Any], *arguments: Any, on_run: OnRun | None = None
) -> Any:
    """``function(*arguments, on_run)`` in a new process, which ends with the call.

    The process has imported modules and done nothing else: it has no memory that earlier work
    freed, and no threads; torch will use as many as in this process. It does not outlive this one.

    Args:
        function: of a module; function, arguments and result are pickled.
        arguments: all arguments but the last, which passes the progress on to ``on_run``.
        on_run: called with the progress, in this process.

    Raises:
        Exception: the function raised it.
        ProcessEnded: the process was killed, e.g. by a system that ran out of memory.
    """
    context = _context()
    here, there = context.Pipe(duplex=False)
    call = there, torch.get_num_threads(), function, arguments
    process = context.Process(target=_call, args=call, daemon=True)
    process.start()
    there.close()  # so that reading ends when the process does
    try:
        while True:
            kind, content = here.recv()
            if kind == "result":
                return content
            if kind == "error":
                raise content
            if on_run:
                on_run(*content)
    except EOFError:
        process.join()
        raise ProcessEnded(process.exitcode) from None
    finally:
        process.kill()
        process.join()


def _context() -> ForkServerContext | SpawnContext:
    """Processes fork from one that has only imported modules, or start afresh on other systems."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _call(
    there: Connection, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    # Ctrl-C reaches every process of a terminal; the parent then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # the server of a sweep's runs blocks it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    torch.set_num_threads(threads)

    def on_run(*progress: Any) -> None:
        there.send(("progress", progress))

    with suppress(BrokenPipeError):  # the parent has ended: nobody waits
        try:
            answer = "result", function(*arguments, on_run)
        except BrokenPipeError:
            raise
        except Exception as error:
            answer = "error", error
        there.send(answer)
