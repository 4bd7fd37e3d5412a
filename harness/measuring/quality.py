"""PSNR and SSIM of networks on whole test images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from ..base.errors import UserError, is_out_of_memory
from ..base.progress import progress_bar
from ..images import metrics
from ..images.files import Pixels
from ..images.inputs import bicubic_quality, noisy_quality, rounded, rounded_quality
from ..images.sources import TestImage, set_sha256
from ..network.edsr import to_tensor
from ..records.shapes import UNSET, ImageQuality, Quality
from .evaluated import EvaluatedImages
from .references import with_references
from .windows import Cut, batches

#: Largest quarter, in LR pixels, that :func:`super_resolve` with ``chop`` does not cut again.
CHOP_PIXELS = 120_000
#: Smallest tile, in LR pixels, into which an image is cut if memory is too small.
MIN_TILE = 32
# LR pixels by which a tile's window extends beyond it.
_OVERLAP = 8
# Most LR pixels of one batch of tiles: eight of 48x48, with which a CPU is fastest.
_POSITIONS = 20_000


@torch.inference_mode()
def super_resolve(
    network: nn.Module,
    lr: np.ndarray,
    scale: int,
    tile: int | None = None,
    chop: bool = False,
    *,
    one_by_one: bool = False,
) -> np.ndarray:
    """LR ``[H, W, 3]``, uint8 or float32 in 0…1, to SR uint8 ``[scale·H, scale·W, 3]``.

    Args:
        network: maps ``[B, 3, H, W]`` in 0…1 to the scaled size; put into evaluation mode here.
        lr: the image; it passes the network whole unless ``tile`` is given.
        scale: scale factor.
        tile: side of the tiles in LR pixels, cut with an overlap of 8 on each side; small ones
            pass the network in batches.
        chop: in quarters, as the released NLSN and ENLCN are evaluated (their ``forward_chop``),
            instead of tiles.
        one_by_one: no batches of tiles, which takes less memory.
    """
    network.eval()
    if chop:
        return _in_quarters(network, lr, scale)
    height, width = lr.shape[:2]
    if tile is None or max(height, width) <= tile:
        return _forward(network, lr[None])[0]
    sr = np.empty((scale * height, scale * width, 3), np.uint8)
    for batch in batches(height, width, tile, _OVERLAP, 1 if one_by_one else _POSITIONS):
        windows = [lr[rows.window, columns.window] for rows, columns in batch]
        parts = _forward(network, np.stack(windows))
        for (rows, columns), part in zip(batch, parts, strict=True):
            sr[rows.tile(scale), columns.tile(scale)] = part[
                rows.inside(scale), columns.inside(scale)
            ]
    return sr


def _in_quarters(network: nn.Module, lr: np.ndarray, scale: int) -> np.ndarray:
    height, width = lr.shape[:2]
    # A quarter extends 10 pixels past the middle and further to the next multiple of 4 or 8.
    h, w = (n // 2 + 10 for n in (height, width))
    h, w = min(h + 4 - h % 4, height), min(w + 8 - w % 8, width)
    sr = np.empty((scale * height, scale * width, 3), np.uint8)
    for rows in _halves(height, h):
        for columns in _halves(width, w):
            part = lr[rows.window, columns.window]
            whole = h * w < CHOP_PIXELS
            done = _forward(network, part[None])[0] if whole else _in_quarters(network, part, scale)
            sr[rows.tile(scale), columns.tile(scale)] = done[
                rows.inside(scale), columns.inside(scale)
            ]
    return sr


def _halves(size: int, window: int) -> tuple[Cut, Cut]:
    """Two halves of a side, each with a window from its end of the side."""
    return Cut(0, size // 2, 0, window), Cut(size // 2, size, size - window, size)


def _forward(network: nn.Module, lr: np.ndarray) -> np.ndarray:
    """LR ``[B, H, W, 3]`` to SR uint8 ``[B, scale·H, scale·W, 3]``."""
    device = next(network.parameters()).device
    sr = network(to_tensor(np.ascontiguousarray(lr), device)).float()
    return sr.clamp_(0, 1).mul_(255).round_().byte().permute(0, 2, 3, 1).cpu().numpy()


def within_memory(
    network: nn.Module, image: TestImage, scale: int, tile: int | None, chop: bool
) -> tuple[np.ndarray, int | None]:
    """:func:`super_resolve`, with tiles of half the side as long as memory is too small.

    Tiles that do not fit together are tried one by one first.

    Returns:
        The SR image, and the side of its tiles; None for a whole image.

    Raises:
        UserError: not even the smallest tiles fit, or the image does not fit with ``chop``.
    """
    one_by_one = False
    while True:
        try:
            sr = super_resolve(network, image.lr, scale, tile, chop, one_by_one=one_by_one)
            return sr, tile if tile is not None and max(image.lr.shape[:2]) > tile else None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Leaving this block frees the memory of the failed pass.
        if tile is not None and not one_by_one:
            one_by_one = True
            continue
        height, width = image.lr.shape[:2]
        what = f"{image.name} (LR {width}x{height}) does not fit into memory"
        smaller = min(tile or max(height, width), max(height, width)) // 2
        if chop or smaller < MIN_TILE:
            way = "with --chop" if chop else f"in tiles of {tile or max(height, width)}"
            raise UserError(f"{what} {way}; free some, or use another --device")
        where = "whole" if tile is None else f"in tiles of {tile}"
        print(
            f"warning: {what} {where}: using tiles of {smaller} LR pixels, as the result records",
            file=sys.stderr,
        )
        tile = smaller
        torch.cuda.empty_cache()


class GreyOutput(nn.Module):
    """A network whose output's channels are all their mean: ``[B, 3, H, W]`` as before."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to the same shape."""
        found: Tensor = self.network(x)
        return found.mean(dim=1, keepdim=True).repeat(1, found.shape[1], 1, 1)


