"""Tasks on image files: what super-resolution and denoising share."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from ..config.presets import PRESETS, Preset
from ..images.cache import TrainingCache
from ..images.degradation import BICUBIC, Degradation, patch_generator
from ..images.inputs import bicubic_quality, noisy_quality
from ..images.patches import sample_batch
from ..images.sources import DataSource, TestSet
from .base import Batch, Task
from .matches import find_matches


class ImageTask(Task):
    """Patches of training images; quality is PSNR and SSIM of whole test images.

    Args:
        cache: training images; if None, the source's are opened when they are first needed.
        source: where the test images come from; training alone needs none.
        scale: s, unless the cache has one.
        degrade: how inputs are made.
    """

    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    #: The task's only scale; None where the command chooses one.
    fixed_scale: ClassVar[int | None] = None
    #: Whether images are grey: the result is the mean of the output's channels, and PSNR is that
    #: of the whole image.
    grey: ClassVar[bool] = False

    def __init__(
        self,
        cache: TrainingCache | None = None,
        source: DataSource | None = None,
        scale: int | None = None,
        degrade: Degradation = BICUBIC,
    ) -> None:
        self._cache, self._source, self.degrade = cache, source, degrade
        found = cache.scale if cache else scale or self.fixed_scale
        if found is None:
            raise ValueError("a task without training images needs a scale")
        self.scale = found
        self._reach: int | None = None
        self._test_sha256: dict[str, str] = {}
        self._inputs: dict[str, dict[str, tuple[float, float]]] = {}

    @property
    def source(self) -> DataSource:
        """Where the test images come from."""
        if self._source is None:
            raise ValueError("this task has training images only")
        return self._source

    @property
    def cache(self) -> TrainingCache:
        """Training images.

        Raises:
            UserError: as :meth:`.DataSource.training_images`, when they are first opened.
        """
        if self._cache is None:
            self._cache = self.source.training_images(self.scale)
        return self._cache

    def test_set(self, name: str) -> TestSet:
        """A test set of the source, with this task's inputs.

        Raises:
            UserError: there is none of that name.
        """
        return self.source.test_set(name, self.scale, self.degrade)

    def test_sha256(self, name: str) -> str:
        """Digest of a test set, whose images are decoded and checked once.

        Raises:
            UserError: there is none of that name, an image is unreadable or too small, an LR file
                does not fit, or two images have one name.
        """
        if name not in self._test_sha256:
            self._test_sha256[name] = self.test_set(name).sha256()
        return self._test_sha256[name]

    def input_qualities(self, name: str) -> dict[str, tuple[float, float]]:
        """PSNR and SSIM of bicubic, or of the noisy image, for each image of a test set.

        Raises:
            UserError: as :meth:`test_sha256`.
        """
        if name not in self._inputs:
            self._inputs[name] = {
                image.name: noisy_quality(image)
                if self.grey
                else bicubic_quality(image, self.scale)
                for image in self.test_set(name)
            }
        return self._inputs[name]

    @property
    def settings(self) -> dict[str, Any]:
        """All options with their values; none where records hold no task: default ``sr``."""
        return {name: getattr(self, name) for name in self.options()}

    def with_references(self, reach: int) -> Self:
        """This task with the references of :func:`.matches.find_matches` in its batches."""
        told = copy.copy(self)
        told._reach = reach
        return told

    def batch(self, *, seed: int, step: int, batch: int, patch: int) -> Batch:
        """Patches of :func:`harness.images.patches.sample_batch`, degraded as the task says."""
        lr, hr = sample_batch(
            self.cache, seed=seed, step=step, batch=batch, patch=patch, scale=self.scale
        )
        inputs, targets = self.degrade.pair(hr, lr, self.scale, patch_generator(seed, step))
        if self._reach is None:
            return Batch(inputs, targets)
        return Batch(inputs, targets, find_matches(targets, self.scale, self._reach))
