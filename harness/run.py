"""The main job: train, evaluate, count and time attention modules in EDSR.

Command line: ``python -m harness.run --attn enlca --m 16``.
"""

from __future__ import annotations

import sys

from .base import machine
from .base.commands import command_line
from .base.errors import UserError
from .base.signals import resumable
from .config.options import describe_command, parse
from .runs.options import RunOptions as Options
from .runs.options import configure, network_of
from .training import distributed


@command_line
@resumable("harness.run", distributed.launcher)
def main() -> None:
    """Entry point of ``python -m harness.run``."""
    options, variants = parse(Options, sys.argv[1:], "harness.run")
    from rich.console import Console

    from attention_zoo.implementations import choose_implementation

    from .images.patches import check_patch
    from .images.sources import find_data
    from .measuring.flops import check_cost
    from .reporting.tables.printed import summary
    from .runs.run import measure_cost, measure_latency, run

    network = network_of(options)
    device = distributed.start(options.device)
    command = describe_command("harness.run", sys.argv[1:], distributed.launcher())
    machine.use_threads(options.threads)
    choose_implementation(options.impl)
    if not options.save_every >= 0:
        raise UserError(f"--save-every must be at least 0 seconds, got {options.save_every}")
    if not options.seeds:
        raise UserError("--seeds needs at least one number")
    for variant in variants:  # a bad option or module shows before any work is done
        check_cost(variant, network.channels)
    runs = []
    if not options.skip_training:
        source = find_data(
            options.data, train_sets=options.train_sets or None, holdout=options.holdout
        )
        configure(options, variants[0], 0, device, source, None)  # before images are decoded
        with distributed.main_first():
            cache = source.training_images(options.scale)
        configs = [
            configure(options, variant, seed, device, source, cache)
            for seed in options.seeds
            for variant in variants
        ]
        check_patch(cache, configs[0].patch)
        distributed.check_batch(configs[0].batch)
        # The baseline of a warm start has a record too, of another setting than the runs.
        baselines = {c.baseline.run_id: c.baseline for c in configs if c.start}
        for config in [*baselines.values(), *configs]:
            done = run(config, source, cache, options.results, device, command, options.save_every)
            if config.run_id not in baselines:
                runs.append(done)
    first = distributed.is_main()
    distributed.stop()
    if not first:
        return
    costs = [measure_cost(variant, options.results, command) for variant in variants]
    latency = None
    if not options.skip_latency:
        latency = measure_latency(
            variants, network, options.scale, device, options.results, command
        )
    console = Console()
    console.print(summary(runs, costs, latency))
    console.print(f"Records: {options.results / 'records'}; tables: python -m harness.tables")


if __name__ == "__main__":
    main()
