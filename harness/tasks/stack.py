"""Stack: noisy copies of a texture, far apart, whose mean has less noise than any of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..base.errors import UserError
from ..config.presets import Preset
from .base import Batch, Floats, Item, ItemScore, Positions, generator
from .cells import CELL, FAR, CellTask, cell_preset, distances, distances_bytes, gain, joined, split

#: Mean of all textures ``[2, 2, 1]``: one bright pixel shows where a cell begins.
MEAN = np.array([[1.25, 0.25], [0.25, 0.25]], dtype=np.float32)[..., None]
#: Standard deviation of a texture's pixels.
CONTRAST = 0.5

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Query:
    """The cell that is scored in one image.

    Attributes:
        row, column: of the cell.
        texture: ``[2, 2, 3]``.
        distance: pixels to the nearest other copy.
        from_one, from_all: the best estimates from the query alone and from all copies.
    """

    row: int
    column: int
    texture: Floats
    distance: int
    from_one: Floats
    from_all: Floats

    def shown(self, image: Floats) -> Floats:
        """The cell in an image, ``[2, 2, 3]``: a view."""
        top, left = CELL * self.row, CELL * self.column
        return image[top : top + CELL, left : left + CELL]


class Stack(CellTask):
    """Denoising of textures from their copies.

    An image is a mosaic of ``n x n`` cells, 2x2 pixels each. Each cell shows one of T textures,
    which so has ``K = n² / T`` copies; every copy has noise of its own. All is Gaussian, so the
    best estimates from one copy and from all are linear and known.

    Args:
        textures: T, textures in each image.
        cells: n, cells in a row of a training image; test images have n, 2n and 4n.
        noise: standard deviation of the noise, above 0; that of a texture's pixels is 0.5.

    Raises:
        UserError: an option is out of range, or the copies of a query have no place.
    """

    name: ClassVar[str] = "stack"
    metric: ClassVar[str] = "gain"
    presets: ClassVar[Mapping[str, Preset]] = {"quick": cell_preset(1, 4e-3)}
    scale = 1

    def __init__(self, *, textures: int = 4, cells: int = 6, noise: float = 0.2) -> None:
        for option, value, least in (("textures", textures, 2), ("cells", cells, 6)):
            if value < least:
                raise UserError(f"--{option} must be at least {least}, got {value}")
        if not 0 < noise < np.inf:
            raise UserError(f"--noise must be finite and above 0, got {noise}")
        if cells**2 < 2 * textures:
            raise UserError(
                f"{textures} textures have no copies in {cells} x {cells} cells: lower --textures "
                "or raise --cells"
            )
        self.textures, self.cells, self.noise = textures, cells, noise
        if not self._queries(cells).size:
            raise UserError(
                f"{cells**2 // textures} copies of a texture have no place {FAR} pixels from one "
                f"of them in {cells} x {cells} cells: raise --textures or --cells"
            )

    @property
    def label(self) -> str:
        """``stack-t4-n6``; the noise follows where it is not the default."""
        rest = [f"s{self.noise:g}"] if self.noise != 0.2 else []
        return "-".join([self.name, f"t{self.textures}", f"n{self.cells}", *rest])

    def batch(self, *, seed: int, step: int, batch: int, patch: int) -> Batch:
        """Mosaics in which each texture has as many copies, at any distance; float32."""
        rng, n = generator(seed, step), patch // CELL
        label = rng.random((batch, n * n)).argsort(1) % self.textures
        targets = mosaic(self._draw(rng, batch), label)
        return Batch(self._observe(rng, targets), targets, references(label, self.textures))

    def items(self, test_set: str, *, validation: bool = False) -> Iterator[Item]:
        """Mosaics with a query whose copies all lie :data:`FAR` from it; fewer large ones.

        In ``deleted`` other textures stand in place of these copies.
        """
        n, count, key = self.images(test_set, validation=validation)
        queries = self._queries(n)
        for i in range(count):
            rng = generator(key, n * 2**32 + i)
            copies, label, other = self._placed(rng, n, queries)
            textures = self._draw(rng, 1)
            target = mosaic(textures, label[None])
            inputs = self._observe(rng, target)
            yield Item(
                name=f"{i:03d}",
                inputs=inputs[0],
                deleted=(inputs + (mosaic(textures, other[None]) - target))[0],
                references=references(label[None], self.textures)[0],
                truth=self._query(n, copies, inputs[0], textures[0, 0]),
            )

    def estimate(self, cells: Floats) -> Floats:
        """The best estimate of a texture from its copies ``[K, 2, 2, 3]``.

        ``MEAN + K t² / (K t² + noise²) · (mean of the copies - MEAN)`` with the contrast t.
        """
        signal = len(cells) * CONTRAST**2
        weight = np.float32(signal / (signal + self.noise**2))
        found: Floats = MEAN + weight * (cells.mean(0) - MEAN)
        return found

    def error(self, copies: int) -> float:
        """Mean squared error of the best estimate: ``noise² t² / (noise² + K t²)``."""
        return self.noise**2 * CONTRAST**2 / (self.noise**2 + copies * CONTRAST**2)

    def ceiling_output(self, item: Item) -> Floats:
        """The input with the best estimate from all copies in the query."""
        return _with_query(item, item.truth.from_all)

    def floor_output(self, item: Item) -> Floats:
        """The input with the best estimate from the query alone in it."""
        return _with_query(item, item.truth.from_one)

    def score(self, item: Item, output: Floats, reach: int) -> ItemScore | None:
        """Gain in the query, if all its copies lie beyond ``reach``.

        The details are mean squared errors: of the output, and of the best estimates from one
        copy and from all.
        """
        query: Query = item.truth
        if query.distance <= reach:
            return None
        found = {"mse": query.shown(output), "local": query.from_one, "oracle": query.from_all}
        errors = {
            name: float(np.mean((shown - query.texture) ** 2, dtype=np.float64))
            for name, shown in found.items()
        }
        return ItemScore(errors["mse"], weight=1.0, details=errors)

    def combine(self, value: float, details: Mapping[str, float]) -> float:
        """The gain of a set, from its mean squared errors."""
        return gain(details["mse"], details["local"], details["oracle"])

    @property
    def scoring_bytes(self) -> int:
        """With the distances between all cells, and the copies of every pixel's texture."""
        cells = (4 * self.cells) ** 2
        copies = 64 * CELL**2 * cells * -(-cells // self.textures) * 8
        return super().scoring_bytes + distances_bytes(4 * self.cells) + copies

    def _queries(self, n: int) -> Labels:
        """Cells far from enough others for all their copies."""
        far = distances(n) >= FAR
        return np.flatnonzero(far.sum(1) >= n * n // self.textures - 1)

    def _placed(
        self, rng: np.random.Generator, n: int, queries: Labels
    ) -> tuple[Labels, Labels, Labels]:
        """Copies of texture 0, the query first; labels ``[n²]``; and labels without its copies."""
        query = rng.choice(queries)
        far = np.flatnonzero(distances(n)[query] >= FAR)
        count = n * n // self.textures
        copies = np.r_[query, rng.permutation(far)[: count - 1]]
        label = np.zeros(n * n, dtype=np.int64)
        rest = np.setdiff1d(np.arange(n * n), copies)
        label[rest] = 1 + rng.permutation(rest.size) % (self.textures - 1)
        other = label.copy()
        other[copies[1:]] = rng.integers(1, self.textures, count - 1)
        return copies, label, other

    def _draw(self, rng: np.random.Generator, batch: int) -> Floats:
        """Textures ``[B, T, 2, 2, 3]``."""
        size = (batch, self.textures, CELL, CELL, 3)
        return MEAN + np.float32(CONTRAST) * rng.standard_normal(size, dtype=np.float32)

    def _observe(self, rng: np.random.Generator, images: Floats) -> Floats:
        noise = rng.standard_normal(images.shape, dtype=np.float32)
        return images + np.float32(self.noise) * noise

    def _query(self, n: int, copies: Labels, inputs: Floats, texture: Floats) -> Query:
        cells = split(inputs)
        row, column = divmod(int(copies[0]), n)
        return Query(
            row,
            column,
            texture=texture,
            distance=int(distances(n)[copies[0], copies[1:]].min()),
            from_one=self.estimate(cells[copies[:1]]),
            from_all=self.estimate(cells[copies]),
        )


def mosaic(textures: Floats, label: Labels) -> Floats:
    """Images ``[B, 2n, 2n, 3]`` of textures ``[B, T, 2, 2, 3]`` by label ``[B, n²]``."""
    return joined(textures[np.arange(len(label))[:, None], label])


def references(label: Labels, textures: int) -> Positions:
    """For each pixel the same pixel of all cells with its texture, itself among them.

    ``[B, 4n², R]`` indices in row-major order. R is the largest number of copies of a texture;
    one with fewer has the first of them twice.
    """
    n = round(label.shape[1] ** 0.5)
    order = label.argsort(1, kind="stable")
    count = (label[..., None] == np.arange(textures)).sum(1)
    start = count.cumsum(1) - count
    turn = np.arange(count.max()) % np.take_along_axis(count, label, 1)[..., None]
    place = np.take_along_axis(start, label, 1)[..., None] + turn
    cell = np.take_along_axis(order, place.reshape(len(label), -1), 1).reshape(place.shape)
    y, x = np.indices((CELL * n, CELL * n)).reshape(2, -1, 1)
    row, column = np.divmod(cell[:, (y // CELL * n + x // CELL)[:, 0]], n)
    return (CELL * row + y % CELL) * (CELL * n) + CELL * column + x % CELL


def _with_query(item: Item, texture: Floats) -> Floats:
    image = item.inputs.copy()
    item.truth.shown(image)[:] = texture
    return image
