"""Progress of long work: a bar on a terminal, elsewhere a plain line each minute.

Both show count, rate and time left. The lines are for pipes, logs and job schedulers.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

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

#: Seconds until the first plain line, and between later ones; there is one at the end, too.
FIRST_LINE, LINE_EVERY = 1.0, 60.0
# Lines of timed runs are printed between two runs where that is early enough, else during one.
_EARLY_LINE = LINE_EVERY - 10
_LATE_FIRST_LINE = 5.0
_REDRAW_SECONDS = 0.2


def progress_bar(
    unit: str,
    note: str = "",
    *,
    stdout: bool = False,
    transient: bool = False,
    estimate: bool = True,
) -> Progress:
    """Count, rate and time left (once finished, time taken), to add tasks to.

    Args:
        unit: what is counted, in the plural; the rate is shown per second, or per hour if slow.
        note: format of the task's fields, shown at the end, e.g. ``L1 {task.fields[loss]:.4f}``;
            left out while a field is NaN.
        stdout: draw on standard output; on standard error by default.
        transient: erase the bar at the end.
        estimate: show time left; else the note does.
    """
    console = Console(stderr=not stdout)
    if not _draws(console):
        return _Lines(console, unit, note, estimate)
    return Progress(
        TextColumn("{task.description}", markup=False),  # names of users' own modules
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(unit),
        *([TimeRemainingColumn(elapsed_when_finished=True)] if estimate else []),
        *([_NoteColumn(note)] if note else []),
        console=console,
        speed_estimate_period=math.inf,  # a step may take days
        transient=transient,
    )


@contextlib.contextmanager
def timing_bar(planned: float | None = None) -> Iterator[OnRun]:
    """A bar for timed runs, on standard error; drawn between runs only, never during one.

    Without a terminal there is a plain line soon, and then at least one a minute. A run that takes
    minutes itself is the only one during which a line is printed.

    Args:
        planned: seconds that all runs are to take; said until some have ended.
    """
    console = Console(stderr=True)
    if not _draws(console):
        lines = _TimingLines(console, planned)
        try:
            yield lines.on_run
        finally:
            lines.stop()
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]:.1f} runs/s"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=1.0, rate=0.0)
        begin, drawn, runs = time.monotonic(), -math.inf, 0

        def on_run(share: float, name: str) -> None:
            nonlocal drawn, runs
            now = time.monotonic()
            runs += 1
            if now - drawn >= _REDRAW_SECONDS:
                rate = runs / max(now - begin, 1e-9)
                bar.update(task, completed=share, description=name, rate=rate, refresh=True)
                drawn = now

        yield on_run


class _TimingLines:
    """Plain lines about timed runs; a thread prints what a long run would delay."""

    def __init__(self, console: Console, planned: float | None) -> None:
        self._console, self._planned = console, planned
        self._begin = time.monotonic()
        self._printed: float | None = None
        self._share, self._name, self._calls = 0.0, "", 0
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._print_what_is_late, daemon=True)
        self._thread.start()

    def on_run(self, share: float, name: str) -> None:
        with self._lock:
            self._share, self._name = share, name
            self._calls += 1
            if time.monotonic() >= self._due(FIRST_LINE, _EARLY_LINE):
                self._print()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _print_what_is_late(self) -> None:
        while True:
            with self._lock:
                wait = self._due(_LATE_FIRST_LINE, LINE_EVERY) - time.monotonic()
                if wait <= 0:
                    self._print()
                    wait = LINE_EVERY
            if self._stopped.wait(wait):
                return

    def _due(self, first: float, every: float) -> float:
        return self._begin + first if self._printed is None else self._printed + every

    def _print(self) -> None:
        self._printed = time.monotonic()
        seconds = self._printed - self._begin
        ended = max(0, self._calls - 1)  # the last one runs
        parts = ["no run has ended yet"]
        if ended and seconds:
            parts = [f"{100 * self._share:.0f} %", f"{ended / seconds:.1f} runs/s"]
        if self._share:
            parts.append(f"{_clock(seconds * (1 - self._share) / self._share)} left")
        elif self._planned is not None:
            left = self._planned - seconds
            told = f"{_clock(left)} left as planned" if left >= 1 else "longer than planned"
            parts.append(told)
        _print(self._console, f"{f'Timing {self._name}'.strip()}: {', '.join(parts)}")


def _draws(console: Console) -> bool:
    """Whether a bar can be drawn there."""
    return console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    """E.g. ``0:01:25``."""
    return str(timedelta(seconds=math.ceil(seconds)))


def _rate(task: Task, unit: str) -> str:
    speed = task.finished_speed or task.speed
    if speed is None:
        return ""
    return f"{3600 * speed:.1f} {unit}/h" if speed < 0.1 else f"{speed:.1f} {unit}/s"


def _note(task: Task, note: str) -> str:
    unknown = any(isinstance(v, float) and math.isnan(v) for v in task.fields.values())
    return "" if unknown else note.format(task=task)


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(_rate(task, self._unit))


class _NoteColumn(ProgressColumn):
    def __init__(self, note: str) -> None:
        super().__init__()
        self._note = note

    def render(self, task: Task) -> Text:
        return Text(_note(task, self._note))


class _Lines(Progress):
    """Prints plain lines instead of a bar; a thread prints them, as a step may take hours."""

    def __init__(self, console: Console, unit: str, note: str, estimate: bool) -> None:
        super().__init__(console=console, disable=True, speed_estimate_period=math.inf)
        self._unit, self._note, self._estimate = unit, note, estimate
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._print_now_and_then, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        for task in self.tasks:
            if task.completed or task.finished:  # an error before the first step is a line itself
                _print(self.console, self._line(task))

    def _print_now_and_then(self) -> None:
        """At first, then each minute, and once as soon as rate or time left are known."""
        printed: float | None = None
        complete = False
        while not self._stopped.wait(FIRST_LINE):
            lines = [self._line(task) for task in self.tasks if not task.finished]
            known = any(f" {self._unit}/" in line or " left" in line for line in lines)
            now = time.monotonic()
            if printed is None or now - printed >= LINE_EVERY or (known and not complete):
                printed = now
                complete = known
                for line in lines:
                    _print(self.console, line)

    def _line(self, task: Task) -> str:
        count = f"{task.completed:.0f}"
        if task.total is not None:
            count += f" of {task.total:.0f}"
        left = ""
        if self._estimate and task.finished and task.elapsed is not None:
            left = f"in {_clock(task.finished_time or 0.0)}"
        elif self._estimate and task.time_remaining is not None:
            left = f"{_clock(task.time_remaining)} left"
        parts = (f"{count} {self._unit}", _rate(task, self._unit), left, _note(task, self._note))
        return f"{task.description}: {', '.join(filter(None, parts))}"
