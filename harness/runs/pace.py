"""How long jobs take, known from those that have finished."""

from __future__ import annotations

import contextlib
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import UserError
from ..config.variants import Variant
from ..records.shapes import Run
from ..records.store import load_record

if TYPE_CHECKING:
    from .jobs import Job

_Key = tuple[str | None, Variant | None]
# Bytes at the end of a log that hold its last lines.
_TAIL = 8192
# A line of progress of a training: see ``base.progress``.
_STEP = re.compile(
    r"(?P<done>\d+) of (?P<total>\d+) steps(?:, [\d.]+ steps/[sh])?"
    r"(?:, (?P<left>(?:\d+ days?, )?\d+:\d\d:\d\d) left)?"
)


class Pace:
    """Seconds of a job: the mean of its variant in its task, else of the task, else of all.

    Attributes:
        guess: seconds of a job as long as none has finished; None if not known.
    """

    guess: float | None = None

    def __init__(self, finished: Iterable[Job] = ()) -> None:
        self._seconds: dict[_Key, list[float]] = defaultdict(list)
        for job in finished:
            self.add(job)

    def add(self, job: Job, seconds: float = 0.0) -> None:
        """Note a finished job, which took so long, or as its record says if that is more.

        The record knows of earlier calls in which a resumed training began.
        """
        with contextlib.suppress(UserError):
            record = load_record(job.results, Run, job.config.run_id)
            seconds = max(seconds, record.training.seconds)
        if seconds:
            for key in _keys(job):
                self._seconds[key].append(seconds)

    def of(self, job: Job) -> float | None:
        """Seconds that the job will take; the guess if nothing has finished."""
        known = (self._seconds[key] for key in _keys(job) if key in self._seconds)
        return next(map(statistics.fmean, known), self.guess)

    def left(
        self, waiting: Sequence[Job], running: Sequence[tuple[Job, float]], at_once: int | None
    ) -> float | None:
        """Seconds until all jobs have ended, None if not known.

        Args:
            waiting: jobs that have not begun.
            running: jobs, each with the seconds since it began.
            at_once: jobs at once; None is all.
        """
        ends = []
        for job, elapsed in [*((job, 0.0) for job in waiting), *running]:
            seconds = self.of(job)
            if seconds is None:
                return None
            ends.append(max(0.0, seconds - elapsed))
        return max([sum(ends) / (at_once or max(1, len(ends))), *ends])


def _keys(job: Job) -> tuple[_Key, _Key, _Key]:
    """Groups of jobs that take about as long, the closest first."""
    task, variant = job.config.data.name, job.config.variant
    return (task, variant), (task, None), (None, None)


@dataclass(frozen=True)
class Step:
    """How far a job is, by the last line of progress in its log.

    Attributes:
        text: steps, rate and time left, as the line says them.
        seconds: of the whole training at this pace; None if not known.
    """

    text: str
    seconds: float | None


def step_of(log: Path) -> Step | None:
    """How far the job of this log is; None if it has printed nothing yet, or its log is away."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    # The log holds earlier tries too.
    lines = text.rpartition("] python -m harness.run")[2].splitlines()
    found = [match for line in lines if (match := _STEP.search(line))]
    if not found:
        return None
    done, total, left = found[-1]["done"], found[-1]["total"], found[-1]["left"]
    seconds = None
    if left and int(done) < int(total):
        seconds = _seconds(left) * int(total) / (int(total) - int(done))
    return Step(found[-1][0], seconds)


def _seconds(clock: str) -> float:
    """``1 day, 2:00:05`` or ``0:01:25`` in seconds."""
    days, _, rest = clock.rpartition(", ")
    hours, minutes, seconds = map(int, rest.split(":"))
    return 86400.0 * int(days.split()[0] if days else 0) + 3600 * hours + 60 * minutes + seconds


def duration(seconds: float) -> str:
    """Seconds for people, e.g. ``1.5 h``."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
