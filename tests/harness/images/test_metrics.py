"""PSNR and SSIM: against literal formulas and the checked bicubic baselines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.base.errors import UserError
from harness.images.bicubic import upscale
from harness.images.metrics import grey_quality, psnr, quality, rgb_to_y, ssim
from harness.images.sources import find_data


def random_pair(height: int = 24, width: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    a = rng.integers(0, 256, (height, width), dtype=np.uint8)
    noisy = a.astype(int) + rng.integers(-30, 31, a.shape)
    return a, np.clip(noisy, 0, 255).astype(np.uint8)


def literal_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, one window at a time."""
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            x = a[top : top + 11, left : left + 11].astype(float)
            y = b[top : top + 11, left : left + 11].astype(float)
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            values.append(
                (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
            )
    return float(np.mean(values))


@given(pixel=st.tuples(*[st.integers(0, 255)] * 3))
def test_luma_of_a_pixel(pixel: tuple[int, int, int]) -> None:
    r, g, b = pixel
    y = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255
    result = rgb_to_y(np.array([[pixel]], dtype=np.uint8))
    assert result.dtype == np.uint8
    assert result.shape == (1, 1)
    assert result[0, 0] == math.floor(y + 0.5 + 1e-9)


def test_luma_range_and_greyscale() -> None:
    ends = np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    assert rgb_to_y(ends).tolist() == [[16, 235]]
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert rgb_to_y(grey) is grey


@pytest.mark.parametrize("border", [0, 2, 4])
def test_psnr_and_ssim_are_the_formulas(border: int) -> None:
    a, b = random_pair()
    inside = slice(border, -border or None)
    inner = a[inside, inside], b[inside, inside]
    squares = [(float(x) - float(y)) ** 2 for x, y in zip(*map(np.ravel, inner), strict=True)]
    expected = 10 * math.log10(255**2 / (sum(squares) / len(squares)))
    assert psnr(a, b, border) == pytest.approx(expected, rel=1e-12)
    assert ssim(a, b, border) == pytest.approx(literal_ssim(*inner), abs=1e-12)


@given(image=arrays(np.uint8, (20, 20, 3)))
@settings(max_examples=10)
def test_identical_images(image: np.ndarray) -> None:
    result = quality(image, image.copy(), 4)
    assert result.psnr == float("inf")
    assert result.ssim == pytest.approx(1)


def test_differences_in_the_border_do_not_count() -> None:
    image = np.full((30, 30, 3), 100, dtype=np.uint8)
    other = image.copy()
    other[:4] = other[-4:] = other[:, :4] = other[:, -4:] = 0
    assert quality(other, image, 4).psnr == float("inf")
    assert quality(other, image, 3).psnr < 30


@pytest.mark.parametrize("shape", [(40,), (40, 40), (40, 40, 1), (40, 40, 4)])
def test_grey_images_have_three_channels(shape: tuple[int, ...]) -> None:
    image = np.zeros(shape, np.uint8)
    with pytest.raises(UserError, match=r"grey images are \[H, W, 3\]"):
        grey_quality(image, image)


def test_refuses_what_cannot_be_compared() -> None:
    rgb = np.zeros((20, 20, 3), np.uint8)
    grey = rgb[..., 0]
    for measure, a, b, border, message in [
        (quality, rgb, rgb[:, :16], 2, "cannot compare images of 20x20x3 and 20x16x3"),
        (psnr, grey, grey[:16], 2, "cannot compare images of 20x20 and 16x20"),
        (psnr, grey, grey, 10, "nothing inside a border of 10"),
        (psnr, grey, grey, -1, "border must be at least 0 pixels, got -1"),
        (psnr, grey * 257.0 + 65000, grey * 257.0, 2, "but these reach 65000: scale them"),
        (ssim, grey.tolist(), grey, 2, "images are NumPy arrays, not list"),
        (quality, torch.from_numpy(rgb), rgb, 2, "images are NumPy arrays, not Tensor"),
        (quality, rgb, rgb, 5, "SSIM needs 11x11 pixels inside a border of 5"),
    ]:
        with pytest.raises(UserError, match=message):
            measure(a, b, border)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.random.default_rng(0).random((20, 20, 3)), "not float64: np.rint.255"),
        (np.random.default_rng(0).random((20, 20), np.float32), "not float32: np.rint.255"),
        (np.full((20, 20, 3), 300, np.uint16), "not uint16: convert them to 8 bits"),
        (np.full((20, 20, 3), 300), "not int64: convert them to 8 bits"),
        (np.ones((20, 20, 3), bool), "not bool"),
        (np.zeros((20, 20, 1), np.uint8), r"not 20x20x1: image\[..., 0\]"),
        (np.zeros((20, 20, 4), np.uint8), r"not 20x20x4: image\[..., :3\]"),
        (np.zeros((3, 20, 20), np.uint8), "not 3x20x20$"),
        (np.zeros((1, 20, 20, 3), np.uint8), "not 1x20x20x3$"),
        (np.zeros(20, np.uint8), "not 20$"),
    ],
)
def test_refuses_what_is_no_image(image: np.ndarray, message: str) -> None:
    good = np.zeros((20, 20, 3), np.uint8)
    for sr, hr in ((image, image), (image, good), (good, image)):
        with pytest.raises(UserError, match=message):
            quality(sr, hr, 2)
    with pytest.raises(UserError, match=message):
        rgb_to_y(image)


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize(
    ("luma", "message"),
    [
        (np.random.default_rng(0).random((20, 20)), "not in 0…1: multiply by 255"),
        (np.full((20, 20), 300, np.uint16), "not uint16"),
        (np.zeros((20, 20, 3), np.uint8), "not 20x20x3: use rgb_to_y"),
        (np.zeros((20, 20, 1)), "not 20x20x1"),
        (np.full((20, 20), np.nan), "not finite"),
    ],
)
def test_refuses_what_is_no_luma(measure: Any, luma: np.ndarray, message: str) -> None:
    good = np.zeros(luma.shape, np.uint8)
    for a, b in ((luma, luma), (luma, good), (good, luma)):
        with pytest.raises(UserError, match=message):
            measure(a, b, 2)


