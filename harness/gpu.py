"""The GPU benchmark: everything that is measured on a CUDA device, piece by piece.

Command line: ``python -m harness.gpu`` runs the pieces that this machine, in this version of the
code, has no record of yet; each takes less than ten minutes and leaves a record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from . import latency
from .base import machine
from .base.errors import UserError, command_line, usage_errors
from .base.signals import resumable
from .config.options import parse_size
from .measuring.gpu import Setting, choose, find_record, measure
from .measuring.latency import SIZES
from .records.store import save_record


def tables(record: dict[str, Any]) -> Iterator[Table]:
    """What was measured, a column for each number."""
    if record["kind"] == "latency":
        yield from latency.tables(record)
        return
    texts = ("name", "result", "note", "graph_note")
    columns = dict.fromkeys(
        key
        for row in record["rows"]
        for key, value in row.items()
        if key in texts or isinstance(value, float)
    )
    table = Table(title=record["piece"], title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column in texts else "right")
    for row in record["rows"]:
        values = (row.get(column) for column in columns)
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v or "") for v in values))
    yield table


@dataclass(kw_only=True)
class Options:
    """Measure everything that needs a CUDA device, piece by piece; finished pieces are left out."""

    only: tuple[str, ...] = ()
    """Pieces by the beginning of their names, e.g. table5 or train-paper; all by default."""
    pieces: bool = False
    """Only list the pieces."""
    again: bool = False
    """Measure finished pieces again."""
    seconds: float = 480.0
    """Time of measuring for each piece; what comes before and between adds to it."""
    sizes: tuple[str, ...] = tuple(f"{height}x{width}" for height, width in SIZES)
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
    names = choose(options.only)
    if options.pieces:
        print("\n".join(names))
        return
    if not options.seconds > 0:
        raise UserError(f"seconds must be above 0, got {options.seconds}")
    sizes = tuple(parse_size(text) for text in options.sizes)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("the GPU benchmark needs a CUDA device, and this machine has none")
    setting = Setting(machine.pick_device(options.device), options.seconds, sizes)
    console = Console()
    for piece in names:
        known = None if options.again else find_record(options.results, piece, setting)
        if known is not None:
            console.print(f"{piece} is finished: {known['id']}; --again measures it anew")
            continue
        record = measure(piece, setting)
        path = save_record(options.results, record)
        for table in tables(record):
            console.print(table)
        console.print(f"Record: {path}")


if __name__ == "__main__":
    main()
