"""An image cut into tiles, each with a window around it, in batches of windows of one size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """A tile ``first … last`` along one side, and its window ``start … stop``."""

    first: int
    last: int
    start: int
    stop: int

    @property
    def window(self) -> slice:
        """What is seen."""
        return slice(self.start, self.stop)

    def tile(self, scale: int = 1) -> slice:
        """The tile in the image, enlarged by the scale."""
        return slice(scale * self.first, scale * self.last)

    def inside(self, scale: int = 1) -> slice:
        """The tile in its own window, enlarged by the scale."""
        return slice(scale * (self.first - self.start), scale * (self.last - self.start))


def cuts(size: int, tile: int, halo: int) -> list[Cut]:
    """Tiles of a side of this size; windows end ``halo`` beyond a tile, or at the edge."""
    return [
        Cut(first, last := min(first + tile, size), max(0, first - halo), min(size, last + halo))
        for first in range(0, size, tile)
    ]


def batches(
    height: int, width: int, tile: int, halo: int, most: int
) -> Iterator[list[tuple[Cut, Cut]]]:
    """All tiles, as rows and columns: those of a batch have windows of one size.

    Args:
        height, width: of the image.
        tile, halo: as for :func:`cuts`.
        most: positions of a batch's windows together, if it holds more than one.
    """
    of_size: dict[tuple[int, int], list[tuple[Cut, Cut]]] = {}
    for rows in cuts(height, tile, halo):
        for columns in cuts(width, tile, halo):
            size = (rows.stop - rows.start, columns.stop - columns.start)
            of_size.setdefault(size, []).append((rows, columns))
    for (tall, wide), tiles in of_size.items():
        step = max(1, most // (tall * wide))
        for start in range(0, len(tiles), step):
            yield tiles[start : start + step]
