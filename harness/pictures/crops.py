"""Crops of restored images side by side, chosen by a rule (Figure 5)."""

from __future__ import annotations

import hashlib
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ..base.errors import UserError
from ..base.progress import progress_bar
from ..images.bicubic import upscale
from ..images.inputs import MAX_PSNR
from ..images.metrics import Quality, psnr, quality, rgb_to_y, ssim
from ..images.sources import TestImage, TestSet
from ..measuring.quality import within_memory
from ..network.weights import TrainedNetwork
from ..reporting.figures.style import PAGE, house_style, new_figure
from .networks import network_labels

#: Most panels in a row beside the image.
COLUMNS = 5
#: Share of the page's width that the image has.
_IMAGE = 0.3
RULE = (
    "in each image the window (every position inside the border) in which the mean squared errors "
    "of Y of the networks (of network and bicubic where there is one network) lie farthest apart, "
    "first from the top left; then the images of which this distance is largest"
)
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Panel:
    """A result's crop, uint8 ``[size, size, 3]``, with its quality and the whole image's.

    Attributes:
        label: the variant's row label, or Bicubic.
        run: the run's id, or the stem of its weight file; None for bicubic.
        tile: side of the tiles that the image was cut into; None for a whole image.
    """

    label: str
    run: str | None
    pixels: Pixels
    crop: Quality
    image: Quality
    tile: int | None = None

    def numbers(self) -> dict[str, Any]:
        """The panel in numbers, for the file beside the figure."""
        return {
            "label": self.label,
            "run": self.run,
            "psnr": round(min(self.crop.psnr, MAX_PSNR), 6),
            "ssim": round(self.crop.ssim, 8),
            "image_psnr": round(min(self.image.psnr, MAX_PSNR), 6),
            "image_ssim": round(self.image.ssim, 8),
            "tile": self.tile,
        }


@dataclass(frozen=True)
class Comparison:
    """One image: HR uint8 ``[H, W, 3]``, its crop, and every result's crop.

    Attributes:
        spread: largest less smallest mean squared error of Y in the crop.
    """

    name: str
    hr: Pixels
    top: int
    left: int
    size: int
    spread: float
    panels: Sequence[Panel]

    def numbers(self) -> dict[str, Any]:
        """The image in numbers, for the file beside the figure."""
        return {
            "image": self.name,
            "hr_sha256": hashlib.sha256(self.hr.tobytes()).hexdigest(),
            "top": self.top,
            "left": self.left,
            "mse_spread": self.spread,
            "panels": [panel.numbers() for panel in self.panels],
        }


def find_crop(
    hr: Pixels, results: Sequence[Pixels], size: int, border: int
) -> tuple[int, int, float]:
    """Top, left and spread of the window in which the results' errors lie farthest apart.

    The spread is the largest less the smallest mean squared error of Y among the results, from
    exact integer sums. The first of equal windows counts, by rows, then columns.

    Args:
        hr: uint8 ``[H, W, 3]``.
        results: the same, at least two.
        size: side of the window.
        border: pixels at each side that no window touches.

    Raises:
        UserError: no window fits.
    """
    height, width = hr.shape[:2]
    if min(height, width) < size + 2 * border:
        raise UserError(
            f"a crop of {size}x{size} does not fit into {width}x{height} pixels inside a border "
            f"of {border}: give a smaller --crop or larger images"
        )
    inside = slice(border, height - border), slice(border, width - border)
    y = rgb_to_y(hr)[inside].astype(np.int64)
    sums = np.stack([_window_sums((rgb_to_y(result)[inside] - y) ** 2, size) for result in results])
    spread = sums.max(axis=0) - sums.min(axis=0)
    top, left = np.unravel_index(int(spread.argmax()), spread.shape)
    return int(top) + border, int(left) + border, float(spread[top, left]) / size**2


