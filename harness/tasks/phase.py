"""Phase: copies of a texture at other sub-pixel shifts hold the samples that decimation dropped."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ..base.errors import UserError
from ..config.presets import Preset
from .base import Batch, Floats, Item, ItemScore, Positions, generator
from .cells import CELL, FAR, CellTask, cell_preset, distances, distances_bytes, gain, joined, split

Decimation = Literal["nearest", "box"]
Matrix = NDArray[np.float64]

#: Side of a cell and of its texture in HR pixels.
HR_CELL, TEXTURE = 4, 3
PIXELS = TEXTURE**2
#: Row and column of the texture in its HR cell, by phase.
SHIFTS = ((0, 0), (1, 1), (0, 1), (1, 0))
#: Mean of all textures; standard deviations of their colour and of their pattern.
GREY, COLOUR, PATTERN = 0.5, 0.4, 0.3
#: The pattern's correlation is that of white noise after a Gaussian blur of this sigma, HR pixels.
BLUR = 0.7
_TRIES = 1000


@dataclass(frozen=True)
class Grids:
    """``B`` grids of ``n x n`` cells in row-major order.

    Attributes:
        copies: cells of the repeated textures ``[B, T, K]``; in test images the first is the query.
        texture: of each cell ``[B, n², 9, 3]``, grey in blank cells.
        phase: of each cell ``[B, n²]``, an index of :data:`SHIFTS`.
    """

    n: int
    copies: NDArray[np.int64]
    texture: Floats
    phase: NDArray[np.int64]


@dataclass(frozen=True)
class Queries:
    """What is scored in one image: one copy of each repeated texture.

    Attributes:
        corner: row and column of the texture in the target ``[T, 2]``.
        texture: ``[T, 9, 3]``.
        distance: to the nearest other copy in LR pixels ``[T]``.
        from_one, from_all: the best linear estimates from the query alone, and from all copies
            ``[T, 9, 3]``.
    """

    corner: NDArray[np.int64]
    texture: Floats
    distance: NDArray[np.int64]
    from_one: Matrix
    from_all: Matrix

    @property
    def local(self) -> Matrix:
        """Mean squared error of the estimates from one copy ``[T]``."""
        return np.square(self.from_one - self.texture).mean((1, 2))

    @property
    def oracle(self) -> Matrix:
        """Mean squared error of the estimates from all copies ``[T]``."""
        return np.square(self.from_all - self.texture).mean((1, 2))


class Phase(CellTask):
    """Super-resolution of textures from their copies at other sub-pixel shifts.

    A cell has 2x2 LR pixels. Its texture has 3x3 HR pixels, a colour of its own and one of four
    shifts. Decimation by 2 keeps other samples at each shift: what one copy lacks others show.
    All is Gaussian, so the best estimates from one copy and from all are linear and known.

    Args:
        copies: K, copies of each texture, 2 to 4, each at another shift.
        textures: T, textures with copies.
        cells: n, cells in a row of a training image; test images have n, 2n and 4n.
        distractors: share of the other cells that show a texture without copies, 0 to 1.
        noise: standard deviation of the noise on LR pixels, 1e-5 to 10.
        decimation: nearest keeps one pixel of 2x2, box their mean.

    Raises:
        UserError: an option is out of range.
    """

    name: ClassVar[str] = "phase"
    metric: ClassVar[str] = "gain"
    presets: ClassVar[Mapping[str, Preset]] = {"quick": cell_preset(2, 2e-3)}
    scale = 2

    def __init__(
        self,
        *,
        copies: int = 2,
        textures: int = 4,
        cells: int = 6,
        distractors: float = 0.0,
        noise: float = 0.05,
        decimation: Decimation = "nearest",
    ) -> None:
        if not 2 <= copies <= len(SHIFTS):
            raise UserError(f"--copies must be 2 to {len(SHIFTS)}, got {copies}")
        for option, value, least in (("textures", textures, 1), ("cells", cells, 6)):
            if value < least:
                raise UserError(f"--{option} must be at least {least}, got {value}")
        if not 0 <= distractors <= 1:
            raise UserError(f"--distractors must be a share, 0 to 1, got {distractors}")
        # Below, the estimates' matrices are singular; above, floor and ceiling are one.
        if not 1e-5 <= noise <= 10:
            raise UserError(f"--noise must be 0.00001 to 10, got {noise}")
        if decimation not in ("nearest", "box"):
            raise UserError(f"--decimation must be nearest or box, got {decimation!r}")
        if copies * textures > cells**2:
            raise UserError(
                f"{copies * textures} copies do not fit in {cells} x {cells} cells: lower "
                "--textures or --copies, or raise --cells"
            )
        self.copies, self.textures, self.cells = copies, textures, cells
        self.distractors, self.noise = distractors, noise
        self.decimation: Decimation = decimation

    @property
    def label(self) -> str:
        """``phase-k2-t4-n6``; other options follow where they are not the default."""
        rest = [f"d{self.distractors:g}"] if self.distractors else []
        rest += [f"s{self.noise:g}"] if self.noise != 0.05 else []
        rest += [self.decimation] if self.decimation != "nearest" else []
        sizes = [f"k{self.copies}", f"t{self.textures}", f"n{self.cells}"]
        return "-".join([self.name, *sizes, *rest])

    def batch(self, *, seed: int, step: int, batch: int, patch: int) -> Batch:
        """Images with copies at any distance, float32."""
        rng, n = generator(seed, step), patch // CELL
        order = rng.permuted(np.tile(np.arange(n * n), (batch, 1)), axis=1)
        grids = self.draw(rng, n, order)
        targets = picture(grids)
        return Batch(self.observe(rng, targets), targets, references(grids))

    def items(self, test_set: str, *, validation: bool = False) -> Iterator[Item]:
        """Images in which each query lies :data:`FAR` from its references; fewer large ones.

        Raises:
            UserError: so many copies have no place.
        """
        n, count, key = self.images(test_set, validation=validation)
        for i in range(count):
            rng = generator(key, n * 2**32 + i)
            grids = self.draw(rng, n, self._far_order(rng, n)[None])
            target = picture(grids)
            inputs = self.observe(rng, target)
            alone = picture(without_references(grids))
            lost = decimated(target, self.decimation) - decimated(alone, self.decimation)
            yield Item(
                name=f"{i:03d}",
                inputs=inputs[0],
                deleted=(inputs - lost)[0],
                references=references(grids)[0],
                truth=self._queries(grids, inputs[0]),
            )

    def draw(self, rng: np.random.Generator, n: int, order: NDArray[np.int64]) -> Grids:
        """Grids of ``n x n`` cells, one for each row of ``order`` ``[B, n²]``.

        A row holds all cells: first the copies of each texture, then distractors, then blanks.
        """
        batch, copied = len(order), self.textures * self.copies
        others = round(self.distractors * (n * n - copied))
        kinds = self.textures + others
        colour = rng.standard_normal((batch, kinds, 1, 3), dtype=np.float32)
        white = rng.standard_normal((batch, kinds, PIXELS), dtype=np.float32)
        factor = np.linalg.cholesky(correlation()).astype(np.float32)
        # One product after the other: libraries add in orders of their own, and every machine has
        # to draw the same bits.
        pattern = np.zeros_like(white)
        for i in range(PIXELS):
            pattern += white[..., i : i + 1] * factor[:, i]
        drawn = GREY + COLOUR * colour + PATTERN * pattern[..., None]

        image = np.arange(batch)[:, None]
        texture = np.full((batch, n * n, PIXELS, 3), GREY, dtype=np.float32)
        kind = np.r_[np.repeat(np.arange(self.textures), self.copies), self.textures : kinds]
        texture[image, order[:, : copied + others]] = drawn[:, kind]
        phase = rng.integers(self.copies, size=(batch, n * n))
        copies = order[:, :copied].reshape(batch, self.textures, self.copies)
        each = np.tile(np.arange(self.copies), (batch, self.textures, 1))
        phase[image[..., None], copies] = rng.permuted(each, axis=2)
        return Grids(n, copies, texture, phase)

    def observe(self, rng: np.random.Generator, targets: Floats) -> Floats:
        """Inputs ``[B, h, w, 3]`` of targets: decimated, with noise."""
        small = decimated(targets, self.decimation)
        return small + np.float32(self.noise) * rng.standard_normal(small.shape, dtype=np.float32)

    def estimate(self, phases: Sequence[int], cells: Floats) -> Matrix:
        """The best linear estimate of a texture ``[9, 3]`` from copies of it.

        Args:
            phases: of the copies.
            cells: LR pixels of their cells ``[K, 2, 2, 3]``.
        """
        weights, _ = estimator(tuple(map(int, phases)), self.noise, self.decimation)
        return GREY + (weights @ (cells - GREY).reshape(-1)).reshape(PIXELS, 3)

    def score(self, item: Item, output: Floats, reach: int) -> ItemScore | None:
        """Gain over queries whose other copies lie beyond ``reach``.

        The details are mean squared errors over the queries' pixels: of the output, and of the
        best estimates from one copy and from all.
        """
        truth: Queries = item.truth
        counted = truth.distance > reach
        if not counted.any():
            return None
        inside = np.arange(TEXTURE)
        y, x = truth.corner[counted, :, None].swapaxes(0, 1) + inside
        shown = output[y[:, :, None], x[:, None, :]].reshape(-1, PIXELS, 3)
        errors = {
            "mse": float(np.mean((shown - truth.texture[counted]) ** 2, dtype=np.float64)),
            "local": float(truth.local[counted].mean()),
            "oracle": float(truth.oracle[counted].mean()),
        }
        return ItemScore(errors["mse"], weight=float(counted.sum()), details=errors)

    def combine(self, value: float, details: Mapping[str, float]) -> float:
        """The gain of a set, from the mean squared errors over all its queries."""
        return gain(value, details["local"], details["oracle"])

    def ceiling_output(self, item: Item) -> Floats:
        """The best estimates from all copies at the queries, zero elsewhere."""
        return self._filled(item, item.truth.from_all)

    def floor_output(self, item: Item) -> Floats:
        """The best estimates from one copy at the queries, zero elsewhere."""
        return self._filled(item, item.truth.from_one)

    @property
    def scoring_bytes(self) -> int:
        """With the distances between all cells."""
        return super().scoring_bytes + distances_bytes(4 * self.cells)

    def _far_order(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """All cells in random order, the references of each query :data:`FAR` from it."""
        far = distances(n) >= FAR
        for _ in range(_TRIES):
            free = np.ones(n * n, dtype=np.int64)
            chosen: list[int] = []
            while len(chosen) < self.textures * self.copies:
                able = np.flatnonzero(free * (far @ free >= self.copies - 1))
                if not able.size:
                    break
                query = int(rng.choice(able))
                others = np.flatnonzero(far[query] * free)
                chosen += [query, *rng.choice(others, self.copies - 1, replace=False).tolist()]
                free[chosen] = 0
            else:
                return np.r_[chosen, rng.permutation(np.flatnonzero(free))].astype(np.int64)
        raise UserError(
            f"{self.textures} textures have no place in {n} x {n} cells with copies {FAR} pixels "
            "apart: lower --textures or --copies, or raise --cells"
        )

    def _queries(self, grids: Grids, inputs: Floats) -> Queries:
        n, copies = grids.n, grids.copies[0]
        phase, query = grids.phase[0], copies[:, 0]
        pixels = split(inputs)
        texture = grids.texture[0, query]

        def estimates(known: int) -> Matrix:
            return np.stack([self.estimate(phase[own], pixels[own]) for own in copies[:, :known]])

        return Queries(
            corner=HR_CELL * np.stack(np.divmod(query, n), 1) + np.array(SHIFTS)[phase[query]],
            texture=texture,
            distance=distances(n)[copies[:, :1], copies[:, 1:]].min(1),
            from_one=estimates(1),
            from_all=estimates(self.copies),
        )

    def _filled(self, item: Item, textures: Matrix) -> Floats:
        side = HR_CELL * len(item.inputs) // CELL
        output = np.zeros((side, side, 3), dtype=np.float32)
        for (y, x), texture in zip(item.truth.corner, textures, strict=True):
            output[y : y + TEXTURE, x : x + TEXTURE] = texture.reshape(TEXTURE, TEXTURE, 3)
        return output


def picture(grids: Grids) -> Floats:
    """The targets ``[B, 4n, 4n, 3]``."""
    batch, n = len(grids.texture), grids.n
    cells = np.full((batch, n * n, HR_CELL, HR_CELL, 3), GREY, dtype=np.float32)
    texture = grids.texture.reshape(batch, n * n, TEXTURE, TEXTURE, 3)
    for phase, (y, x) in enumerate(SHIFTS):
        here = grids.phase == phase
        cells[here, y : y + TEXTURE, x : x + TEXTURE] = texture[here]
    return joined(cells)


def without_references(grids: Grids) -> Grids:
    """The grids with their queries, and blank cells in place of the other copies."""
    texture = grids.texture.copy()
    texture[np.arange(len(texture))[:, None, None], grids.copies[..., 1:]] = GREY
    return dataclasses.replace(grids, texture=texture)


def decimated(images: Floats, decimation: Decimation) -> Floats:
    """``[B, H, W, 3]`` to half the size, without a filter against aliasing."""
    if decimation == "nearest":
        return images[:, ::2, ::2]
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return blocks.mean((2, 4), dtype=images.dtype)


def references(grids: Grids) -> Positions:
    """For each LR pixel of a copy the same pixel of the K - 1 others; else itself.

    ``[B, 4n², K - 1]`` indices in row-major order.
    """
    batch, _, copies = grids.copies.shape
    n, width = grids.n, CELL * grids.n
    cell = np.tile(np.arange(n * n)[:, None], (batch, 1, copies - 1))
    for k in range(copies):
        cell[np.arange(batch)[:, None], grids.copies[..., k]] = np.delete(grids.copies, k, axis=2)
    y, x = np.indices((width, width)).reshape(2, -1, 1)
    row, column = np.divmod(cell[:, (y // CELL * n + x // CELL)[:, 0]], n)
    return (CELL * row + y % CELL) * width + CELL * column + x % CELL


def correlation() -> Matrix:
    """Correlation of the pattern's pixels ``[9, 9]``, ``exp(-d² / (4 blur²))``."""
    y, x = np.indices((TEXTURE, TEXTURE)).reshape(2, -1)
    squares = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    found: Matrix = np.exp(-squares / (4 * BLUR**2))
    return found


