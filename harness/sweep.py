"""Sweeps: a grid of variants and seeds, each a run of its own.

Command line: ``python -m harness.sweep --rows table4 --seeds 0 1 2``, or ``--task recall --rows
controls``. Finished runs are skipped, unfinished ones are resumed, and a run that fails does not
end the others.

Exit status: 0, all runs are finished; 1, runs failed (the last lines name their logs); 2, a mistake
on the command line; 75, the time budget is used up (the same command continues); 130 or 143, a
signal.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .base import machine
from .base.commands import command_line
from .base.errors import UserError
from .base.printing import print_table
from .base.signals import resumable
from .config.options import parse
from .runs.options import TrainingOptions, configure, network_of, res_scale_of
from .tasks.images import ImageTask
from .tasks.options import create_task, options_with_task, weighted

if TYPE_CHECKING:
    import torch

    from .runs.engines import EngineOptions


@dataclass(kw_only=True)
class Options(TrainingOptions):
    """Run a grid of variants and seeds: skip what is finished, resume the rest, survive failures.

    Examples:
      python -m harness.sweep --rows table4 --preset small --data DIR --seeds 0 1 2 --plan
      python -m harness.sweep --rows table4 --preset small --data DIR --seeds 0 1 2 --budget 2h
      python -m harness.sweep --attn nla enlca --engine ray --gpus 0.25
      python -m harness.sweep --task recall --pairs 16 --rows controls --seeds 0 1 2
    """

    engine: Literal["local", "ray", "slurm"] = "local"
    """local (processes here), ray (a cluster, or one started here) or slurm (with submitit)."""
    workers: int | None = None
    """Runs at once; 1 with local, which shares --threads among them, else as many as fit."""
    gpus: float = 1.0
    """Share of a GPU for each run, with --engine ray."""
    ray_address: str | None = None
    """Address of a Ray cluster, or auto; else RAY_ADDRESS, else a cluster started here."""
    slurm: tuple[str, ...] = ()
    """Parameters for submitit, e.g. slurm_partition=gpu timeout_min=600."""
    budget: str | None = None
    """Time budget, e.g. 9m or 1h30m; exit status 75 if work is left: run the same again."""
    skip_latency: bool = False
    """As in harness.run; a sweep never times."""
    plan: bool = False
    """Estimate time, memory and GPU-hours from a few steps, print them, and run nothing."""


@command_line
@resumable("harness.sweep")
def main() -> None:
    """Entry point of ``python -m harness.sweep``."""
    argv = sys.argv[1:]
    found, task_class = options_with_task(Options, argv)
    options, variants = parse(found, argv, "harness.sweep")
    import psutil

    from .images.patches import check_patch
    from .measuring.tasks import check_reach
    from .records.shapes import Cost, Run
    from .records.store import load_record, load_records
    from .reporting.tables.printed import summaries
    from .runs.engines import open_engine
    from .runs.jobs import check_sources, find_jobs
    from .runs.plan import print_plan
    from .runs.sweep import conclude, seconds_of, sweep

    began = time.monotonic() - (time.time() - psutil.Process().create_time())
    budget = seconds_of(options.budget) if options.budget else math.inf
    device = _pick_device(options)
    engine_options = _engine_options(options, device, budget)
    if not options.seeds:
        raise UserError("--seeds needs at least one number")
    task = create_task(task_class, options, argv)
    network = network_of(options, task)
    for variant in variants:  # a bad option shows before any work is done
        variant.create(network.channels)
    weight = res_scale_of(options, task)
    variants = [weighted(variant, weight, argv) for variant in variants]
    if isinstance(task, ImageTask):
        configure(options, task, variants[0], 0, device, decode=False)
    else:
        check_reach(task, network.reach)
    jobs = find_jobs(options, variants, device, task)
    if isinstance(task, ImageTask):
        check_patch(task.cache, jobs[0].config.patch)
        for name in jobs[0].config.data.test:  # a bad test image shows before the first job
            task.test_sha256(name)
    check_sources([job for job in jobs if job.finished])
    at_once = options.workers or (1 if options.engine == "local" else None)
    if options.plan:
        machine.use_threads(engine_options.threads_each)
        gpus = options.gpus if options.engine == "ray" else 1.0
        print_plan(jobs, device, at_once, gpus)
        return
    with open_engine(options.engine, engine_options, options.results.absolute()) as engine:
        # The last seconds are for saving: once to stop in time, once more to kill what does not.
        deadline = began + budget - 1.25 * engine_options.grace
        report = sweep(jobs, engine, engine_options.stop, at_once=at_once, deadline=deadline)
    runs = [load_record(options.results, Run, job.config.run_id) for job in report.finished]
    for table in summaries(runs, load_records(options.results, Cost)):
        print_table(table)
    conclude(report, options.results)


def _pick_device(options: Options) -> torch.device:
    """The kind of device that jobs train on; with Ray or Slurm this machine need not have it."""
    import torch

    if options.engine == "local" or options.device == "auto":
        return machine.pick_device(options.device)
    if options.device not in ("cpu", "cuda"):
        raise UserError(
            f"--device {options.device} with --engine {options.engine}, which chooses the devices: "
            "give cpu or cuda"
        )
    return torch.device(options.device)


def _engine_options(options: Options, device: torch.device, budget: float) -> EngineOptions:
    from .runs.engines import EngineOptions
    from .runs.jobs import GRACE

    for name in ("workers", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    for name, engine in (("gpus", "ray"), ("ray_address", "ray"), ("slurm", "slurm")):
        if options.engine != engine and getattr(options, name) != getattr(Options, name):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} applies only to --engine {engine}, not {options.engine}")
    if not 0 < options.gpus <= 1:
        raise UserError(f"--gpus must be a share of a GPU, above 0 and up to 1, got {options.gpus}")
    return EngineOptions(
        device=device,
        workers=options.workers,
        threads=options.threads,
        gpus=options.gpus,
        address=options.ray_address,
        slurm=options.slurm,
        grace=min(GRACE, budget / 6),
    )


if __name__ == "__main__":
    main()
