"""True matches between the positions of an image, found in the clean image.

An oracle on real images attends to them: what a perfect match of its kind would be worth.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from ..base.machine import map_threads
from ..images.degradation import grey
from ..images.files import Pixels
from .base import Positions

#: References of each position.
MATCHES = 4
#: Side of what is compared, in cells of scale x scale HR pixels: one cell for each position.
CELLS = 3
#: How far a reference lies from its position at most, in rows or columns.
SEARCH = 64
#: Side of the squares of positions that are searched at once.
_TILE = 16


def find_matches(images: Pixels, scale: int, reach: int) -> Positions:
    """For each position of the input, the positions whose surroundings are most like its own.

    A position stands for a cell of scale x scale HR pixels. Two positions differ by the sum of
    squared differences of luma over :data:`CELLS` x :data:`CELLS` cells around each; beyond the
    border, the image's edge is repeated. A reference lies more than ``reach`` rows or columns away,
    and at most :data:`SEARCH` of both. Of equals the first in row-major order is taken.

    Where fewer than :data:`MATCHES` lie so, the best of them fills their places; where none does,
    the position itself.

    Args:
        images: clean, uint8 ``[B, scale·h, scale·w, 3]``.
        scale: s, 1 to 4.
        reach: of the backbone's convolutions in positions.

    Returns:
        ``[B, h·w, MATCHES]``, best first. All arithmetic is exact (integers below 2^23 in float32),
        so that every machine finds the same.
    """
    cells = [_surroundings(grey(image), scale) for image in images]
    height, width = cells[0].shape[:2]
    corners = itertools.product(range(len(images)), range(0, height, _TILE), range(0, width, _TILE))

    def search(corner: tuple[int, int, int]) -> tuple[tuple[int, int, int], Positions]:
        image, top, left = corner
        return corner, _of_tile(cells[image], top, left, reach)

    found = np.empty((len(images), height, width, MATCHES), dtype=np.int64)
    for (image, top, left), references in map_threads(search, corners):
        found[image, top : top + _TILE, left : left + _TILE] = references
    return found.reshape(len(images), height * width, MATCHES)


def _surroundings(luma: NDArray[np.uint8], scale: int) -> NDArray[np.float32]:
    """What is compared of each position, ``[h, w, (CELLS·scale)²]``, centred around 0."""
    around = scale * (CELLS // 2)
    padded = np.pad(luma.astype(np.float32) - 128, around, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (CELLS * scale, CELLS * scale))
    cells = windows[::scale, ::scale]
    return cells.reshape(*cells.shape[:2], -1)


def _flat(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.reshape(-1, values.shape[2])


def _of_tile(cells: NDArray[np.float32], top: int, left: int, reach: int) -> Positions:
    """The references of the positions in one square, ``[rows, columns, MATCHES]``."""
    width = cells.shape[1]
    queries = cells[top : top + _TILE, left : left + _TILE]
    rows, columns = queries.shape[:2]
    y0, x0 = max(0, top - SEARCH), max(0, left - SEARCH)
    keys = cells[y0 : top + rows + SEARCH, x0 : left + columns + SEARCH]
    # |q - k|² = |q|² - (2 q·k - |k|²), of which the bracket alone tells keys apart. It is one
    # product, as passes over so large a matrix take longer.
    ones = np.full((rows, columns, 1), 1, dtype=np.float32)
    doubled = np.concatenate([2 * queries, ones], axis=2)
    extended = np.concatenate([keys, -(keys**2).sum(2, keepdims=True)], axis=2)
    scores = _flat(doubled) @ _flat(extended).T
    near = scores.reshape(rows, columns, *keys.shape[:2])
    for y in range(rows):
        row = top + y - y0
        near[y, :, : max(0, row - SEARCH)] = near[y, :, row + SEARCH + 1 :] = -np.inf
        for x in range(columns):
            column = left + x - x0
            own = near[y, x]
            own[:, : max(0, column - SEARCH)] = own[:, column + SEARCH + 1 :] = -np.inf
            own[
                max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1
            ] = -np.inf
    place = np.arange(len(scores))
    ys, xs = np.divmod(place, columns)
    best = (top + ys) * width + left + xs
    found: list[NDArray[np.int64]] = []
    for _ in range(MATCHES):
        index = scores.argmax(1)  # the first of equals
        valid = scores[place, index] > -np.inf
        ys, xs = np.divmod(index, keys.shape[1])
        chosen = np.where(valid, (y0 + ys) * width + x0 + xs, best)
        best = best if found else chosen
        found.append(chosen)
        scores[place, index] = -np.inf
    return np.stack(found, axis=-1).reshape(rows, columns, MATCHES)
