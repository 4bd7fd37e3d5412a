"""The GPU benchmark: everything that is measured on a CUDA device, piece by piece.

Command line: ``python -m harness.gpu`` runs the pieces that have no record yet of this machine and
this version of the code; each takes less than ten minutes and writes a record.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from .base import machine
from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.signals import resumable
from .config.rows import TABLE5_SIZES


@dataclass(kw_only=True)
class Options:
    """Measure everything that needs a CUDA device, piece by piece; skip finished pieces."""

    only: tuple[str, ...] = ()
    """Pieces whose names begin so, e.g. table5 or train-paper; all by default."""
    pieces: bool = False
    """Only list the pieces."""
    again: bool = False
    """Measure finished pieces again."""
    seconds: float = 480.0
    """Seconds of measuring for each piece; preparing it takes further time."""
    sizes: tuple[str, ...] = tuple(f"{height}x{width}" for height, width in TABLE5_SIZES)
    """Feature maps, height x width, square."""
    device: str = "cuda"
    """cuda or cuda:<n>; cpu only serves to try the code."""
    results: Path = Path("results")
    """Folder for the records."""


@command_line
@resumable("harness.gpu")
def main() -> None:
    """Entry point of ``python -m harness.gpu``."""
    with usage_errors():
        options = tyro.cli(Options, prog="python -m harness.gpu")
    import torch
    from rich.console import Console

    from .config.options import parse_size
    from .measuring.gpu import Conditions, choose, find_record, measure
    from .records.store import save_record
    from .reporting.tables.printed import gpu_tables

    names = choose(options.only)
    if options.pieces:
        print("\n".join(names))
        return
    if not options.seconds > 0:
        raise UserError(f"seconds must be above 0, got {options.seconds}")
    sizes = tuple(parse_size(text) for text in options.sizes)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("the GPU benchmark needs a CUDA device, and this machine has none")
    conditions = Conditions(machine.pick_device(options.device), options.seconds, sizes)
    console = Console()
    for piece in names:
        known = None if options.again else find_record(options.results, piece, conditions)
        if known is not None:
            console.print(f"{piece} is finished: {known.id}; --again measures it again")
            continue
        record = measure(piece, conditions)
        path = save_record(options.results, record)
        for table in gpu_tables(record):
            console.print(table)
        console.print(f"Record: {path}", markup=False)


if __name__ == "__main__":
    main()
