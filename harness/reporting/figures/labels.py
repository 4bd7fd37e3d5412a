"""Labels beside lines and points that do not cover each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..statistics import FloatArray

#: Height of a line of text in its font size.
_LINE = 1.15
# Where a label may stand: distances in points, and directions.
_DISTANCES = (5.0, 11.0, 18.0, 27.0, 38.0)
_DIRECTIONS = [np.pi * i / 8 for i in (0, 1, 15, 2, 14, 4, 12, 6, 10, 7, 9, 8)]
# Half a marker, in points.
_MARKER = 2.5
# Between two labels, in points.
_PAD = 3.0
_ALIGNED: dict[int, Literal["left", "center", "right"]] = {1: "left", 0: "center", -1: "right"}


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places as near the given ones as possible (least squares) and at least ``gap`` apart.

    They keep their order.
    """
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    groups: list[tuple[float, int]] = []  # sum of the first items' best places, and count
    for rank, index in enumerate(order):
        groups.append((places[index] - rank * gap, 1))
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] >= groups[-1][0] / groups[-1][1]:
            last, before = groups.pop(), groups.pop()
            groups.append((before[0] + last[0], before[1] + last[1]))
    starts = [total / count for total, count in groups for _ in range(count)]
    found = [0.0] * len(places)
    for rank, index in enumerate(order):
        found[index] = starts[rank] + rank * gap
    return found


def label_ends(
    axis: Axes, ends: Sequence[tuple[float, float, str, Any]], size: float, width: float = 0.8
) -> None:
    """Names (x, y, text, colour) at the right of an axis, each beside the end of its line.

    A leader of this width in points leads from one to the other.
    """
    if not ends:
        return
    figure = axis.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # the layout, without which an axis has no height
    low, high = axis.get_ylim()
    gap = _LINE * size / 72 * figure.dpi / axis.get_window_extent().height
    shown = [min(max(y, low), high) for _, y, _, _ in ends]
    to_axis = axis.transData + axis.transAxes.inverted()  # whose scale may be logarithmic
    heights = [float(to_axis.transform((end[0], y))[1]) for end, y in zip(ends, shown, strict=True)]
    places = spread(heights, gap)
    for (x, _, text, colour), y, place in zip(ends, shown, places, strict=True):
        axis.annotate(
            text,
            (x, y),
            (1.05, place),
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            arrowprops={
                "arrowstyle": "-",
                "lw": width,
                "color": colour,
                "shrinkA": 0,
                "shrinkB": 2,
            },
            annotation_clip=False,
        )


def label_points(axis: Axes, points: Sequence[tuple[float, float, str]], size: float) -> None:
    """A text beside each (x, y), where it covers as little of other texts and markers as it can.

    A point with an empty text is only kept free.
    """
    if not any(text for _, _, text in points):
        return
    figure = axis.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    low, high = axis.get_ylim()
    shown = [(x, min(max(y, low), high)) for x, y, _ in points]
    places = axis.transData.transform(shown) / scale
    inside = np.array(axis.get_window_extent().extents) / scale
    taken = np.concatenate([places - _MARKER, places + _MARKER], axis=1)
    for index, (place, (_, _, text)) in enumerate(zip(shown, points, strict=True)):
        if not text:
            continue
        label = axis.annotate(
            text,
            place,
            (0, 0),
            textcoords="offset points",
            va="center",
            fontsize=size,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "lw": 0.3, "color": "0.5", "shrinkA": 0, "shrinkB": 2},
        )
        label.set_in_layout(False)
        extent = label.get_window_extent()
        best = _best_place(
            places[index],
            (extent.width / scale + _PAD, extent.height / scale),
            np.delete(taken, index, axis=0),
            inside,
        )
        offset, side, box = best
        label.set_position((float(offset[0]), float(offset[1])))
        label.set_horizontalalignment(_ALIGNED[side])
        taken = np.concatenate([taken, box[None]])


def _best_place(
    place: FloatArray, extent: tuple[float, float], taken: FloatArray, inside: FloatArray
) -> tuple[FloatArray, int, FloatArray]:
    """Offset of a label, the side on which it begins, and its box, all in points.

    Boxes are left, bottom, right, top.
    """
    width, height = extent
    offsets = np.array(
        [(r * np.cos(angle), r * np.sin(angle)) for r in _DISTANCES for angle in _DIRECTIONS]
    )
    sides = np.sign(offsets[:, 0].round(3))
    left = place[0] + offsets[:, 0] - (1 - sides) / 2 * width
    bottom = place[1] + offsets[:, 1] - height / 2
    boxes = np.stack([left, bottom, left + width, bottom + height], axis=1)
    outside = width * height - _common(boxes, inside[None])[:, 0]
    cost = _common(boxes, taken).sum(axis=1) + np.hypot(*offsets.T) + 10 * outside
    best = int(cost.argmin())
    return offsets[best], int(sides[best]), boxes[best]


def _common(boxes: FloatArray, others: FloatArray) -> FloatArray:
    """Area that each two boxes share ``[boxes, others]``."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared: FloatArray = np.clip(high - low, 0, None).prod(axis=2)
    return shared
