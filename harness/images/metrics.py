"""PSNR and SSIM on the luma channel, as super-resolution papers report them.

Y is that of ITU-R BT.601 in limited range (16..235), computed from the 8-bit image and rounded
to 8 bits, as MATLAB's ``rgb2ycbcr`` does for uint8 input. Code that does not round Y reports a
higher PSNR, and the difference grows with quality (bicubic on Set5: 0.013 dB at x4, 0.034 dB at
x2). Every image has three channels; a greyscale file has three equal ones, the convention of
EDSR's code. On Set14, whose third image is a greyscale file, bicubic x4 then gives 26.0874 dB /
0.7041; with that file's grey values as Y it gives 25.9933 / 0.7023. Pass ``[H, W]`` arrays for
the second convention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import UserError
from .files import Pixels

#: Side of SSIM's window: the least side of an image after its border is cropped.
SSIM_WINDOW = 11
# Luma of the pixel (1, 1, 1), as the authors' code has it.
_BLACK = 0.86
_FARTHEST = 4 * 255.0


@dataclass(frozen=True)
class Quality:
    """PSNR in dB (``inf`` for identical images: JSON cannot hold it) and SSIM (at most 1)."""

    psnr: float
    ssim: float


def rgb_to_y(image: Pixels) -> Pixels:
    """Luma of BT.601, 16..235, rounded: uint8 ``[H, W, 3]`` to ``[H, W]``.

    A ``[H, W]`` image counts as luma already and is returned unchanged.

    Raises:
        UserError: another dtype or shape.
    """
    _check_pixels(image)
    if image.ndim == 2:
        return image
    # In integers, so that rounding is exact: 16 + (65.481 R + 128.553 G + 24.966 B) / 255.
    weighted = image.astype(np.int32) @ np.array([65_481, 128_553, 24_966], dtype=np.int32)
    return (16 + (weighted + 127_500) // 255_000).astype(np.uint8)


def psnr(a_y: NDArray[Any], b_y: NDArray[Any], border: int) -> float:
    """PSNR in dB of two lumas ``[H, W]`` without ``border`` pixels on each side.

    Lumas are uint8, or floats on the same scale, 0…255. Identical images give ``inf``.

    Raises:
        UserError: the shapes differ, nothing is left inside the border, or these are no lumas.
    """
    a, b = _inner(a_y, b_y, border)
    mse = np.mean(np.square(a - b))
    # Below, the quotient is no number of float64.
    least = 255**2 / np.finfo(np.float64).max
    return float(10 * np.log10(255**2 / mse)) if mse > least else float("inf")


def ssim(a_y: NDArray[Any], b_y: NDArray[Any], border: int) -> float:
    """Mean SSIM of two lumas ``[H, W]`` without ``border`` pixels on each side.

    Wang et al., IEEE TIP 13(4), 2004: Gaussian window 11x11, sigma 1.5, K1 = 0.01,
    K2 = 0.03, L = 255. Only windows that lie within the image count (scikit-image leaves
    out the 5 pixels at the edge itself).

    Raises:
        UserError: the shapes differ, less than one window is left inside the border, or these
            are no lumas (see :func:`psnr`).
    """
    from skimage.metrics import structural_similarity

    a, b = _inner(a_y, b_y, border)
    if min(a.shape) < SSIM_WINDOW:
        raise UserError(
            f"SSIM needs {SSIM_WINDOW}x{SSIM_WINDOW} pixels inside a border of {border}, "
            f"got {a.shape[0]}x{a.shape[1]}: use a larger image"
        )
    return float(
        structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
    )


def quality(sr: Pixels, hr: Pixels, scale: int) -> Quality:
    """PSNR and SSIM of a result against its HR image, both uint8 ``[H, W, 3]`` (RGB).

    ``scale`` pixels are cropped on each side.

    Raises:
        UserError: the shapes differ, the images are too small, or they are no such images.
    """
    _check_pixels(sr)
    _check_pixels(hr)
    if sr.shape != hr.shape:
        raise UserError(f"cannot compare images of {_size(sr)} and {_size(hr)}")
    a, b = rgb_to_y(sr), rgb_to_y(hr)
    return Quality(psnr(a, b, scale), ssim(a, b, scale))


def grey_quality(image: NDArray[Any], clean: Pixels) -> Quality:
    """PSNR and SSIM of a grey result against the clean image, over the whole image.

    Args:
        image: ``[H, W, 3]`` with equal channels, 0…255; of 8 bits, or not rounded.
        clean: uint8 ``[H, W, 3]`` with equal channels.

    Raises:
        UserError: the shapes differ, or the images are too small.
    """
    for one in (image, clean):
        _check_array(one)
        if one.ndim != 3 or one.shape[2] != 3:
            raise UserError(f"grey images are [H, W, 3] with equal channels, not {_size(one)}")
    a, b = image[..., 0], clean[..., 0]
    return Quality(psnr(a, b, 0), ssim(a, b, 0))


def _check_array(image: object) -> None:
    """Raise UserError unless a NumPy array."""
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise UserError(f"images are NumPy arrays, not {kind}: np.asarray converts them")


def _check_pixels(image: NDArray[Any]) -> None:
    """Raise UserError unless uint8 ``[H, W, 3]`` or ``[H, W]``."""
    _check_array(image)
    if image.dtype != np.uint8:
        fix = "convert them to 8 bits"
        if np.issubdtype(image.dtype, np.floating):
            fix = "np.rint(255 * image.clip(0, 1)).astype(np.uint8) converts values in 0…1"
        raise UserError(f"images are uint8, 0…255, not {image.dtype}: {fix}")
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3):
        return
    fixes = {1: ": image[..., 0] is its luma", 4: ": image[..., :3] leaves out transparency"}
    fix = fixes.get(image.shape[2], "") if image.ndim == 3 else ""
    raise UserError(f"images are [H, W, 3] or [H, W], not {_size(image)}{fix}")


def _check_luma(y: NDArray[Any]) -> None:
    """Raise UserError unless ``[H, W]``, uint8 or finite floats in 0…255."""
    if y.ndim != 2:
        raise UserError(f"lumas are [H, W], not {_size(y)}: use rgb_to_y, or quality of images")
    if y.dtype == np.uint8:
        return
    if not np.issubdtype(y.dtype, np.floating):
        raise UserError(f"lumas are uint8, or floats in 0…255, not {y.dtype}")
    if not np.isfinite(y).all():
        raise UserError("a luma has values that are not finite")
    # The luma of an image as good as black lies in 0…1 too, but not up to 1.
    if y.size and y.min() >= 0 and _BLACK < y.max() <= 1 and (y % 1).any():
        raise UserError("lumas are in 0…255, not in 0…1: multiply by 255")
    # Noise that is not clipped leaves the range, but not so far.
    if y.size and max(-y.min(), y.max()) > _FARTHEST:
        raise UserError(f"lumas are in 0…255, but these reach {y.max():g}: scale them")


def _inner(
    a: NDArray[Any], b: NDArray[Any], border: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _check_array(a)
    _check_array(b)
    if a.shape != b.shape:
        raise UserError(f"cannot compare images of {_size(a)} and {_size(b)}")
    if border < 0:
        raise UserError(f"border must be at least 0 pixels, got {border}")
    if min(a.shape[:2], default=0) <= 2 * border:
        raise UserError(f"an image of {_size(a)} has nothing inside a border of {border} pixels")
    _check_luma(a)
    _check_luma(b)
    inside = slice(border, -border or None)
    return a[inside, inside].astype(np.float64), b[inside, inside].astype(np.float64)


def _size(image: Pixels) -> str:
    return "x".join(map(str, image.shape))
