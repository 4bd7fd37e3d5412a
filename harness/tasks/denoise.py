"""Denoising: a grey image with Gaussian noise, back to the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from ..config.network import NetworkConfig
from ..config.presets import PHOTOGRAPHS, PRESETS, Preset
from ..images.cache import TrainingCache
from ..images.degradation import GreyNoise
from ..images.sources import DataSource
from .images import ImageTask


class Denoise(ImageTask):
    """The grey image in all three channels with the same noise, to the image.

    Noise is neither rounded nor clipped: the convention of DnCNN (Zhang et al., TIP 2017), N3Net
    (Plötz and Roth, NeurIPS 2018) and NLRN (Liu et al., NeurIPS 2018).

    Args:
        cache: training images of scale 1; if None, the source's are opened when first needed.
        source: where the test images come from; training alone needs none.
        scale: 1.
        sigma: standard deviation of the noise, 1 to 255.

    Raises:
        UserError: sigma is out of range.
    """

    name: ClassVar[str] = "denoise"
    fixed_scale: ClassVar[int | None] = 1
    grey: ClassVar[bool] = True
    #: Those of super-resolution with larger patches, and on the CPU with half as many of them; and
    #: the one that docs/photographs.md chooses. Its tiles, with their borders, are of the patch's
    #: size: on larger ones softmax attention is diluted.
    presets: ClassVar[Mapping[str, Preset]] = {
        name: replace(PRESETS[name], patch={1: 48}, batch=batch)
        for name, batch in (("quick", 8), ("small", 8), ("base", 16))
    } | {
        PHOTOGRAPHS: replace(
            PRESETS["small"],
            network=NetworkConfig(blocks=4, channels=32),
            patch={1: 48},
            batch=8,
            steps=3000,
            purpose="a real image folder: attention shows within minutes of a core",
            modules=2,
            res_scale=1.0,
            tile=32,
        )
    }

    def __init__(
        self,
        cache: TrainingCache | None = None,
        source: DataSource | None = None,
        scale: int | None = None,
        *,
        sigma: float = 50.0,
    ) -> None:
        super().__init__(cache, source, scale, GreyNoise(sigma))
        self.sigma = float(sigma)
