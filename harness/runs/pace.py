"""How long jobs take, known from those that have finished."""

from __future__ import annotations

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..base.errors import UserError
from ..config.variants import Variant
from ..records.shapes import Run
from ..records.store import load_record

if TYPE_CHECKING:
    from .jobs import Job

_Key = tuple[str | None, Variant | None]


class Pace:
    """Seconds of a job: the mean of its variant in its task, else of the task, else of all."""

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
        """Seconds that the job will take; None if nothing has finished."""
        known = (self._seconds[key] for key in _keys(job) if key in self._seconds)
        return next(map(statistics.fmean, known), None)

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


def duration(seconds: float) -> str:
    """Seconds for people, e.g. ``1.5 h``."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
