"""Latency and peak memory of attention modules, timed in turn.

Command line: ``python -m harness.latency --rows table5`` writes a latency record and prints it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from attention_zoo.implementations import (
    choose_implementation,
)

from .base import machine
from .base.errors import UserError, command_line
from .base.progress import timing_bar
from .config.options import describe_command, parse, parse_size
from .config.presets import find_preset
from .config.rows import TableName
from .measuring.latency import SIZES, measure
from .measuring.timing import MAX_RUNS
from .network.edsr import build_network
from .records.store import save_record


@dataclass(kw_only=True)
class Options:
    """Time attention modules in turn and write a latency record.

    Examples:
      python -m harness.latency --rows table5
      python -m harness.latency --attn nla enlca --m 16 --sizes 64x64 --device cuda --dtype bfloat16
    """

    attn: tuple[str, ...] = ()
    """Modules, `all`, or your own as package.module:Class; their options follow, e.g. --m 16."""
    rows: TableName | None = None
    """Rows of a table of the paper, or rivals, instead of --attn; table5 if neither is given."""
    sizes: tuple[str, ...] = tuple(f"{height}x{width}" for height, width in SIZES)
    """Feature maps, height x width."""
    parts: tuple[Literal["core", "module", "network"], ...] = ("core", "module")
    """core: the attention alone; module: with its projections; network: EDSR with five modules."""
    passes: tuple[Literal["forward", "forward+backward"], ...] = ("forward", "forward+backward")
    """Inference, and a training step's forward and backward."""
    preset: str = "quick"
    """Preset of the network (x4), where it is timed."""
    batch: int = 1
    """Feature maps in a call."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    impl: str = "auto"
    """Implementation of the attention: auto, reference, tiled, sdpa, triton, or enla=triton,…"""
    dtype: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """tf32 needs CUDA."""
    max_runs: int = MAX_RUNS
    """Most runs of each method."""
    graphs: bool = False
    """Time replays of CUDA graphs, without the launches; needs CUDA."""
    max_seconds: float | None = None
    """Time for each part, size and pass; no limit on CUDA and 20 elsewhere by default."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    results: Path = Path("results")
    """Folder for the record."""


def tables(record: dict[str, Any]) -> Iterator[Table]:
    """A table for each part, pass and size of a latency record, with the speed relative to NLA."""
    rows = record["rows"]
    keys = ("part", "passes", "height", "width")
    for (part, passes, height, width), group in itertools.groupby(
        rows, key=lambda row: tuple(row[key] for key in keys)
    ):
        table = Table(title=f"{part}, {passes}, {height}x{width}", title_justify="left")
        table.add_column("Method")
        for heading in ("Median ms", "Mean", "IQR", "Min", "Runs", "Peak MB", "NLA / it"):
            table.add_column(heading, justify="right")
        members = list(group)
        nla = next((row["median_ms"] for row in members if row["variant"]["name"] == "nla"), None)
        for row in members:
            times = [row[key] for key in ("median_ms", "mean_ms", "iqr_ms", "min_ms")]
            ratio = nla / row["median_ms"] if nla and row["median_ms"] else None
            memory = row["peak_memory_mb"]
            table.add_row(
                row["variant"]["label"],
                *("" if value is None else f"{value:.3f}" for value in times),
                str(row["runs"]) if row["runs"] else row.get("note", ""),
                "" if memory is None else f"{memory:.1f}",
                "" if ratio is None else f"{ratio:.2f}",
            )
        yield table


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
    machine.use_threads(options.threads)
    choose_implementation(options.impl)

    network = partial(
        build_network,
        blocks=preset.blocks,
        channels=preset.channels,
        scale=4,
        block_res_scale=preset.block_res_scale,
    )
    with timing_bar() as on_run:
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
            network=network,
            graphs=options.graphs,
            command=describe_command("harness.latency", argv),
            on_run=on_run,
        )
    path = save_record(options.results, record)
    console = Console()
    for table in tables(record):
        console.print(table)
    console.print(f"Record: {path}")


if __name__ == "__main__":
    main()
