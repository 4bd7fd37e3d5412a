"""What a scaling record says: exponents, verdict, table and figure, from the record alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attention_zoo import find_attention, list_attentions

from ..config.labels import variant_key, variant_labels
from ..records.origin import Record
from ..records.shapes import positions

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


def methods(record: Record) -> list[Method]:
    """The variants of a record in its order."""
    by_key: dict[str, list[Record]] = {}
    for row in sorted(record["rows"], key=positions):
        by_key.setdefault(variant_key(row["variant"]), []).append(row)
    labels = variant_labels(row["variant"] for row in record["rows"])
    fit_from = record["settings"]["fit_from"]
    return [Method(labels[key], key, by_key[key], fit_from) for key in labels]


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


def _title(record: Record) -> str:
    row = record["rows"][0]
    return f"{row['part']}, {row['passes']}, {row['channels']} channels, {row['dtype']}"