@given(factor=st.floats(0, 1))
def test_floats_on_the_scale_of_pixels_are_taken(factor: float) -> None:
    """Lumas that are not rounded, black ones too."""
    a, b = (image * (factor * 0.8 / 255 if factor < 0.5 else factor) for image in random_pair())
    assert psnr(a, b, 2) > 0


# PSNR / SSIM of the README of the data; Set14 with the greyscale file as three channels.
BASELINES = [
    pytest.param("Set5", 4, 28.4177, 0.8101),
    pytest.param("Set14", 4, 26.0874, 0.7041),
    pytest.param("Set5", 2, 33.6404, 0.9292),
    pytest.param("B100", 4, 25.9565, 0.6672, marks=pytest.mark.slow),
    pytest.param("Urban100", 4, 23.1381, 0.6573, marks=pytest.mark.slow),
    pytest.param("B100", 2, 29.5480, 0.8425, marks=pytest.mark.slow),
    pytest.param("Urban100", 2, 26.8699, 0.8397, marks=pytest.mark.slow),
]


@pytest.mark.data
@pytest.mark.parametrize(("name", "scale", "expected_psnr", "expected_ssim"), BASELINES)
def test_bicubic_baselines(
    sr_data: Path, name: str, scale: int, expected_psnr: float, expected_ssim: float
) -> None:
    results = [
        quality(upscale(image.lr, scale), image.hr, scale)
        for image in find_data(sr_data).test_set(name, scale)
    ]
    assert np.mean([q.psnr for q in results]) == pytest.approx(expected_psnr, abs=5.1e-5)
    assert np.mean([q.ssim for q in results]) == pytest.approx(expected_ssim, abs=5.1e-5)


@pytest.mark.data
def test_set14_baseline_with_grey_values_for_luma(sr_data: Path) -> None:
    values = []
    for image in find_data(sr_data).test_set("Set14", 4):
        sr, hr = upscale(image.lr, 4), image.hr
        if image.name == "img_003":  # the one-channel file
            sr, hr = sr[..., 0], hr[..., 0]
        q = quality(sr, hr, 4)
        values.append((q.psnr, q.ssim))
    assert np.mean(values, axis=0) == pytest.approx([25.9933, 0.7023], abs=5.1e-5)
