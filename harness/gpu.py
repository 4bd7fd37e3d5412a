"""The GPU benchmark: everything that is measured on a CUDA device, piece by piece.

Command line: ``python -m harness.gpu`` runs the pieces that have no record yet of this machine and
this version of the code, those of most value first. Each writes its record as soon as it is done.

Exit status: 0, every piece has a record; 1, some failed; 2, a mistake on the command line; 75, the
time budget is used up; 130 or 143, a signal. The same command continues.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from .base import machine
from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.folders import OWN
from .base.printing import print_table
from .base.signals import resumable
from .config.rows import TABLE5_SIZES

#: No piece begins with less time than this left.
_LEAST_SECONDS = 10.0


@dataclass(kw_only=True)
class Options:
    """Measure everything that needs a CUDA device, piece by piece; skip finished pieces.

    Examples:
      python -m harness.gpu --budget 12m
      python -m harness.gpu --only table5 --seconds 120
    """

    only: tuple[str, ...] = ()
    """Pieces whose names begin so, e.g. table5 or train-paper; all by default."""
    pieces: bool = False
    """Only list the pieces."""
    again: bool = False
    """Measure finished pieces again."""
    seconds: float = 480.0
    """Seconds of measuring for each piece; preparing it takes further time."""
    budget: str | None = None
    """Time for all pieces, e.g. 12m, instead of --seconds; the most valuable come first."""
    sizes: tuple[str, ...] = tuple(f"{height}x{width}" for height, width in TABLE5_SIZES)
    """Feature maps, height x width, square."""
    device: str = "cuda"
    """cuda or cuda:<n>; cpu only serves to try the code."""
    results: Path = OWN
    """Folder for the records."""


@command_line
@resumable("harness.gpu")
def main() -> None:
    """Entry point of ``python -m harness.gpu``."""
    with usage_errors(Options):
        options = tyro.cli(Options, prog="python -m harness.gpu")
    import torch

    from .config.options import parse_size
    from .measuring.gpu import Conditions, choose, find_record, measure, share_of
    from .records.shapes import Scaling
    from .records.store import save_record
    from .reporting.scaling import statements
    from .reporting.tables.printed import gpu_tables
    from .runs.sweep import BUDGET_STATUS, seconds_of

    names = choose(options.only)
    if options.pieces:
        print("\n".join(names))
        return
    if not options.seconds > 0:
        raise UserError(f"seconds must be above 0, got {options.seconds}")
    deadline = time.monotonic() + seconds_of(options.budget) if options.budget else math.inf
    sizes = tuple(parse_size(text) for text in options.sizes)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("the GPU benchmark needs a CUDA device, and this machine has none")
    conditions = Conditions(machine.pick_device(options.device), options.seconds, sizes)
    failed = []
    for index, piece in enumerate(names):
        known = None
        if not options.again:
            known = find_record(options.results, piece, conditions, deadline < math.inf)
        if known is not None:
            print(f"{piece} is finished: {known.id}; --again measures it again")
            continue
        if deadline < math.inf:
            left = deadline - time.monotonic()
            if left < _LEAST_SECONDS:
                print(f"Time budget used up before {piece}; run the same command to continue.")
                sys.exit(BUDGET_STATUS)
            seconds = round(share_of(piece, names[index + 1 :], left), 1)
            conditions = replace(conditions, seconds=seconds)
        print(f"{piece}: measuring for up to {conditions.seconds:g} s", file=sys.stderr)
        try:
            record = measure(piece, conditions)
        except UserError as error:
            if len(names) == 1:
                raise
            failed.append(piece)
            print(f"{piece} failed: {error}", file=sys.stderr)
            continue
        path = save_record(options.results, record)
        if isinstance(record, Scaling):
            print("\n".join(statements(record)))
        else:
            for table in gpu_tables(record):
                print_table(table)
        print(f"Record: {path}")
    if failed:
        print(f"{len(failed)} of {len(names)} pieces failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
