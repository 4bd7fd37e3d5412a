"""The house style of all figures: two-column width, colour-blind-safe, fonts embedded.

Figures are written as PNG and PDF; the same content gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import seaborn
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from PIL import Image

from ...base.files import write_atomic

#: Width in inches of one column, and of the page, in the usual two-column style.
COLUMN, PAGE = 3.3, 6.9
#: Okabe-Ito colours as seaborn orders them, apart in greyscale with the markers beside them.
COLOURS = seaborn.color_palette("colorblind")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SETTINGS: Any = {  # matplotlib types the keys by its own version
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # TrueType: text stays text
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style within the block."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(width: float = COLUMN, height: float = 2.4) -> Figure:
    """A figure of so many inches that needs no display and no pyplot state."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def label_within_decades(axis: Axis) -> None:
    """Label 1, 2, 5, 10 … of a log scale, for one that spans few powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write ``<stem>.png`` and ``<stem>.pdf``; returns both paths.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = []
    for suffix in ("png", "pdf"):
        path, content = stem.with_name(f"{stem.name}.{suffix}"), figure_bytes(figure, suffix)
        write_atomic(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
        paths.append(path)
    return paths


def figure_bytes(figure: Figure, suffix: str) -> bytes:
    """The figure as ``png`` or ``pdf``.

    A PNG without pictures in it has a palette, which makes it a third of the size.
    """
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}}
    drawn = io.BytesIO()
    with house_style():
        figure.savefig(drawn, format=suffix, metadata=metadata[suffix])
    pictures = any(axes.images for axes in figure.axes)
    return drawn.getvalue() if suffix == "pdf" or pictures else _with_palette(drawn.getvalue())


def _with_palette(png: bytes) -> bytes:
    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        colours = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        colours.save(small, "png", optimize=True, dpi=image.info["dpi"])
    return small.getvalue()
