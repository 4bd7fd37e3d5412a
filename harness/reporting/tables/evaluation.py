"""The tables that ``python -m harness.evaluate`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from ...records.shapes import Quality, Score, input_of, measured
from ..cells import fixed
from ..settings import paper_table


def evaluation_table(
    title: str, results: Mapping[str, Quality], scale: int, method: str | None
) -> RichTable:
    """Quality of one network, a row for each test set, with the paper's results beside it.

    The input's quality is bicubic's or, in denoising, that of the noisy image.

    Args:
        title: name and size of the network, and the task if it is not the default.
        results: by test set.
        scale: of the network.
        method: row of the paper's Table 1 for this network; None if it has none.
    """
    paper = {
        row["dataset"]: f"{row['psnr_db']} / {row['ssim']}"
        for row in paper_table(1)
        if (row["method"], row["scale"]) == (method, str(scale))
    }
    beside = input_of(next(iter(results.values())))
    headers = ["set", "PSNR", "SSIM", beside, "images"]
    if paper:
        headers.append(f"paper's\n{method}")
    grid = _grid(title)
    for header in headers:
        grid.add_column(header, justify="left" if header == "set" else "right", no_wrap=True)
    for name, result in results.items():
        cells = [
            name,
            f"{result.psnr:.2f}",
            f"{result.ssim:.4f}",
            f"{getattr(result, f'{beside}_psnr'):.2f} / {getattr(result, f'{beside}_ssim'):.4f}",
            str(len(result.images)),
            paper.get(name, ""),
        ]
        grid.add_row(*cells[: len(headers)])
    return grid


def analysis_table(results: Mapping[str, Quality]) -> RichTable:
    """Means over the images of what was measured beside quality, a row for each test set.

    PSNR on the self-similar part is of the images that have one.
    """
    names = {
        "self-similar part": ("self_similar_share", "{:.1%}"),
        "PSNR there": ("self_similar_psnr", "{:.2f}"),
        "lost as mean": ("lost_as_mean", "{:+.3f}"),
        "lost confined": ("lost_confined", "{:+.3f}"),
    }
    found = {
        header: [_mean_cell(result, key, digits) for result in results.values()]
        for header, (key, digits) in names.items()
    }
    grid = _grid("Where the quality comes from (PSNR in dB)")
    grid.add_column("set", no_wrap=True)
    shown = [cells for cells in found.values() if any(cells)]
    for header, cells in found.items():
        if any(cells):
            grid.add_column(header, justify="right", no_wrap=True)
    for name, *row in zip(results, *shown, strict=True):
        grid.add_row(name, *row)
    return grid


def _mean_cell(result: Quality, key: str, digits: str) -> str:
    """Mean over the images that have it; "" if none has."""
    values = [value for image in result.images if (value := measured(image, key)) is not None]
    return digits.format(fmean(values)) if values else ""


def score_table(title: str, results: Mapping[str, Score]) -> RichTable:
    """Scores of one network in a synthetic task, a row for each test set, with its controls.

    Args:
        title: name and size of the network, and the task.
        results: by test set.
    """
    grid = _grid(title)
    metric = next(iter(results.values())).metric
    shown = {
        "set": list(results),
        metric: [fixed(found.score, 3) for found in results.values()],
        "as mean": [fixed(found.as_mean, 3) for found in results.values()],
        "deleted": [fixed(found.deleted, 3) for found in results.values()],
        "all references": [fixed(found.all_references, 3) for found in results.values()],
        "floor": [fixed(found.floor, 3) for found in results.values()],
        "ceiling": [fixed(found.ceiling, 3) for found in results.values()],
        "counted": [f"{found.weight:g}" for found in results.values()],
    }
    if all(found.all_references is None for found in results.values()):
        del shown["all references"]
    for header in shown:
        grid.add_column(header, justify="left" if header == "set" else "right", no_wrap=True)
    for row in zip(*shown.values(), strict=True):
        grid.add_row(*row)
    return grid


def distance_table(results: Mapping[str, Score]) -> RichTable:
    """Scores by distance, a column for each test set; nothing is left out as too near."""
    grid = _grid("by distance, near ones too")
    found = {name: {row[0]: row[1] for row in one.by_distance} for name, one in results.items()}
    for header in ("up to", *results):
        grid.add_column(header, justify="right", no_wrap=True)
    for distance in sorted({distance for rows in found.values() for distance in rows}):
        cells = [fixed(rows.get(distance), 3) for rows in found.values()]
        grid.add_row(f"{distance:g} pixels", *cells)
    return grid


def _grid(title: str) -> RichTable:
    return RichTable(
        title=Text(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
