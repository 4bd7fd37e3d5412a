"""The scaling table, with fitted slopes."""

from __future__ import annotations

from ...records.origin import describe_code, describe_machine, origin_note
from ..cells import columns_of, milliseconds, variant_columns
from ..scaling import (
    QUANTITIES,
    Method,
    Scaled,
    methods,
    rule,
    size,
    title,
    unmeasured,
    verdict,
)
from .render import Table

_SHOWN = ("part", "passes", "batch", "channels", "height", "width", "positions")
_FIGURES = ("mean_ms", "median_ms", "iqr_ms", "min_ms", "runs", "peak_memory_mb", "note")


def scaling_table(scaled: Scaled) -> Table:
    """Median time, then peak memory, of every method at every size, and the exponents of both."""
    record = scaled.record
    found = methods(record)
    sizes = list(dict.fromkeys(map(size, sorted(record.rows, key=lambda row: row.positions))))
    rows = [
        [
            method.label,
            quantity.rpartition("_")[2].replace("mb", "MB"),
            *_over_sizes(method, quantity, sizes),
            str(method.fits[quantity] or ""),
        ]
        for quantity in QUANTITIES
        for method in found
    ]
    data = [
        variant_columns(method.label, method.recorded)
        | columns_of(row, *_SHOWN, *_FIGURES)
        | {"fitted": row.positions >= method.fit_from}
        | _fit_columns(method)
        | columns_of(row, "device", "dtype")
        | {
            "machine": describe_machine(record),
            "session": record.id,
            "code": describe_code(record),
        }
        for method in found
        for row in method.rows
    ]
    return Table(
        name=scaled.label,
        caption=f"Cost{' of further methods' if 'others' in scaled.label else ''} against the "
        f"number of positions: {title(record)}, on {describe_machine(record)}"
        f"{f', session {record.id}' if scaled.folder else ''}",
        notes=[
            "Rows in ms hold the median time of a call, rows in MB (1e6 bytes) its peak memory "
            "above its inputs. Methods are timed in turn, batch 1.",
            rule(record),
            *unmeasured(record),
            *verdict(record),
            origin_note([record], "Measured"),
        ],
        headers=[("", "Method"), ("", "unit"), *(("", size) for size in sizes), ("", "exponent")],
        rows=rows,
        data=data,
        rule_after=len(found),
    )


def _over_sizes(method: Method, quantity: str, sizes: list[str]) -> list[str]:
    values = {size(row): getattr(row, quantity) for row in method.rows}
    return [milliseconds(values.get(one)) for one in sizes]


def _fit_columns(method: Method) -> dict[str, float | None]:
    columns: dict[str, float | None] = {}
    for quantity, name in QUANTITIES.items():
        fit = method.fits[quantity]
        columns[f"{name}_exponent"] = fit.slope if fit else None
        columns[f"{name}_exponent_se"] = fit.error if fit else None
    return columns
