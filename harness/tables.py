"""Tables 1 to 6 of the ENLCA paper, quality, scaling and speed, from the records alone.

``python -m harness.tables`` writes each as CSV and Markdown, with the paper's figures beside the
measured ones; ``--latex`` adds LaTeX. A cell that was not measured is empty. No model, image or
GPU is used, and the same records give the same bytes.

By default these are tables of the user's own records, with published runs of the same settings
beside them. ``--results results`` builds the published tables again, and writes the leaderboard
into its page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .base.commands import command_line, usage_errors
from .base.folders import OWN, PUBLISHED, sources
from .base.printing import aligned

if TYPE_CHECKING:
    from .reporting.tables.render import Table

#: Paths that are printed.
_SHOWN = 6
#: Page of the published leaderboard.
PAGE = PUBLISHED.parent / "docs" / "leaderboard.md"


@dataclass(frozen=True)
class Options:
    """Write Tables 1 to 6, quality, scaling and speed as CSV and Markdown, from the records."""

    results: Path = OWN
    """Folder that holds records/. The default stands before the published runs of its settings."""
    preset: str | None = None
    """Only runs of this preset."""
    task: str | None = None
    """Only this task: sr, recall, …; of any but sr, what is its own alone."""
    output: Path | None = None
    """Where the tables go; by default tables/ in the results folder."""
    latex: bool = False
    """Write LaTeX too."""


@command_line
def main() -> None:
    """``python -m harness.tables``."""
    import tyro

    with usage_errors(Options):
        options = tyro.cli(Options, prog="python -m harness.tables")
    from .reporting.tables.all import write_tables  # pandas and scipy, which --help need not load

    written = write_tables(
        options.results,
        options.preset,
        options.output,
        latex=options.latex,
        task=options.task,
    )
    _summarise(written, options.output or options.results / "tables")
    _update_page([table for table, _ in written], options)
    _name_published(options.results)
    if table4 := next((table for table, _ in written if table.name == "table4"), None):
        print(f"\n{table4.caption}\n\n{aligned(table4.markdown_grid())}", end="")


def _summarise(written: Sequence[tuple[Table, Sequence[Path]]], folder: Path) -> None:
    """Print how many tables there are, where they lie, and the first few."""
    from .records.origin import plural

    files = [path for _, paths in written for path in paths]
    print(f"{plural(len(written), 'table')} in {plural(len(files), 'file')} under {folder}:")
    readable = [path for path in files if path.suffix == ".md"]
    for path in readable[:_SHOWN]:
        print(path)
    if len(readable) > _SHOWN:
        print(f"... and {len(readable) - _SHOWN} more")


def _update_page(tables: Sequence[Table], options: Options) -> None:
    """Write the leaderboard of all published records into its page."""
    from .reporting.tables.leaderboard import write_page

    board = next((table for table in tables if table.name == "leaderboard"), None)
    partial = options.preset or options.task or options.output
    if board and not partial and options.results.resolve() == PUBLISHED.resolve():
        write_page(PAGE, board)
        print(f"The leaderboard stands in {PAGE}, too.")


def _name_published(results: Path) -> None:
    """Say how many of the runs are published ones."""
    from .records.origin import plural
    from .records.shapes import Run
    from .records.store import load_records
    from .reporting.tables.joined import MARK, joined_runs

    runs = load_records(results, Run)
    own = len(runs) - len(joined_runs(results, runs))
    if own < len(runs):
        print(
            f"Beside your {plural(own, 'run')}: {plural(len(runs) - own, 'published run')} of the "
            f"same settings, from {sources(results)[-1]}; {MARK} marks their rows"
        )


if __name__ == "__main__":
    main()
