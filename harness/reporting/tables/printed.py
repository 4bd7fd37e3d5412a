"""The tables that commands print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, starmap

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from ...records.shapes import Cost, Gpu, Latency, LatencyRow, Run
from ..cells import PAPER_NOTE, fixed, milliseconds
from ..labels import recorded_labels, row_order, variant_of
from ..settings import PAPER_SET, Setting, paper_table
from ..statistics import Summary
from .operations import inserted_gflops
from .quality import INPUTS


def summary(runs: Sequence[Run], costs: Sequence[Cost], latency: Latency | None) -> RichTable:
    """The short table that a run prints: cost, latency and quality beside the paper's figures.

    A task other than the default is the table's title. It has no figures of the paper, and costs
    only where they were counted.

    Args:
        runs: run records of one setting; may be empty.
        costs: cost records.
        latency: one latency record.
    """
    setting = Setting(runs, costs)
    task = setting.config.image_task if runs else None
    counted, printed = task is None or bool(costs or latency), task is None
    rows = latency.rows if latency else []
    times = {
        variant_of(row.variant): row.mean_ms
        for row in rows
        if (row.part, row.passes, row.height, row.width, row.batch)
        == ("core", "forward", 100, 100, 1)
    }
    described: list[Run | Cost | LatencyRow] = [*runs, *costs, *rows]
    labels = recorded_labels(one.variant for one in described)
    paper = {row["method"]: row for row in paper_table(4)}
    table = RichTable(
        title=Text(task.label) if task else None,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
        caption=PAPER_NOTE if printed else None,
        caption_justify="left",
    )
    words = ["method", *(word for label in labels.values() for word in label.split())]
    table.add_column("method", min_width=max(map(len, words)))  # so that no word is broken
    for header, shown in (
        ("core\nGFLOPs", counted),
        ("paper's\nGFLOPs", printed),
        ("module\nGFLOPs", counted),
        ("core ms\n100×100", counted),
    ):
        if shown:
            table.add_column(header, justify="right", no_wrap=True)
    blanks = [""] * (len(table.columns) - 1)
    for name in setting.test_sets:
        scale = f"\n×{setting.config.scale}" if setting.config.scale > 1 else ""
        title = Text(f"{name}{scale}\nPSNR / SSIM")
        # A narrow terminal wraps after the slash.
        table.add_column(title, justify="right", min_width=max(7, len(name)))
    if printed:
        table.add_column(f"paper's\n{PAPER_SET}\n×4 PSNR", justify="right", no_wrap=True)
    for label, variant in row_order(labels, list(paper)):
        if variant is None:
            continue
        cost, of_paper = setting.cost_of.get(variant), paper.get(label, {})
        cells = [
            (fixed(cost.parts.core.paper_gflops if cost else None, 2), counted),
            (of_paper.get("gflops", ""), printed),
            (fixed(inserted_gflops(cost.parts.module if cost else None), 2), counted),
            (milliseconds(times.get(variant)), counted),
            *((_pair(*setting.qualities(variant, name)), True) for name in setting.test_sets),
            (of_paper.get("psnr_db", ""), printed),
        ]
        table.add_row(Text(label), *(cell for cell, shown in cells if shown))
    if setting.runs:
        names = setting.test_sets
        pairs = ((setting.input_quality(n), setting.input_quality(n, "ssim")) for n in names)
        table.add_section()
        last = [""] if printed else []
        table.add_row(INPUTS[setting.input_name].lower(), *blanks, *starmap(_pair, pairs), *last)
    return table


def latency_tables(record: Latency) -> Iterator[RichTable]:
    """A table for each part, pass and size of a latency record, with the speed relative to NLA."""
    for title, rows in groupby(
        record.rows, key=lambda row: f"{row.part}, {row.passes}, {row.height}x{row.width}"
    ):
        table = RichTable(title=title, title_justify="left")
        table.add_column("Method")
        for heading in ("Median ms", "Mean", "IQR", "Min", "Runs", "Peak MB", "NLA / it"):
            table.add_column(heading, justify="right")
        members = list(rows)
        nla = next((row.median_ms for row in members if row.variant.name == "nla"), None)
        for row in members:
            times = (row.median_ms, row.mean_ms, row.iqr_ms, row.min_ms)
            table.add_row(
                row.variant.label,
                *(fixed(time, 3) for time in times),
                str(row.runs) if row.runs else row.note or "",
                fixed(row.peak_memory_mb, 1),
                fixed(nla / row.median_ms if nla and row.median_ms else None, 2),
            )
        yield table


def gpu_tables(record: Gpu | Latency) -> Iterator[RichTable]:
    """What a piece of the GPU benchmark measured, a column for each number."""
    if isinstance(record, Latency):
        yield from latency_tables(record)
        return
    texts = ("name", "result", "note", "graph_note")
    columns = dict.fromkeys(
        key
        for row in record.rows
        for key, value in row.items()
        if key in texts or isinstance(value, float)
    )
    table = RichTable(title=record.piece, title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column in texts else "right")
    for row in record.rows:
        values = (row.get(column) for column in columns)
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v or "") for v in values))
    yield table


def _pair(psnr: Summary | None, ssim: Summary | None) -> str:
    return f"{psnr.mean:.2f} / {ssim.mean:.4f}" if psnr and ssim else ""
