"""Sweeps: a grid of variants and seeds, each a run of its own.

Command line: ``python -m harness.sweep --rows table4 --seeds 0 1 2``. What is finished is skipped,
what is not is resumed, and a run that fails does not end the others.

Exit status: 0, all is finished; 1, runs failed (the last lines name their logs); 2, a mistake on
the command line; 75, the budget is used up and the same command goes on; 130 or 143, a signal.
"""

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
from typing import Literal

import psutil  # type: ignore[import-untyped]
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from . import machine
from .config import find_preset
from .data import check_patch, find_data
from .engines import Engine, Place, open_engine
from .errors import UserError, command_line
from .members import GRACE, Member, describe_status, find_members, was_stopped
from .options import parse
from .plan import print_plan
from .run import TrainingOptions, configure
from .signals import held, resumable

#: Exit status when the budget ends before the work (EX_TEMPFAIL: try again).
BUDGET_STATUS = 75
#: Seconds between two looks at the time and for a signal.
_POLL = 0.2
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(kw_only=True)
class Options(TrainingOptions):
    """Run a grid of variants and seeds: skip what is finished, resume the rest, survive failures.

    Examples:
      python -m harness.sweep --rows table4 --preset small --data DIR --seeds 0 1 2 --plan
      python -m harness.sweep --rows table4 --preset small --data DIR --seeds 0 1 2 --budget 2h
      python -m harness.sweep --attn nla enlca --engine ray --gpus 0.25
    """

    engine: Literal["local", "ray", "slurm"] = "local"
    """local (processes here), ray (a cluster, or one started here) or slurm (by submitit)."""
    workers: int | None = None
    """Runs at once; 1 with local, which divides --threads among them, else as many as fit."""
    gpus: float = 1.0
    """Share of a GPU for each run, with --engine ray."""
    ray_address: str | None = None
    """Address of a Ray cluster, or auto; else RAY_ADDRESS, else one is started here."""
    slurm: tuple[str, ...] = ()
    """Parameters for submitit, e.g. slurm_partition=gpu timeout_min=600."""
    budget: str | None = None
    """Stop in time, e.g. 9m or 1h30m; exit status 75 if work is left, which goes on then."""
    plan: bool = False
    """Estimate time, memory and GPU-hours from a few steps, print them, and run nothing."""


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
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    begin, before = time.monotonic(), len(report.finished)
    with (
        # An exception out of a signal's handler could part the pool from a thread it has begun.
        held() as signalled,
        ThreadPoolExecutor(at_once or len(waiting)) as pool,
        # A member may take days: the rate is over all of them.
        Progress(*columns, console=console, speed_estimate_period=math.inf) as progress,
    ):
        task = progress.add_task("Runs", total=len(members), completed=before, rate="")
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
                rate = 3600 * ended / (time.monotonic() - begin)
                progress.update(task, completed=before + ended, rate=f"{rate:.1f} runs/h")
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


@command_line
@resumable("harness.sweep")
def main() -> None:
    """Entry point of ``python -m harness.sweep``."""
    options, variants = parse(Options, sys.argv[1:], "harness.sweep")
    began = time.monotonic() - (time.time() - psutil.Process().create_time())
    budget = seconds_of(options.budget) if options.budget else math.inf
    device = _pick_device(options)
    place = _place(options, device, budget)
    if not options.seeds:
        raise UserError("--seeds needs at least one number")
    preset = find_preset(options.preset)
    channels = preset.channels if options.channels is None else options.channels
    for variant in variants:  # a bad option shows before any work is done
        variant.create(channels)
    source = find_data(options.data, train_sets=options.train_sets or None, holdout=options.holdout)
    configure(options, variants[0], 0, device, source, None)
    cache = source.training_images(options.scale)
    members = find_members(options, variants, device, source, cache)
    check_patch(cache, members[0].config.patch)
    at_once = options.workers or (1 if options.engine == "local" else None)
    if options.plan:
        machine.use_threads(place.threads_each)
        gpus = options.gpus if options.engine == "ray" else 1.0
        print_plan(members, source, cache, device, at_once, gpus)
        return
    with open_engine(options.engine, place, options.results.absolute()) as engine:
        # The last seconds are for saving: once to stop in time, once more to kill what does not.
        deadline = began + budget - 1.25 * place.grace
        report = sweep(members, engine, place.stop, at_once=at_once, deadline=deadline)
    _close(report, options.results)


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


def _pick_device(options: Options) -> torch.device:
    """The kind of device that members train on; elsewhere it need not be one of this machine."""
    if options.engine == "local" or options.device == "auto":
        return machine.pick_device(options.device)
    if options.device not in ("cpu", "cuda"):
        raise UserError(
            f"--device {options.device} with --engine {options.engine}, which chooses the devices: "
            "give cpu or cuda"
        )
    return torch.device(options.device)


def _place(options: Options, device: torch.device, budget: float) -> Place:
    for name in ("workers", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    if not 0 < options.gpus <= 1:
        raise UserError(f"--gpus must be a share of a GPU, above 0 and up to 1, got {options.gpus}")
    return Place(
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
