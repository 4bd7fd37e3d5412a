"""Batches of training patches; a batch depends on the images, seed and step alone."""

from __future__ import annotations

import numpy as np

from ..base.errors import UserError
from .cache import TrainingCache
from .files import Pixels


def check_patch(cache: TrainingCache, patch: int) -> None:
    """Check that every image is large enough for a patch of ``patch`` x ``patch`` LR pixels.

    Raises:
        UserError: an image is smaller.
    """
    for name, hr, lr in zip(cache.names, cache.hr, cache.lr, strict=True):
        if min(lr.shape[:2]) < patch:
            side = patch * cache.scale
            raise UserError(
                f"training image {name} is {hr.shape[1]}x{hr.shape[0]} (cropped to multiples of "
                f"{cache.scale}), smaller than a patch of "
                f"{side}x{side} (LR {patch}x{patch}): remove it or choose a smaller patch"
            )


def sample_batch(
    cache: TrainingCache, *, seed: int, step: int, batch: int, patch: int, scale: int
) -> tuple[Pixels, Pixels]:
    """Cut the training patches of one step: a pure function of its arguments.

    Images, positions and the eight orientations (flips and quarter turns) are drawn uniformly.

    Args:
        seed, step: integers >= 0, the key of the random generator.
        batch: number of patches.
        patch: side of an LR patch; see :func:`check_patch`.
        scale: that of the cache.

    Returns:
        LR ``[batch, patch, patch, 3]`` and HR ``[batch, patch·scale, patch·scale, 3]``, uint8.

    Raises:
        ValueError: ``scale`` is not that of the cache.
    """
    if scale != cache.scale:
        raise ValueError(f"the cache holds images of scale {cache.scale}, not {scale}")
    key = np.array([seed, step], dtype=np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    images = rng.integers(len(cache), size=batch)
    room = np.array([cache.lr[i].shape[:2] for i in images]) - patch + 1
    corners = rng.integers(room)
    orientations = rng.integers(8, size=batch)
    lr = np.empty((batch, patch, patch, 3), dtype=np.uint8)
    hr = np.empty((batch, patch * scale, patch * scale, 3), dtype=np.uint8)
    for n, (i, (top, left), o) in enumerate(zip(images, corners, orientations, strict=True)):
        _copy_oriented(cache.lr[i], top, left, o, lr[n])
        _copy_oriented(cache.hr[i], top * scale, left * scale, o, hr[n])
    return lr, hr


def _copy_oriented(image: Pixels, top: int, left: int, orientation: int, out: Pixels) -> None:
    """Copy a square in one of its eight orientations; the bits are two flips and a transpose."""
    side = len(out)
    patch = image[top : top + side, left : left + side]
    if orientation & 1:
        patch = patch[:, ::-1]
    if orientation & 2:
        patch = patch[::-1]
    if orientation & 4:
        patch = patch.swapaxes(0, 1)
    for channel in range(3):  # five times as fast as copying whole pixels
        out[..., channel] = patch[..., channel]
