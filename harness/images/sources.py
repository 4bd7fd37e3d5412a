"""The images of a run: training and test sets of a folder, or the embedded ones.

A data folder holds test sets as ``<Set>/HR/*``, with their LR images, if any, as
``<Set>/LR_bicubic/X<scale>/<stem>x<scale>.*``, and training sets as ``train/<Set>/*`` or
DIV2K as ``DIV2K/DIV2K_train_HR/*`` or ``DIV2K_train_HR/*``; png, webp, jpg or bmp. Missing LR
images are made by :mod:`.bicubic`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from ..base.errors import UserError
from . import embedded
from .bicubic import crop_to_multiple
from .cache import TrainingCache, training_cache
from .degradation import BICUBIC, Degradation, image_generator
from .files import ImageSet, Pixels, find_images, lr_path, natural_key, read_image
from .metrics import SSIM_WINDOW

#: Name of the test set that holds held-out training images.
HOLDOUT = "Holdout"
#: The layout of a data folder, for messages.
LAYOUT = "test sets as <Set>/HR/*.png, training sets as train/<Set>/*.png (png, webp, jpg, bmp)"


@dataclass(frozen=True)
class TestImage:
    """One test image: its file's stem, HR ``[H, W, 3]`` and LR ``[H/scale, W/scale, 3]``.

    ``lr`` is uint8; for denoising it is float32, where 1 stands for 255.
    """

    __test__: ClassVar[bool] = False  # for pytest: no test case

    name: str
    hr: Pixels
    lr: NDArray[Any]


@dataclass(frozen=True)
class TestSet:
    """A test set at one scale; iterating decodes one image at a time.

    HR is cropped (top-left) to a multiple of the scale. A bicubic LR image is the stored file if
    there is one, else made in MATLAB's style; other inputs are made from HR. Noise depends on the
    names of set and image alone.

    Raises (while iterating):
        UserError: an image is unreadable or too small, an LR file does not fit its HR, or the
            scale is 1 without a degradation.
    """

    __test__: ClassVar[bool] = False

    images: ImageSet
    scale: int
    degradation: Degradation = BICUBIC

    @property
    def name(self) -> str:
        return self.images.name

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[TestImage]:
        return map(self._load, self.images.paths)

    def _load(self, path: Path) -> TestImage:
        if self.scale == 1 and self.degradation.from_bicubic:
            raise UserError(
                "networks of scale 1 enlarge no LR images: give one of super-resolution, or use "
                "harness.evaluate, which knows other tasks"
            )
        hr = crop_to_multiple(read_image(path), self.scale)
        height, width = hr.shape[:2]
        least = SSIM_WINDOW + (2 * self.scale if self.scale > 1 else 0)
        if min(height, width) < least:
            raise UserError(
                f"test image {path} is {width}x{height}: x{self.scale} needs {least}x{least} or "
                "more; remove it from the folder"
            )
        stored = lr_path(path, self.scale) if self.degradation.from_bicubic else None
        lr = None if stored is None else read_image(stored)
        if lr is not None and (lr.shape[0] * self.scale, lr.shape[1] * self.scale) != (
            height,
            width,
        ):
            raise UserError(
                f"{stored} is {lr.shape[1]}x{lr.shape[0]}, which does not fit {path} "
                f"({width}x{height} after cropping) at x{self.scale}: delete it; "
                "bicubic then replaces it"
            )
        generator = image_generator(self.name, path.stem)
        inputs, target = self.degradation.pair(hr, lr, self.scale, generator)
        return TestImage(path.stem, target, inputs)


@dataclass(frozen=True)
class DataSource:
    """Training and test images of one place; made by :func:`find_data`.

    Attributes:
        name: label for records: ``embedded`` or the name of the folder.
        train: the chosen training sets, in natural order.
        test: the test sets, in natural order; ``Holdout`` last, if any.
        root: the data folder; None for the embedded images.
    """

    name: str
    train: tuple[ImageSet, ...]
    test: tuple[ImageSet, ...]
    root: Path | None = field(default=None, repr=False)

    @property
    def train_sets(self) -> list[str]:
        return [s.name for s in self.train]

    @property
    def test_sets(self) -> list[str]:
        return [s.name for s in self.test]

    def training_images(self, scale: int) -> TrainingCache:
        """All images of the training sets, from their cache, which is built if needed.

        Raises:
            UserError: there is no training set, an image cannot be used, or the cache
                cannot be written.
        """
        if not self.train:
            raise UserError(f"{self.name} has no training sets: put images into train/<Set>/")
        return training_cache(self.train, scale)

    def test_set(self, name: str, scale: int, degradation: Degradation = BICUBIC) -> TestSet:
        """The test set of that name, with inputs as the degradation makes them.

        Raises:
            UserError: there is none.
        """
        return TestSet(_choose(self.test, name, f"test set in {self.name}"), scale, degradation)


def find_data(
    path: Path | None = None, *, train_sets: Sequence[str] | None = None, holdout: int = 0
) -> DataSource:
    """Images of a folder, else of the folder ``SR_DATA``, else the embedded default.

    Args:
        path: a data folder, laid out as this module's docstring says.
        train_sets: names of the training sets to use; all by default.
        holdout: k >= 2 moves every k-th training image into the test set ``Holdout``.

    Raises:
        UserError: the folder is missing, no folder, or holds no sets; no training set has a
            given name; or the holdout is 1 or leaves no image.
    """
    given = os.environ.get("SR_DATA")
    folder = Path(given) if path is None and given else path
    source = _embedded_source() if folder is None else _folder_source(folder)
    train = source.train
    if train_sets is not None:
        kind = f"training set in {source.name}"
        chosen = {_choose(train, name, kind).name for name in train_sets}
        train = tuple(s for s in train if s.name in chosen)
    if not holdout:
        return DataSource(source.name, train, source.test, source.root)
    if holdout < 2:
        raise UserError(f"holdout must be 0 (none) or at least 2 (every 2nd image), got {holdout}")
    all_paths = [path for s in train for path in s.paths]
    held_out = tuple(all_paths[holdout - 1 :: holdout])
    if not held_out:
        raise UserError(f"{len(all_paths)} training images are too few for a holdout of {holdout}")
    out = set(held_out)
    train = tuple(ImageSet(s.name, tuple(p for p in s.paths if p not in out)) for s in train)
    return DataSource(source.name, train, (*source.test, ImageSet(HOLDOUT, held_out)), source.root)


def _embedded_source() -> DataSource:
    return DataSource(
        embedded.NAME,
        (embedded.embedded_set(embedded.TRAIN_SET, embedded.TRAIN),),
        (embedded.embedded_set(embedded.TEST_SET, embedded.TEST),),
    )


def _folder_source(folder: Path) -> DataSource:
    if not folder.exists():
        raise UserError(f"data folder {folder} does not exist: set --data or SR_DATA")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that holds {LAYOUT}")
    test = _sets((sub.name, sub / "HR") for sub in _folders(folder))
    train = _sets(
        [
            *((sub.name, sub) for sub in _folders(folder / "train")),
            ("DIV2K", folder / "DIV2K" / "DIV2K_train_HR"),
            ("DIV2K", folder / "DIV2K_train_HR"),
        ]
    )
    if not test and not train:
        raise UserError(f"found no images in {folder}: expected {LAYOUT}")
    return DataSource(folder.resolve().name or "data", train, test, folder)


def _folders(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error


def _sets(candidates: Iterator[tuple[str, Path]] | list[tuple[str, Path]]) -> tuple[ImageSet, ...]:
    """The folders that hold images, the first of each name, in natural order."""
    found: dict[str, ImageSet] = {}
    for name, folder in candidates:
        if name not in found and (paths := find_images(folder)):
            found[name] = ImageSet(name, paths)
    return tuple(found[name] for name in sorted(found, key=natural_key))


def _choose(sets: Sequence[ImageSet], name: str, kind: str) -> ImageSet:
    for candidate in sets:
        if candidate.name == name:
            return candidate
    names = {s.name.lower(): s.name for s in sets}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"; did you mean {names[near[0]]}?" if near else ""
    raise UserError(
        f"no {kind} is called {name!r}: it has {', '.join(names.values()) or 'none'}{hint}"
    )
