"""How time and memory of the attention modules grow with the number of positions.

``python -m harness.scaling`` times the modules' cores in turn at growing sizes and writes a record,
and from it a table, a figure and the fitted exponents. ``--from-records`` only writes these again.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .base import machine
from .base.commands import command_line
from .base.errors import UserError
from .base.folders import OWN
from .base.progress import timing_bar
from .config.options import describe_command, parse, parse_size
from .config.rows import TableName
from .measuring.latency import Dtype
from .measuring.scaling import FIT_FROM, SIZES
from .measuring.timing import MAX_RUNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config.variants import Variant
    from .records.shapes import Scaling


@dataclass(kw_only=True)
class Options:
    """Time attention modules from small to large feature maps and fit how their cost grows.

    Examples:
      python -m harness.scaling --rows table5
      python -m harness.scaling --attn nlsa enlca --backward
    """

    attn: tuple[str, ...] = ()
    """Modules, `all`, or your own as package.module:Class; their options follow, e.g. --m 16, or
    stand behind one module alone: enlca:m=16 enlca:m=128,k=2."""
    rows: TableName | None = None
    """Rows of a table of the paper, or rivals, instead of --attn; table5 if neither is given."""
    sizes: tuple[str, ...] = tuple(f"{height}x{width}" for height, width in SIZES)
    """Feature maps, height x width; the smallest is always measured."""
    backward: bool = False
    """Forward and backward instead of forward alone."""
    fit_from: int = FIT_FROM
    """Smallest number of positions in the fit."""
    max_seconds: float = 20.0
    """Longest projected time of a call; a method is skipped at sizes where it would take longer."""
    memory_seconds: float = 0.0
    """Longest projected time of a call for peak memory alone, where a method is skipped."""
    size_seconds: float = 10.0
    """Seconds for the runs of all methods at a size; each runs at least three times."""
    max_runs: int = MAX_RUNS
    """Largest number of runs of each method at a size."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    dtype: Dtype = "float32"
    """tf32 needs CUDA."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    results: Path = OWN
    """Folder for the record, tables/ and figures/."""
    from_records: bool = False
    """Measure nothing; write table and figure of every scaling record again."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.scaling``."""
    argv = sys.argv[1:]
    if not any(word.startswith(("--attn", "--rows")) for word in argv):
        argv = ["--rows", "table5", *argv]
    options, variants = parse(Options, argv, "harness.scaling")
    from rich.console import Console

    from .records.shapes import Scaling
    from .records.store import load_records
    from .reporting.scaling import statements

    if options.from_records:
        records = load_records(options.results, Scaling)
        if not records:
            raise UserError(
                f"no scaling records under {options.results / 'records'}; measure first: "
                "python -m harness.scaling"
            )
    else:
        records = [_measure(options, variants, describe_command("harness.scaling", argv))]
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for record in records:
        for path in write_report(record, options.results):
            console.print(path)
        for line in statements(record):
            console.print(line)


def _measure(options: Options, variants: Sequence[Variant], command: str) -> Scaling:
    from .measuring.scaling import measure
    from .records.store import save_record

    device = machine.pick_device(options.device)
    sizes = [parse_size(text) for text in options.sizes]
    for name in ("fit_from", "max_runs"):
        value, flag = getattr(options, name), name.replace("_", "-")
        if value < 1:
            raise UserError(f"--{flag} must be at least 1, got {value}")
    for name in ("max_seconds", "memory_seconds", "size_seconds"):
        value, flag = getattr(options, name), name.replace("_", "-")
        if not 0 <= value < math.inf:
            raise UserError(f"--{flag} must be finite and not negative, got {value}")
    machine.use_threads(options.threads)
    with timing_bar(options.size_seconds * len(set(sizes))) as on_run:
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
    save_record(options.results, record)
    return record


def write_report(record: Scaling, results: Path) -> list[Path]:
    """Write the record's table under ``tables/`` and its figure under ``figures/``."""
    from .records.shapes import Scaling
    from .records.store import load_records
    from .reporting.figures.scaling import scaling_figure
    from .reporting.figures.style import save_figure
    from .reporting.scaling import find_scalings
    from .reporting.tables.render import write_table
    from .reporting.tables.scaling import scaling_table

    known = find_scalings(load_records(results, Scaling))
    (scaled,) = [one for one in known if one.record.id == record.id]
    paths = write_table(scaling_table(scaled), results / "tables" / scaled.folder)
    return paths + save_figure(scaling_figure(record), results / "figures" / scaled.stem)


if __name__ == "__main__":
    main()
