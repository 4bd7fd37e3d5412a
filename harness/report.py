r"""One page of everything that was measured, and a folder for LaTeX: ``python -m harness.report``.

The page is a single HTML file that opens offline and loads nothing. It holds all tables and
figures, how each number was measured, the machines, and every record's command. Points of the
plots against cost show their numbers under the pointer; tables sort by a click or key; filters show
one preset, training data or device. Beside it, ``latex/`` has the tables for ``\input``, the
figures as PDF, and one document that includes them all: the main ones, or with ``--everything``
all. The report is built from the records
alone, and the same records give the same bytes.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

import tyro

from .base.commands import command_line, usage_errors
from .base.folders import OWN


@dataclass(frozen=True)
class Options:
    """Write one HTML page of all tables, figures and records, and a folder for LaTeX.

    Examples:
      python -m harness.report
      python -m harness.report --results other-results --output my-report
    """

    results: Path = OWN
    """Folder that holds records/."""
    task: str | None = None
    """Only this task: sr, recall, …; of any but sr, what is its own alone."""
    output: Path | None = None
    """Folder for index.html and latex/; by default report/ in the results folder."""
    everything: bool = False
    """All tables and figures in latex/, not only the main ones."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.report``."""
    with usage_errors(Options):
        options = tyro.cli(
            Options, prog="python -m harness.report", description=inspect.getdoc(Options)
        )
    from .reporting.report.page import write_report  # after --help: it loads matplotlib

    for path in write_report(
        options.results, options.output, options.task, everything=options.everything
    ):
        print(path)


if __name__ == "__main__":
    main()
