"""Super-resolution: an image made smaller by bicubic, back to the image. The default task."""

from __future__ import annotations

from typing import ClassVar

from ..images.cache import TrainingCache
from ..images.patches import sample_batch
from ..images.sources import DataSource
from .base import Batch, Task


class SuperResolution(Task):
    """Patches of training images; quality is PSNR and SSIM of whole test images.

    Args:
        cache: training images.
        source: where the test images come from; training alone needs none.
    """

    name: ClassVar[str] = "sr"

    def __init__(self, cache: TrainingCache, source: DataSource | None = None) -> None:
        self.cache, self._source = cache, source
        self.scale = cache.scale

    @property
    def source(self) -> DataSource:
        """Where the test images come from."""
        if self._source is None:
            raise ValueError("this task has training images only")
        return self._source

    def batch(self, *, seed: int, step: int, batch: int, patch: int) -> Batch:
        """LR and HR patches, uint8: :func:`harness.images.patches.sample_batch`."""
        drawn = sample_batch(
            self.cache, seed=seed, step=step, batch=batch, patch=patch, scale=self.scale
        )
        return Batch(*drawn)
