"""Progress bars with rate and ETA."""

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
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


@contextlib.contextmanager
def progress() -> Iterator[OnRun]:
    """A progress bar on stderr, with rate and ETA; drawn between runs only, never during one."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]:.1f} runs/s, ETA"),
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
            if now - drawn > 0.2:
                rate = runs / max(now - begin, 1e-9)
                bar.update(task, completed=share, description=name, rate=rate, refresh=True)
                drawn = now

        yield on_run


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


def progress_bar() -> Progress:
    """A bar with count, rate, time spent and time left, on the error stream."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


#: Told before a run: the share of the work that is done (0 … 1), and what runs next.
OnRun = Callable[[float, str], None]
