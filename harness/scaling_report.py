"""What a scaling record says: exponents, verdict, table and figure, from the record alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attention_zoo import find_attention, list_attentions

from .approximation_report import plot_line
from .cells import milliseconds, variant_columns
from .plotting import PAGE, house_style, new_figure, save_figure
from .render import Table, write_table
from .settings import (
    Record,
    describe_code,
    describe_machine,
    origin_note,
    variant_key,
    variant_labels,
)

#: Modules whose time and memory must grow nearly linearly with N, and their largest exponent.
LINEAR, LINEAR_BOUND = ("nlsa", "enla", "enlca"), 1.15
#: Growth that modules state who may be quadratic, and the largest exponent of all others.
QUADRATIC, OTHER_BOUND = "O(N²)", 1.6
#: Most peak memory of any method at any size, in MB (1e6 bytes).
MEMORY_BOUND = 4000.0
#: Fewest sizes of a fit: a standard error needs more points than parameters.
MIN_SIZES = 3
# Decimals of a fit that are kept.
_DIGITS = 12

#: What is fitted: key of a row, and its name.
QUANTITIES = {"median_ms": "time", "peak_memory_mb": "memory"}


@dataclass(frozen=True)
class Fit:
    """``value ~ N^slope``; ``error`` is the standard error of the slope."""

    slope: float
    error: float

    def __str__(self) -> str:
        return f"{self.slope:.2f} ± {self.error:.2f}"


def fit_exponent(positions: Sequence[int], values: Sequence[float]) -> Fit | None:
    """Least squares of log value against log N.

    The standard error is that of the ordinary regression: the scatter of the points around the
    line, over ``len - 2`` degrees of freedom. It holds noise and departure from a power law alike.

    Args:
        positions: N of each point, at least 1.
        values: above 0.

    Returns:
        None with fewer than three different N or a value that is not above 0.
    """
    if len(set(positions)) < MIN_SIZES or min(values) <= 0:
        return None
    x, y = np.log(positions), np.log(values)
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    error = math.sqrt(float(((y - slope * x) ** 2).sum() / (len(x) - 2) / (x @ x)))
    # The noise of rounding differs between processors, and a table shall not.
    return Fit(round(slope, _DIGITS), round(error, _DIGITS))


class Method:
    """The rows of one variant in a record, smallest size first, and their fits."""

    def __init__(self, label: str, key: str, rows: Sequence[Record], fit_from: int) -> None:
        self.label, self.key, self.name = label, key, rows[0]["variant"]["name"]
        self.rows = rows
        self.fits: dict[str, Fit | None] = {}
        for quantity in QUANTITIES:
            points = [
                (positions(row), row[quantity])
                for row in self.measured(quantity)
                if positions(row) >= fit_from
            ]
            self.fits[quantity] = fit_exponent(*zip(*points, strict=True)) if points else None

    def measured(self, quantity: str) -> list[Record]:
        """Its rows that have such a number."""
        return [row for row in self.rows if row[quantity] is not None]

    @property
    def bound(self) -> float | None:
        """Largest exponent allowed; None for a method of this suite that states O(N²)."""
        known = self.name in list_attentions()  # somebody's own is not imported
        if known and find_attention(self.name).complexity == QUADRATIC:
            return None
        return LINEAR_BOUND if self.name in LINEAR else OTHER_BOUND


def positions(row: Record) -> int:
    """N of a row."""
    return row["height"] * row["width"]


def methods(record: Record) -> list[Method]:
    """The variants of a record in its order."""
    by_key: dict[str, list[Record]] = {}
    for row in sorted(record["rows"], key=positions):
        by_key.setdefault(variant_key(row["variant"]), []).append(row)
    labels = variant_labels(row["variant"] for row in record["rows"])
    fit_from = record["settings"]["fit_from"]
    return [Method(labels[key], key, by_key[key], fit_from) for key in labels]


# -- words --------------------------------------------------------------------------------------


def statements(record: Record) -> list[str]:
    """The rule of the fit, every exponent, what was not measured and why, and the verdict."""
    found = methods(record)
    lines = [f"{_rule(record)} Exponents of N:"]
    lines += [f"  {method.label}: {_exponents(method)}" for method in found]
    return [*lines, *unmeasured(record), *verdict(record)]


def unmeasured(record: Record) -> list[str]:
    """A sentence for each method and size that was not timed."""
    return [
        f"{method.label} at {_size(row)}: {row['note']}."
        for method in methods(record)
        for row in method.rows
        if row["median_ms"] is None
    ]


def verdict(record: Record) -> list[str]:
    """Whether exponents and memory keep to their bounds, a sentence each."""
    found = methods(record)
    lines = []
    for method in found:
        if method.bound is not None:
            lines.append(
                f"{method.label} grows at most as N^{method.bound:g}: "
                f"{_judge_growth(method, method.bound)} ({_exponents(method)})."
            )
    lines.append(f"No method needs more than {MEMORY_BOUND / 1e3:g} GB: {_judge_memory(found)}.")
    return lines


def _judge_growth(method: Method, bound: float) -> str:
    fits = method.fits.values()
    if any(fit and round(fit.slope, 2) > bound for fit in fits):  # as printed
        return "does not hold"
    return "holds" if all(fits) else "cannot be judged"


def _judge_memory(found: Sequence[Method]) -> str:
    rows = [
        (row["peak_memory_mb"], method.label, row)
        for method in found
        for row in method.measured("peak_memory_mb")
    ]
    if not rows:
        return "cannot be judged (no peak memory was measured)"
    most, label, at = max(rows, key=lambda row: row[0])
    text = f"(most {most / 1e3:.3g} GB, {label} at {_size(at)}"
    gaps = []
    for method in found:
        known = method.measured("peak_memory_mb")
        if known != method.rows:
            beyond = f" beyond {_size(known[-1])}" if known else ""
            gaps.append(f"{method.label} not measured{beyond}")
    text = "; ".join([text, *gaps]) + ")"
    if most > MEMORY_BOUND:
        return f"does not hold {text}"
    return f"holds where measured {text}" if gaps else f"holds {text}"


def _exponents(method: Method) -> str:
    return ", ".join(
        f"{name} {method.fits[quantity] or 'not fitted'}" for quantity, name in QUANTITIES.items()
    )


def _rule(record: Record) -> str:
    return (
        "Fit: least squares of the logarithms of median time and of peak memory over the sizes of "
        f"N >= {record['settings']['fit_from']}, at least {MIN_SIZES}, ± standard error; smaller "
        "sizes, where fixed costs weigh, are left out."
    )


def _size(row: Record) -> str:
    return f"{row['height']}x{row['width']}"


# -- table and figure ---------------------------------------------------------------------------


def write_report(record: Record, results: Path) -> list[Path]:
    """Write ``tables/scaling-<id>.{csv,md,tex}`` and ``figures/scaling-<id>.{png,pdf}``; the paths.

    Raises:
        UserError: a folder cannot be written.
    """
    table = scaling_table(record)
    figure = results / "figures" / table.name
    return write_table(table, results / "tables") + save_figure(scaling_figure(record), figure)


def scaling_table(record: Record) -> Table:
    """Median time, then peak memory, of every method at every size, and the exponents of both."""
    found = methods(record)
    sizes = list(dict.fromkeys(_size(row) for row in sorted(record["rows"], key=positions)))
    rows = [
        [
            method.label,
            quantity.rpartition("_")[2].replace("mb", "MB"),
            *(milliseconds({_size(r): r[quantity] for r in method.rows}.get(s)) for s in sizes),
            str(method.fits[quantity] or ""),
        ]
        for quantity in QUANTITIES
        for method in found
    ]
    shown = ("part", "passes", "batch", "channels", "height", "width")
    figures = ("mean_ms", "median_ms", "iqr_ms", "min_ms", "runs", "peak_memory_mb")
    data = [
        variant_columns(method.label, method.key)
        | {name: row[name] for name in shown}
        | {"positions": positions(row)}
        | {name: row[name] for name in figures}
        | {"note": row.get("note"), "fitted": positions(row) >= record["settings"]["fit_from"]}
        | _fit_columns(method)
        | {"device": row["device"], "dtype": row["dtype"], "machine": describe_machine(record)}
        | {"session": record["id"], "code": describe_code(record)}
        for method in found
        for row in method.rows
    ]
    return Table(
        name=f"scaling-{record['id']}",
        caption=f"Cost against the number of positions: {_title(record)}, on "
        f"{describe_machine(record)}",
        notes=[
            "First the median time of a call in ms, then its peak memory above its inputs in MB "
            "(1e6 bytes); methods timed in turn, batch 1.",
            _rule(record),
            *unmeasured(record),
            *verdict(record),
            origin_note([record], "Measured"),
        ],
        headers=[("", "Method"), ("", "unit"), *(("", size) for size in sizes), ("", "exponent")],
        rows=rows,
        data=data,
        rule_after=len(found),
    )


def _until(method: Method, largest: int) -> str:
    """How far a method was measured, or only timed, if not to the largest N."""
    timed, known = (method.measured(quantity) for quantity in QUANTITIES)
    if not timed or positions(timed[-1]) == largest:
        return ""
    word = "timed" if known and positions(known[-1]) == largest else "measured"
    return f"; {word} to {_size(timed[-1])}"


def _fit_columns(method: Method) -> dict[str, float | None]:
    columns: dict[str, float | None] = {}
    for quantity, name in QUANTITIES.items():
        fit = method.fits[quantity]
        columns[f"{name}_exponent"] = fit.slope if fit else None
        columns[f"{name}_exponent_se"] = fit.error if fit else None
    return columns


def _title(record: Record) -> str:
    row = record["rows"][0]
    return f"{row['part']}, {row['passes']}, {row['channels']} channels, {row['dtype']}"


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
