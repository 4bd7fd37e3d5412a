"""The main job: train, evaluate, count and time attention modules in EDSR.

Command line: ``python -m harness.run --attn enlca --m 16``. ``--task`` names what they learn, if
it is not super-resolution: ``denoise`` on the same images, or a synthetic task such as ``recall``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .base import machine
from .base.commands import command_line
from .base.errors import UserError
from .base.folders import tables_command
from .base.phases import Phases
from .base.printing import print_table
from .base.signals import resumable
from .config.network import MODULES
from .config.options import describe_command, parse
from .config.variants import Variant
from .runs.options import RunOptions as Options
from .runs.options import configure, modules_of, network_of, res_scale_of
from .tasks.images import ImageTask
from .tasks.options import create_task, options_with_task, weighted
from .tasks.sr import SuperResolution
from .training import distributed

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from .tasks.base import SyntheticTask


@command_line
@resumable("harness.run", distributed.launcher)
def main() -> None:
    """Entry point of ``python -m harness.run``."""
    argv = sys.argv[1:]
    found, task_class = options_with_task(Options, argv)
    options, variants = parse(found, argv, "harness.run")
    from attention_zoo.implementations import choose_implementation

    phases = Phases()
    task = create_task(task_class, options, argv)
    network_of(options, task)  # an unknown preset shows before the device is looked for
    device = distributed.start(options.device)
    command = describe_command("harness.run", argv, distributed.launcher())
    machine.use_threads(options.threads)
    choose_implementation(options.impl)
    if not options.save_every >= 0:
        raise UserError(f"--save-every must be at least 0 seconds, got {options.save_every}")
    if not options.seeds:
        raise UserError("--seeds needs at least one number")
    weight = res_scale_of(options, task)
    variants = [weighted(variant, weight, argv) for variant in variants]
    if isinstance(task, ImageTask):
        table = _images(options, task, variants, device, command, phases)
    else:
        table = _synthetic(options, task, variants, device, command, phases)
    if table is not None:
        print_table(table)
        records = options.results / "records"
        print(f"Records: {records}; tables: {tables_command(options.results)}")
        print(f"Time: {phases}")


def _images(
    options: Options,
    task: ImageTask,
    variants: Sequence[Variant],
    device: torch.device,
    command: str,
    phases: Phases,
) -> Table | None:
    """Train and evaluate, in super-resolution count and time too.

    Returns:
        The table to print, None in all processes but the first.
    """
    from .images.patches import check_patch
    from .measuring.flops import check_cost
    from .reporting.tables.printed import summary
    from .runs.run import measure_cost, measure_latency, run

    network = network_of(options, task)
    with phases.phase("counting"):
        for variant in variants:  # a bad option or module shows before any work is done
            check_cost(variant, network.channels)
    runs = []
    if not options.skip_training:
        configure(options, task, variants[0], 0, device, decode=False)
        with distributed.main_first():
            cache = task.cache
        configs = [
            configure(options, task, variant, seed, device)
            for seed in dict.fromkeys(options.seeds)
            for variant in variants
        ]
        check_patch(cache, configs[0].patch)
        for name in configs[0].data.test:  # a bad test image shows before the first step
            task.test_sha256(name)
        distributed.check_batch(configs[0].batch)
        # The baseline of a warm start has a record too, of another setting than the runs.
        baselines = {c.baseline.run_id: c.baseline for c in configs if c.start}
        for config in [*baselines.values(), *configs]:
            done = run(config, task, options.results, device, command, options.save_every, phases)
            if config.run_id not in baselines:
                runs.append(done)
    first = distributed.is_main()
    distributed.stop()
    if not first:
        return None
    if not isinstance(task, SuperResolution):
        return summary(runs, [], None)
    with phases.phase("counting"):
        costs = [measure_cost(variant, options.results, command) for variant in variants]
    latency = None
    # Networks are timed with five modules, whatever was trained.
    if not options.skip_latency and modules_of(options, task) == MODULES:
        with phases.phase("timing"):
            latency = measure_latency(
                variants, network, options.scale, device, options.results, command
            )
    return summary(runs, costs, latency)


def _synthetic(
    options: Options,
    task: SyntheticTask,
    variants: Sequence[Variant],
    device: torch.device,
    command: str,
    phases: Phases,
) -> Table | None:
    """Train and score; the table to print, None in all processes but the first."""
    from .measuring.flops import check_cost
    from .measuring.tasks import check_reach
    from .reporting.tables.tasks import task_summary
    from .runs.run import run

    configs = [
        configure(options, task, variant, seed, device)
        for seed in dict.fromkeys(options.seeds)
        for variant in variants
    ]
    for variant in variants:
        check_cost(variant, configs[0].network.channels)
    check_reach(task, configs[0].network.reach)
    distributed.check_batch(configs[0].batch)
    runs = [
        run(config, task, options.results, device, command, options.save_every, phases)
        for config in configs
    ]
    first = distributed.is_main()
    distributed.stop()
    return task_summary(runs) if first else None


if __name__ == "__main__":
    main()
