"""A grid of runs, each in a process of its own."""

from __future__ import annotations

import math
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import UserError
from ..base.progress import progress_bar
from ..base.signals import defer_signals
from .engines import Engine
from .jobs import Job, describe_status, was_stopped

#: Exit status when the budget ends before the work (EX_TEMPFAIL: try again).
BUDGET_STATUS = 75
#: Seconds between two checks of the time and of signals.
_POLL = 0.2
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


def sweep(
    jobs: Sequence[Job],
    engine: Engine,
    stop: threading.Event,
    *,
    at_once: int | None = None,
    deadline: float = math.inf,
) -> Report:
    """Run the jobs that are not finished, baselines of warm starts before their variants.

    Args:
        jobs: all of them.
        engine: runs a job.
        stop: set here when the time is up; the engine then ends its jobs.
        at_once: jobs at once; None is all.
        deadline: time to stop, on the clock of ``time.monotonic``.

    Raises:
        KeyboardInterrupt: once the jobs have stopped and saved.
    """
    report = Report([job for job in jobs if job.finished])
    waiting = [job for job in jobs if not job.finished]
    if not waiting:
        return report
    running: dict[Future[int], Job] = {}
    before = len(report.finished)
    with (
        # An exception from a signal's handler could make the pool lose a thread it has started.
        defer_signals() as signalled,
        ThreadPoolExecutor(at_once or len(waiting)) as pool,
        progress_bar("runs") as progress,
    ):
        task = progress.add_task("Runs", total=len(jobs), completed=before)
        try:
            while waiting or running:
                if signalled or stop.is_set() or time.monotonic() >= deadline:
                    stop.set()
                    report.left += waiting
                    waiting = []
                ready, waiting = _ready(waiting, report)
                for job in ready:
                    running[pool.submit(_run, engine, job, stop)] = job
                done, _ = wait(running, _POLL, FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    progress.console.print(_note(job, future, stop, report), highlight=False)
                ended = len(report.finished) - before + len(report.failed)
                progress.update(task, completed=before + ended)
        finally:
            stop.set()  # the pool waits for its threads
    return report


def _ready(waiting: Sequence[Job], report: Report) -> tuple[list[Job], list[Job]]:
    """Jobs that can start, and jobs that have to wait; those that never can are failed."""
    failed = {job.config.run_id: job for job, _ in report.failed}
    finished = {job.config.run_id for job in report.finished}
    ready, rest = [], []
    for job in waiting:
        start = job.config.baseline.run_id if job.config.start else None
        if start is None or start in finished:
            ready.append(job)
        elif start in failed:
            report.failed.append((job, f"its baseline failed: {failed[start].log}"))
        else:
            rest.append(job)
    return ready, rest


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
        reason = describe_status(future.result())
    report.failed.append((job, reason))
    return f"{job}: failed, {reason}"


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
    print(f"Records: {results / 'records'}; tables: python -m harness.tables")
