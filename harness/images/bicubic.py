"""MATLAB-style bicubic resizing of 8-bit images, exact to the pixel.

It reproduces ``imresize(image, scale, 'bicubic')`` of the older MATLAB versions that made
the published low-resolution benchmark images: cubic kernel with a = -0.5 (Keys, IEEE
TASSP 29(6), 1981), stretched when shrinking (antialiasing), nearest edge pixel outside the
image, height first, then width, with rounding (half up) and clipping to uint8 after each.

The weights of a rational scale are fractions of a small denominator (a power of two for the
scales 2, 4, 8 and their inverses, where float64 sums are exact). So a sum that is a tie in
exact arithmetic differs from any other sum by far more than the rounding error.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from .files import Pixels

#: Far above the error of a float64 sum, far below the distance of a sum to the next tie.
_TIE_TOLERANCE = 1e-9


def imresize(image: Pixels, scale: Fraction | int) -> Pixels:
    """Resize by a rational factor.

    Args:
        image: uint8 ``[H, W]`` or ``[H, W, C]``.
        scale: output size over input size, e.g. ``Fraction(1, 4)`` or ``2``.

    Returns:
        uint8 ``[ceil(H·scale), ceil(W·scale)]``, or with C at the end.

    Raises:
        ValueError: another dtype or shape, or a scale that is not positive.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(
            f"imresize takes uint8 [H, W] or [H, W, C], got {image.dtype} {list(image.shape)}"
        )
    scale = Fraction(scale)
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    rows = _resize_first_axis(image, scale)
    return np.ascontiguousarray(_resize_first_axis(rows.swapaxes(0, 1), scale).swapaxes(0, 1))


def crop_to_multiple(image: Pixels, scale: int) -> Pixels:
    """The top-left part whose height and width are multiples of ``scale``, as a view."""
    height, width = (n - n % scale for n in image.shape[:2])
    return image[:height, :width]


def downscale(hr: Pixels, scale: int) -> Pixels:
    """LR image ``[H/scale, W/scale(, C)]`` of an HR image.

    Raises:
        ValueError: H or W is not a multiple of ``scale`` (use :func:`crop_to_multiple`).
    """
    if hr.shape[0] % scale or hr.shape[1] % scale:
        raise ValueError(f"{hr.shape[0]}x{hr.shape[1]} is not a multiple of the scale {scale}")
    return imresize(hr, Fraction(1, scale))


def upscale(lr: Pixels, scale: int) -> Pixels:
    """The bicubic baseline: ``[H, W(, C)]`` to ``[H·scale, W·scale(, C)]``."""
    return imresize(lr, scale)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _taps(size: int, scale: Fraction) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Input indices and weights ``[out, P]`` of every output sample along one axis."""
    stretch = float(max(1 / scale, Fraction(1)))
    factor = float(1 / scale)
    out = math.ceil(size * scale)
    centre = np.arange(1, out + 1) * factor + 0.5 * (1 - factor)  # 1-based, as in MATLAB
    first = np.floor(centre - 2 * stretch)
    indices = first[:, None] + np.arange(math.ceil(4 * stretch) + 2)
    weights = _cubic((centre[:, None] - indices) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    used = weights.any(axis=0)
    edge_replicated = np.clip(indices, 1, size).astype(np.intp) - 1
    return edge_replicated[:, used], weights[:, used]


def _resize_first_axis(image: Pixels, scale: Fraction) -> Pixels:
    flat = image.reshape(image.shape[0], -1)
    indices, weights = _taps(image.shape[0], scale)
    total = np.zeros((len(indices), flat.shape[1]))
    term = np.empty_like(total)
    for index, weight in zip(indices.T, weights.T, strict=True):
        np.multiply(flat[index], weight[:, None], out=term)
        total += term
    total += 0.5 + _TIE_TOLERANCE
    np.clip(np.floor(total, out=total), 0, 255, out=total)
    return total.astype(np.uint8).reshape(-1, *image.shape[1:])
