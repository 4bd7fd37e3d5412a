"""Cost against the number of positions, log-log, with fitted slopes."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...records.origin import Record, describe_machine
from ...records.shapes import positions
from ..scaling import _exponents, _title, methods
from ..tables.scaling import _until
from .approximation import plot_line
from .style import PAGE, house_style, new_figure


def scaling_figure(record: Record) -> Figure:
    """Time and memory against N, log-log; a line for each method, its exponents in the legend."""
    labels = {
        "median_ms": "median time (ms)",
        "peak_memory_mb": "peak memory above inputs (MB)",
    }
    found, fit_from = methods(record), record["settings"]["fit_from"]
    largest = max(positions(row) for row in record["rows"])
    handles: dict[str, tuple[Line2D, str]] = {}
    with house_style():
        figure = new_figure(PAGE, 2.9 + 0.15 * len(found))
        axes = figure.subplots(1, 2)
        figure.suptitle(f"{_title(record)}, {describe_machine(record)}", fontsize=8)
        for axis, (quantity, label) in zip(axes, labels.items(), strict=True):
            axis.set_xscale("log")
            axis.set_yscale("log")
            for style, method in enumerate(found):
                rows = [row | {"positions": positions(row)} for row in method.rows if row[quantity]]
                if not rows:
                    continue
                text = f"{method.label}: {_exponents(method)}{_until(method, largest)}"
                plot_line(axis, rows, "positions", quantity, text, style)
                line = axis.lines[-1]
                line.set_fillstyle("none")  # memories lie close: none may hide another
                handles.setdefault(method.key, (line, text))
            axis.set_xlabel(f"positions N (fitted from {fit_from}; grey: left out)")
            axis.set_ylabel(label)
            low, _ = axis.get_xlim()
            axis.axvspan(low, max(low, fit_from), color="0.93", zorder=0)
            axis.set_xlim(left=low)
        figure.legend(
            [line for line, _ in handles.values()],
            [text for _, text in handles.values()],
            title="exponent of N ± standard error",
            loc="outside lower center",
            frameon=False,
        )
    return figure
