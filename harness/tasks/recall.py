"""Associative recall for images: find the cell with the same key, and bring its value here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..base.errors import UserError
from ..config.presets import Preset
from .base import Batch, Floats, Item, ItemScore, Positions, generator
from .cells import CELL, CellTask, cell_preset, distances_to, joined

#: Side of a cell in HR pixels.
HR_CELL = 4
#: A value is GREY ± CONTRAST in each channel; its bits have this AMPLITUDE in the target.
GREY, CONTRAST, AMPLITUDE = 0.5, 0.4, 0.15
KEY_RANGE = (0.1, 0.9)
BITS = 3
#: Kinds of cell.
_REFERENCE, _QUERY, _BLANK = range(3)
#: Scores by distance are of bins of so many LR pixels.
_BIN = 8


@dataclass(frozen=True)
class Grids:
    """B grids of ``n x n`` cells in row-major order.

    Attributes:
        n: cells in a row.
        kind: of each cell ``[B, n²]``.
        key: index of each cell's key ``[B, n²]``, 0 in blank cells.
        colours: the keys as cells show them ``[B, n², 3]``: noise is on those of queries.
        bits: of the keys ``[B, D, 3]``, -1 or +1.
        references: cells that hold a reference ``[B, D · copies]``.
        nearest: for each cell that with the nearest reference of its key ``[B, n²]``.
        distance: LR pixels from there to each query ``[B, n²]``, 0 for other cells. It is the
            larger of rows and columns, between the nearest pixels of two cells: neighbours have 1.
    """

    n: int
    kind: NDArray[np.int64]
    key: NDArray[np.int64]
    colours: Floats
    bits: Floats
    references: Positions
    nearest: Positions
    distance: NDArray[np.int64]

    @property
    def queries(self) -> NDArray[np.bool_]:
        """Which cells are queries ``[B, n²]``."""
        return self.kind == _QUERY

    @property
    def sought(self) -> Floats:
        """The bits of each cell's key ``[B, n², 3]``."""
        return np.take_along_axis(self.bits, self.key[..., None], 1)

    def one(self, index: int) -> Grids:
        """The grid of one image, B = 1."""
        arrays = {k: v[index : index + 1] for k, v in vars(self).items() if k != "n"}
        return Grids(self.n, **arrays)


