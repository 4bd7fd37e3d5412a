"""Whether a run was evaluated on the test images that are there now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .shapes import UNSET, Quality, Run, differ, input_qualities


class Images(Protocol):
    """The test images that are there now: a task on image files."""

    def test_sha256(self, name: str) -> str:
        """Digest of a test set."""

    def input_qualities(self, name: str) -> Mapping[str, tuple[float, float]]:
        """PSNR and SSIM of each image's input: of bicubic, or of the noisy image."""


def changed_sets(run: Run, images: Images) -> list[str]:
    """The run's test sets whose images are not those that its numbers were measured on.

    Records hold a digest of the images. Older ones do not: there names, PSNR and SSIM of the
    inputs identify them.

    Raises:
        UserError: a test image is unreadable, too small, or has the name of another.
    """
    return [name for name, found in run.quality.items() if not _is_same(found, images, name)]


def _is_same(found: Quality, images: Images, name: str) -> bool:
    if found.sha256 is not UNSET:
        return found.sha256 == images.test_sha256(name)
    known, now = input_qualities(found), images.input_qualities(name)
    if known.keys() != now.keys():
        return False
    return not any(differ(known[key], now[key]) for key in known)