def covariance() -> Matrix:
    """Covariance of a texture's pixels and channels ``[27, 27]``.

    The pattern is alike in all channels, the colour alike in all pixels.
    """
    pattern = np.kron(PATTERN**2 * correlation(), np.ones((3, 3))).astype(np.float64)
    return pattern + np.kron(np.full((PIXELS, PIXELS), COLOUR**2), np.eye(3))


def sampling(phase: int, decimation: Decimation) -> Matrix:
    """How a cell's LR pixels depend on its texture ``[12, 27]``: grey and noise are added."""
    y, x = SHIFTS[phase]
    cells = np.zeros((PIXELS * 3, HR_CELL, HR_CELL, 3), dtype=np.float32)
    unit = np.eye(PIXELS * 3).reshape(-1, TEXTURE, TEXTURE, 3)
    cells[:, y : y + TEXTURE, x : x + TEXTURE] = unit
    return decimated(cells, decimation).reshape(len(cells), -1).T.astype(np.float64)


@functools.cache
def estimator(
    phases: tuple[int, ...], noise: float, decimation: Decimation
) -> tuple[Matrix, float]:
    """The linear estimator of least mean squared error, and this error.

    ``W = C Aᵀ (A C Aᵀ + noise² I)⁻¹`` with covariance C and the sampling A of all copies; its
    error is the mean of the diagonal of ``C - W A C``. As all is Gaussian, no other is better.

    Args:
        phases: of the copies that are known.
        noise: standard deviation.
        decimation: as the task's.

    Returns:
        ``[27, 12 K]``, for LR pixels less grey; and the error of a pixel and channel.
    """
    seen = np.concatenate([sampling(phase, decimation) for phase in phases])
    cross = covariance() @ seen.T
    weights = np.linalg.solve(seen @ cross + noise**2 * np.eye(len(seen)), cross.T).T
    return weights, float(np.mean(np.diag(covariance() - weights @ cross.T)))
