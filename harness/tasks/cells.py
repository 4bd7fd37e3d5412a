"""What tasks share whose images are square grids of cells: sizes, test sets, preset, distances."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config.network import NetworkConfig
from ..config.presets import Preset
from .base import SyntheticTask

#: Side of a cell in input pixels.
CELL = 2
#: References in the test images of ``phase`` and ``stack`` are so many input pixels from their
#: query, or farther.
FAR = 9
# First words of the keys of test and validation images: no training has such a seed.
_TEST, _VALIDATION = 2**40, 2**41
#: Images of the test sets of n, 2n and 4n; validation has half as many.
_IMAGES = (256, 256, 64)


# Of a pixel of a test image, by trying.
_BYTES = 140


class CellTask(SyntheticTask):
    """Trains on grids of n x n cells, and tests on n, 2n and 4n.

    Attributes:
        cells: n; a subclass sets it.
    """

    cells: int

    @property
    def patch(self) -> int:
        """Side of a training input in pixels."""
        return CELL * self.cells

    @property
    def test_sets(self) -> list[str]:
        """One for each size: ``n6``, ``n12``, ``n24``."""
        return [f"n{factor * self.cells}" for factor in (1, 2, 4)]

    @property
    def scoring_bytes(self) -> int:
        """Of the images of 4n x 4n cells: inputs, references, outputs, and what they are made of.

        Subclasses add what grows faster than the number of cells.
        """
        return _IMAGES[-1] * (CELL * 4 * self.cells) ** 2 * _BYTES

    @property
    def validation_set(self) -> str:
        """Twice the side of training: the size is new, and much lies beyond the reach."""
        return self.test_sets[1]

    def images(self, test_set: str, *, validation: bool) -> tuple[int, int, int]:
        """Cells in a row, number of images, and first word of the random key of a set."""
        which = self.test_sets.index(test_set)
        key = _VALIDATION if validation else _TEST
        return 2**which * self.cells, _IMAGES[which] // (2 if validation else 1), key


def cell_preset(scale: int, learning_rate: float) -> Preset:
    """The preset ``quick`` of a task: its peak rate is what differs."""
    return Preset(
        network=NetworkConfig(blocks=2, channels=32),
        patch={scale: CELL * 6},
        batch=16,
        steps=3000,
        steps_per_epoch=100,
        learning_rate=learning_rate,
        schedule="one-cycle",
        purpose="one module between two blocks: minutes on two cores",
    )


def distances_bytes(n: int) -> int:
    """Memory in which :func:`distances` is made."""
    return 24 * n**4


@functools.cache
def distances(n: int) -> NDArray[np.int64]:
    """Input pixels between any two cells ``[n², n²]``, the larger of rows and columns.

    Between the nearest pixels of the two: neighbours have 1.
    """
    row, column = np.divmod(np.arange(n * n), n)
    rows, columns = (np.abs(axis[:, None] - axis) for axis in (row, column))
    return CELL * np.maximum(rows, columns) - (CELL - 1)


def distances_to(cells: NDArray[Any], n: int) -> NDArray[np.int64]:
    """:func:`distances` from every cell to some alone, ``[B, n², R]`` of cells ``[B, R]``.

    Memory grows with n², not with its square.
    """
    found: NDArray[np.int64] | None = None
    for own, other in zip(np.divmod(np.arange(n * n), n), np.divmod(cells, n), strict=True):
        gaps = np.abs(own[:, None] - other[:, None, :])
        found = gaps if found is None else np.maximum(found, gaps, out=found)
    assert found is not None
    return CELL * found - (CELL - 1)


def joined(cells: NDArray[Any]) -> NDArray[Any]:
    """Images ``[B, n·side, n·side, C]`` of cells ``[B, n², side, side, C]``."""
    count, number, side, _, channels = cells.shape
    n = round(number**0.5)
    grid = cells.reshape(count, n, n, side, side, channels).swapaxes(2, 3)
    return grid.reshape(count, n * side, n * side, channels)


def split(image: NDArray[Any]) -> NDArray[Any]:
    """Cells ``[n², 2, 2, C]`` of an input ``[2n, 2n, C]``."""
    n = len(image) // CELL
    cells = image.reshape(n, CELL, n, CELL, -1).swapaxes(1, 2)
    return cells.reshape(n * n, CELL, CELL, -1)


def gain(mse: float, local: float, oracle: float) -> float:
    """(PSNR - local) / (oracle - local), the two in dB, from mean squared errors."""
    return float(np.log(local / max(mse, 1e-12)) / np.log(local / oracle))
