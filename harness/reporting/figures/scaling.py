"""Cost against the number of positions, log-log, with fitted slopes."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...records.origin import describe_machine
from ...records.shapes import Scaling
from ..scaling import methods, title
from .marks import plot_line
from .style import PAGE, house_style, log_scale, new_figure

_LABELS = {"median_ms": "median time (ms)", "peak_memory_mb": "peak memory above inputs (MB)"}


def scaling_figure(record: Scaling) -> Figure:
    """Time and memory against N, log-log, with a line and its exponents for each method."""
    found, fit_from = methods(record), record.settings.fit_from
    largest = max(row.positions for row in record.rows)
    handles: dict[str, Line2D] = {}
    with house_style():
        figure = new_figure(PAGE, 2.9 + 0.15 * len(found))
        axes = figure.subplots(1, 2)
        figure.suptitle(f"{title(record)}, {describe_machine(record)}", fontsize=8)
        for axis, (quantity, label) in zip(axes, _LABELS.items(), strict=True):
            log_scale(axis, "x")
            log_scale(axis, "y")
            for style, method in enumerate(found):
                values = [(row.positions, getattr(row, quantity)) for row in method.rows]
                points = [(n, value, 0.0) for n, value in values if value]
                if not points:
                    continue
                text = f"{method.label}: {method.exponents}{method.until(largest)}"
                # In outline: memories lie close, and none may hide another.
                plot_line(axis, points, text, style)
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
    return figure
