"""A grid of runs, each in a process of its own."""

from __future__ import annotations

import math
import re
import signal
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..base.errors import UserError
from ..base.folders import tables_command
from ..base.progress import progress_bar
from ..base.signals import defer_signals
from .jobs import Job, describe_status, was_stopped
from .pace import Pace, Step, duration, step_of

if TYPE_CHECKING:
    from .engines import Engine

#: Exit status when the budget ends before the work (EX_TEMPFAIL: try again).
BUDGET_STATUS = 75
#: Seconds between two checks of the time and of signals.
_POLL = 0.2
#: Seconds between two estimates of the time left.
_ESTIMATE_EVERY = 2.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass
class Report:
    """How the jobs of a sweep ended."""

    finished: list[Job] = field(default_factory=list)
    #: Job and reason.
    failed: list[tuple[Job, str]] = field(default_factory=list)
    #: Not started or not finished, because the sweep was to stop.
    left: list[Job] = field(default_factory=list)


def seconds_of(text: str) -> float:
    """Seconds of a duration such as ``90s``, ``9m`` or ``1h30m``.

    Raises:
        UserError: the text has another form, or is zero.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not seconds or "".join(number + unit for number, unit in parts) != text:
        raise UserError(f"--budget takes a time such as 90s, 9m or 1h30m, got {text!r}")
    return seconds


class Queue(Protocol):
    """Jobs in the order in which they start."""

    #: Jobs that were finished before.
    finished: list[Job]

    def next(self, report: Report) -> Job | None:
        """The first job that may start now, once; None if there is none, or none yet.

        Jobs that turn out to be finished, or that never can start, go to the report.
        """

    def later(self) -> Sequence[Job]:
        """Jobs that were not given yet; of unknown ones others of the same variant and task."""


class Grid:
    """Jobs that are all known; baselines of warm starts come before their variants."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.finished = [job for job in jobs if job.finished]
        self._waiting = [job for job in jobs if not job.finished]

    def next(self, report: Report) -> Job | None:
        failed = {job.config.run_id: job for job, _ in report.failed}
        finished = {job.config.run_id for job in report.finished}
        for job in list(self._waiting):
            start = job.config.baseline.run_id if job.config.start else None
            if start is None or start in finished:
                self._waiting.remove(job)
                return job
            if start in failed:
                self._waiting.remove(job)
                report.failed.append((job, f"its baseline failed: {failed[start].log}"))
        return None

    def later(self) -> Sequence[Job]:
        return self._waiting


