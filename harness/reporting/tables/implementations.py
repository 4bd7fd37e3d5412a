"""Implementations of the cores side by side: what ``auto`` follows on each processor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...base.names import slug
from ...records.origin import by_age, describe_code, describe_machine, origin_note
from ...records.shapes import ImplementationRow, Implementations
from ..benches import PASSES
from ..cells import columns_of, fixed, milliseconds
from .render import Table

_FIGURES = ("mean_ms", "median_ms", "iqr_ms", "min_ms", "runs", "peak_memory_mb", "note")


def implementation_tables(records: Iterable[Implementations]) -> list[Table]:
    """A table of each processor and number of threads, from its newest record."""
    newest = {_place(record): record for record in by_age(records)}
    return [implementation_table(newest[name]) for name in sorted(newest)]


def _place(record: Implementations) -> str:
    gpu, cpu, torch = record.machine.gpu, record.machine.cpu, record.machine.torch
    if gpu:
        return slug(str(gpu["name"])).lower()
    words = [cpu.model or "cpu", cpu.vector_instructions or ""] if cpu else ["cpu"]
    threads = f"{torch.threads}-threads" if torch and torch.threads else ""
    return slug(" ".join([*words, threads]).strip()).lower()


def implementation_table(record: Implementations) -> Table:
    """Median times; the fastest against ``auto``, and its share of the machine's limit."""
    ran = (name for row in record.rows for name, one in row.times.items() if one.median_ms)
    names = list(dict.fromkeys(ran))
    limits = record.machine_limits
    return Table(
        name=f"implementations-{_place(record)}",
        caption=f"Implementations of the cores on {describe_machine(record)}: ms (median)",
        notes=[
            "All implementations of a row run in turn, in one process, float32, batch 1, 64 "
            "channels. Auto over best is the time of the implementation that `auto` takes over "
            "that of the fastest.",
            "Limit is the longer of two times: the products at the measured rate, and inputs and "
            "outputs moved once at the measured rate of copying. Share is the limit's part of "
            f"auto's time. Measured: {milliseconds(limits.matmul_gflops)} GFLOP/s and "
            f"{milliseconds(limits.copy_gb_per_s)} GB/s.",
            origin_note([record], "Measured"),
        ],
        headers=[
            ("", "Method"),
            ("", "size"),
            ("", "passes"),
            *(("ms", name) for name in names),
            ("", "auto"),
            ("", "auto over best"),
            ("Limit", "ms"),
            ("Limit", "share"),
        ],
        rows=[_cells(row, names) for row in record.rows],
        data=[_data(row, name, record) for row in record.rows for name in row.times],
    )


def _cells(row: ImplementationRow, names: list[str]) -> list[str]:
    auto = row.times[row.auto].median_ms if row.auto in row.times else None
    best = min((one.median_ms for one in row.times.values() if one.median_ms), default=None)
    return [
        str(row.variant.label),
        f"{row.height}×{row.width}",
        PASSES.get(row.passes, row.passes),
        *(milliseconds(row.times[n].median_ms) if n in row.times else "" for n in names),
        row.auto,
        fixed(auto / best if auto and best else None, 2),
        milliseconds(row.limit_ms),
        f"{row.limit_ms / auto:.0%}" if auto else "",
    ]


def _data(row: ImplementationRow, name: str, record: Implementations) -> dict[str, Any]:
    return (
        {"method": row.variant.label, "implementation": name, "auto": row.auto}
        | columns_of(row, "height", "width", "passes", "dtype", "device", "limit_ms")
        | columns_of(row.times[name], *_FIGURES)
        | columns_of(record.machine_limits, "matmul_gflops", "copy_gb_per_s")
        | {
            "session": record.id,
            "machine": describe_machine(record),
            "code": describe_code(record),
        }
    )