def _window_sums(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Sums over every ``size`` x ``size`` window."""
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]


def compare(
    image: TestImage,
    runs: Sequence[TrainedNetwork],
    labels: Sequence[str],
    size: int,
    tile: int | None = None,
) -> Comparison:
    """Results of bicubic and of every network on one image, and the crop to look at.

    Args:
        image: HR and LR at the networks' scale.
        runs: networks of one scale.
        labels: of the networks.
        size: side of the crop in HR pixels.
        tile: as for :func:`harness.measuring.quality.super_resolve`.

    Raises:
        UserError: the crop does not fit into the image, or the image into memory.
    """
    scale = runs[0].architecture.scale
    outputs = [within_memory(run.network, image, scale, tile, chop=False) for run in runs]
    bicubic = upscale(image.lr, scale)
    compared = [sr for sr, _ in outputs]
    if len(compared) == 1:
        compared.append(bicubic)
    top, left, spread = find_crop(image.hr, compared, size, scale)
    window = slice(top, top + size), slice(left, left + size)

    def panel(label: str, run: str | None, sr: Pixels, tiled: int | None = None) -> Panel:
        ours, theirs = rgb_to_y(sr[window]), rgb_to_y(image.hr[window])
        crop = Quality(psnr(ours, theirs, 0), ssim(ours, theirs, 0))
        whole = quality(sr, image.hr, scale)
        return Panel(label, run, sr[window].copy(), crop, whole, tiled)

    panels = [panel("Bicubic", None, bicubic)] + [
        panel(label, run.name, sr, tiled)
        for label, run, (sr, tiled) in zip(labels, runs, outputs, strict=True)
    ]
    return Comparison(image.name, image.hr, top, left, size, spread, panels)


@torch.inference_mode()
def most_different(
    images: TestSet,
    runs: Sequence[TrainedNetwork],
    size: int,
    count: int,
    tile: int | None = None,
) -> list[Comparison]:
    """The ``count`` images whose crops have the largest spread, that of the largest first.

    Args:
        images: HR and LR at the networks' scale.
        runs: networks of one scale.
        size: side of the crop in HR pixels.
        count: how many images; earlier ones come first among equals.
        tile: as for :func:`harness.measuring.quality.super_resolve`.

    Raises:
        UserError: as :func:`compare`.
    """
    labels = network_labels(runs)
    chosen: list[Comparison] = []
    with progress_bar("images") as progress:
        bar = progress.add_task("Comparing", total=len(images))
        for image in images:
            chosen.append(compare(image, runs, labels, size, tile))
            chosen = sorted(chosen, key=lambda c: -c.spread)[:count]  # stable
            progress.advance(bar)
    return chosen


def draw(comparisons: Sequence[Comparison]) -> Figure:
    """A block for each image: HR with the crop marked, then the crops, HR's first."""
    count = len(comparisons[0].panels) + 1
    columns = count if count <= 3 else min(COLUMNS, math.ceil(count / 2))
    rows = math.ceil(count / columns)
    side = PAGE * (1 - _IMAGE) / columns
    with house_style():
        runs = ", ".join(panel.run for panel in comparisons[0].panels if panel.run)
        lines = textwrap.wrap(f"PSNR (dB) / SSIM of Y, of the crop; runs: {runs}", 130)
        height = len(comparisons) * rows * (side + 0.33) + 0.08 + 0.12 * len(lines)
        figure = new_figure(PAGE, height)
        figure.supxlabel("\n".join(lines), fontsize=7)
        blocks = figure.subfigures(len(comparisons), 1, squeeze=False)[:, 0]
        for block, comparison in zip(blocks, comparisons, strict=True):
            _draw_block(block, comparison, rows, columns)
    return figure


def _draw_block(block: SubFigure, comparison: Comparison, rows: int, columns: int) -> None:
    share = (1 - _IMAGE) / columns
    grid = block.add_gridspec(rows, columns + 1, width_ratios=[_IMAGE, *[share] * columns])
    axes = block.add_subplot(grid[:, 0])
    axes.imshow(comparison.hr)
    corner, size = (comparison.left - 0.5, comparison.top - 0.5), comparison.size
    for colour, width in (("white", 2.4), ("red", 1.2)):
        axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=colour, linewidth=width))
    _finish(axes, comparison.name, "")
    rest = slice(comparison.top, comparison.top + size), slice(comparison.left, None)
    hr = comparison.hr[rest][:, :size]
    shown = [(hr, "HR", "PSNR / SSIM")] + [
        (p.pixels, p.label, f"{min(p.crop.psnr, MAX_PSNR):.2f} / {p.crop.ssim:.4f}")
        for p in comparison.panels
    ]
    for index, (pixels, label, note) in enumerate(shown):
        axes = block.add_subplot(grid[index // columns, 1 + index % columns])
        axes.imshow(pixels, interpolation="none")
        _finish(axes, label, note)


def _finish(axes: Axes, title: str, note: str) -> None:
    axes.set_title(title, fontsize=7, pad=2)
    axes.set_xlabel(note, fontsize=7, labelpad=2)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
