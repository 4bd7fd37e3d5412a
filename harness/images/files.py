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


def lr_path(hr_path: Path, scale: int) -> Path | None:
    """Stored LR image of ``<Set>/HR/<stem>.*``, or None."""
    folder = hr_path.parent.parent / "LR_bicubic" / f"X{scale}"
    if hr_path.parent.name != "HR" or not folder.is_dir():
        return None
    stem = f"{hr_path.stem}x{scale}"
    return next((path for path in find_images(folder) if path.stem == stem), None)


SUFFIXES = frozenset({".png", ".webp", ".jpg", ".jpeg", ".bmp"})
_FORMATS = ("PNG", "WEBP", "JPEG", "BMP")
# An image too large for Pillow's limit is an error, not a warning and then gigabytes.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ImageSet:
    """A named, ordered set of image files."""

    name: str
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """The images, decoded one at a time, as :func:`read_image` gives them."""
        return map(read_image, self.paths)


def find_images(folder: Path) -> tuple[Path, ...]:
    """Image files directly in a folder, in natural order; empty if it is no folder."""
    if not folder.is_dir():
        return ()
    try:
        found = [
            p
            for p in folder.iterdir()
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and not p.is_dir()
        ]
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    return tuple(sorted(found, key=lambda p: natural_key(p.name)))


def natural_key(text: str) -> list[tuple[int, str]]:
    """Sort key by which ``img_2`` comes before ``img_10``."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode a file to uint8 RGB ``[H, W, 3]``, the pixels as stored.

    Greyscale, black-and-white and palette images become three channels, an alpha channel
    that is opaque everywhere is dropped.

    Raises:
        UserError: the file is missing, unreadable, truncated or too large, is animated, or has
            16 bits a channel, CMYK or another colour space, or transparent parts.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise Image.DecompressionBombError  # where the warning was not made an error
            # Pillow cuts 16-bit colour files to 8 bits on loading, and tells only here.
            deep = image.mode[0] in "IF" or any(";16" in str(t[3]) for t in image.tile)
            frames = getattr(image, "n_frames", 1)
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels: "
            "split it, or take it out of the folder"
        ) from None
    except FileNotFoundError:
        missing = os.strerror(errno.ENOENT)
        raise UserError(f"cannot read the image {path}: {missing}; check the path") from None
    except Exception as error:  # Pillow's decoders raise many kinds
        reason = (isinstance(error, OSError) and error.strerror) or str(error).rstrip(".")
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not a PNG, WebP, JPEG or BMP image"
        raise UserError(
            f"cannot read the image {path}: {reason}; replace it or take it out of the folder"
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
