"""Table 5: latency of the attention modules, one table for each machine, device and precision."""

from __future__ import annotations

from typing import Any

from ...records.origin import describe_code, describe_machine, origin_note
from ..benches import PART_CHANNELS, PASSES, Bench, Cell, rank, timing_text
from ..cells import (
    PAPER_PSNR,
    columns_of,
    measured_header,
    milliseconds,
    number,
    psnr_cell,
    setting_text,
    variant_columns,
)
from ..labels import row_order
from ..settings import Setting, paper_table
from .render import Table

_SIZES = (100, 150)
_PARTS = (*PART_CHANNELS, "network")
_TIMES = ("mean_ms", "median_ms", "iqr_ms", "min_ms")
_FIGURES = (*_TIMES, "runs", "peak_memory_mb")


def table5(bench: Bench, setting: Setting) -> Table:
    """Mean latency at the paper's two sizes: its rows, then further variants.

    Args:
        bench: the latencies.
        setting: where the PSNR column comes from; without runs it is empty.
    """
    paper = {row["method"]: row for row in paper_table(5)}
    rows, data = [], []
    for label, variant in row_order(bench.labels, list(paper)):
        printed = paper.get(label, {})
        psnr = setting.psnr_of.get(variant) if variant else None
        cells = [label]
        columns = variant_columns(label, bench.recorded[variant] if variant else None)
        for size in _SIZES:
            cells.append(printed.get(f"latency_ms_{size}x{size}", ""))
            columns[f"latency_ms_{size}x{size}_paper"] = number(cells[-1])
            for part in PART_CHANNELS:
                for passes in PASSES:
                    row = bench.find(variant, part, passes, size)
                    cells.append(milliseconds(row.mean_ms if row else None))
                    prefix = f"{part}_{passes.replace('+', '_')}_{size}x{size}"
                    columns |= {f"{prefix}_{f}": row and getattr(row, f) for f in _FIGURES}
        cells += [printed.get("psnr_db", ""), psnr_cell(psnr)]
        rows.append(cells)
        columns |= {
            "psnr_db_paper": number(printed.get("psnr_db", "")),
            "psnr_db_measured": psnr and psnr.mean,
            "seeds": psnr and psnr.seeds,
            "test_set": setting.test_set,
            "setting": setting.label if setting.runs else None,
        }
        data.append(columns | _bench_columns(bench))
    return Table(
        name=bench.label,
        caption=f"{_title(bench)} in ms (mean) on {_where(bench)}",
        notes=[
            "Columns marked paper are published figures (RTX 2080 Ti). All others are of one "
            f"session, {bench.record.id}, with its methods timed in turn. Core: the attention "
            "alone; module: with its projections.",
            "Columns marked paper are published figures, not measured here: mean of 1000 runs on "
            "an RTX 2080 Ti, and PSNR on Urban100 ×4. The paper's text gives 0.2 dB between "
            "ENLCA-m128 and NLSA-r4; its table has 0.16 dB.",
            "Core is the attention operation alone, with 64 channels; module is the whole module "
            "with its projections, with 256 channels. fwd is the forward pass, bwd the backward. "
            "Median, interquartile range, runs and peak memory are in the CSV and in "
            f"{bench.label}-details.",
            *_bench_notes(bench),
            f"Measured PSNR: {setting_text(setting)}; setting {setting.label}."
            if setting.runs
            else "No variant was trained: measured PSNR is empty.",
        ],
        headers=[
            ("", "Method"),
            *(
                (f"{size}×{size}", header)
                for size in _SIZES
                for header in (
                    "paper",
                    *(f"{part} {short}" for part in PART_CHANNELS for short in PASSES.values()),
                )
            ),
            ("PSNR (dB)", PAPER_PSNR),
            ("PSNR (dB)", measured_header(setting)),
        ],
        rows=rows,
        data=data,
        rule_after=len(paper),
    )


def latency_details(bench: Bench) -> Table:
    """Every latency with all its figures, one row each."""
    order = row_order(bench.labels, [row["method"] for row in paper_table(5)])
    position = {variant: i for i, (_, variant) in enumerate(order)}

    def place(cell: Cell) -> tuple[Any, ...]:
        variant, part, passes, *rest = cell
        return (rank(_PARTS, part), part, rank(PASSES, passes), *rest, position[variant])

    rows, data = [], []
    for cell in sorted(bench.cells, key=place):
        row = bench.cells[cell]
        label = bench.labels[cell[0]]
        rows.append(
            [
                *(label, row.part, PASSES.get(row.passes, row.passes)),
                f"{row.batch}×{row.channels}×{row.height}×{row.width}",
                *(milliseconds(getattr(row, name)) for name in _TIMES),
                str(row.runs) if row.runs else row.note or "",
                milliseconds(row.peak_memory_mb),
            ]
        )
        data.append(
            variant_columns(label, row.variant)
            | columns_of(row, "part", "passes", "batch", "channels", "height", "width")
            | columns_of(row, *_FIGURES, "note")
            | _bench_columns(bench)
            | {"code": describe_code(bench.record)}
        )
    return Table(
        name=f"{bench.label}-details",
        caption=f"{_title(bench)} in detail on {_where(bench)}",
        notes=_bench_notes(bench),
        headers=[
            ("", "Method"),
            *(("", h) for h in ("part", "passes", "input")),
            *(("ms", h) for h in ("mean", "median", "IQR", "least")),
            *(("", h) for h in ("runs", "peak MB")),
        ],
        rows=rows,
        data=data,
    )


def _title(bench: Bench) -> str:
    return "Latency of all methods" if bench.label.startswith("latency") else "Table 5: latency"


def _where(bench: Bench) -> str:
    machine = describe_machine(bench.record)
    return f"{machine}, device {bench.row.device}, {bench.row.dtype}{bench.session}"


def _bench_columns(bench: Bench) -> dict[str, Any]:
    machine = {"machine": describe_machine(bench.record), "session": bench.record.id}
    return columns_of(bench.row, "device", "dtype") | machine


def _bench_notes(bench: Bench) -> list[str]:
    return [
        f"All rows are of one session, {bench.record.id}: its methods were timed in turn.",
        f"{origin_note([bench.record], 'Measured')} Timing: {timing_text(bench.record)}.",
    ]
