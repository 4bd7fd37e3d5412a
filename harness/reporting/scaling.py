"""Exponents that a scaling record shows, and whether they keep within their bounds, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..config.rows import table_rows
from ..config.variants import Variant
from ..records.origin import by_age
from ..records.shapes import LatencyRow, RecordedVariant, Scaling
from .benches import HISTORY, history_name, place
from .labels import recorded_labels, variant_of

#: Modules whose time and memory must grow nearly linearly with N, and their largest exponent.
LINEAR, LINEAR_BOUND = ("nlsa", "enla", "enlca"), 1.15
#: Stated growth of the modules that have no bound, and the largest exponent of all others.
QUADRATIC, OTHER_BOUND = "O(N²)", 1.6
#: Largest peak memory of any method at any size, in MB (1e6 bytes).
MEMORY_BOUND = 4000.0
#: Fewest sizes of a fit: a standard error needs more points than parameters.
MIN_SIZES = 3
# Decimals of a fit that are kept.
_DIGITS = 12
#: What is fitted: attribute of a row, and its name.
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
    line, over ``len - 2`` degrees of freedom. It covers noise and departures from a power law.

    Args:
        positions: N of each point, at least 1.
        values: above 0.

    Returns:
        None with fewer than three different N, or if a value is not above 0.
    """
    if len(set(positions)) < MIN_SIZES or min(values) <= 0:
        return None
    x, y = np.log(positions), np.log(values)
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    error = math.sqrt(float(((y - slope * x) ** 2).sum() / (len(x) - 2) / (x @ x)))
    # Rounding differs between processors; a table of the same record must not.
    return Fit(round(slope, _DIGITS), round(error, _DIGITS))


@dataclass(frozen=True)
class Scaled:
    """A record with the name of its table and figure, as :class:`.benches.Bench` has them."""

    record: Scaling
    label: str
    folder: str = ""

    @property
    def stem(self) -> str:
        """Path of table and figure in their folders, without suffix."""
        return f"{self.folder}/{self.label}" if self.folder else self.label


def find_scalings(records: Iterable[Scaling]) -> list[Scaled]:
    """All records, the canonical ones of each device and dtype first, then the newest.

    ``scaling-<device>`` is the newest record with the most methods of Table 5;
    ``scaling-others-<device>`` the newest with the most methods that this one lacks. All others
    are history.
    """
    groups: dict[str, list[Scaling]] = {}
    for record in by_age(records):
        groups.setdefault(place(record, record.rows[0]), []).insert(0, record)
    paper = {*table_rows("table5")}
    found = []
    for where in sorted(groups, key=lambda name: (name != "cpu", name)):
        newest = groups[where]
        variants = {r.id: {variant_of(row.variant) for row in r.rows} for r in newest}
        own = max(newest, key=lambda r: (len(variants[r.id] & paper), len(variants[r.id])))
        lacking = {r.id: variants[r.id] - variants[own.id] for r in newest}
        more = max(newest, key=lambda r: len(lacking[r.id]))
        shown = [own, more] if lacking[more.id] else [own]
        names = (f"scaling-{where}", f"scaling-others-{where}")
        found += [Scaled(r, name) for r, name in zip(shown, names, strict=False)]
        found += [
            Scaled(r, history_name("scaling", r, r.rows[0]), HISTORY)
            for r in newest
            if r not in shown
        ]
    return found