def restore(
    network: nn.Module,
    image: TestImage,
    scale: int,
    tile: int | None = None,
    *,
    chop: bool = False,
    grey: bool = False,
) -> tuple[Pixels, int | None]:
    """What the network makes of an image's LR pixels; its HR pixels are not looked at.

    Args:
        network, image, scale, tile, chop: as for :func:`within_memory`.
        grey: give the 8-bit mean of the output's channels; see :class:`GreyOutput`.

    Returns:
        uint8 ``[H, W, 3]``, and the side of the tiles; None for a whole image.

    Raises:
        UserError: as :func:`within_memory`.
    """
    return within_memory(GreyOutput(network) if grey else network, image, scale, tile, chop)


def _evaluate_grey(image: TestImage, output: Pixels, tiled: int | None) -> ImageQuality:
    """A grey result beside the noisy image, which is not rounded."""
    psnr, ssim = rounded(metrics.grey_quality(output, image.hr))
    noisy_psnr, noisy_ssim = noisy_quality(image)
    return ImageQuality(
        name=image.name,
        psnr=psnr,
        ssim=ssim,
        noisy_psnr=noisy_psnr,
        noisy_ssim=noisy_ssim,
        tile=tiled,
    )


def _evaluate_image(
    image: TestImage, sr: Pixels, tiled: int | None, scale: int, released_psnr: bool
) -> ImageQuality:
    """A super-resolved result beside the bicubic one."""
    psnr, ssim = rounded_quality(sr, image.hr, scale, released_psnr)
    bicubic_psnr, bicubic_ssim = bicubic_quality(image, scale, released_psnr)
    return ImageQuality(
        name=image.name,
        psnr=psnr,
        ssim=ssim,
        bicubic_psnr=bicubic_psnr,
        bicubic_ssim=bicubic_ssim,
        tile=tiled,
    )


def evaluate(
    network: nn.Module,
    images: Iterable[TestImage],
    total: int,
    scale: int,
    label: str,
    tile: int | None = None,
    *,
    chop: bool = False,
    released_psnr: bool = False,
    grey: bool = False,
    evaluated: EvaluatedImages | None = None,
    keep: Callable[[TestImage, Pixels], None] | None = None,
    analyse: Callable[[TestImage, Pixels, ImageQuality], ImageQuality] | None = None,
) -> Quality:
    """Quality of the network, and of bicubic or the noisy image, on one test set.

    Args:
        network: as for :func:`super_resolve`.
        images: the test set's.
        total: number of images.
        scale: scale factor.
        label: shown beside the progress bar.
        tile: as for :func:`super_resolve`.
        chop: likewise.
        released_psnr: PSNR by :func:`released_luma`.
        grey: denoising: the images are grey, and no border is cropped; see :class:`GreyOutput`.
        evaluated: results of an interrupted evaluation, used again; further ones are added.
        keep: called with each image and what :func:`restore` gives for it.
        analyse: adds to an image's row, see :class:`.analysis.Analysis`.

    Returns:
        Means over the images, in dB and 1, and the same per image.

    Raises:
        UserError: as :func:`within_memory`, or an image cannot be read.
    """
    rows: list[ImageQuality] = []
    digests: list[bytes] = []
    lr_files = 0
    with progress_bar("images", "{task.fields[psnr]:.2f} dB", stdout=True) as progress:
        task = progress.add_task(label, total=total, psnr=float("nan"))
        for image in with_references(network, images, cut=chop or tile is not None):
            row = evaluated.find(image) if evaluated else None
            if row is None:
                output, tiled = restore(network, image, scale, tile, chop=chop, grey=grey)
                if keep:
                    keep(image, output)
                if grey:
                    row = _evaluate_grey(image, output, tiled)
                else:
                    row = _evaluate_image(image, output, tiled, scale, released_psnr)
                if analyse:
                    row = analyse(image, output, row)
                if evaluated:
                    evaluated.add(image, row)
            rows.append(row)
            digests.append(image.sha256)
            lr_files += image.lr_file
            mean = float(np.mean([row.psnr for row in rows]))
            progress.update(task, advance=1, psnr=mean)
    beside = "noisy" if grey else "bicubic"
    keys = ("psnr", "ssim", f"{beside}_psnr", f"{beside}_ssim")
    means = {key: round(float(np.mean([getattr(row, key) for row in rows])), 6) for key in keys}
    return Quality(
        images=rows,
        sha256=set_sha256(digests) if all(digests) else UNSET,
        lr_files=UNSET if grey else lr_files,
        **means,
    )
