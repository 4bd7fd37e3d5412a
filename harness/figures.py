"""Figures of the ENLCA paper, and our own, from the records alone.

``python -m harness.figures`` draws every figure that the runs of a setting suffice for, and the
figures of every scaling and approximation record, each as PNG and PDF. It uses no model, image or
GPU, and the same records give the same bytes. ``harness.maps`` and ``harness.visual`` draw the
figures that need weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from .base.commands import command_line, usage_errors
from .base.folders import OWN


@dataclass(frozen=True)
class Options:
    """Draw all figures that need the records alone, as PNG and PDF."""

    results: Path = OWN
    """Folder that holds records/."""
    task: str | None = None
    """Only this task: sr, recall, …; of any but sr, what is its own alone."""
    output: Path | None = None
    """Folder for the figures; by default figures/ in the results folder."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.figures``."""
    with usage_errors():
        options = tyro.cli(Options, prog="python -m harness.figures")
    from .reporting.figures.all import write_figures  # after --help: it loads matplotlib

    for path in write_figures(options.results, options.output, options.task):
        print(path)


if __name__ == "__main__":
    main()