@dataclass(frozen=True)
class Method:
    """The rows of one variant in a record, smallest size first.

    Attributes:
        label: its row label.
        recorded: what the record says of the variant.
        rows: one for each size.
        fit_from: least number of positions that a fit takes.
    """

    label: str
    recorded: RecordedVariant
    rows: Sequence[LatencyRow]
    fit_from: int

    @property
    def variant(self) -> Variant:
        return variant_of(self.recorded)

    def measured(self, quantity: str) -> list[LatencyRow]:
        """The rows that have such a number."""
        return [row for row in self.rows if getattr(row, quantity) is not None]

    @cached_property
    def fits(self) -> dict[str, Fit | None]:
        """Exponent of each of ``QUANTITIES``; None where too few sizes were measured."""
        return {quantity: self._fit(quantity) for quantity in QUANTITIES}

    def _fit(self, quantity: str) -> Fit | None:
        rows = [row for row in self.measured(quantity) if row.positions >= self.fit_from]
        values = [getattr(row, quantity) for row in rows]
        return fit_exponent([row.positions for row in rows], values)

    @property
    def exponents(self) -> str:
        """Both exponents in words."""
        return ", ".join(
            f"{name} {self.fits[quantity] or 'not fitted'}" for quantity, name in QUANTITIES.items()
        )

    @property
    def bound(self) -> float | None:
        """Largest exponent allowed; None for a module of this suite that states O(N²)."""
        if self.recorded.built_in and self.recorded.growth == QUADRATIC:
            return None
        return LINEAR_BOUND if self.recorded.name in LINEAR else OTHER_BOUND

    def until(self, largest: int) -> str:
        """How far it was measured, or only timed; "" if both reach the largest N."""
        timed, known = (self.measured(quantity) for quantity in QUANTITIES)
        if not timed or timed[-1].positions == largest:
            return ""
        word = "timed" if known and known[-1].positions == largest else "measured"
        return f"; {word} to {size(timed[-1])}"


def methods(record: Scaling) -> list[Method]:
    """The variants of a record in its order."""
    labels = recorded_labels(row.variant for row in record.rows)
    rows: dict[Variant, list[LatencyRow]] = {variant: [] for variant in labels}
    for row in sorted(record.rows, key=lambda row: row.positions):
        rows[variant_of(row.variant)].append(row)
    fit_from = record.settings.fit_from
    return [
        Method(label, rows[variant][0].variant, rows[variant], fit_from)
        for variant, label in labels.items()
    ]


def statements(record: Scaling) -> list[str]:
    """The rule of the fit, every exponent, the sizes that were not measured, and the verdict."""
    lines = [f"{rule(record)} Exponents of N:"]
    lines += [f"  {method.label}: {method.exponents}" for method in methods(record)]
    return [*lines, *unmeasured(record), *verdict(record)]


def unmeasured(record: Scaling) -> list[str]:
    """A sentence for each method and size that was not timed."""
    return [
        f"{method.label} at {size(row)}: {row.note}."
        for method in methods(record)
        for row in method.rows
        if row.median_ms is None
    ]


def verdict(record: Scaling) -> list[str]:
    """Whether exponents and memory keep within their bounds, a sentence each."""
    found = methods(record)
    return [
        *(
            f"{method.label} grows at most as N^{method.bound:g}: "
            f"{_judge_growth(method, method.bound)} ({method.exponents})."
            for method in found
            if method.bound is not None
        ),
        f"No method needs more than {MEMORY_BOUND / 1e3:g} GB: {_judge_memory(found)}.",
    ]


def _judge_growth(method: Method, bound: float) -> str:
    fits = method.fits.values()
    if any(fit and round(fit.slope, 2) > bound for fit in fits):  # as printed
        return "does not hold"
    return "holds" if all(fits) else "cannot be judged"


def _judge_memory(found: Sequence[Method]) -> str:
    rows = [
        (row.peak_memory_mb, method.label, row)
        for method in found
        for row in method.measured("peak_memory_mb")
        if row.peak_memory_mb is not None
    ]
    if not rows:
        return "cannot be judged (no peak memory was measured)"
    most, label, at = max(rows, key=lambda row: row[0])
    text = f"(most {most / 1e3:.3g} GB, {label} at {size(at)}"
    gaps = []
    for method in found:
        known = method.measured("peak_memory_mb")
        if known != method.rows:
            beyond = f" beyond {size(known[-1])}" if known else ""
            gaps.append(f"{method.label} not measured{beyond}")
    text = "; ".join([text, *gaps]) + ")"
    if most > MEMORY_BOUND:
        return f"does not hold {text}"
    return f"holds where measured {text}" if gaps else f"holds {text}"


def rule(record: Scaling) -> str:
    """What is fitted over which sizes."""
    return (
        "Exponents are least-squares fits to logarithms, over at least "
        f"{MIN_SIZES} sizes of N >= {record.settings.fit_from}, ± standard error. Smaller sizes, "
        "where fixed costs dominate, are left out."
    )


def size(row: LatencyRow) -> str:
    """Height and width, as ``100x150``."""
    return f"{row.height}x{row.width}"


def title(record: Scaling) -> str:
    """What was timed."""
    row = record.rows[0]
    return f"{row.part}, {row.passes}, {row.channels} channels, {row.dtype}"
