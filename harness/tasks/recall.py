"""Associative recall for images: find the cell with the same key, and bring its value here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..base.errors import UserError
from ..config.network import NetworkConfig
from ..config.presets import Preset
from .base import Batch, Floats, Item, ItemScore, Positions, SyntheticTask, generator

#: Side of a cell in LR pixels, and in HR pixels.
CELL, HR_CELL = 2, 4
#: A value is GREY ± CONTRAST in each channel; its bits have this AMPLITUDE in the target.
GREY, CONTRAST, AMPLITUDE = 0.5, 0.4, 0.15
KEY_RANGE = (0.1, 0.9)
BITS = 3
#: Kinds of cell.
_REFERENCE, _QUERY, _BLANK = range(3)
# First words of the keys of test and validation images: no training has such a seed.
_TEST, _VALIDATION = 2**40, 2**41
_MOST_IMAGES = 128


@dataclass(frozen=True)
class Grid:
    """An ``n x n`` grid of cells in row-major order.

    Attributes:
        kind: of each cell ``[n²]``.
        key: index of each cell's key ``[n²]``, 0 in blank cells.
        colours: of the keys ``[D, 3]``.
        bits: of the keys ``[D, 3]``, -1 or +1.
    """

    n: int
    kind: NDArray[np.int64]
    key: NDArray[np.int64]
    colours: Floats
    bits: Floats

    @property
    def queries(self) -> NDArray[np.bool_]:
        """Which cells are queries ``[n²]``."""
        return self.kind == _QUERY


class Recall(SyntheticTask):
    """Associative recall. Each image has its own keys (colours) and values (three bits).

    A cell has 2x2 LR pixels. References show a key in their left column and its value in the
    right one; queries show a key alone. The target is the input, enlarged by nearest neighbour,
    with the key's three bits in every query cell, as amplitudes of three patterns of HR pixels.

    Args:
        pairs: D, keys with their values in each image.
        cells: n, cells in a row of a training image; test images have n, 2n and 4n.
        copies: references of each key.
        blanks: share of the other cells that are blank, 0 to below 1.

    Raises:
        UserError: an option is out of range.
    """

    name: ClassVar[str] = "recall"
    metric: ClassVar[str] = "R²"
    presets: ClassVar[Mapping[str, Preset]] = {
        "quick": Preset(
            network=NetworkConfig(blocks=2, channels=32),
            patch={2: CELL * 6},
            batch=16,
            steps=3000,
            steps_per_epoch=100,
            learning_rate=2e-3,
            schedule="one-cycle",
            purpose="one module between two blocks: minutes on two cores",
        )
    }
    scale = 2

    def __init__(
        self, *, pairs: int = 4, cells: int = 6, copies: int = 1, blanks: float = 0.0
    ) -> None:
        for option, value, least in (
            ("pairs", pairs, 1),
            ("cells", cells, 2),
            ("copies", copies, 1),
        ):
            if value < least:
                raise UserError(f"--{option} must be at least {least}, got {value}")
        if not 0 <= blanks < 1:
            raise UserError(f"--blanks must be a share, 0 to below 1, got {blanks}")
        if pairs * copies + round(blanks * (cells**2 - pairs * copies)) >= cells**2:
            raise UserError(
                f"{pairs * copies} references leave no query in {cells} x {cells} cells: lower "
                "--pairs, --copies or --blanks, or raise --cells"
            )
        self.pairs, self.cells, self.copies, self.blanks = pairs, cells, copies, blanks

    @property
    def label(self) -> str:
        """``recall-d4-n6``; copies and blanks follow where they are not the default."""
        rest = [f"c{self.copies}"] if self.copies > 1 else []
        rest += [f"b{self.blanks:g}"] if self.blanks else []
        return "-".join([self.name, f"d{self.pairs}", f"n{self.cells}", *rest])

    @property
    def patch(self) -> int:
        """Side of a training input: 2 LR pixels a cell."""
        return CELL * self.cells

    @property
    def test_sets(self) -> list[str]:
        """One for each size: ``n6``, ``n12``, ``n24``."""
        return [f"n{side}" for side in self._sides]

    @property
    def validation_set(self) -> str:
        """Twice the side of training: far queries are many, and the size is new."""
        return self.test_sets[1]

    @property
    def _sides(self) -> list[int]:
        return [self.cells, 2 * self.cells, 4 * self.cells]

    def batch(self, *, seed: int, step: int, batch: int, patch: int) -> Batch:
        """Images with references at any distance, float32."""
        rng = generator(seed, step)
        grids = [self.draw(rng, patch // CELL) for _ in range(batch)]
        inputs = [picture(grid) for grid in grids]
        targets = [target(grid, image) for grid, image in zip(grids, inputs, strict=True)]
        references = [nearest_references(grid) for grid in grids]
        return Batch(np.stack(inputs), np.stack(targets), np.stack(references))

    def items(self, test_set: str, *, validation: bool = False) -> Iterator[Item]:
        """Images of the set's size, fewer of large ones, which have more queries."""
        n = self._sides[self.test_sets.index(test_set)]
        for i in range(max(8, _MOST_IMAGES * self.cells**2 // n**2)):
            grid = self.draw(generator(_VALIDATION if validation else _TEST, n * 2**32 + i), n)
            yield Item(
                name=f"{i:03d}",
                inputs=picture(grid),
                deleted=picture(grid, references=False),
                references=nearest_references(grid),
                truth=grid,
            )

    def draw(self, rng: np.random.Generator, n: int) -> Grid:
        """A grid of ``n x n`` cells."""
        colours = rng.uniform(*KEY_RANGE, (self.pairs, 3)).astype(np.float32)
        bits = (2 * rng.integers(2, size=(self.pairs, BITS)) - 1).astype(np.float32)
        order = rng.permutation(n * n)
        key = rng.integers(self.pairs, size=n * n)
        kind = np.full(n * n, _QUERY)
        references = order[: self.pairs * self.copies]
        kind[references], key[references] = _REFERENCE, np.arange(len(references)) % self.pairs
        others = order[len(references) :]
        blank = others[: round(self.blanks * len(others))]
        kind[blank], key[blank] = _BLANK, 0
        return Grid(n, kind, key, colours, bits)

    def score(self, item: Item, output: Floats, reach: int) -> ItemScore | None:
        """Recall over queries whose references lie beyond ``reach``.

        ``R² = 1 - mean (p - b)²`` over queries and bits; the detail ``signs`` is the share of
        bits whose sign is right.
        """
        grid: Grid = item.truth
        found = recalled(output, enlarged(item.inputs), grid.n)
        counted = grid.queries & (distances(grid) > reach)
        if not counted.any():
            return None
        p, b = found[counted], grid.bits[grid.key[counted]]
        return ItemScore(
            score=float(1 - np.mean((p - b) ** 2)),
            weight=float(counted.sum()),
            details={"signs": float(np.mean(np.sign(p) == b))},
        )


def picture(grid: Grid, *, references: bool = True) -> Floats:
    """The input ``[2n, 2n, 3]``; without ``references`` their cells are blank."""
    n = grid.n
    cells = np.full((n * n, CELL, CELL, 3), GREY, dtype=np.float32)
    shown = grid.kind != _BLANK
    if not references:
        shown &= grid.kind != _REFERENCE
    cells[shown, :, 0] = grid.colours[grid.key[shown], None]
    if references:
        is_reference = grid.kind == _REFERENCE
        value = GREY + CONTRAST * grid.bits[grid.key[is_reference]]
        cells[is_reference, :, 1] = value[:, None]
    return cells.reshape(n, n, CELL, CELL, 3).swapaxes(1, 2).reshape(CELL * n, CELL * n, 3)


def enlarged(image: Floats) -> Floats:
    """Nearest neighbour, twice the side: the known smooth part of the target."""
    return image.repeat(2, axis=0).repeat(2, axis=1)


def bases() -> Floats:
    """``(-1)^x``, ``(-1)^y`` and ``(-1)^(x + y)`` on the HR pixels of a cell, ``[4, 4, 3]``.

    Any symmetric kernel of even length makes them vanish when it halves the image.
    """
    y, x = np.indices((HR_CELL, HR_CELL))
    return np.stack([(-1.0) ** x, (-1.0) ** y, (-1.0) ** (x + y)], axis=-1).astype(np.float32)


def target(grid: Grid, image: Floats) -> Floats:
    """The target ``[4n, 4n, 3]`` of an input."""
    n = grid.n
    bits = np.where(grid.queries[:, None], grid.bits[grid.key], 0).reshape(n, n, BITS)
    pattern = AMPLITUDE * np.einsum("rcj,yxj->rycx", bits, bases(), dtype=np.float32)
    return enlarged(image) + pattern.reshape(HR_CELL * n, HR_CELL * n, 1).astype(np.float32)


def recalled(output: Floats, smooth: Floats, n: int) -> Floats:
    """The bits that an output shows, ``[n², 3]``: its projections on :func:`bases`, scaled."""
    rest = (output - smooth).reshape(n, HR_CELL, n, HR_CELL, 3)
    found = np.einsum("rycxk,yxj->rcj", rest, bases(), dtype=np.float64)
    return (found / (3 * HR_CELL**2 * AMPLITUDE)).reshape(n * n, BITS)


def distances(grid: Grid) -> NDArray[np.int64]:
    """LR pixels from each query to its nearest reference, ``[n²]``; 0 for other cells.

    The larger of rows and columns, between the nearest pixels of the two cells: neighbours have 1.
    """
    return np.where(grid.queries, _nearest(grid)[1], 0)


def nearest_references(grid: Grid) -> Positions:
    """For each LR pixel of a query the one beside it in its nearest reference; else itself.

    The pixel lies in the column of the value. ``[4n²]`` indices in row-major order.
    """
    n, width = grid.n, CELL * grid.n
    row, column = np.divmod(np.where(grid.queries, _nearest(grid)[0], np.arange(n * n)), n)
    y, x = np.indices((width, width))
    cell = (y // CELL) * n + x // CELL
    found = (CELL * row[cell] + y % CELL) * width + CELL * column[cell] + CELL - 1
    return np.where(grid.queries[cell], found, y * width + x).reshape(-1)


def _nearest(grid: Grid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each cell the nearest reference of its key, and the distance in LR pixels."""
    references = np.flatnonzero(grid.kind == _REFERENCE)
    rows, columns = np.divmod(np.arange(grid.n**2), grid.n)
    apart = np.maximum(
        np.abs(rows[:, None] - rows[references]), np.abs(columns[:, None] - columns[references])
    )
    apart = np.where(grid.key[:, None] == grid.key[references], apart, 2 * grid.n)
    nearest = apart.argmin(1)
    return references[nearest], CELL * apart.min(1) - 1
