"""Training images, decoded once into a cache on the disk.

A cache is two files: ``<key>.bin`` holds the HR and LR pixels of all images one after the
other, ``<key>.json`` their names, sizes and SHA-256 digests. The key depends on the files'
names, sizes and modification times, so a changed file leads to a new cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..base.errors import UserError
from ..base.files import remove_leftovers, write_atomic, write_json
from ..base.locks import lock
from ..base.machine import map_threads
from ..base.progress import progress_bar
from .bicubic import crop_to_multiple, downscale
from .files import ImageSet, Pixels, read_image

#: Raised whenever the same files lead to another content.
CACHE_VERSION = 1


@dataclass(frozen=True)
class TrainingCache:
    """Training images in memory-mapped uint8, in a fixed order.

    Attributes:
        scale: HR size over LR size.
        names: ``<set>/<file name>`` of every image.
        hr: HR images ``[H, W, 3]``, cropped to multiples of the scale (read-only views).
        lr: LR images ``[H/scale, W/scale, 3]`` (read-only views); at scale 1 the same as ``hr``.
        sha256: fingerprint of names and pixels, independent of where the files lie.
    """

    scale: int
    names: list[str]
    hr: list[Pixels]
    lr: list[Pixels]
    sha256: str

    def __len__(self) -> int:
        return len(self.names)


def cache_folder() -> Path:
    """``SR_CACHE``, or the platform's folder for caches."""
    import pooch

    return Path(os.environ.get("SR_CACHE") or pooch.os_cache("attention-zoo"))


def training_cache(sets: Sequence[ImageSet], scale: int) -> TrainingCache:
    """Open the cache of these sets; build it first if needed, one process at a time.

    Raises:
        UserError: there is no image, an image cannot be used, or the cache cannot be written.
    """
    files = [(f"{s.name}/{path.name}", path) for s in sets for path in s.paths]
    if not files:
        raise UserError("no training images: choose training sets that contain some")
    key = _key(files, scale)
    names = [name for name, _ in files]
    index_path, payload_path = (cache_folder() / f"{key}.{ext}" for ext in ("json", "bin"))
    if (cache := _open(index_path, payload_path, names, scale)) is not None:
        return cache
    with _naming_variable(), lock(index_path.with_suffix(".lock"), "building the image cache"):
        if (cache := _open(index_path, payload_path, names, scale)) is not None:
            return cache  # another process has built it meanwhile
        if index_path.exists():
            print(
                f"warning: the image cache {index_path.name} is damaged or of another version; "
                "rebuilding it",
                file=sys.stderr,
            )
        remove_leftovers(payload_path.parent, payload_path.name)
        entries: list[dict[str, Any]] = []
        write_atomic(payload_path, lambda file: entries.extend(_write_payload(file, files, scale)))
        write_json(index_path, {"version": CACHE_VERSION, "scale": scale, "images": entries})
        cache = _open(index_path, payload_path, names, scale)
    if cache is None:
        raise UserError(
            f"the image cache {payload_path} does not read back as written: "
            "check the disk, or set SR_CACHE to another folder"
        )
    return cache


@contextmanager
def _naming_variable() -> Iterator[None]:
    """Name SR_CACHE in errors of writing the cache.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = cache_folder()
    place = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    if not place.is_dir():
        raise UserError(
            f"cannot write the image cache into {folder}: {place} is not a folder; set SR_CACHE to "
            "a folder that can be written"
        )
    try:
        yield
    except UserError as error:
        if not isinstance(error.__cause__, OSError) or str(folder) not in str(error):
            raise
        reason = error.__cause__.strerror or str(error.__cause__)
        raise UserError(
            f"cannot write the image cache into {folder}: {reason}; free space, or set SR_CACHE to "
            "a folder that can be written"
        ) from error


def _key(files: Sequence[tuple[str, Path]], scale: int) -> str:
    try:
        stats = [(name, path.stat()) for name, path in files]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    content = [CACHE_VERSION, scale, [(name, s.st_size, s.st_mtime_ns) for name, s in stats]]
    return _digest(content)[:32]


def _write_payload(
    file: BinaryIO, files: Sequence[tuple[str, Path]], scale: int
) -> list[dict[str, Any]]:
    def prepare(item: tuple[str, Path]) -> tuple[str, bytes, tuple[int, ...], str]:
        name, path = item
        hr = crop_to_multiple(read_image(path), scale)
        if 0 in hr.shape:
            raise UserError(f"training image {name} is smaller than {scale}x{scale}: remove it")
        pixels = hr.tobytes() + (b"" if scale == 1 else downscale(hr, scale).tobytes())
        return name, pixels, hr.shape[:2], hashlib.sha256(pixels).hexdigest()

    entries = []
    with progress_bar("images") as progress:
        task = progress.add_task("Decoding training images", total=len(files))
        for name, pixels, (height, width), sha256 in map_threads(prepare, files):
            file.write(pixels)
            entries.append({"name": name, "height": height, "width": width, "sha256": sha256})
            progress.advance(task)
    return entries


def _open(
    index_path: Path, payload_path: Path, names: list[str], scale: int
) -> TrainingCache | None:
    """Map a cache and check its names and digests; None if anything is wrong."""
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
        if (index["version"], index["scale"]) != (CACHE_VERSION, scale):
            return None
        entries = index["images"]
        shapes = [(int(e["height"]), int(e["width"])) for e in entries]
        if [e["name"] for e in entries] != names:
            return None
        digests = [str(e["sha256"]) for e in entries]
        lr_sizes = [0 if scale == 1 else (h // scale) * (w // scale) for h, w in shapes]
        sizes = [3 * (h * w + less) for (h, w), less in zip(shapes, lr_sizes, strict=True)]
        if payload_path.stat().st_size != sum(sizes):
            return None
        buffer = np.asarray(np.memmap(payload_path, dtype=np.uint8, mode="r"))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    parts = np.split(buffer, np.cumsum(sizes)[:-1])
    if list(map_threads(lambda part: hashlib.sha256(part.data).hexdigest(), parts)) != digests:
        return None
    hr, lr = [], []
    for part, (height, width) in zip(parts, shapes, strict=True):
        whole, rest = np.split(part, [3 * height * width])
        hr.append(whole.reshape(height, width, 3))
        lr.append(rest.reshape(height // scale, width // scale, 3) if scale > 1 else hr[-1])
    fingerprint = _digest([scale, list(zip(names, shapes, digests, strict=True))])
    return TrainingCache(scale, names, hr, lr, fingerprint)


def _digest(content: Any) -> str:
    # With spaces, unlike names.digest: the ids of published runs depend on it.
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