class Recall(CellTask):
    """Associative recall. Each image has its own keys (colours) and values (three bits).

    A cell has 2x2 LR pixels. References show a key in their left column and its value in the
    right one; queries show a key alone. The target is the input, enlarged by nearest neighbour,
    with the key's three bits in every query cell, as amplitudes of three patterns of HR pixels.

    Args:
        pairs: D, keys with their values in each image.
        cells: n, cells in a row of a training image; test images have n, 2n and 4n.
        copies: references of each key.
        blanks: share of the other cells that are blank, 0 to below 1.
        key_noise: standard deviation of the noise on the keys of queries; keys are in 0.1…0.9.
        least_distance: LR pixels from a query to its nearest reference, or more.
        most_distance: LR pixels from a query to its nearest reference, or fewer; 0 for any. Within
            the reach of the convolutions it is the locality control: all queries count.

    Raises:
        UserError: an option is out of range.
    """

    name: ClassVar[str] = "recall"
    metric: ClassVar[str] = "R²"
    presets: ClassVar[Mapping[str, Preset]] = {"quick": cell_preset(2, 2e-3)}
    scale = 2

    def __init__(
        self,
        *,
        pairs: int = 4,
        cells: int = 6,
        copies: int = 1,
        blanks: float = 0.0,
        key_noise: float = 0.0,
        least_distance: int = 0,
        most_distance: int = 0,
    ) -> None:
        for option, value, least in (
            ("pairs", pairs, 1),
            ("cells", cells, 2),
            ("copies", copies, 1),
            ("least-distance", least_distance, 0),
            ("most-distance", most_distance, 0),
        ):
            if value < least:
                raise UserError(f"--{option} must be at least {least}, got {value}")
        if not 0 <= blanks < 1:
            raise UserError(f"--blanks must be a share, 0 to below 1, got {blanks}")
        if not 0 <= key_noise <= 1:
            raise UserError(f"--key-noise must be 0 to 1, got {key_noise}")
        if most_distance and most_distance < max(1, least_distance):
            raise UserError(
                f"--most-distance {most_distance} is below --least-distance {least_distance}: no "
                "query is left"
            )
        if least_distance >= CELL * cells - CELL:
            raise UserError(
                f"--least-distance {least_distance} leaves no query in {cells} x {cells} cells: "
                "lower it or raise --cells"
            )
        if pairs * copies + round(blanks * (cells**2 - pairs * copies)) >= cells**2:
            raise UserError(
                f"{pairs * copies} references leave no query in {cells} x {cells} cells: lower "
                "--pairs, --copies or --blanks, or raise --cells"
            )
        self.pairs, self.cells, self.copies, self.blanks = pairs, cells, copies, blanks
        self.key_noise = key_noise
        self.least_distance, self.most_distance = least_distance, most_distance

    @property
    def label(self) -> str:
        """``recall-d4-n6``; further options follow where they are not the default."""
        rest = [f"c{self.copies}"] if self.copies > 1 else []
        for letters, value in (
            ("b", self.blanks),
            ("k", self.key_noise),
            ("from", self.least_distance),
            ("to", self.most_distance),
        ):
            rest += [f"{letters}{value:g}"] if value else []
        return "-".join([self.name, f"d{self.pairs}", f"n{self.cells}", *rest])

    def batch(self, *, seed: int, step: int, batch: int, patch: int) -> Batch:
        """Images, float32; by default with references at any distance."""
        grids = self.draw(generator(seed, step), batch, patch // CELL)
        inputs = pictures(grids)
        return Batch(inputs, targets(grids, inputs), references(grids))

    def items(self, test_set: str, *, validation: bool = False) -> Iterator[Item]:
        """Images of the set's size, fewer of large ones, which have more queries."""
        n, count, key = self.images(test_set, validation=validation)
        grids = self.draw(generator(key, n), count, n)
        shown, deleted = pictures(grids), pictures(grids, with_references=False)
        found = references(grids)
        row, column = np.divmod(grids.references, n)
        value = CELL * n * CELL * row + CELL * column + CELL - 1  # in their upper pixel row
        for i in range(count):
            yield Item(
                name=f"{i:03d}",
                inputs=shown[i],
                deleted=deleted[i],
                references=found[i],
                truth=grids.one(i),
                all_references=np.concatenate([value[i], value[i] + CELL * n]),
            )

    def draw(self, rng: np.random.Generator, count: int, n: int) -> Grids:
        """Grids of ``n x n`` cells for ``count`` images."""
        size = (count, n * n)
        keys = rng.uniform(*KEY_RANGE, (count, self.pairs, 3)).astype(np.float32)
        bits = (2 * rng.integers(2, size=(count, self.pairs, BITS)) - 1).astype(np.float32)
        order = rng.random(size).argsort(1)
        found, others = np.split(order, [self.pairs * self.copies], axis=1)
        # [B, n², copies, D]: pixels between every cell and every reference.
        gaps = distances_to(found, n).reshape(*size, self.copies, self.pairs)
        copy = gaps.argmin(2)
        apart = np.take_along_axis(gaps, copy[:, :, None], 2)[:, :, 0]
        allowed = apart >= self.least_distance
        if self.most_distance:
            allowed &= apart <= self.most_distance
        # The largest of random numbers chooses among the keys that are allowed.
        key = np.where(allowed, rng.random((*size, self.pairs), dtype=np.float32), -1).argmax(2)
        kind = np.where(allowed.any(2), _QUERY, _BLANK)
        blank = others[:, : round(self.blanks * others.shape[1])]
        np.put_along_axis(kind, blank, _BLANK, 1)
        np.put_along_axis(kind, found, _REFERENCE, 1)
        key[kind == _BLANK] = 0
        np.put_along_axis(key, found, np.arange(found.shape[1]) % self.pairs, 1)
        colours = np.take_along_axis(keys, key[..., None], 1)
        queries = kind == _QUERY
        if self.key_noise:
            noise = rng.standard_normal((*size, 3), dtype=np.float32)
            colours = colours + self.key_noise * noise * queries[..., None]
        which = np.take_along_axis(copy, key[..., None], 2)[..., 0] * self.pairs + key
        return Grids(
            n,
            kind,
            key,
            colours,
            bits,
            references=found,
            nearest=np.take_along_axis(found, which, 1),
            distance=np.where(queries, np.take_along_axis(apart, key[..., None], 2)[..., 0], 0),
        )

    def ceiling_output(self, item: Item) -> Floats:
        """The target."""
        return targets(item.truth, item.inputs[None])[0]

    def floor_output(self, item: Item) -> Floats:
        """The smooth part."""
        return enlarged(item.inputs)

    def score(self, item: Item, output: Floats, reach: int) -> ItemScore | None:
        """Recall over queries whose references lie beyond ``reach``.

        ``R² = 1 - mean (p - b)²`` over queries and bits; the detail ``signs`` is the share of
        bits whose sign is right. In the locality control all queries count.
        """
        grid: Grids = item.truth
        found = recalled(output, enlarged(item.inputs), grid.n)
        queries, distance, bits = grid.queries[0], grid.distance[0], grid.sought[0]
        is_local = 0 < self.most_distance <= reach
        counted = queries if is_local else queries & (distance > reach)
        if not counted.any():
            return None
        r2 = 1 - ((found - bits) ** 2).mean(1)
        bins = -(-distance // _BIN) * _BIN
        return ItemScore(
            value=float(r2[counted].mean()),
            weight=float(counted.sum()),
            details={"signs": float(np.mean(np.sign(found[counted]) == bits[counted]))},
            by_distance={
                int(last): (float(r2[chosen].mean()), float(chosen.sum()))
                for last in np.unique(bins[queries])
                for chosen in [queries & (bins == last)]
            },
        )


def pictures(grids: Grids, *, with_references: bool = True) -> Floats:
    """The inputs ``[B, 2n, 2n, 3]``; without references their cells are blank."""
    cells = np.full((*grids.kind.shape, CELL, CELL, 3), GREY, dtype=np.float32)
    is_reference = grids.kind == _REFERENCE
    shown = (grids.kind != _BLANK) if with_references else grids.queries
    cells[shown, :, 0] = grids.colours[shown][:, None]
    if with_references:
        value = GREY + CONTRAST * grids.sought[is_reference]
        cells[is_reference, :, 1] = value[:, None]
    return joined(cells)


def enlarged(images: Floats) -> Floats:
    """Nearest neighbour, twice the side ``[..., h, w, 3]``: the known smooth part."""
    return images.repeat(2, axis=-3).repeat(2, axis=-2)


def bases() -> Floats:
    """``(-1)^x``, ``(-1)^y`` and ``(-1)^(x + y)`` on the HR pixels of a cell, ``[4, 4, 3]``.

    Any symmetric kernel of even length makes them vanish when it halves the image.
    """
    y, x = np.indices((HR_CELL, HR_CELL))
    return np.stack([(-1.0) ** x, (-1.0) ** y, (-1.0) ** (x + y)], axis=-1).astype(np.float32)


def targets(grids: Grids, inputs: Floats) -> Floats:
    """The targets ``[B, 4n, 4n, 3]`` of the inputs."""
    bits = AMPLITUDE * np.where(grids.queries[..., None], grids.sought, 0)
    patterns = bits @ bases().reshape(-1, BITS).T
    return enlarged(inputs) + joined(patterns.reshape(*bits.shape[:2], HR_CELL, HR_CELL, 1))


def recalled(output: Floats, smooth: Floats, n: int) -> Floats:
    """The bits that an output shows, ``[n², 3]``: its projections on :func:`bases`, scaled."""
    rest = (output - smooth).reshape(n, HR_CELL, n, HR_CELL, 3)
    found = np.einsum("rycxk,yxj->rcj", rest, bases(), dtype=np.float64)
    return (found / (3 * HR_CELL**2 * AMPLITUDE)).reshape(n * n, BITS)


def references(grids: Grids) -> Positions:
    """For each LR pixel of a query the one beside it in its nearest reference; else itself.

    The pixel lies in the column of the value. ``[B, 4n², 1]`` indices in row-major order.
    """
    n, width = grids.n, CELL * grids.n
    row, column = np.divmod(grids.nearest, n)
    y = np.indices((CELL, CELL))[0]
    there = (CELL * row[..., None, None] + y) * width + CELL * column[..., None, None] + CELL - 1
    there = joined(there[..., None]).reshape(len(row), -1)
    queries = np.broadcast_to(grids.queries[..., None, None, None], (*row.shape, CELL, CELL, 1))
    is_query = joined(queries).reshape(len(row), -1)
    return np.where(is_query, there, np.arange(width**2))[..., None]
