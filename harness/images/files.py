"""Image files: find, order and decode them."""

from __future__ import annotations

import errno
import math
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..base.errors import UserError

#: uint8 ``[H, W]`` or ``[H, W, C]``.
Pixels = NDArray[np.uint8]

#: Endings of the files that count as images, in lower case.
SUFFIXES = frozenset({".png", ".webp", ".jpg", ".jpeg", ".bmp"})
#: Scales that stored LR images may have.
SCALES = (2, 3, 4, 8)
_FORMATS = ("PNG", "WEBP", "JPEG", "BMP")
# Names, in lower case, of what systems put beside a user's files; so are those with a dot in front.
_NOT_DATA = frozenset(
    {"@eadir", "#recycle", "$recycle.bin", "system volume information", "__macosx", "lost+found"}
)
# An image beyond Pillow's limit is an error, not a warning and then gigabytes of memory.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ImageSet:
    """A named, ordered set of image files."""

    name: str
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Pixels]:
        """The images, decoded one at a time, as :func:`read_image` gives them."""
        return map(read_image, self.paths)


def find_images(folder: Path) -> tuple[Path, ...]:
    """Image files directly in a folder, in natural order; empty if there is no such folder.

    Raises:
        UserError: the folder cannot be read.
    """
    if not folder.is_dir():
        return ()
    try:
        found = [
            p
            for p in folder.iterdir()
            if p.suffix.lower() in SUFFIXES and is_data(p.name) and not p.is_dir()
        ]
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    return tuple(sorted(found, key=lambda p: natural_key(p.name)))


def find_folders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones and those of systems; none if it is missing.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        found = folder.iterdir() if folder.is_dir() else ()
        return [p for p in found if is_data(p.name) and p.is_dir()]
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error


def is_data(name: str) -> bool:
    """Whether a file or folder of this name is the user's: not hidden, no index or waste bin."""
    return not name.startswith(".") and name.lower() not in _NOT_DATA


def child(folder: Path, name: str) -> Path:
    """The folder of that name in a folder; if there is none, one whose name differs in case."""
    path = folder / name
    if os.path.isdir(path):  # noqa: PTH112 - false where Path.is_dir raises
        return path
    return next((p for p in find_folders(folder) if p.name.lower() == name.lower()), path)


def lr_folder(hr_path: Path, scale: int) -> Path | None:
    """The folder of the LR images of ``<Set>/HR/*``; None if there is none."""
    if hr_path.parent.name.lower() != "hr":
        return None
    folder = child(child(hr_path.parent.parent, "LR_bicubic"), f"X{scale}")
    return folder if folder.is_dir() else None


def lr_path(hr_path: Path, scale: int) -> Path | None:
    """The stored LR image of ``<Set>/HR/<stem>.*``; None if there is none.

    Raises:
        UserError: there are several, such as ``ax4.png`` and ``ax4.jpg``.
    """
    if (folder := lr_folder(hr_path, scale)) is None:
        return None
    stem = f"{hr_path.stem}x{scale}"
    found = [path for path in find_images(folder) if path.stem == stem]
    if len(found) > 1:
        raise UserError(
            f"{folder} has both {found[0].name} and {found[1].name}, LR images of "
            f"{hr_path.name}: remove one of them"
        )
    return found[0] if found else None


def natural_key(text: str) -> list[tuple[int, str]]:
    """Sort key that puts ``img_2`` before ``img_10``."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


def read_image(path: Path) -> Pixels:
    """Decode a file to uint8 RGB ``[H, W, 3]``, with the pixels as stored.

    Greyscale, black-and-white and palette images become three channels. An alpha channel
    that is opaque everywhere is dropped.

    Raises:
        UserError: the file is missing, unreadable, truncated, too large or animated, or it has
            16 bits a channel, CMYK or another colour space, or transparent parts.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise Image.DecompressionBombError  # where the filter above was undone
            # Pillow cuts 16-bit colour to 8 bits on loading; the depth shows only before.
            deep = image.mode[0] in "IF" or any(";16" in str(t[3]) for t in image.tile)
            # Cameras put a preview or a second view behind the picture (MPO): the first counts.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels: "
            "split it, or remove it from the folder"
        ) from None
    except FileNotFoundError:
        missing = os.strerror(errno.ENOENT)
        raise UserError(f"cannot read the image {path}: {missing}; check the path") from None
    except Exception as error:  # Pillow's decoders raise exceptions of many classes
        reason = (isinstance(error, OSError) and error.strerror) or str(error).rstrip(".")
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not a PNG, WebP, JPEG or BMP image"
        raise UserError(
            f"cannot read the image {path}: {reason}; replace it or remove it from the folder"
        ) from error
    if deep or image.mode not in ("1", "L", "P", "RGB", "LA", "PA", "RGBA"):
        kind = "16 bits or more a channel" if deep else f"the colour space {image.mode}"
        raise UserError(f"{path} has {kind}: convert it to 8-bit RGB")
    if frames > 1:
        raise UserError(f"{path} is animated ({frames} frames): keep one frame")
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            raise UserError(f"{path} has transparent parts: flatten it to RGB")
    return np.asarray(image.convert("RGB"))
