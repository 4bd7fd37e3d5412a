"""Images that commands save: PNG files, whole or not at all, in place of no other file."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..base.errors import UserError
from ..base.files import write_atomic
from .files import SUFFIXES, Pixels, find_images, read_image

#: How an image is turned for each value of the EXIF tag Orientation, as cameras write it.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def save_png(path: Path, pixels: Pixels) -> None:
    """Write uint8 ``[H, W]`` or ``[H, W, 3]``.

    Raises:
        UserError: the file cannot be written.
    """
    image = Image.fromarray(pixels)
    write_atomic(path, lambda file: image.save(file, format="PNG"))


def read_upright(path: Path) -> Pixels:
    """:func:`.files.read_image`, turned as the file's EXIF orientation says.

    Damaged EXIF data turn nothing, as in viewers.

    Raises:
        UserError: as :func:`.files.read_image`.
    """
    pixels = read_image(path)
    turn = None
    # Pillow's reader of EXIF raises exceptions of many classes.
    with warnings.catch_warnings(), contextlib.suppress(Exception), Image.open(path) as image:
        warnings.simplefilter("ignore")
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    if turn is None:
        return pixels
    return np.asarray(Image.fromarray(pixels).transpose(turn))


def refuse_taken(paths: Iterable[Path], option: str) -> None:
    """Check before any work that no file lies where one is to be written.

    Args:
        paths: of the files to write.
        option: what names their folder, for the message.

    Raises:
        UserError: a file is there.
    """
    taken = [path for path in paths if path.exists()]
    if taken:
        more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
        raise UserError(f"{taken[0]}{more} exists: choose another {option}, or give --overwrite")


def plan_files(inputs: Iterable[Path], output: Path) -> dict[Path, Path]:
    """Where the result of each image file goes, by file.

    A single file goes to ``output`` if that ends in ``.png``. Otherwise ``output`` is a folder:
    files go there under their stems, a folder's files in its sub-folders as they lie.

    Raises:
        UserError: an input is missing or holds no image, two results would have one name, or a
            result would replace an input.
    """
    inputs = list(inputs)
    for path in inputs:
        if not path.exists():
            raise UserError(f"no file or folder {path}: check the path")
    alone = len(inputs) == 1 and not inputs[0].is_dir() and not output.is_dir()
    if alone and output.suffix.lower() in SUFFIXES:
        if output.suffix.lower() != ".png":
            raise UserError(f"{output}: results are PNG files, so give a name that ends in .png")
        pairs = [(inputs[0], output)]
    else:
        if output.exists() and not output.is_dir():
            raise UserError(f"{output} is a file: give a folder for the results")
        pairs = [pair for path in inputs for pair in _targets(path, output)]
    plan: dict[Path, Path] = {}
    sources: dict[Path, Path] = {}
    for source, target in pairs:
        other = sources.setdefault(target, source)
        if other != source:
            raise UserError(f"{other} and {source} would both become {target}: rename one")
        plan[source] = target
    read = {source.resolve() for source in plan}
    if own := next((target for target in plan.values() if target.resolve() in read), None):
        raise UserError(f"{own} is one of the images that are read: choose another place")
    return plan


def _targets(path: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    if not path.is_dir():
        yield path, output / f"{path.stem}.png"
        return
    found = list(_images_below(path, output.resolve()))
    if not found:
        raise UserError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
    for source in found:
        yield source, output / source.relative_to(path).with_suffix(".png")


def _images_below(folder: Path, left_out: Path) -> Iterator[Path]:
    """Images of a folder and its sub-folders, but for hidden ones, links and one more."""
    yield from find_images(folder)
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".") or path.is_symlink() or path.resolve() == left_out
        if path.is_dir() and not hidden:
            yield from _images_below(path, left_out)
