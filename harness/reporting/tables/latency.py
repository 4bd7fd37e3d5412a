"""Table 5: latency of the attention modules, one table for each machine, device and precision."""

from __future__ import annotations

from typing import Any

from ...records.origin import describe_code, describe_machine, origin_note
from ..benches import _FIGURES, _PARTS, _PASSES, _SIZES, Bench, Cell, _rank
from ..cells import (
    PAPER_PSNR,
    measured_header,
    milliseconds,
    number,
    psnr_cell,
    setting_text,
    variant_columns,
)
from ..settings import PART_CHANNELS, Setting, paper_table, row_order
from .render import Table


def table5(bench: Bench, setting: Setting) -> Table:
    """Mean latency at the paper's two sizes: its rows, then further variants.

    Args:
        bench: the latencies.
        setting: where the PSNR column comes from; without runs it is empty.
    """
    paper = {row["method"]: row for row in paper_table(5)}
    psnr_of = setting.psnr_by_key
    rows, data = [], []
    for label, key in row_order(bench.labels, list(paper)):
        printed = paper.get(label, {})
        psnr = psnr_of.get(key or "")
        cells, columns, sessions = [label], variant_columns(label, key), []
        for size in _SIZES:
            cells.append(printed.get(f"latency_ms_{size}x{size}", ""))
            columns[f"latency_ms_{size}x{size}_paper"] = number(cells[-1])
            for part in PART_CHANNELS:
                for passes in _PASSES:
                    row, record = bench.find(key, part, passes, size)
                    cells.append(milliseconds(row["mean_ms"] if row else None))
                    prefix = f"{part}_{passes.replace('+', '_')}_{size}x{size}"
                    columns |= {f"{prefix}_{figure}": row and row[figure] for figure in _FIGURES}
                    sessions += [record["id"]] if record else []
        cells += [printed.get("psnr_db", ""), psnr_cell(psnr)]
        rows.append(cells)
        columns |= {
            "psnr_db_paper": number(printed.get("psnr_db", "")),
            "psnr_db_measured": psnr and psnr.mean,
            "seeds": psnr and psnr.seeds,
            "test_set": setting.test_set,
            "setting": setting.label if setting.runs else None,
        }
        data.append(columns | _bench_columns(bench) | {"sessions": "+".join(sorted({*sessions}))})
    return Table(
        name=bench.label,
        caption=f"Table 5: latency in ms (mean) on {describe_machine(bench.records[-1])}, "
        f"device {bench.row['device']}, {bench.row['dtype']}",
        notes=[
            "Columns marked paper are published figures, not measured here: mean of 1000 runs on "
            "an RTX 2080 Ti, and PSNR on Urban100 ×4. Its text speaks of 0.2 dB between ENLCA-m128 "
            "and NLSA-r4; its table has 0.16 dB.",
            "Core: the attention operation alone, 64 channels; module: with its projections, 256 "
            "channels. fwd: forward; bwd: backward. Median, interquartile range, runs and peak "
            f"memory are in {bench.label}-details and in the CSV.",
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
                    *(f"{part} {short}" for part in PART_CHANNELS for short in _PASSES.values()),
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
    paper = [row["method"] for row in paper_table(5)]
    position = {key: i for i, (_, key) in enumerate(row_order(bench.labels, paper)) if key}

    def order(cell: Cell) -> tuple[Any, ...]:
        key, part, passes, *rest = cell
        return (_rank(_PARTS, part), part, _rank(tuple(_PASSES), passes), *rest, position[key])

    rows, data = [], []
    for cell in sorted(bench.cells, key=order):
        row, record = bench.cells[cell]
        label = bench.labels[cell[0]]
        shape = f"{row['batch']}×{row['channels']}×{row['height']}×{row['width']}"
        times = [milliseconds(row[figure]) for figure in _FIGURES[:4]]
        runs, memory = row["runs"], row["peak_memory_mb"]
        passes = _PASSES.get(row["passes"], row["passes"])
        count = str(runs) if runs else row.get("note", "")
        rows.append([label, row["part"], passes, shape, *times, count, milliseconds(memory)])
        shown = ("part", "passes", "batch", "channels", "height", "width", *_FIGURES)
        data.append(
            variant_columns(label, cell[0])
            | {name: row[name] for name in shown}
            | {"note": row.get("note")}
            | _bench_columns(bench)
            | {"session": record["id"], "code": describe_code(record)}
        )
    return Table(
        name=f"{bench.label}-details",
        caption=f"Latency in detail on {describe_machine(bench.records[-1])}, "
        f"device {bench.row['device']}, {bench.row['dtype']}",
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


def _bench_columns(bench: Bench) -> dict[str, Any]:
    return {
        "device": bench.row["device"],
        "dtype": bench.row["dtype"],
        "machine": describe_machine(bench.records[-1]),
    }


def _bench_notes(bench: Bench) -> list[str]:
    settings = bench.records[-1]["settings"]
    said = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if value is not None
    )
    notes = [f"{origin_note(bench.records, 'Measured')} Timing: {said}."]
    if len(bench.records) > 1:
        notes.append(
            f"The rows come from {len(bench.records)} sessions: only methods of one session were "
            "timed in turn; the CSV names the session of each."
        )
    return notes
