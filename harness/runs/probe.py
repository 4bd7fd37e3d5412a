"""The trainings of a capability profile: one seed at every rate, the others at the best of them.

``harness.config.profile`` has the settings and the rates. Each training is that of ``python -m
harness.run --task ... --learning-rate ... --seeds ... --threads 1``, under the same id.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..config.labels import row_labels
from ..config.profile import PROFILE_PRESET, RATES, ProfileTask, best_rate
from ..config.variants import Variant
from ..measuring.flops import check_cost
from ..measuring.tasks import check_reach
from ..records.shapes import Run
from ..records.store import load_record
from ..tasks.base import SyntheticTask
from ..tasks.options import weighted
from ..tasks.registry import find_task
from ..training.diagnosis import DIVERGED
from .jobs import Job, make_job
from .options import TrainingOptions, configure, network_of

if TYPE_CHECKING:
    from .sweep import Report

#: Published rows that stand beside a module's own.
BESIDE = (
    *(Variant("nla"), Variant("nlsa"), Variant("criss-cross")),
    *(Variant("enlca"), Variant("enlca", {"m": 16})),
)


@dataclass(frozen=True)
class Cell:
    """The trainings of one row in one setting.

    Attributes:
        first: the first seed at each rate, in their order.
        seeds: the others.
        job: the training of a rate and a seed.
    """

    first: tuple[Job, ...]
    seeds: tuple[int, ...]
    job: Callable[[float, int], Job]

    def best(self, without: Collection[float] = ()) -> float | None:
        """The best rate by the first seed's validation scores; None if no training finished.

        Args:
            without: rates at which another seed diverged.
        """
        scores = {}
        for job in self.first:
            if job.config.learning_rate not in without and job.finished:
                record = load_record(job.results, Run, job.config.run_id)
                assert record.validation is not None  # every synthetic task has one
                scores[job.config.learning_rate] = record.validation.score
        return best_rate(scores) if scores else None

    def others(self, rate: float) -> list[Job]:
        """The other seeds at a rate."""
        return [self.job(rate, seed) for seed in self.seeds]


def find_cells(
    variants: Sequence[Variant],
    settings: Sequence[ProfileTask],
    seeds: Sequence[int],
    options: TrainingOptions,
    device: torch.device,
    argv: Sequence[str],
) -> list[Cell]:
    """A cell for each variant and setting: all settings of a variant, then the next variant.

    Args:
        variants: the rows.
        settings: of the profile.
        seeds: the first one is trained at every rate.
        options: ``results`` and ``save_every`` of the trainings.
        device: where they train.
        argv: the command line, which may give the modules' ``res_scale``.

    Raises:
        UserError, AttentionError: a seed or an option is out of range, or a module cannot be used.
    """
    options = dataclasses.replace(options, preset=PROFILE_PRESET)
    created = [find_task(one.task)(**one.options) for one in settings]
    names, (seed, *others) = row_labels(variants), dict.fromkeys(seeds)
    for task in created:
        assert isinstance(task, SyntheticTask)
        network = network_of(options, task)
        check_reach(task, network.reach)
        for variant in variants:
            check_cost(variant, network.channels)
    cells = []
    for variant in variants:
        for setting, task in zip(settings, created, strict=True):
            assert isinstance(task, SyntheticTask)
            name = f"{names[variant]}, {setting.label}"
            job = partial(
                _job, name, weighted(variant, task.res_scale, argv), task, options, device
            )
            cells.append(Cell(tuple(job(rate, seed) for rate in RATES), tuple(others), job))
    return cells


def _job(
    name: str,
    variant: Variant,
    task: SyntheticTask,
    options: TrainingOptions,
    device: torch.device,
    rate: float,
    seed: int,
) -> Job:
    options = dataclasses.replace(options, learning_rate=rate)
    config = configure(options, task, variant, seed, device)
    return dataclasses.replace(make_job(config, name, options, task), note=f"rate {rate:g}")


class Cells:
    """A :class:`.sweep.Queue`: cell by cell; other seeds wait until every rate has ended.

    A rate that failed has no part in the choice. If another seed diverges at the best rate, the
    next best takes its place for all seeds. If all failed, no other seed is trained.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = cells
        self._waiting: list[list[Job]] = [[] for _ in cells]
        #: By index those whose best rate is not known yet, with jobs like those that follow it.
        self._open = {index: cell.others(RATES[0]) for index, cell in enumerate(cells)}
        #: Index and rate of each training of another seed.
        self._tried: dict[str, tuple[int, float]] = {}
        self._diverged: set[tuple[int, float]] = set()
        self.finished: list[Job] = []
        for index, cell in enumerate(cells):
            self.finished += self._admit(index, cell.first)
        self.finished += self._follow(self.finished)

    def next(self, report: Report) -> Job | None:
        report.finished += self._follow([*report.finished, *(job for job, _ in report.failed)])
        for job, reason in report.failed:
            tried = self._tried.get(job.config.run_id)
            if tried and tried not in self._diverged and any(one in reason for one in DIVERGED):
                self._diverged.add(tried)
                self._waiting[tried[0]] = []
                report.finished += self._train_others(tried[0])
        return next((jobs.pop(0) for jobs in self._waiting if jobs), None)

    def later(self) -> Sequence[Job]:
        waiting = [job for jobs in self._waiting for job in jobs]
        return [*waiting, *(job for jobs in self._open.values() for job in jobs)]

    def _admit(self, index: int, jobs: Sequence[Job]) -> list[Job]:
        """Let jobs wait; gives those that are finished."""
        self._waiting[index] += [job for job in jobs if not job.finished]
        return [job for job in jobs if job.finished]

    def _follow(self, ended: Sequence[Job]) -> list[Job]:
        """Admit the other seeds of cells all of whose rates have ended; gives finished ones."""
        finished: list[Job] = []
        known = {job.config.run_id for job in ended}
        for index in list(self._open):
            cell = self._cells[index]
            if known.issuperset(job.config.run_id for job in cell.first):
                del self._open[index]
                finished += self._train_others(index)
        return finished

    def _train_others(self, index: int) -> list[Job]:
        """Admit the other seeds at the best rate that is left; gives finished ones."""
        rate = self._cells[index].best([rate for one, rate in self._diverged if one == index])
        if rate is None:
            return []
        jobs = self._cells[index].others(rate)
        self._tried |= {job.config.run_id: (index, rate) for job in jobs}
        return self._admit(index, jobs)
