"""Super-resolution: an image made smaller, back to the image. The default task."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from ..images.cache import TrainingCache
from ..images.degradation import BICUBIC, Decimation
from ..images.sources import DataSource
from .images import ImageTask


class SuperResolution(ImageTask):
    """Patches of training images; quality is PSNR and SSIM of whole test images.

    Args:
        cache: training images; if None, the source's are opened when they are first needed.
        source: where the test images come from; training alone needs none.
        scale: s, unless the cache has one.
        degradation: how LR images are made: bicubic, box (the mean of s x s pixels) or nearest
            (the top left one).
        noise: sigma of Gaussian noise on LR images, of 255.

    Raises:
        UserError: an option is out of range.
    """

    name: ClassVar[str] = "sr"

    def __init__(
        self,
        cache: TrainingCache | None = None,
        source: DataSource | None = None,
        scale: int | None = None,
        *,
        degradation: Literal["bicubic", "box", "nearest"] = "bicubic",
        noise: float = 0.0,
    ) -> None:
        super().__init__(cache, source, scale, Decimation(degradation, noise))
        self.degradation, self.noise = degradation, float(noise)

    @property
    def settings(self) -> dict[str, Any]:
        """All options with their values; none if all are at their defaults.

        So records and ids of bicubic super-resolution do not depend on these options.
        """
        return {} if self.degrade == BICUBIC else super().settings
