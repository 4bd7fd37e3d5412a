"""The main job: train, evaluate, count and time attention modules in EDSR.

Command line: ``python -m harness.run --attn enlca --m 16``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console

from attention_zoo.implementations import choose_implementation

from .base import machine
from .base.errors import UserError, command_line
from .base.progress import timing_bar
from .base.signals import resumable
from .config.options import describe_command, parse
from .config.presets import find_preset
from .config.variants import Variant
from .images.patches import check_patch
from .images.sources import find_data
from .measuring import flops
from .measuring.latency import measure
from .network.edsr import build_network
from .records.store import save_record
from .reporting.tables.printed import summary
from .runs.options import RunOptions as Options
from .runs.options import _given_or_preset, configure
from .runs.run import measure_cost, run
from .training import distributed

#: Seconds of timing for each part in the main job; ``harness.latency`` measures at length.
LATENCY_SECONDS = 5.0


def measure_latency(
    variants: Sequence[Variant],
    options: Options,
    device: torch.device,
    command: str,
) -> dict[str, Any]:
    """Latencies of the variants beside NLA's, in turn, as a record under ``records/latency``."""
    value = partial(_given_or_preset, options, find_preset(options.preset))
    nla = Variant("nla")
    # The baseline has no core and no module to time, and NLA is the yardstick of the table.
    chosen = [v for v in variants if v.name != "none"]
    if nla not in chosen:
        chosen.append(nla)

    network = partial(
        build_network,
        blocks=value("blocks"),
        channels=value("channels"),
        scale=options.scale,
        block_res_scale=value("block_res_scale"),
    )
    with timing_bar() as on_run:
        record = measure(
            chosen,
            device=device,
            sizes=((100, 100),),
            passes=("forward",),
            max_seconds=LATENCY_SECONDS,
            network=network,
            command=command,
            on_run=on_run,
        )
    save_record(options.results, record)
    return record


@command_line
@resumable("harness.run", distributed.launcher)
def main() -> None:
    """Entry point of ``python -m harness.run``."""
    options, variants = parse(Options, sys.argv[1:], "harness.run")
    console = Console()
    preset = find_preset(options.preset)
    device = distributed.start(options.device)
    command = describe_command("harness.run", sys.argv[1:], distributed.launcher())
    machine.use_threads(options.threads)
    choose_implementation(options.impl)
    if not options.save_every >= 0:
        raise UserError(f"--save-every must be at least 0 seconds, got {options.save_every}")
    if not options.seeds:
        raise UserError("--seeds needs at least one number")
    channels = _given_or_preset(options, preset, "channels")
    for variant in variants:  # a bad option or module shows before any work is done
        flops.check_cost(variant, channels)
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
        # What a warm start begins with has a record too, of another setting than the runs.
        for config in {c.baseline.run_id: c.baseline for c in configs if c.start}.values():
            run(config, source, cache, options.results, device, command, options.save_every)
        for config in configs:
            runs.append(
                run(config, source, cache, options.results, device, command, options.save_every)
            )
    first = distributed.is_main()
    distributed.stop()
    if not first:
        return
    costs = [measure_cost(variant, options.results, command) for variant in variants]
    timed = None
    if not options.skip_latency:
        timed = measure_latency(variants, options, device, command)
    console.print(summary(runs, costs, timed))
    console.print(f"Records: {options.results / 'records'}; tables: python -m harness.tables")


if __name__ == "__main__":
    main()
