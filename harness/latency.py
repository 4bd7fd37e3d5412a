"""Latency and peak memory of attention modules, timed in turn.

Command line: ``python -m harness.latency --rows table5`` writes a latency record and prints it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from .base import machine
from .base.commands import command_line
from .base.errors import UserError
from .base.folders import OWN
from .base.printing import print_table
from .base.progress import timing_bar
from .config.options import Implementation, describe_command, parse, parse_size
from .config.presets import find_preset
from .config.rows import TABLE5_SIZES, TableName
from .config.run import AUTO
from .measuring.latency import Dtype, Part, Passes
from .measuring.timing import MAX_RUNS


@dataclass(kw_only=True)
class Options:
    """Time attention modules in turn and write a latency record.

    Examples:
      python -m harness.latency --rows table5
      python -m harness.latency --attn nla enlca --m 16 --sizes 64x64 --device cuda --dtype bfloat16
    """

    attn: tuple[str, ...] = ()
    """Modules, `all`, or your own as package.module:Class; their options follow, e.g. --m 16, or
    stand behind one module alone: enlca:m=16 enlca:m=128,k=2."""
    rows: TableName | None = None
    """Rows of a table of the paper, or rivals, instead of --attn; table5 if neither is given."""
    sizes: tuple[str, ...] = tuple(f"{height}x{width}" for height, width in TABLE5_SIZES)
    """Feature maps, height x width."""
    parts: tuple[Part, ...] = ("core", "module")
    """core: the attention alone; module: with its projections; network: EDSR with five modules."""
    passes: tuple[Passes, ...] = ("forward", "forward+backward")
    """Inference, and a training step's forward and backward."""
    preset: str = "quick"
    """Preset of the network (x4), if the network is timed."""
    batch: int = 1
    """Feature maps in a call."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    impl: Implementation = AUTO
    dtype: Dtype = "float32"
    """tf32 needs CUDA."""
    max_runs: int = MAX_RUNS
    """Largest number of runs of each method."""
    graphs: bool = False
    """Time replays of CUDA graphs, without the launches; needs CUDA."""
    max_seconds: float | None = None
    """Seconds for each part, size and pass; no limit on CUDA and 20 elsewhere by default."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    results: Path = OWN
    """Folder for the record."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.latency``."""
    argv = sys.argv[1:]
    if not any(word.startswith(("--attn", "--rows")) for word in argv):
        argv = ["--rows", "table5", *argv]
    options, variants = parse(Options, argv, "harness.latency")
    device = machine.pick_device(options.device)
    sizes = [parse_size(text) for text in options.sizes]
    preset = find_preset(options.preset)
    for name in ("batch", "max_runs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{name.replace('_', '-')} must be at least 1, got {value}")

    from attention_zoo.implementations import choose_implementation

    from .measuring.latency import MAX_SECONDS, measure
    from .records.store import save_record
    from .reporting.tables.printed import latency_tables

    machine.use_threads(options.threads)
    choose_implementation(options.impl)
    each = options.max_seconds
    if each is None and device.type != "cuda":
        each = MAX_SECONDS
    cases = len(options.parts) * len(sizes) * len(options.passes)
    with timing_bar(None if each is None else each * cases) as on_run:
        record = measure(
            variants,
            device=device,
            dtype=options.dtype,
            sizes=sizes,
            parts=options.parts,
            passes=options.passes,
            batch=options.batch,
            max_runs=options.max_runs,
            max_seconds=options.max_seconds,
            network=preset.network,
            graphs=options.graphs,
            command=describe_command("harness.latency", argv),
            on_run=on_run,
        )
    path = save_record(options.results, record)
    for table in latency_tables(record):
        print_table(table)
    print(f"Record: {path}")


if __name__ == "__main__":
    main()
