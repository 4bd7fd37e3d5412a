"""Tables 1 to 6 of the ENLCA paper, quality, scaling and speed, from the records alone.

``python -m harness.tables`` writes each as CSV and Markdown, with the paper's figures beside the
measured ones; ``--latex`` adds LaTeX. A cell that was not measured is empty. No model, image or
GPU is used, and the same records give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .base.commands import command_line, usage_errors


@dataclass(frozen=True)
class Options:
    """Write Tables 1 to 6, quality, scaling and speed as CSV and Markdown, from the records."""

    results: Path = Path("results")
    """Folder that holds records/."""
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

    with usage_errors():
        options = tyro.cli(Options, prog="python -m harness.tables")
    from .reporting.tables.all import write_tables  # pandas and scipy, which --help need not load

    written = write_tables(
        options.results,
        options.preset,
        options.output,
        latex=options.latex,
        task=options.task,
    )
    for _, paths in written:
        for path in paths:
            print(path)
    for table, _ in written:
        if table.name == "table4":
            print(f"\n{table.caption}\n\n{table.markdown_grid()}", end="")


if __name__ == "__main__":
    main()
