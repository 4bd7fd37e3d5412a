"""Where a network's quality comes from: self-similar parts of images, and non-local use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor

from ..images.files import Pixels
from ..images.inputs import MAX_PSNR
from ..images.metrics import psnr, rgb_to_y
from ..images.sources import TestImage
from ..network.edsr import EDSR
from ..records.shapes import ImageQuality
from .quality import restore
from .recurrence import self_similar
from .tasks import attention_as_mean
from .windows import batches

#: Least share of an image that must be self-similar for a PSNR of that part.
LEAST_SHARE = 0.01
# Most positions of one batch of windows.
_POSITIONS = 2**16


@dataclass(frozen=True)
class Analysis:
    """What is measured of a network on an image beside its quality.

    Attributes:
        network: in evaluation mode.
        scale: s.
        reach: of its convolutions in input pixels.
        grey: denoising: no border is cropped.
        self_similar: PSNR of the part whose patches recur beyond the reach.
        non_local_use: PSNR lost when attention is replaced or confined.
    """

    network: EDSR
    scale: int
    reach: int
    grey: bool
    self_similar: bool
    non_local_use: bool

    def __call__(self, image: TestImage, output: Pixels, row: ImageQuality) -> ImageQuality:
        """The row with what is measured.

        Args:
            image: the test image.
            output: what the network made of it.
            row: its quality.

        Raises:
            UserError: as :func:`.quality.restore`.
        """
        if self.self_similar:
            mask = self_similar(image.hr, self.scale, self.reach)
            found, share = self._within(image, output, mask)
            row = replace(row, self_similar_psnr=found, self_similar_share=round(share, 6))
        if self.non_local_use:
            row = replace(
                row,
                lost_as_mean=self._lost(image, output, row, attention_as_mean(self.network)),
                lost_confined=self._lost(
                    image, output, row, attention_confined(self.network, self.reach)
                ),
            )
        return row

    def _lost(
        self,
        image: TestImage,
        output: Pixels,
        row: ImageQuality,
        changed: AbstractContextManager[None],
    ) -> float:
        """PSNR that the network loses with its attention changed; 0 without attention."""
        if not self.network.attention_modules:
            return 0.0
        with changed:
            other, _ = restore(self.network, image, self.scale, row.tile, grey=self.grey)
        return round(self._psnr(image, output) - self._psnr(image, other), 6)

    def _lumas(self, image: TestImage, output: Pixels) -> tuple[Pixels, Pixels, int]:
        """Lumas of the output and of the image, and the border that is cropped."""
        if self.grey:
            return output[..., 0], image.hr[..., 0], 0
        return rgb_to_y(output), rgb_to_y(image.hr), self.scale

    def _psnr(self, image: TestImage, output: Pixels) -> float:
        return min(psnr(*self._lumas(image, output)), MAX_PSNR)

    def _within(
        self, image: TestImage, output: Pixels, mask: NDArray[np.bool_]
    ) -> tuple[float | None, float]:
        """PSNR of the part, None if it is too small, and its share of the pixels that count."""
        a, b, border = self._lumas(image, output)
        inside = slice(border, -border or None)
        part = mask[inside, inside]
        share = float(part.mean())
        if share < LEAST_SHARE:
            return None, share
        ours, clean = (luma[inside, inside][part][None] for luma in (a, b))
        return round(min(psnr(ours, clean, 0), MAX_PSNR), 6), share


@contextmanager
def attention_confined(network: EDSR, reach: int) -> Iterator[None]:
    """Let no position of the modules see farther than the reach within the block."""
    try:
        for module in network.attention_modules:
            module.__dict__["forward"] = partial(confined, module.forward, reach=reach)
        yield
    finally:
        for module in network.attention_modules:
            module.__dict__.pop("forward", None)


def confined(module: Callable[[Tensor], Tensor], x: Tensor, reach: int) -> Tensor:
    """A module applied to windows, so that nothing beyond the reach enters.

    The map is cut into tiles with sides of half the reach. Each is computed from a window around
    it, which ends one reach from the tile's farthest position, or at the map's edge. So a position
    sees all that is within half the reach, and nothing beyond the reach.

    Args:
        module: ``[B, C, H, W]`` to the same shape, any B, H and W.
        x: ``[B, C, H, W]``.
        reach: in height and in width, at least 1.

    Returns:
        ``[B, C, H, W]``.
    """
    images, _, height, width = x.shape
    tile = max(1, reach // 2)
    y = torch.empty_like(x)
    for batch in batches(height, width, tile, reach - tile + 1, _POSITIONS // images):
        parts = torch.cat([x[:, :, r.window, c.window] for r, c in batch])
        for (r, c), found in zip(batch, module(parts).split(images), strict=True):
            y[:, :, r.tile(), c.tile()] = found[:, :, r.inside(), c.inside()]
    return y
