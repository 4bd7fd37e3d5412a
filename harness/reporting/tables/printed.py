"""The tables that commands print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from ...config.labels import variant_key, variant_labels
from ...records.origin import Record
from ..cells import (
    PAPER_NOTE,
    fixed,
    milliseconds,
)
from ..settings import PAPER_SET, Setting, paper_table, row_order
from ..statistics import Summary
from .operations import inserted_gflops


def summary(runs: Sequence[Record], costs: Sequence[Record], latency: Record | None) -> RichTable:
    """The short table that a run prints: cost, latency and quality beside the paper's figures.

    Args:
        runs: run records of one setting; may be empty.
        costs: cost records.
        latency: one latency record.
    """
    setting = Setting(runs, costs)
    rows = latency["rows"] if latency else []
    times = {
        variant_key(row["variant"]): row["mean_ms"]
        for row in rows
        if (row["part"], row["passes"], row["height"], row["width"], row["batch"])
        == ("core", "forward", 100, 100, 1)
    }
    labels = variant_labels(r["variant"] for r in (*runs, *costs, *rows))
    paper = {row["method"]: row for row in paper_table(4)}
    table = RichTable(
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
        caption=PAPER_NOTE,
        caption_justify="left",
    )
    words = ["method", *(word for label in labels.values() for word in label.split())]
    table.add_column("method", min_width=max(map(len, words)))  # so that no word is broken
    for header in ("core\nGFLOPs", "paper's\nGFLOPs", "module\nGFLOPs", "core ms\n100×100"):
        table.add_column(header, justify="right", no_wrap=True)
    for name in setting.test_sets:
        title = Text(f"{name}\n×{setting.config['scale']}\nPSNR / SSIM")
        # A narrow terminal wraps after the slash.
        table.add_column(title, justify="right", min_width=max(7, len(name)))
    table.add_column(f"paper's\n{PAPER_SET}\n×4 PSNR", justify="right", no_wrap=True)
    for label, key in row_order(labels, list(paper)):
        if key is None:
            continue
        parts = setting.cost_of[key]["parts"] if key in setting.cost_of else {}
        printed = paper.get(label, {})
        table.add_row(
            Text(label),
            fixed(parts.get("core", {}).get("paper_gflops"), 2),
            printed.get("gflops", ""),
            fixed(inserted_gflops(parts.get("module", {})), 2),
            milliseconds(times.get(key)),
            *(
                _pair(setting.summary(key, name), setting.summary(key, name, "ssim"))
                for name in setting.test_sets
            ),
            printed.get("psnr_db", ""),
        )
    if setting.runs:
        pairs = ((setting.bicubic(n), setting.bicubic(n, "ssim")) for n in setting.test_sets)
        table.add_section()
        table.add_row("bicubic", "", "", "", "", *(_pair(*pair) for pair in pairs), "")
    return table


def _pair(psnr: Summary | None, ssim: Summary | None) -> str:
    return f"{psnr.mean:.2f} / {ssim.mean:.4f}" if psnr and ssim else ""
