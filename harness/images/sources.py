"""The images of a run: training and test sets of a folder, or the embedded ones.

A data folder holds test sets as ``<Set>/HR/*`` or ``benchmark/<Set>/HR/*``, with their LR images,
if any, as ``<Set>/LR_bicubic/X<scale>/<stem>x<scale>.*``, and training sets as ``train/<Set>/*`` or
DIV2K as ``DIV2K/DIV2K_train_HR/*`` or ``DIV2K_train_HR/*``; png, webp, jpg or bmp. Missing LR
images are made by :mod:`.bicubic`. Hidden files and folders are no data.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..base.errors import UserError
from ..base.machine import map_threads
from ..base.names import nearest
from . import embedded
from .bicubic import crop_to_multiple
from .cache import TrainingCache, training_cache
from .degradation import BICUBIC, Degradation, image_generator
from .files import (
    ImageSet,
    Pixels,
    child,
    find_folders,
    find_images,
    lr_folder,
    lr_path,
    natural_key,
    read_image,
)
from .left_out import left_out
from .metrics import SSIM_WINDOW

#: Name of the test set that holds held-out training images.
HOLDOUT = "Holdout"
#: The layout of a data folder, for messages.
LAYOUT = "test sets as <Set>/HR/*.png, training sets as train/<Set>/*.png (png, webp, jpg, bmp)"


@dataclass(frozen=True)
class TestImage:
    """One test image: its name, HR ``[H, W, 3]`` and LR ``[H/scale, W/scale, 3]``.

    ``lr`` is uint8; for denoising it is float32, where 1 stands for 255. ``lr_file`` says whether
    it was read from a file, ``sha256`` is the digest of what was read: see :func:`set_sha256`.
    """

    __test__: ClassVar[bool] = False  # for pytest: no test case

    name: str
    hr: Pixels
    lr: NDArray[Any]
    lr_file: bool = False
    sha256: bytes = b""


@dataclass(frozen=True)
class TestSet:
    """A test set at one scale; iterating decodes one image at a time.

    HR is cropped (top-left) to a multiple of the scale. A bicubic LR image is the stored file if
    there is one, else made in MATLAB's style; other inputs are made from HR, and so are those of
    centre crops. Noise depends on the names of set and image alone.

    Raises (while iterating):
        UserError: an image is unreadable or too small, an LR file does not fit its HR, two images
            have one name, or the scale is 1 without a degradation.
    """

    __test__: ClassVar[bool] = False

    images: ImageSet
    scale: int
    degradation: Degradation = BICUBIC
    #: Side in HR pixels of the centre of each image that is used; None for whole images.
    crop: int | None = None

    @property
    def name(self) -> str:
        return self.images.name

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[TestImage]:
        return map(self._load, self.images.paths)

    def every(self, step: int) -> tuple[int, Iterator[TestImage]]:
        """How many images are left of every ``step``-th, from the first, and these."""
        paths = self.images.paths[::step]
        return len(paths), map(self._load, paths)

    @functools.cached_property
    def names(self) -> dict[Path, str]:
        """Name of each image: the file's stem, with the folder's name where folders share stems.

        Raises:
            UserError: two files of one folder differ in their endings alone.
        """
        stems = Counter(path.stem for path in self.images.paths)
        found: dict[str, Path] = {}
        for path in self.images.paths:
            name = path.stem if stems[path.stem] == 1 else f"{path.parent.name}/{path.stem}"
            if name in found:
                raise UserError(
                    f"test set {self.name} has both {found[name].name} and {path.name}: rename or "
                    f"remove one of them in {path.parent}"
                )
            found[name] = path
        return {path: name for name, path in found.items()}

    def sha256(self) -> str:
        """:func:`set_sha256` of the images, all of which are decoded and checked.

        Raises:
            UserError: as for the class.
        """

        def digest(path: Path) -> bytes:
            return self._sha256(path, *self._read(path))

        return set_sha256(map_threads(digest, self.images.paths))

    def _sha256(self, path: Path, *pixels: Pixels | None) -> bytes:
        found = hashlib.sha256(self.names[path].encode(errors="surrogateescape"))
        for one in pixels:
            if one is not None:
                found.update(str(one.shape).encode())
                found.update(np.ascontiguousarray(one).data)
        return found.digest()

    def _load(self, path: Path) -> TestImage:
        hr, lr = self._read(path)
        name = self.names[path]
        generator = image_generator(self.name, name)
        inputs, target = self.degradation.pair(hr, lr, self.scale, generator)
        return TestImage(name, target, inputs, lr is not None, self._sha256(path, hr, lr))

    def _read(self, path: Path) -> tuple[Pixels, Pixels | None]:
        """HR, cropped, and the stored LR image, if it is used."""
        if self.scale == 1 and self.degradation.from_bicubic:
            raise UserError(
                "networks of scale 1 enlarge no LR images: give one of super-resolution, or use "
                "harness.evaluate, which knows other tasks"
            )
        image = centre_crop(read_image(path), self.crop)
        least = least_side(self.scale)
        if min(image.shape[:2]) < least:
            raise UserError(
                f"test image {path} is {image.shape[1]}x{image.shape[0]}: x{self.scale} needs "
                f"{least}x{least} or more; remove it from the folder"
            )
        hr = crop_to_multiple(image, self.scale)
        from_file = self.degradation.from_bicubic and self.crop is None
        stored = lr_path(path, self.scale) if from_file else None
        lr = None if stored is None else read_image(stored)
        if lr is not None and tuple(n * self.scale for n in lr.shape[:2]) != hr.shape[:2]:
            raise UserError(
                f"{stored} is {lr.shape[1]}x{lr.shape[0]}, which does not fit {path} "
                f"({hr.shape[1]}x{hr.shape[0]} after cropping) at x{self.scale}: delete it; "
                "bicubic then replaces it"
            )
        return hr, lr


def set_sha256(images: Iterable[bytes]) -> str:
    """Digest of a test set: of its images' names, HR pixels and pixels of stored LR images.

    Inputs that are made, by bicubic or with noise, are a function of these.
    """
    return hashlib.sha256(b"".join(images)).hexdigest()


def least_side(scale: int) -> int:
    """Least height and width of a test image: a window of SSIM inside the border, in whole LR
    pixels."""
    least = SSIM_WINDOW + (2 * scale if scale > 1 else 0)
    return -(-least // scale) * scale


def centre_crop(image: Pixels, side: int | None) -> Pixels:
    """The middle ``side`` x ``side`` pixels of ``[H, W, 3]``; all rows or columns if it has fewer.

    All of it if ``side`` is None.
    """
    if side is None:
        return image
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


@dataclass(frozen=True)
class DataSource:
    """Training and test images of one place; made by :func:`find_data`.

    Attributes:
        name: label for records: ``embedded`` or the name of the folder.
        train: the chosen training sets, in natural order.
        test: the test sets, in natural order; ``Holdout`` last, if any.
        root: the data folder; None for the embedded images.
        holdout_crop: side in HR pixels of the centre crops that stand for the images of
            ``Holdout``; None for whole images.
    """

    name: str
    train: tuple[ImageSet, ...]
    test: tuple[ImageSet, ...]
    root: Path | None = field(default=None, repr=False)
    holdout_crop: int | None = None

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
            raise UserError(
                f"{self.name} has no training sets: put images into train/<Set>/; "
                "python -m harness.data list names what is left out"
            )
        if self.root is not None and scale > 1 and "DIV2K" in self.train_sets:
            _warn_of_div2k(self.root)
        return training_cache(self.train, scale)

    def test_set(self, name: str, scale: int, degradation: Degradation = BICUBIC) -> TestSet:
        """The test set of that name, with inputs as the degradation makes them.

        Raises:
            UserError: there is none.
        """
        images = _choose(self.test, name, f"test set in {self.name}")
        if degradation.from_bicubic:
            _warn_of_lr(images, scale)
        return TestSet(images, scale, degradation, self.holdout_crop if name == HOLDOUT else None)

    def choose_tests(self, names: Iterable[str]) -> list[str]:
        """The test sets of these names, all if there are none: once each, in the source's order.

        Raises:
            UserError: there is no such test set, or none at all.
        """
        chosen = {_choose(self.test, name, f"test set in {self.name}").name for name in names}
        if not self.test:
            raise UserError(f"{self.name} has no test sets: put images into <Set>/HR/")
        return [name for name in self.test_sets if name in chosen or not chosen]


def find_data(
    path: Path | None = None,
    *,
    train_sets: Sequence[str] | None = None,
    holdout: int = 0,
    holdout_crop: int | None = None,
) -> DataSource:
    """Images of a folder, else of the folder ``SR_DATA``, else the embedded default.

    Args:
        path: a data folder, laid out as this module's docstring says.
        train_sets: names of the training sets to use; all by default.
        holdout: k >= 2 moves every k-th training image into the test set ``Holdout``.
        holdout_crop: side in HR pixels of the centre crops that stand for the images of
            ``Holdout``; None for whole images.

    Raises:
        UserError: the folder is missing, no folder, or holds no sets; no training set has a
            given name; or the holdout is 1 or leaves no image, or its crop is too small.
    """
    given = os.environ.get("SR_DATA")
    folder = Path(given) if path is None and given else path
    try:
        source = _embedded_source() if folder is None else _folder_source(folder)
    except UserError as error:
        if path is None and given:
            raise UserError(f"SR_DATA: {error}") from None
        raise
    train = source.train
    if train_sets is not None:
        kind = f"training set in {source.name}"
        chosen = {_choose(train, name, kind).name for name in train_sets}
        train = tuple(s for s in train if s.name in chosen)
    if not holdout:
        if holdout_crop is not None:
            raise UserError("--holdout-crop applies only to --holdout: give it, or leave both out")
        return DataSource(source.name, train, source.test, source.root)
    if holdout_crop is not None and holdout_crop < least_side(4):
        raise UserError(f"holdout crop must be at least {least_side(4)}, got {holdout_crop}")
    if HOLDOUT in source.test_sets:
        raise UserError(
            f"{source.name} has a test set called {HOLDOUT} of its own: rename it, or leave out "
            "--holdout"
        )
    if holdout < 2:
        raise UserError(f"holdout must be 0 (none) or at least 2 (every 2nd image), got {holdout}")
    all_paths = [path for s in train for path in s.paths]
    held_out = tuple(all_paths[holdout - 1 :: holdout])
    if not held_out:
        raise UserError(f"{len(all_paths)} training images are too few for a holdout of {holdout}")
    out = set(held_out)
    train = tuple(ImageSet(s.name, tuple(p for p in s.paths if p not in out)) for s in train)
    test = (*source.test, ImageSet(HOLDOUT, held_out))
    return DataSource(source.name, train, test, source.root, holdout_crop)


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
    # The second is the layout of EDSR-PyTorch. Both hold sets, and are none: train/HR is a
    # training set.
    training, benchmark = child(folder, "train"), child(folder, "benchmark")
    sets = [sub for sub in find_folders(folder) if sub not in (training, benchmark)]
    test = _sets((sub.name, child(sub, "HR")) for sub in [*sets, *find_folders(benchmark)])
    train = _sets(
        [
            *((sub.name, sub) for sub in find_folders(training)),
            ("DIV2K", folder / "DIV2K" / "DIV2K_train_HR"),
            ("DIV2K", folder / "DIV2K_train_HR"),
        ]
    )
    if not test and not train:
        found = "".join(f"; {line}" for line in left_out(folder, (), ())[:1])
        raise UserError(f"found no images in {folder}: expected {LAYOUT}{found}")
    _warn_of_folders(folder, frozenset(s.name for s in test))
    return DataSource(folder.resolve().name or "data", train, test, folder)


@functools.cache  # once a process
def _warn_of_folders(root: Path, test_sets: frozenset[str]) -> None:
    """Name folders that look like test sets, but lack the folder for their images."""
    for folder in sorted(find_folders(root)):
        if folder.name in test_sets or folder.name.startswith("DIV2K"):
            continue
        if folder.name.lower() not in ("train", "benchmark") and (images := find_images(folder)):
            print(
                f"warning: {folder} is no test set, as its images ({len(images)}) do not lie in "
                f"{folder.name}/HR: it is not read",
                file=sys.stderr,
            )


@functools.cache
def _warn_of_div2k(root: Path) -> None:
    for folder in find_folders(root) + find_folders(root / "DIV2K"):
        if folder.name.startswith("DIV2K_train_LR"):
            print(
                f"warning: {folder} is not read: training LR images are made from HR",
                file=sys.stderr,
            )


@functools.cache
def _warn_of_lr(images: ImageSet, scale: int) -> None:
    """Say which LR images are missing in a folder of LR images, and are made here."""
    folder = lr_folder(images.paths[0], scale)
    if folder is None:
        return
    missing = [path for path in images.paths if lr_path(path, scale) is None]
    if not missing:
        return
    first = missing[0]
    text = (
        f"warning: {folder} lacks LR images of {len(missing)} of {len(images)} images "
        f"(the first is {first.stem}x{scale}.*): bicubic ones are made in their place"
    )
    unnamed = next((p.name for p in find_images(folder) if p.stem == first.stem), None)
    if unnamed:
        text += f"; {unnamed} is not read, rename it to {first.stem}x{scale}{Path(unnamed).suffix}"
    print(text, file=sys.stderr)


def _sets(candidates: Iterable[tuple[str, Path]]) -> tuple[ImageSet, ...]:
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
    near = nearest(name.lower(), names)
    hint = f"; did you mean {names[near]}?" if near else ""
    raise UserError(
        f"no {kind} is called {name!r}: it has {', '.join(names.values()) or 'none'}{hint}"
    )
