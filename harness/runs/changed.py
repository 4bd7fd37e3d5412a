"""Whether a finished run was evaluated on the test images that are there now."""

from __future__ import annotations

import functools

from ..images.sources import TestImage
from ..measuring.quality import bicubic_quality, noisy_quality
from ..records.shapes import UNSET, Quality, Run, differ, input_qualities
from ..tasks.base import Task
from ..tasks.images import ImageTask


def changed_sets(record: Run, task: Task) -> list[str]:
    """The record's test sets whose images are not those that its numbers were measured on.

    Records hold a digest of the images. Older ones do not: there names, PSNR and SSIM of the
    inputs (bicubic's, or the noisy image's) identify them.

    Raises:
        UserError: a test image is unreadable, too small, or has the name of another.
    """
    if not isinstance(task, ImageTask):
        return []
    return [name for name, found in record.quality.items() if not _is_same(found, task, name)]


def _is_same(found: Quality, task: ImageTask, name: str) -> bool:
    if found.sha256 is not UNSET:
        return found.sha256 == task.test_sha256(name)
    known, now = input_qualities(found), _input_qualities(task, name)
    if known.keys() != now.keys():
        return False
    return not any(differ(known[key], now[key]) for key in known)


@functools.lru_cache(maxsize=32)  # many records are of the same images
def _input_qualities(task: ImageTask, name: str) -> dict[str, tuple[float, float]]:
    return {image.name: _input_quality(task, image) for image in task.test_set(name)}


def _input_quality(task: ImageTask, image: TestImage) -> tuple[float, float]:
    return noisy_quality(image) if task.grey else bicubic_quality(image, task.scale)
