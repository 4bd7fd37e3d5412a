"""The capability profile of a module: what it can do in every synthetic task.

Command line: ``python -m harness.probe --attn my_package.my_module:MyAttention``. Finished
trainings are only read, unfinished ones are resumed, and one that fails does not end the others.

Exit status: 0, all trainings are finished; 1, some failed, in --plan too; 2, a mistake on the
command line; 75, the time budget is used up (the same command continues); 130 or 143, a signal.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .base import machine
from .base.commands import command_line
from .base.errors import UserError
from .base.folders import OWN, PUBLISHED
from .base.signals import resumable
from .config.options import describe_command, parse
from .config.profile import choose_settings
from .config.rows import TableName, rows_to_run
from .config.run import SAVE_EVERY

if TYPE_CHECKING:
    import torch

    from .config.variants import Variant
    from .records.shapes import Latency, Run


#: Columns that no table needs.
_WIDEST = 1000


@dataclass(kw_only=True)
class Options:
    """Train modules on every task of the capability profile; print it beside the published rows.

    Examples:
      python -m harness.probe --attn my_package.my_module:MyAttention
      python -m harness.probe --attn nlsa --chunk-size 24 --tasks recall --seeds 0 1 2
      python -m harness.probe --attn all --seeds 0 1 2 --plan
    """

    attn: tuple[str, ...] = ("enlca",)
    """Modules, or your own as package.module:Class, with options such as --m 16, or behind one
    module alone: enlca:m=16 enlca:m=128; all: every row."""
    rows: TableName | None = None
    """Rows of a table, or profile, rivals or controls, instead of --attn."""
    tasks: tuple[str, ...] = ()
    """Tasks of the profile, e.g. recall, or settings, e.g. "recall D=4"; all by default."""
    seeds: tuple[int, ...] = (0,)
    """The first seed is trained at every learning rate, the others at the best of them."""
    device: str = "cpu"
    """cpu; or auto, cuda, cuda:<n> or mps. Published rows were trained on cpu and cuda."""
    workers: int | None = None
    """Trainings at once; by default as many as there are cores for, on other devices 1."""
    threads: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """CPU threads of each training."""
    save_every: float = SAVE_EVERY
    """Seconds between checkpoints."""
    skip_latency: bool = False
    """Do not time."""
    budget: str | None = None
    """Time budget, e.g. 9m or 1h30m; exit status 75 if work is left: run the same again."""
    plan: bool = False
    """Say what is finished, estimate the time of the rest from a few steps, and train nothing."""
    results: Path = OWN
    """Folder for records and working files."""


@command_line
@resumable("harness.probe")
def main() -> None:
    """Entry point of ``python -m harness.probe``."""
    argv = sys.argv[1:]
    options, variants = parse(Options, argv, "harness.probe")
    if "all" in options.attn:
        if any(variant.options for variant in variants):
            raise UserError("--attn all fixes the modules' options: leave them out")
        variants = rows_to_run("profile")
    import psutil

    from .records.shapes import Run
    from .records.store import load_record
    from .runs.engines import EngineOptions, open_engine
    from .runs.jobs import GRACE, check_sources
    from .runs.options import TrainingOptions
    from .runs.plan import print_plan
    from .runs.probe import Cells, find_cells
    from .runs.sweep import conclude, seconds_of, sweep

    age = time.time() - psutil.Process().create_time()
    began = time.monotonic() - age
    budget = seconds_of(options.budget) if options.budget else math.inf
    device = machine.pick_device(options.device)
    workers = _check(options, device.type)
    training = TrainingOptions(results=options.results, save_every=options.save_every)
    settings = choose_settings(options.tasks)
    queue = Cells(find_cells(variants, settings, options.seeds, training, device, argv))
    check_sources(queue.finished)
    if options.plan:
        machine.use_threads(options.threads)
        print_plan([*queue.finished, *queue.later()], device, workers, start_up=age)
        return
    engine_options = EngineOptions(
        device=device,
        workers=workers,
        threads=workers * options.threads,
        grace=min(GRACE, budget / 6),
    )
    with open_engine("local", engine_options, options.results.absolute()) as engine:
        deadline = began + budget - 1.25 * engine_options.grace  # as harness.sweep
        report = sweep(queue, engine, engine_options.stop, at_once=workers, deadline=deadline)
    if report.finished:
        measured = None
        if not (options.skip_latency or report.left):
            command = describe_command("harness.probe", argv)
            measured = _measure(options.results, variants, device, command)
        ids = [job.config.run_id for job in report.finished]
        own = [load_record(options.results, Run, identifier) for identifier in ids]
        _print_profile(options.results, own, measured)
    conclude(report, options.results)


def _check(options: Options, device: str) -> int:
    """Check the command's own options; gives the number of workers.

    Raises:
        UserError: one is out of range.
    """
    for name in ("workers", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    if options.threads > machine.MAX_THREADS:
        raise UserError(f"--threads must be at most {machine.MAX_THREADS}, got {options.threads}")
    if not options.save_every >= 0:
        raise UserError(f"--save-every must be at least 0 seconds, got {options.save_every}")
    if not options.seeds:
        raise UserError("--seeds needs at least one number")
    if options.workers is not None:
        return options.workers
    return max(1, machine.usable_cores() // options.threads) if device == "cpu" else 1


def _measure(
    results: Path, variants: Sequence[Variant], device: torch.device, command: str
) -> Latency | None:
    """Count the rows that have no record yet, and time them in turn beside the published ones.

    A line names a module that cannot be counted or timed: the trainings are worth their table.
    """
    from attention_zoo import AttentionError

    from .base.names import canonical_json
    from .config.presets import find_preset
    from .measuring.latency import SCALE
    from .records.shapes import Cost
    from .records.store import load_records
    from .runs.probe import BESIDE
    from .runs.run import measure_cost, measure_latency

    known = [cost for folder in (PUBLISHED, results) for cost in load_records(folder, Cost)]
    counted = {(cost.variant.name, canonical_json(cost.variant.options)) for cost in known}
    timed = list(dict.fromkeys((*variants, *BESIDE)))
    network = find_preset("quick").network  # as harness.run times by default
    try:
        for variant in variants:
            key = variant.name, canonical_json(variant.recorded)
            if variant.source_sha256 is not None or key not in counted:
                measure_cost(variant, results, command)
        return measure_latency(timed, network, SCALE, device, results, command)
    except (UserError, AttentionError) as error:
        print(f"not counted or timed: {error}", file=sys.stderr)
        return None


def _print_profile(results: Path, own: Sequence[Run], measured: Latency | None) -> None:
    """Print the rows of these runs, and beside them published rows of the same settings."""
    from rich.console import Console
    from rich.measure import Measurement

    from .base.printing import in_encoding
    from .records.shapes import Cost, Run
    from .records.store import load_records
    from .reporting.labels import task_variant
    from .reporting.profile import rows_beside
    from .reporting.tables.profile import profile_summary
    from .runs.probe import BESIDE

    folders = {folder.resolve(): folder for folder in (PUBLISHED, results)}.values()
    others = [run for folder in folders for run in load_records(folder, Run)]
    costs = [cost for folder in folders for cost in load_records(folder, Cost)]
    console, marked = Console(), {task_variant(run.variant) for run in own}
    rows = rows_beside(own, others, BESIDE)
    table = profile_summary(rows, costs, [measured] if measured else [], marked)
    table = in_encoding(table, console.encoding)
    wide = Measurement.get(console, console.options.update(width=_WIDEST), table).maximum
    # A narrow terminal wraps lines; nothing is cut.
    Console(width=max(console.width, wide)).print(table)
    console.print(
        "Scores on test images of twice/four times the training size (2n/4n): 0 is the "
        "floor, 1 the ceiling. The rate is that with the best validation score. Bold: this "
        "command's rows."
    )


if __name__ == "__main__":
    main()
