"""The table that ``python -m harness.evaluate`` prints."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from ...records.shapes import Quality
from ..settings import paper_table


def evaluation_table(
    title: str, results: Mapping[str, Quality], scale: int, method: str | None
) -> RichTable:
    """Quality of one network, a row for each test set, with the paper's results beside it.

    Args:
        title: name and size of the network.
        results: by test set.
        scale: of the network.
        method: row of the paper's Table 1 for this network; None if it has none.
    """
    paper = {
        row["dataset"]: f"{row['psnr_db']} / {row['ssim']}"
        for row in paper_table(1)
        if (row["method"], row["scale"]) == (method, str(scale))
    }
    headers = ["set", "PSNR", "SSIM", "bicubic", "images"]
    if paper:
        headers.append(f"paper's\n{method}")
    grid = RichTable(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    for header in headers:
        grid.add_column(header, justify="left" if header == "set" else "right", no_wrap=True)
    for name, result in results.items():
        cells = [
            name,
            f"{result.psnr:.2f}",
            f"{result.ssim:.4f}",
            f"{result.bicubic_psnr:.2f} / {result.bicubic_ssim:.4f}",
            str(len(result.images)),
            paper.get(name, ""),
        ]
        grid.add_row(*cells[: len(headers)])
    return grid
