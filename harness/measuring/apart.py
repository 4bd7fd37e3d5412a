"""A call in a process of its own, which nothing that ran before can slow down or speed up."""

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


def call_apart(function: Callable[..., Any], *arguments: Any, on_run: OnRun | None = None) -> Any:
    """``function(*arguments, on_run)`` in a new process, which ends with the call.

    The process has imported modules and nothing else: no memory that earlier work took and gave
    back, no threads yet; torch will use as many as here. It does not outlive this one.

    Args:
        function: of a module; function, arguments and result are pickled.
        arguments: all of the function's but the last, which tells ``on_run`` here.
        on_run: told about progress, in this process.

    Raises:
        Exception: what the function raised.
        ProcessEnded: the process was ended, e.g. by a system that ran out of memory.
    """
    context = _context()
    here, there = context.Pipe(duplex=False)
    call = there, torch.get_num_threads(), function, arguments
    process = context.Process(target=_call, args=call, daemon=True)
    process.start()
    there.close()  # so that the end of the process ends what can be read
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
    """Processes fork from one that has done nothing but import; where that is not known, anew."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _call(
    there: Connection, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    # Ctrl-C reaches every process of a terminal; the first one then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)

    def on_run(*told: Any) -> None:
        there.send(("progress", told))

    with suppress(BrokenPipeError):  # the first one is gone: nobody waits
        try:
            answer = "result", function(*arguments, on_run)
        except BrokenPipeError:
            raise
        except Exception as error:
            answer = "error", error
        there.send(answer)
