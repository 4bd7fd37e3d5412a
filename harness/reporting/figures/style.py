"""The style of all figures: widths of a two-column page, colour-blind-safe colours, embedded fonts.

Figures are written as PNG and PDF. The same content gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import matplotlib
import seaborn
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray
from PIL import Image

from ...base.files import write_atomic

#: Width in inches of one column, and of the page, in the usual two-column style.
COLUMN, PAGE = 3.3, 6.9
#: Okabe-Ito colours in seaborn's order; markers tell lines apart in greyscale.
COLOURS = seaborn.color_palette("colorblind")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: Least height in inches of a figure with two panels, one below the other.
TWO_ROWS = 3.4
#: Dots per inch of a PNG.
DPI = 200
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
    "text.parse_math": False,  # a "$" in a label is a "$"
    "pdf.fonttype": 42,  # TrueType: text stays text
    "svg.fonttype": "none",  # the same
    "savefig.dpi": DPI,
    "figure.constrained_layout.use": True,
}
_SALT = "attention-zoo"
# Smallest size of a label.
_LEAST_FONT = 5.0
_GLYPH = re.compile(r"Glyph (\d+) .*missing from")
_COLLAPSED = "constrained_layout not applied"
_SIZE: ContextVar[tuple[float, float] | None] = ContextVar("size", default=None)
_MISSING: ContextVar[set[str] | None] = ContextVar("missing", default=None)


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the house style within the block."""
    with rc_context(_SETTINGS):
        yield


@contextmanager
def sized(size: tuple[float, float] | None) -> Iterator[None]:
    """Draw every figure in the block with this width and height in inches; None: its own."""
    token = _SIZE.set(size)
    try:
        yield
    finally:
        _SIZE.reset(token)


def new_figure(width: float = COLUMN, height: float = 2.4) -> Figure:
    """A figure of so many inches, or those of :func:`sized`; it needs no display and no pyplot."""
    figure = Figure(figsize=_SIZE.get() or (width, height))
    FigureCanvasAgg(figure)
    return figure


