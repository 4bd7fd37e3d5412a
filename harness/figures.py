"""Figures of the ENLCA paper, and our own, from the records alone.

``python -m harness.figures`` draws every figure that the runs of a setting suffice for, and the
figures of every scaling and approximation record, each as PNG and PDF. It uses no model, image or
GPU, and the same records give the same bytes. ``harness.maps`` and ``harness.visual`` draw the
figures that need weights.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from .base.commands import command_line, usage_errors
from .base.errors import UserError
from .base.folders import OWN


@dataclass(frozen=True)
class Options:
    """Draw all figures that need the records alone, as PNG and PDF.

    Examples:
      python -m harness.figures --only pareto --attn nla enlca --format pdf
      python -m harness.figures --only psnr-m --size 3.3x2.4 --no-title --format png svg
    """

    results: Path = OWN
    """Folder that holds records/."""
    task: str | None = None
    """Only this task: sr, recall, …; of any but sr, what is its own alone."""
    output: Path | None = None
    """Folder for the figures; by default figures/ in the results folder."""
    only: tuple[str, ...] = ()
    """Figures whose names begin so, e.g. pareto or psnr-m; all by default."""
    attn: tuple[str, ...] = ()
    """Draw these modules alone, by name or label, and the baseline; all by default."""
    size: str | None = None
    """Inches of each figure, width x height, e.g. 3.3x2.4; by default its own. Below 3.4 inches of
    height the paper's results, a panel of their own, are left out."""
    title: bool = True
    """A title above each figure that says what was measured; a PDF has none."""
    format: tuple[Literal["png", "pdf", "svg"], ...] = ("png", "pdf")
    """Formats of the files."""


@command_line
def main() -> None:
    """Entry point of ``python -m harness.figures``."""
    with usage_errors(Options):
        options = tyro.cli(
            Options, prog="python -m harness.figures", description=inspect.getdoc(Options)
        )
    size = parse_inches(options.size) if options.size else None
    if not options.format:
        raise UserError("--format needs png, pdf or svg")
    from .reporting.figures.all import Choice, write_figures  # after --help: it loads matplotlib

    choice = Choice(options.only, options.attn, size, options.title, options.format)
    for path in write_figures(options.results, options.output, options.task, choice):
        print(path)


def parse_inches(text: str) -> tuple[float, float]:
    """Width and height of ``3.3x2.4``.

    Raises:
        UserError: the text has another form, or a side is not between 0.5 and 50 inches.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)", text)
    sides = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    if not all(0.5 <= side <= 50 for side in sides):
        raise UserError(
            f"--size takes inches from 0.5 to 50, width x height such as 3.3x2.4, got {text!r}"
        )
    return sides


if __name__ == "__main__":
    main()
