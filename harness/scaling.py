"""How time and memory of the attention modules grow with the number of positions.

``python -m harness.scaling`` times the modules' cores in turn at growing sizes and writes a record,
and from it a table, a figure and the fitted exponents. ``--from-records`` redraws alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from .base import machine
from .base.errors import UserError, command_line
from .base.progress import timing_bar
from .config.options import describe_command, parse, parse_size
from .config.rows import TableName
from .config.variants import Variant
from .measuring.scaling import FIT_FROM, SIZES, measure
from .measuring.timing import MAX_RUNS
from .records.origin import Record
from .records.store import load_records, save_record
from .reporting.figures.scaling import scaling_figure
from .reporting.figures.style import save_figure
from .reporting.scaling import statements
from .reporting.tables.render import write_table
from .reporting.tables.scaling import scaling_table


def write_report(record: Record, results: Path) -> list[Path]:
    """Write ``tables/scaling-<id>.{csv,md,tex}`` and ``figures/scaling-<id>.{png,pdf}``; the paths.

    Raises:
        UserError: a folder cannot be written.
    """
    table = scaling_table(record)
    figure = results / "figures" / table.name
    return write_table(table, results / "tables") + save_figure(scaling_figure(record), figure)


@dataclass(kw_only=True)
class Options:
    """Time attention modules from small to large feature maps and fit how their cost grows.

    Examples:
      python -m harness.scaling --rows table5
      python -m harness.scaling --attn nlsa enlca --backward
    """

    attn: tuple[str, ...] = ()
    """Modules, `all`, or your own as package.module:Class; their options follow, e.g. --m 16."""
    rows: TableName | None = None
    """Rows of a table of the paper, or rivals, instead of --attn; table5 if neither is given."""
    sizes: tuple[str, ...] = tuple(f"{height}x{width}" for height, width in SIZES)
    """Feature maps, height x width; the smallest is always measured."""
    backward: bool = False
    """Forward and backward instead of forward alone."""
    fit_from: int = FIT_FROM
    """Smallest number of positions that counts in the fit."""
    max_seconds: float = 20.0
    """A method is skipped at a size where a single call is projected to take longer."""
    memory_seconds: float = 0.0
    """There its peak memory is measured all the same, by one call, if that takes no longer."""
    size_seconds: float = 10.0
    """Time for the runs of all methods at a size; three runs each at least."""
    max_runs: int = MAX_RUNS
    """Most runs of each method at a size."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    dtype: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """tf32 needs CUDA."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    results: Path = Path("results")
    """Folder for the record, tables/ and figures/."""
    from_records: bool = False
    """Measure nothing; write table and figure of every scaling record again."""


def run(options: Options, variants: Sequence[Variant], command: str) -> dict[str, Any]:
    """Measure what the options ask for and save the record, which is returned as it is read back.

    Raises:
        UserError: a value out of range, or as :func:`measure`.
    """
    device = machine.pick_device(options.device)
    sizes = [parse_size(text) for text in options.sizes]
    for name in ("fit_from", "max_runs"):
        value, flag = getattr(options, name), name.replace("_", "-")
        if value < 1:
            raise UserError(f"--{flag} must be at least 1, got {value}")
    for name in ("max_seconds", "memory_seconds", "size_seconds"):
        if not 0 <= getattr(options, name) < math.inf:
            flag = name.replace("_", "-")
            raise UserError(
                f"--{flag} must be finite and not negative, got {getattr(options, name)}"
            )
    machine.use_threads(options.threads)
    with timing_bar() as on_run:
        record = measure(
            variants,
            device=device,
            dtype=options.dtype,
            sizes=sizes,
            backward=options.backward,
            fit_from=options.fit_from,
            max_seconds=options.max_seconds,
            memory_seconds=options.memory_seconds,
            size_seconds=options.size_seconds,
            max_runs=options.max_runs,
            command=command,
            on_run=on_run,
        )
    path = save_record(options.results, record)
    return next(r for r in load_records(options.results, "scaling") if r["id"] == path.stem)


@command_line
def main() -> None:
    """Entry point of ``python -m harness.scaling``."""
    argv = sys.argv[1:]
    if not any(word.startswith(("--attn", "--rows")) for word in argv):
        argv = ["--rows", "table5", *argv]
    options, variants = parse(Options, argv, "harness.scaling")
    if options.from_records:
        records = load_records(options.results, "scaling")
        if not records:
            raise UserError(
                f"no scaling records under {options.results / 'records'}; measure first: "
                "python -m harness.scaling"
            )
    else:
        records = [run(options, variants, describe_command("harness.scaling", argv))]
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for record in records:
        for path in write_report(record, options.results):
            console.print(path)
        for line in statements(record):
            console.print(line)


if __name__ == "__main__":
    main()
