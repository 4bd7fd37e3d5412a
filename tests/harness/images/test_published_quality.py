"""Bicubic PSNR and SSIM of every benchmark image against an independent MATLAB implementation.

The figures were published with Huang, Singh and Ahuja, CVPR 2015; images are numbered in the order
of the files.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from harness.images.bicubic import upscale
from harness.images.metrics import quality
from harness.images.sources import find_data
from harness.reporting import settings

FILE = Path(settings.__file__).parent / "paper" / "selfexsr_per_image.csv"
#: The greyscale file, whose grey values they take for luma.
GREY = ("Set14", "img_003")


@cache
def published() -> dict[tuple[str, int], list[tuple[float, float]]]:
    """(PSNR, SSIM) of bicubic for each image of a set and scale."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with FILE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["method"] == "Bicubic":
                values = found.setdefault((row["set"], int(row["scale"])), [])
                assert row["image"] == f"img_{len(values) + 1:03d}"
                values.append((float(row["psnr"]), float(row["ssim"])))
    return found


def test_the_published_figures_are_complete() -> None:
    counts = {key: len(values) for key, values in published().items()}
    assert counts == {
        ("Set5", 2): 5,
        ("Set5", 4): 5,
        ("Set14", 2): 14,
        ("Set14", 4): 14,
        ("B100", 2): 100,
        ("B100", 4): 100,
        ("Urban100", 4): 100,
    }


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "scale"),
    [
        pytest.param(*key, marks=[pytest.mark.slow] if key[0] == "Urban100" else [])
        for key in published()
    ],
)
def test_every_image_agrees(name: str, scale: int, sr_data: Path) -> None:
    images = find_data(sr_data).test_set(name, scale)
    for image, (psnr, ssim) in zip(images, published()[name, scale], strict=True):
        sr, hr = upscale(image.lr, scale), image.hr
        if (name, image.name) == GREY:
            sr, hr = sr[..., 0], hr[..., 0]
        found = quality(sr, hr, scale)
        assert found.psnr == pytest.approx(psnr, abs=1e-4), image.name
        assert found.ssim == pytest.approx(ssim, abs=1e-5), image.name


def test_urban100_repeats_itself() -> None:
    """SelfExSR, which searches inside the image only, gains over a local method there."""
    values: dict[str, list[float]] = {}
    with FILE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["set"] == "Urban100":
                values.setdefault(row["method"], []).append(float(row["psnr"]))
    assert np.mean(values["SelfExSR"]) == pytest.approx(24.82, abs=5e-3)
    assert np.median(np.subtract(values["SelfExSR"], values["A+"])) == pytest.approx(0.28, abs=5e-3)
