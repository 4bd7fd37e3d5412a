"""Images of a data folder that no set reads, and what to do about them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from .files import SCALES, SUFFIXES, ImageSet, find_images, is_data, lr_folder

# Endings of images that are not read, and what makes them readable.
_OTHERS = {
    **dict.fromkeys((".jfif", ".jpe", ".jfi"), "rename them to .jpg"),
    **dict.fromkeys(
        (*(".tif", ".tiff", ".avif", ".heic", ".heif", ".gif", ".jp2", ".jxl", ".ppm", ".pgm"),),
        "convert them to PNG",
    ),
}
#: Levels of folders that are searched.
_DEPTH = 5


def left_out(root: Path, train: Iterable[ImageSet], test: Iterable[ImageSet]) -> list[str]:
    """One line for each folder and kind of images that are not read.

    Args:
        root: the data folder.
        train, test: the sets that were found in it.
    """
    test = list(test)
    read = {path for images in (*train, *test) for path in images.paths}
    read |= {path for images in test for path in lr_files(images)}
    unread, others = Counter[Path](), Counter[tuple[Path, str]]()
    for folder, names in _walk(root):
        for name in filter(is_data, names):
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES and folder / name not in read:
                unread[_group(folder)] += 1
            elif suffix in _OTHERS:
                others[folder, suffix] += 1
    lines = [(f, f"{_images(n)}: {_advice(f.relative_to(root))}") for f, n in unread.items()]
    lines += [
        (folder, f"{_images(count, suffix)}: {_OTHERS[suffix]}")
        for (folder, suffix), count in others.items()
    ]
    return [f"{folder.relative_to(root).as_posix()}: {text}" for folder, text in sorted(lines)]


def lr_files(images: ImageSet, scales: Iterable[int] = SCALES) -> list[Path]:
    """The stored LR images of a test set."""
    found = []
    for scale in scales:
        if images.paths and (folder := lr_folder(images.paths[0], scale)):
            stems = {f"{path.stem}x{scale}" for path in images.paths}
            found += [path for path in find_images(folder) if path.stem in stems]
    return found


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    seen = set()  # a link may lead back
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        deep = len(here.relative_to(root).parts) >= _DEPTH
        again = here.resolve() in seen
        seen.add(here.resolve())
        folders[:] = [] if deep or again else sorted(filter(is_data, folders))
        yield here, [] if again else files


def _group(folder: Path) -> Path:
    """The folder; of DIV2K's LR images of all scales the one that holds them."""
    whole = [p for p in folder.parents if re.match("DIV2K_(train|valid)_LR", p.name)]
    return whole[0] if whole else folder


def _images(count: int, kind: str = "") -> str:
    return f"{count} {f'{kind} ' if kind else ''}image{'s' * (count != 1)} not read"


def _advice(path: Path) -> str:
    """What to do with the images in a folder, given below the root."""
    *above, name = [part.lower() for part in path.parts] or [""]
    if not name:
        return "put them into train/<Set>/ or <Set>/HR/"
    if above[:1] == ["train"]:
        return f"sub-folders are not read, move them to {path.parent.as_posix()}/"
    if name == "train" and not above:
        return "put them into a folder, such as train/Photos/"
    if name.startswith(("div2k_train_lr", "div2k_valid_lr")):
        return "LR images of DIV2K are made from HR"
    if name == "div2k_valid_hr":
        return f"rename the folder to {path.with_name('DIV2K_valid').as_posix()}/HR for a test set"
    if re.fullmatch(r"x\d", name) and above and above[-1].startswith("lr"):
        return f"LR images lie in LR_bicubic/{name.upper()}/ and are called <HR's stem>{name}.*"
    if name == "hr" and len(above) == 1 + (above[:1] == ["benchmark"]):
        return f"another test set {path.parent.name} is read"
    if "hr" in above:
        return f"sub-folders are not read, move them to {path.parent.as_posix()}/"
    if name in ("hr", "benchmark") and above in ([], ["benchmark"]):
        return f"put them into {path.with_name('<Set>').as_posix()}/HR/ for a test set"
    if not above or above == ["benchmark"]:
        test, train = f"{path.as_posix()}/HR/", f"train/{path.name}/"
        return f"put them into {test} for a test set, or {train} for training"
    return "test sets lie in <Set>/HR/, training sets in train/<Set>/"
