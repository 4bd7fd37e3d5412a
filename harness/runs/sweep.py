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
from .jobs import Member, describe_status, was_stopped

#: Exit status when the budget ends before the work (EX_TEMPFAIL: try again).
BUDGET_STATUS = 75
#: Seconds between two looks at the time and for a signal.
_POLL = 0.2
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass
class Report:
    """How the members of a sweep ended."""

    finished: list[Member] = field(default_factory=list)
    #: Member and reason.
    failed: list[tuple[Member, str]] = field(default_factory=list)
    #: Not begun or not at their end, because the sweep was to stop.
    left: list[Member] = field(default_factory=list)


def seconds_of(text: str) -> float:
    """Seconds of a duration such as ``90s``, ``9m`` or ``1h30m``.

    Raises:
        UserError: it is none, or zero.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not seconds or "".join(number + unit for number, unit in parts) != text:
        raise UserError(f"--budget takes a time such as 90s, 9m or 1h30m, got {text!r}")
    return seconds


def sweep(
    members: Sequence[Member],
    engine: Engine,
    stop: threading.Event,
    *,
    at_once: int | None = None,
    deadline: float = math.inf,
) -> Report:
    """Run the members that are not finished, baselines of warm starts before what needs them.

    Args:
        members: all of them.
        engine: runs one.
        stop: set here when the time is up; the engine ends its members then.
        at_once: members at once; None is all.
        deadline: when to stop, on the clock of ``time.monotonic``.

    Raises:
        KeyboardInterrupt: once the members have stopped and saved.
    """
    report = Report([m for m in members if m.finished])
    waiting = [m for m in members if not m.finished]
    if not waiting:
        return report
    running: dict[Future[int], Member] = {}
    before = len(report.finished)
    with (
        # An exception out of a signal's handler could part the pool from a thread it has begun.
        defer_signals() as signalled,
        ThreadPoolExecutor(at_once or len(waiting)) as pool,
        progress_bar("runs") as progress,
    ):
        task = progress.add_task("Runs", total=len(members), completed=before)
        try:
            while waiting or running:
                if signalled or stop.is_set() or time.monotonic() >= deadline:
                    stop.set()
                    report.left += waiting
                    waiting = []
                ready, waiting = _ready(waiting, report)
                for member in ready:
                    running[pool.submit(_run, engine, member, stop)] = member
                done, _ = wait(running, _POLL, FIRST_COMPLETED)
                for future in done:
                    member = running.pop(future)
                    progress.console.print(_note(member, future, stop, report), highlight=False)
                ended = len(report.finished) - before + len(report.failed)
                progress.update(task, completed=before + ended)
        finally:
            stop.set()  # the pool waits for its threads
    return report


def _ready(waiting: Sequence[Member], report: Report) -> tuple[list[Member], list[Member]]:
    """Members that can begin, and those that cannot yet; those that never will have failed."""
    failed = {member.config.run_id: member for member, _ in report.failed}
    finished = {member.config.run_id for member in report.finished}
    ready, rest = [], []
    for member in waiting:
        start = member.config.baseline.run_id if member.config.start else None
        if start is None or start in finished:
            ready.append(member)
        elif start in failed:
            report.failed.append((member, f"its baseline failed: {failed[start].log}"))
        else:
            rest.append(member)
    return ready, rest


def _run(engine: Engine, member: Member, stop: threading.Event) -> int:
    return 128 + signal.SIGTERM if stop.is_set() else engine.run(member)


def _note(member: Member, future: Future[int], stop: threading.Event, report: Report) -> str:
    """Enter how a member ended into the report, and say so in a line."""
    error = future.exception()
    if error is not None:
        reason = " ".join(str(error).split()) or type(error).__name__
    elif member.finished:
        report.finished.append(member)
        return f"{member}: finished"
    elif stop.is_set() and was_stopped(future.result()):
        report.left.append(member)
        return f"{member}: stopped"
    else:
        reason = describe_status(future.result())
    report.failed.append((member, reason))
    return f"{member}: failed, {reason}"


def _close(report: Report, results: Path) -> None:
    """Say how the sweep ended, and exit."""
    total = len(report.finished) + len(report.failed) + len(report.left)
    print(f"{len(report.finished)} of {total} runs are finished.")
    for member, reason in report.failed:
        print(f"failed: {member} ({reason}); log: {member.log}", file=sys.stderr)
    if report.left:
        print("The budget is used up; the same command goes on.")
        raise SystemExit(BUDGET_STATUS)
    if report.failed:
        raise SystemExit(1)
    print(f"Records: {results / 'records'}; tables: python -m harness.tables")