def panel_grid(
    count: int,
    most: int,
    height: Callable[[int], float],
    *,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, NDArray[Any]]:
    """A figure with ``count`` panels and its grid of axes ``[rows, columns]``.

    Args:
        count: number of panels; further axes of the grid are hidden.
        most: most panels in a row.
        height: inches of a figure with so many rows.
        sharex, sharey: whether all panels share the axis.
    """
    columns = min(most, count)
    rows = math.ceil(count / columns)
    figure = new_figure(COLUMN if columns == 1 else PAGE, height(rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
    for unused in grid.flat[count:]:
        unused.set_visible(False)
    return figure, grid


def narrow() -> bool:
    """Whether a size was asked for in which a page's many labels find no room."""
    size = _SIZE.get()
    return size is not None and size[0] < 0.75 * PAGE


def low() -> bool:
    """Whether a size was asked for in which no second panel finds room below the first."""
    size = _SIZE.get()
    return size is not None and size[1] < TWO_ROWS


def fit_labels(figure: Figure) -> None:
    """Break labels of axes that are longer than their axis into lines, then make them smaller."""
    for last in (False, False, True):
        figure.draw_without_rendering()  # the layout, which each change of a label changes
        for axes in figure.axes:
            if not axes.get_visible():
                continue
            box = axes.get_window_extent()
            for label, length in ((axes.yaxis.label, box.height), (axes.xaxis.label, box.width)):
                extent = label.get_window_extent()
                taken = extent.height if label is axes.yaxis.label else extent.width
                if not label.get_text() or taken <= length:
                    continue
                share = max(length, 1.0) / taken
                if last:
                    label.set_fontsize(max(_LEAST_FONT, share * float(label.get_fontsize())))
                    continue
                columns = int(share * max(map(len, label.get_text().splitlines())))
                words = re.sub(r"[ \n]+", " ", label.get_text())  # no-break spaces stay
                lines = textwrap.wrap(words, max(columns, 8), break_long_words=False)
                label.set_text("\n".join(lines))


def has_room(figure: Figure) -> bool:
    """Whether every panel is large enough to be read, and its rows to be told apart."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        box = axes.get_window_extent()
        width, height = box.width / figure.dpi, box.height / figure.dpi
        rows = sum(bool(text.get_text()) for text in axes.get_yticklabels())
        if axes.get_visible() and (width < 0.5 or height < max(0.35, rows * 5 / 72)):
            return False
    return True


def panel_label(axes: Axes, text: str) -> None:
    """Say within a panel what it shows, in its upper right corner: a PDF has no titles."""
    axes.annotate(
        text,
        (1, 1),
        (-1, -1),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=7,
        path_effects=[withStroke(linewidth=2, foreground="white")],
        zorder=5,
    )


@contextmanager
def glyphs_told() -> Iterator[None]:
    """Say in one line, at the end of the block, which characters the figures' font lacks.

    matplotlib warns of each, several times. An inner block leaves it to the outer one.
    """
    if _MISSING.get() is not None:
        yield
        return
    missing: set[str] = set()
    token = _MISSING.set(missing)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", message=_GLYPH.pattern)
            others = warnings.showwarning

            def show(message: Warning | str, *rest: Any, **more: Any) -> None:
                if found := _GLYPH.match(str(message)):
                    missing.add(chr(int(found[1])))
                elif _COLLAPSED not in str(message):  # write_figures says it in its own words
                    others(message, *rest, **more)

            warnings.showwarning = show
            yield
    finally:
        _MISSING.reset(token)
    if missing:
        print(
            f"warning: boxes stand in the figures for {' '.join(sorted(missing))}, which their "
            f"font ({matplotlib.rcParams['font.sans-serif'][0]}) lacks: give the label in letters "
            "that it has",
            file=sys.stderr,
        )


def look(index: int) -> dict[str, Any]:
    """Colour and marker of the line of this index; they repeat after 80 lines."""
    marker = index + index // 40  # pairs of 10 and 8 repeat after 40
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[marker % len(MARKERS)]}


def log_scale(axis: Axes, side: Literal["x", "y"], base: float = 10) -> None:
    """Make an axis logarithmic, with powers such as 10² as plain text."""
    (axis.set_xscale if side == "x" else axis.set_yscale)("log", base=base)
    one = axis.xaxis if side == "x" else axis.yaxis
    one.set_major_formatter(Powers(base))
    one.set_minor_formatter(Powers(base))


class Powers(LogFormatterSciNotation):
    """matplotlib's labels of powers, which are formulas, as plain text."""

    _RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

    def __call__(self, x: float, pos: int | None = None) -> str:
        text = super().__call__(x, pos)
        formula = re.fullmatch(r"\$\\mathdefault\{(.*)\}\$", text)
        if formula is None:
            return text
        plain = formula[1].replace(r"\times", "×").replace("\N{MINUS SIGN}", "-")
        return re.sub(r"\^\{(.*?)\}", lambda power: power[1].translate(self._RAISED), plain)


def label_within_decades(axis: Axis) -> None:
    """Label 1, 2, 5, 10 … on a log scale that spans few powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


#: Formats that can be asked for, and those that are written otherwise.
Format = Literal["png", "pdf", "svg"]
FORMATS: tuple[Format, ...] = ("png", "pdf")


def save_figure(
    figure: Figure, stem: Path, formats: Sequence[Format] = FORMATS, *, titled: bool = True
) -> list[Path]:
    """Write ``<stem>.png`` and ``<stem>.pdf``; returns the paths.

    Args:
        figure: what was drawn.
        stem: path without suffix.
        formats: the suffixes.
        titled: whether the title above the figure is drawn; never in a PDF, which a paper's caption
            accompanies.

    Raises:
        UserError: the folder cannot be written.
    """
    with glyphs_told():
        return [
            write_figure(figure, stem.with_name(f"{stem.name}.{suffix}"), titled=titled)
            for suffix in formats
        ]


def write_figure(figure: Figure, path: Path, *, titled: bool = True) -> Path:
    """Write the figure in the format of the path's suffix; a PDF has no title above it.

    Raises:
        UserError: the folder cannot be written.
    """
    content = figure_bytes(figure, path.suffix[1:], titled=titled and path.suffix != ".pdf")
    write_atomic(path, lambda file: file.write(content))
    return path


def figure_bytes(
    figure: Figure,
    suffix: str,
    *,
    titled: bool = True,
    dpi: int | None = None,
    colours: int = 256,
) -> bytes:
    """The figure as ``png``, ``pdf`` or ``svg``, with the title above it or without.

    A PNG has :data:`DPI` dots per inch, or so many.

    A PNG without pictures in it has a palette of so many colours: a third of the size or less.
    """
    dated = {
        "png": ("Software",),
        "pdf": ("CreationDate", "Producer"),
        "svg": ("Date", "Creator", "Format", "Type"),
    }
    drawn = io.BytesIO()
    salt = matplotlib.rcParams["svg.hashsalt"] or _SALT  # else ids are random
    with house_style(), rc_context({"svg.hashsalt": salt}), _title(figure, titled):
        figure.savefig(drawn, format=suffix, dpi=dpi or DPI, metadata=dict.fromkeys(dated[suffix]))
    if suffix != "png" or any(axes.images for axes in figure.axes):
        return drawn.getvalue()
    return _with_palette(drawn.getvalue(), colours)


@contextmanager
def _title(figure: Figure, shown: bool) -> Iterator[None]:
    """Leave out the title above a figure, and its room, within the block unless it is shown."""
    title = getattr(figure, "_suptitle", None)  # matplotlib gives its text alone
    if title is None or shown:
        yield
        return
    title.set_visible(False)
    title.set_in_layout(False)
    try:
        yield
    finally:
        title.set_visible(True)
        title.set_in_layout(True)


def _with_palette(png: bytes, count: int) -> bytes:
    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        colours = image.convert("RGB").quantize(count, dither=Image.Dither.NONE)
        colours.save(small, "png", optimize=True, dpi=image.info["dpi"])
    return small.getvalue()
