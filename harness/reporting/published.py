"""Per-image quality that others published, beside our own runs on the same images."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..records.shapes import UNSET, Quality, Run

#: Where the figures are from.
SOURCE = (
    "Huang, Singh and Ahuja, Single Image Super-Resolution from Transformed Self-Exemplars, CVPR "
    "2015 (github.com/jbhuang0604/SelfExSR, commit 8f6dd8c, quant_eval)"
)
#: Searches in the image itself alone, without a trained network; and the best local method.
SEARCHING, LOCAL = "SelfExSR", "A+"
#: The scale with figures of every test set, whose values are a property of the image elsewhere.
SCALE = 4
#: Set and name of the greyscale file. They take its grey values for luma, so their figures of it
#: are not comparable with ours.
GREY = ("Set14", "img_003")
# Bicubic's PSNR in dB by which images are told apart.
_SAME = 1e-3


def not_comparable(test_set: str) -> set[str]:
    """Names of images whose published figures are of another luma than ours."""
    return {GREY[1]} if test_set == GREY[0] else set()


@dataclass(frozen=True)
class Figures:
    """PSNR (dB) and SSIM on Y of one image."""

    psnr: float
    ssim: float


@cache
def published(test_set: str, scale: int) -> dict[str, dict[str, Figures]]:
    """Figures by method and image name; empty where none are published."""
    path = Path(__file__).parent / "paper" / "selfexsr_per_image.csv"
    found: dict[str, dict[str, Figures]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["set"], row["scale"]) == (test_set, str(scale)):
                figures = Figures(float(row["psnr"]), float(row["ssim"]))
                found.setdefault(row["method"], {})[row["image"]] = figures
    return found


def beside(runs: Iterable[Run], test_set: str) -> dict[str, dict[str, Figures]]:
    """What is published of the same task and images as the runs, which are of one setting.

    Empty for other tasks than bicubic super-resolution, and where the images have other names or
    bicubic another PSNR.
    """
    for run in runs:
        config, quality = run.config, run.quality.get(test_set)
        if config.task is not UNSET or quality is None:
            return {}
        found = published(test_set, config.scale)
        if not found or not _same_images(quality, found["Bicubic"], test_set):
            return {}
        return found
    return {}


def of_images(names: Iterable[str], test_set: str, scale: int) -> dict[str, dict[str, Figures]]:
    """What is published of images of these names, at this scale or else at :data:`SCALE`.

    It is a property of the images there, whatever task the runs are of.
    """
    found = published(test_set, scale) or published(test_set, SCALE)
    same = found and {*names} == found["Bicubic"].keys()
    return found if same else {}


def _same_images(quality: Quality, bicubic: dict[str, Figures], test_set: str) -> bool:
    ours = {image.name: image.bicubic_psnr for image in quality.images}
    return ours.keys() == bicubic.keys() and all(
        value is not UNSET and abs(value - bicubic[name].psnr) <= _SAME
        for name, value in ours.items()
        if (test_set, name) != GREY
    )
