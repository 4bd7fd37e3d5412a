"""Our attention modules beside their released implementations, timed in turn.

Command line: ``python -m harness.speed`` writes a speed record and prints its table.
"""

from __future__ import annotations

import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from .base import machine
from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.folders import OWN
from .base.printing import aligned
from .base.progress import timing_bar


@dataclass(kw_only=True)
class Options:
    """Time the released implementations and ours in turn, and write a speed record.

    Examples:
      python -m harness.speed --threads 2
      python -m harness.speed --only core-nla step --seconds 5
      python -m harness.speed --attn enlca:m=16 enlca:m=256
      python -m harness.speed --implementations --sides 32 100 --threads 1
    """

    attn: tuple[str, ...] = ()
    """Cores of these modules at 100x100 instead, with options such as --m 16 or enlca:m=16."""
    rows: str | None = None
    """Cores of the rows of a table instead, e.g. table5."""

    only: tuple[str, ...] = ()
    """Cases whose names begin so, e.g. core-nla or step; all by default."""
    implementations: bool = False
    """Instead: all implementations of every core side by side, but for the released ones."""
    sides: tuple[int, ...] = (32, 64, 100, 150, 256)
    """Height and width of the maps, with --implementations."""
    seconds: float = 10.0
    """Seconds for each case and pass; each runs at least five times."""
    device: str = "cpu"
    """auto, cpu, cuda, cuda:<n> or mps; the targets are for a CPU."""
    threads: int | None = None
    """CPU threads; all cores by default, the targets are for 2."""
    keep_memory: bool = True
    """glibc keeps what is freed: page faults for large temporaries would flatter ours."""
    results: Path = OWN
    """Folder for the record."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.speed``."""
    argv = sys.argv[1:]
    chosen = any(word.startswith(("--attn", "--rows")) for word in argv)
    if chosen:
        from .config.options import parse  # imports torch, which --help need not load

        options, variants = parse(Options, argv, "harness.speed")
    else:
        with usage_errors(Options):
            options = tyro.cli(
                Options, prog="python -m harness.speed", description=inspect.getdoc(Options)
            )
    if not options.seconds > 0:
        raise UserError(f"seconds must be above 0, got {options.seconds}")
    if options.keep_memory:
        for name in machine.KEEP_MEMORY:  # the processes that measure are started after this
            os.environ.setdefault(name, "8000000000")
    if options.implementations:
        if chosen or options.only:
            raise UserError("--implementations is all cores: leave out --attn, --rows and --only")
        _compare_implementations(options, argv)
        return
    from .config.options import describe_command
    from .measuring.speed import cases_of, choose, measure
    from .records.store import save_record
    from .reporting.tables.speed import find_speeds, speed_table

    if chosen and options.only:
        raise UserError("--only chooses among the cases of --help: leave it out with --attn")
    comparisons = cases_of(variants) if chosen else choose(options.only)
    device = machine.pick_device(options.device)
    machine.use_threads(options.threads)
    planned = options.seconds * sum(len(one.targets) for one in comparisons)
    with timing_bar(planned) as on_run:
        record = measure(
            comparisons,
            device=device,
            max_seconds=options.seconds,
            apart=device.type == "cpu",
            command=describe_command("harness.speed", argv),
            on_run=on_run,
        )
    path = save_record(options.results, record)
    for session in find_speeds([record]):
        table = speed_table(session)
        print(f"{table.caption}\n\n{aligned(table.markdown_grid())}\n{table.notes[0]}\n")
    print(f"Record: {path}")


def _compare_implementations(options: Options, argv: list[str]) -> None:
    from .config.options import describe_command
    from .measuring.implementations import measure
    from .records.store import save_record
    from .reporting.tables.implementations import implementation_table

    if not options.sides or min(options.sides) < 1:
        raise UserError(f"sides must be whole numbers from 1 on, got {list(options.sides)}")
    machine.use_threads(options.threads)
    device = machine.pick_device(options.device)
    planned = options.seconds * 2 * 4 * len(options.sides)
    with timing_bar(planned) as on_run:
        record = measure(
            options.sides,
            device=device,
            max_seconds=options.seconds,
            command=describe_command("harness.speed", argv),
            on_run=on_run,
        )
    path = save_record(options.results, record)
    table = implementation_table(record)
    print(f"{table.caption}\n\n{aligned(table.markdown_grid())}\n{table.notes[0]}\n")
    print(f"Record: {path}")


if __name__ == "__main__":
    main()
