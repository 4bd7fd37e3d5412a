"""Cost against the number of positions, log-log, with fitted slopes."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...records.origin import describe_machine
from ...records.shapes import Scaling
from ..scaling import methods, title
from .labels import label_ends
from .marks import GREY, highlighted, plot_line
from .style import PAGE, house_style, log_scale, new_figure

_LABELS = {"median_ms": "median time (ms)", "peak_memory_mb": "peak memory above inputs (MB)"}
# Lines of what is not highlighted, and the size of their labels.
_OTHER: Any = {"color": GREY, "lw": 0.8, "marker": ".", "zorder": 1}
_SMALL = 5


def scaling_figure(record: Scaling) -> Figure:
    """Time and memory against N, log-log, with a line and its exponents for each method."""
    found, fit_from = methods(record), record.settings.fit_from
    largest = max(row.positions for row in record.rows)
    handles: dict[str, Line2D] = {}
    with house_style():
        figure = new_figure(PAGE, 2.9 + 0.15 * len(found))
        axes = figure.subplots(1, 2)
        figure.suptitle(f"{title(record)}\n{describe_machine(record)}", fontsize=8)
        bright = highlighted(method.recorded.name for method in found)
        shown = [method.label for method in found if method.recorded.name in bright]
        styles = {label: style for style, label in enumerate(shown)}
        ends: list[tuple[Axes, list[tuple[float, float, str, str]]]] = []
        for axis, (quantity, label) in zip(axes, _LABELS.items(), strict=True):
            ends.append((axis, []))
            log_scale(axis, "x")
            log_scale(axis, "y")
            for method in found:
                values = [(row.positions, getattr(row, quantity)) for row in method.rows]
                points = [(n, value, 0.0) for n, value in values if value]
                if not points:
                    continue
                if method.recorded.name not in bright:
                    drawn = sorted((n, value) for n, value, _ in points)
                    axis.plot([n for n, _ in drawn], [value for _, value in drawn], **_OTHER)
                    ends[-1][1].append((*drawn[-1], method.label, GREY))
                    continue
                text = f"{method.label}: {method.exponents}{method.until(largest)}"
                # In outline: memories lie close, and none may hide another.
                plot_line(axis, points, text, styles[method.label])
                handles.setdefault(text, axis.lines[-1])
            axis.set_xlabel(f"positions N (fitted from {fit_from}; grey: left out)")
            axis.set_ylabel(label)
            low, _ = axis.get_xlim()
            axis.axvspan(low, max(low, fit_from), color="0.93", zorder=0)
            axis.set_xlim(left=low)
        figure.legend(
            handles.values(),
            handles.keys(),
            title="exponent of N ± standard error",
            loc="outside lower center",
            frameon=False,
        )
        for axis, places in ends:
            label_ends(axis, places, _SMALL, width=0.3)
    return figure
