"""The scaling table, with fitted slopes."""

from __future__ import annotations

from ...records.origin import Record, describe_code, describe_machine, origin_note
from ...records.shapes import positions
from ..cells import milliseconds, variant_columns
from ..scaling import QUANTITIES, Method, _rule, _size, _title, methods, unmeasured, verdict
from .render import Table


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
