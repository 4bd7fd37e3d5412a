"""Plots of PSNR against cost as inline SVG: points show their numbers under the pointer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..cells import difference_cell, fixed, milliseconds, setting_text
from ..figures.pareto import PAPER_DEVICE, Pareto, Point
from ..figures.style import figure_bytes
from .blocks import Cell, Row, TableBlock, column_kinds, setting_tags, table_head

_SVG, _HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
# Fonts of equal width, so that text stays in place on machines that lack the first.
_FONTS = ["DejaVu Sans", "Verdana"]

# Attributes with coordinates in points, of which two decimals are enough.
_PLACES, _DECIMAL = {"d", "x", "y", "transform"}, re.compile(r"\d+\.\d+")
# Signs that need no space beside them.
_SPACED = {"d": re.compile(r"\s*([A-Za-z])\s*"), "style": re.compile(r"([:;,])\s+")}

ElementTree.register_namespace("", _SVG[1:-1])


def inline_svg(figure: Figure, titles: Mapping[str, Sequence[str]], salt: str) -> str:
    """The figure as an ``svg`` element for HTML, the same text each time.

    Args:
        figure: what was drawn.
        titles: by the gid of a line, a text for each of its points.
        salt: makes the ids unlike those of the page's other figures.
    """
    fonts: Any = {"svg.hashsalt": salt, "font.sans-serif": _FONTS}
    with matplotlib.rc_context(fonts), _plain_texts(figure):
        root = ElementTree.fromstring(figure_bytes(figure, "svg"))
    root.remove(root[0])  # a style that would apply to the whole page; report.css has it
    for group in root.iter(f"{_SVG}g"):
        # Ids of groups repeat in every figure; those of marks and clips depend on the salt.
        found = titles.get(group.attrib.pop("id", ""), ())
        marks = list(group.iter(f"{_SVG}use")) if found else []
        for mark, text in zip(marks, found, strict=True):
            ElementTree.SubElement(mark, f"{_SVG}title").text = text
    for element in root.iter():
        for name in _PLACES & element.attrib.keys():
            element.set(name, _DECIMAL.sub(_short, element.attrib[name]))
        for name in _SPACED.keys() & element.attrib.keys():
            element.set(name, _SPACED[name].sub(r"\1", element.attrib[name]))
    styles = {one.get("id"): one.get("style") for one in root.iter(f"{_SVG}path")}
    for mark in root.iter(f"{_SVG}use"):
        mark.set("href", mark.attrib.pop(_HREF))
        if styles.get(mark.attrib["href"][1:]) == mark.get("style"):
            del mark.attrib["style"]
    _unwrap(root)
    return ElementTree.tostring(root, encoding="unicode")


@contextmanager
def _plain_texts(figure: Figure) -> Iterator[None]:
    """Leave out the outlines of texts, which would become paths; report.css draws them."""
    found = {text: text.get_path_effects() for text in figure.findobj(Text)}
    for text in found:
        text.set_path_effects([])
    try:
        yield
    finally:
        for text, effects in found.items():
            text.set_path_effects(effects)


def _short(decimal: re.Match[str]) -> str:
    return f"{float(decimal[0]):.2f}".rstrip("0").rstrip(".")


def _unwrap(element: ElementTree.Element) -> None:
    """Replace groups without attributes by what they hold, and leave out the space between tags."""
    if element.tag == f"{_SVG}text":
        return
    children: list[ElementTree.Element] = []
    for child in element:
        _unwrap(child)
        plain = child.tag == f"{_SVG}g" and not child.attrib
        children += list(child) if plain else [child]
    element[:] = children
    for child in children:
        child.tail = None
    if children:
        element.text = None


def plot_svg(plot: Pareto, figure: Figure, salt: str) -> str:
    """A drawn plot as SVG; see :func:`inline_svg`."""
    titles = {
        gid: ["\n".join(_numbers(plot, point)) for point in points]
        for gid, points in plot.marked().items()
    }
    return inline_svg(figure, titles, salt)


def points_table(plot: Pareto, title: str, anchor: str) -> TableBlock:
    """The points of a plot as a table."""
    names = ("Method", "from", plot.cost, "PSNR (dB)", "difference to baseline", "seeds")
    headers = [("", name) for name in names]
    measured, paper = "measured", "paper"
    if plot.machine:
        measured, paper = f"measured on {plot.machine}", f"paper, {PAPER_DEVICE}"
    rows = [
        [
            point.label,
            measured if point.summary else paper,
            milliseconds(point.cost),
            fixed(point.psnr, 2),
            difference_cell(point.summary),
            str(point.summary.seeds) if point.summary else "",
        ]
        for point in (*plot.measured, *plot.paper)
    ]
    kinds = column_kinds(headers, rows)
    return TableBlock(
        anchor=anchor,
        title=f"Points: {title}",
        about=f"{setting_text(plot.setting)}; tested on {plot.setting.test_set}",
        head=table_head(headers, kinds),
        rows=[Row([Cell(t, k) for t, k in zip(row, kinds, strict=True)]) for row in rows],
        tags=setting_tags(plot.setting),
    )


def _numbers(plot: Pareto, point: Point) -> list[str]:
    """A point's label and numbers, a line each."""
    summary = point.summary
    lines = [point.label, f"{plot.cost}: {milliseconds(point.cost)}"]
    lines.append(f"PSNR: {fixed(point.psnr, 3 if summary else 2)} dB")
    if summary is None:
        return [*lines, "paper, not measured here"]
    if difference := difference_cell(summary):
        lines.append(f"to baseline: {difference} dB")
    return [*lines, f"seeds: {summary.seeds}"]
