"""Progress bars with count, rate and time left."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

#: Called before each timed run: the share of the work that is done (0 … 1), and what runs next.
OnRun = Callable[[float, str], None]

_REDRAW_SECONDS = 0.2


def progress_bar(
    unit: str,
    note: str = "",
    *,
    stdout: bool = False,
    transient: bool = False,
    estimate: bool = True,
) -> Progress:
    """A bar with count, rate and time left (once finished, time taken), to add tasks to.

    Args:
        unit: what is counted, in the plural; the rate is shown per second, or per hour if slow.
        note: format of the task's fields, shown at the end, e.g. ``L1 {task.fields[loss]:.4f}``.
        stdout: draw on standard output; on standard error by default.
        transient: erase the bar at the end, and draw none where the output is no terminal.
        estimate: show time left; else the note does.
    """
    console = Console(stderr=not stdout)
    return Progress(
        TextColumn("{task.description}", markup=False),  # names of users' own modules
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(unit),
        *([TimeRemainingColumn(elapsed_when_finished=True)] if estimate else []),
        *([TextColumn(note, markup=False)] if note else []),
        console=console,
        speed_estimate_period=math.inf,  # a step may take days
        transient=transient,
        disable=transient and not console.is_terminal,
    )


@contextlib.contextmanager
def timing_bar() -> Iterator[OnRun]:
    """A bar for timed runs, on standard error; drawn between runs only, never during one."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]:.1f} runs/s"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=1.0, rate=0.0)
        begin, drawn, runs = time.monotonic(), -math.inf, 0

        def on_run(share: float, name: str) -> None:
            nonlocal drawn, runs
            now = time.monotonic()
            runs += 1
            if now - drawn > _REDRAW_SECONDS:
                rate = runs / max(now - begin, 1e-9)
                bar.update(task, completed=share, description=name, rate=rate, refresh=True)
                drawn = now

        yield on_run


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text()
        if speed < 0.1:
            return Text(f"{3600 * speed:.1f} {self._unit}/h")
        return Text(f"{speed:.1f} {self._unit}/s")