def sweep(
    jobs: Sequence[Job] | Queue,
    engine: Engine,
    stop: threading.Event,
    *,
    at_once: int | None = None,
    deadline: float = math.inf,
) -> Report:
    """Run the jobs that are not finished, and show how far they are.

    Args:
        jobs: all of them, or a queue that gives them.
        engine: runs a job.
        stop: set here when the time is up; the engine then ends its jobs.
        at_once: jobs at once; None is all.
        deadline: time to stop, on the clock of ``time.monotonic``.

    Raises:
        KeyboardInterrupt: once the jobs have stopped and saved.
    """
    queue: Queue = Grid(jobs) if isinstance(jobs, Sequence) else jobs
    report = Report(list(queue.finished))
    if not queue.later():
        return report
    most = at_once or len(queue.later())
    pace = Pace(report.finished)
    running: dict[Future[int], tuple[Job, float]] = {}
    with (
        # An exception from a signal's handler could make the pool lose a thread it has started.
        defer_signals() as signalled,
        ThreadPoolExecutor(most) as pool,
        progress_bar("runs", "{task.fields[left]}", estimate=False) as progress,
    ):
        before = len(report.finished)
        total = before + len(queue.later())
        task = progress.add_task("Runs", total=total, completed=before, left="")
        shown, left = -math.inf, ""
        try:
            while queue.later() or running:
                if signalled or stop.is_set() or time.monotonic() >= deadline:
                    stop.set()
                    report.left += queue.later()
                    queue = Grid([])
                while len(running) < most and (job := queue.next(report)):
                    running[pool.submit(_run, engine, job, stop)] = job, time.monotonic()
                done, _ = wait(running, _POLL, FIRST_COMPLETED)
                now = time.monotonic()
                for future in done:
                    job, began = running.pop(future)
                    line = _note(job, future, stop, report)
                    progress.console.print(line, highlight=False, markup=False)
                    if job.finished:
                        pace.add(job, now - began)
                ended = len(report.finished) + len(report.failed)
                total = ended + len(running) + len(queue.later()) + len(report.left)
                if done or now - shown >= _ESTIMATE_EVERY:
                    shown = now
                    active = [(job, now - began) for job, began in running.values()]
                    waiting = queue.later()
                    steps = [(job, step) for job, _ in active if (step := step_of(job.log))]
                    known = [step.seconds for _, step in steps if step.seconds]
                    pace.guess = statistics.fmean(known) if known else None
                    seconds = pace.left(waiting, active, most) if waiting or active else None
                    left = "" if seconds is None else f"about {duration(seconds)} left"
                    # A bar has no room for steps, a line has.
                    now_running = _running(active, steps if progress.disable else ())
                    left = ", ".join(filter(None, [now_running, left]))
                progress.update(task, completed=ended, total=total, left=left)
        finally:
            stop.set()  # the pool waits for its threads
    return report


def _running(active: Sequence[tuple[Job, float]], steps: Sequence[tuple[Job, Step]]) -> str:
    """What runs now, in a few words: jobs, each with its seconds so far, and how far some are."""
    if not active:
        return ""
    if steps:
        job, step = steps[0]
        words = "running: " if len(active) == 1 else f"{len(active)} running, one is "
        return f"{words}{job} ({step.text})"
    job, seconds = active[0]
    words = f"running: {job}" if len(active) == 1 else f"{len(active)} running"
    return f"{words} for {duration(seconds)}" if seconds >= 1 else words


def _run(engine: Engine, job: Job, stop: threading.Event) -> int:
    return 128 + signal.SIGTERM if stop.is_set() else engine.run(job)


def _note(job: Job, future: Future[int], stop: threading.Event, report: Report) -> str:
    """Enter a job's end into the report; gives a line about it."""
    error = future.exception()
    if error is not None:
        reason = " ".join(str(error).split()) or type(error).__name__
    elif job.finished:
        report.finished.append(job)
        return f"{job}: finished"
    elif stop.is_set() and was_stopped(future.result()):
        report.left.append(job)
        return f"{job}: stopped"
    else:
        reason = _mistake(job) or describe_status(future.result())
    report.failed.append((job, reason))
    return f"{job}: failed, {reason}"


def _mistake(job: Job) -> str | None:
    """What the job's last line says, if it says an error or ends a traceback."""
    try:
        last = job.log.read_text(encoding="utf-8", errors="replace").splitlines()[-1]
    except (OSError, IndexError):
        return None
    if re.match(r"[A-Za-z_][\w.]*(Error|Exception)(: |$)", last):
        return last
    return last.removeprefix("error: ") if last.startswith("error: ") else None


def conclude(report: Report, results: Path) -> None:
    """Print how the sweep ended.

    Raises:
        SystemExit: jobs failed (status 1), or the budget ended before the work (75).
    """
    total = len(report.finished) + len(report.failed) + len(report.left)
    print(f"{len(report.finished)} of {total} runs are finished.")
    for job, reason in report.failed:
        print(f"failed: {job} ({reason}); log: {job.log}", file=sys.stderr)
    if report.left:
        print("Time budget used up; run the same command to continue.")
        raise SystemExit(BUDGET_STATUS)
    if report.failed:
        raise SystemExit(1)
    print(f"Records: {results / 'records'}; tables: {tables_command(results)}")
