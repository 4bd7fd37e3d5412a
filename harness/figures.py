"""Figures of the ENLCA paper, and our own, from the records alone.

``python -m harness.figures`` draws, for every setting, those that its runs suffice for, and those
of every scaling and approximation record, each as PNG and PDF. No model, image or GPU is used, and
the same records give the same bytes. Figures that need weights are ``harness.maps``'s and
``harness.visual``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from .base.errors import command_line, usage_errors
from .reporting.figures.all import write_figures


@dataclass(frozen=True)
class Options:
    """Draw all figures that need the records alone, as PNG and PDF."""

    results: Path = Path("results")
    """Folder that holds records/."""
    output: Path | None = None
    """Where the figures go; by default figures/ in the results folder."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.figures``."""
    with usage_errors():
        options = tyro.cli(Options, prog="python -m harness.figures")
    for path in write_figures(options.results, options.output):
        print(path)


if __name__ == "__main__":
    main()
