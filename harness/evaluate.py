"""PSNR and SSIM of a network on whole test images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from .bicubic import upscale
from .data import TestImage
from .metrics import quality
from .train import to_tensor

#: PSNR in dB that identical images (a flat one, say) count with; theirs is infinite.
MAX_PSNR = 100.0


@torch.inference_mode()
def super_resolve(
    network: nn.Module, lr: np.ndarray, scale: int, tile: int | None = None
) -> np.ndarray:
    """LR uint8 ``[H, W, 3]`` to SR uint8 ``[scale·H, scale·W, 3]``.

    Args:
        network: takes and gives ``[1, 3, H, W]`` in 0…1; put into evaluation mode here.
        lr: the image; it goes through the network whole unless ``tile`` is given.
        scale: scale factor.
        tile: side of the tiles in LR pixels, cut with an overlap of 8 on each side.
    """
    network.eval()
    height, width = lr.shape[:2]
    if tile is None or max(height, width) <= tile:
        return _forward(network, lr)
    sr = np.empty((scale * height, scale * width, 3), np.uint8)
    overlap = 8
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            y0, x0 = max(0, top - overlap), max(0, left - overlap)
            y1, x1 = min(height, top + tile), min(width, left + tile)
            part = _forward(network, lr[y0 : y1 + overlap, x0 : x1 + overlap])
            sr[scale * top : scale * y1, scale * left : scale * x1] = part[
                scale * (top - y0) : scale * (y1 - y0), scale * (left - x0) : scale * (x1 - x0)
            ]
    return sr


def _forward(network: nn.Module, lr: np.ndarray) -> np.ndarray:
    device = next(network.parameters()).device
    sr = network(to_tensor(np.ascontiguousarray(lr[None]), device)).float()
    return sr[0].clamp_(0, 1).mul_(255).round_().byte().permute(1, 2, 0).cpu().numpy()


def evaluate(
    network: nn.Module,
    images: Iterable[TestImage],
    total: int,
    scale: int,
    label: str,
    tile: int | None = None,
) -> dict[str, Any]:
    """Quality of the network, and of bicubic, on one test set.

    Returns:
        ``{"psnr", "ssim", "bicubic_psnr", "bicubic_ssim", "images": [...]}``: means over the
        images in dB and 1, and the same per image.
    """
    rows: list[dict[str, Any]] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[psnr]:.2f} dB"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(label, total=total, psnr=float("nan"))
        for image in images:
            ours = quality(super_resolve(network, image.lr, scale, tile), image.hr, scale)
            bicubic = quality(upscale(image.lr, scale), image.hr, scale)
            tiled = tile if tile is not None and max(image.lr.shape[:2]) > tile else None
            rows.append(
                {
                    "name": image.name,
                    "psnr": round(min(ours.psnr, MAX_PSNR), 6),
                    "ssim": round(ours.ssim, 8),
                    "bicubic_psnr": round(min(bicubic.psnr, MAX_PSNR), 6),
                    "bicubic_ssim": round(bicubic.ssim, 8),
                    "tile": tiled,
                }
            )
            mean = float(np.mean([row["psnr"] for row in rows]))
            progress.update(task, advance=1, psnr=mean)
    keys = ("psnr", "ssim", "bicubic_psnr", "bicubic_ssim")
    means = {key: round(float(np.mean([row[key] for row in rows])), 6) for key in keys}
    return {**means, "images": rows}
