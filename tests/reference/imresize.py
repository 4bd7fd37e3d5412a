"""MATLAB's ``imresize(..., 'bicubic')`` on uint8, one pixel at a time in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def cubic(x: Fraction) -> Fraction:
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    if x <= 2:
        return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2
    return Fraction(0)


def resize_line(line: list[int], scale: Fraction) -> list[int]:
    """Resize one row or column; round half up and clip."""
    s = 1 / scale
    stretch = max(s, Fraction(1))
    result = []
    for j in range(1, math.ceil(len(line) * scale) + 1):
        u = j * s + (1 - s) / 2
        first = math.floor(u - 2 * stretch)
        taps = range(first, first + math.ceil(4 * stretch) + 2)
        weights = [cubic((u - i) / stretch) for i in taps]
        pixels = [line[min(max(i, 1), len(line)) - 1] for i in taps]
        value = sum(w * p for w, p in zip(weights, pixels, strict=True)) / sum(weights)
        result.append(min(max(math.floor(value + Fraction(1, 2)), 0), 255))
    return result


def imresize(image: NDArray[np.uint8], scale: Fraction) -> NDArray[np.uint8]:
    """uint8 ``[H, W]`` or ``[H, W, C]``: columns (height) first, then rows."""
    if image.ndim == 3:
        channels = [imresize(image[..., c], scale) for c in range(image.shape[2])]
        return np.stack(channels, axis=2)
    tall = [resize_line(column, scale) for column in image.T.tolist()]
    rows = np.array(tall).T.tolist()
    return np.array([resize_line(row, scale) for row in rows], dtype=np.uint8)
