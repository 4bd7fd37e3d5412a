"""Quality of what networks start from: of bicubic's up-sampling, or of the noisy image."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..base.errors import UserError
from ..base.files import read_json, write_json
from ..base.names import digest
from . import metrics
from .bicubic import upscale
from .cache import cache_folder

if TYPE_CHECKING:
    from .sources import TestImage

#: PSNR in dB of identical images (flat ones, say), instead of infinity.
MAX_PSNR = 100.0
#: Increase it when the quality of bicubic changes for the same pixels.
BICUBIC_VERSION = 1


def bicubic_quality(
    image: TestImage, scale: int, released_psnr: bool = False
) -> tuple[float, float]:
    """PSNR (dB) and SSIM of the bicubic upscaling, rounded as in records.

    Images are measured once: a small file under the cache folder keeps the numbers. Several
    processes may write it, with the same content. If it cannot be written, nothing is kept.
    """
    measure = [BICUBIC_VERSION, version("scikit-image"), scale, released_psnr]
    key = digest([*measure, image_digest(image)])
    path = cache_folder() / "bicubic" / f"{key[:32]}.json"
    with contextlib.suppress(UserError, KeyError, TypeError, ValueError, OverflowError):
        content = read_json(path)
        found = float(content["psnr"]), float(content["ssim"])
        if content["sha256"] == digest([key, *found]):
            return found
    found = rounded_quality(upscale(image.lr, scale), image.hr, scale, released_psnr)
    with contextlib.suppress(UserError):
        psnr, ssim = found
        write_json(path, {"psnr": psnr, "ssim": ssim, "sha256": digest([key, *found])})
    return found


def noisy_quality(image: TestImage) -> tuple[float, float]:
    """PSNR (dB) and SSIM of the noisy grey image, which is not rounded, rounded as in records."""
    return rounded(metrics.grey_quality(image.lr.astype(np.float64) * 255, image.hr))


def released_luma(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Y up to a constant, not rounded, as in the PSNR of EDSR-PyTorch, NLSN and ENLCA."""
    return image @ (np.array([65.738, 129.057, 25.064]) / 256)


def rounded_quality(
    sr: NDArray[np.uint8], hr: NDArray[np.uint8], scale: int, released_psnr: bool
) -> tuple[float, float]:
    """PSNR (dB) and SSIM of a result, rounded as in records."""
    found = metrics.quality(sr, hr, scale)
    if released_psnr:
        found = replace(found, psnr=metrics.psnr(released_luma(sr), released_luma(hr), scale))
    return rounded(found)


def rounded(found: metrics.Quality) -> tuple[float, float]:
    """PSNR (dB), at most :data:`MAX_PSNR`, and SSIM, rounded as in records."""
    return round(min(found.psnr, MAX_PSNR), 6), round(found.ssim, 8)


def image_digest(image: TestImage) -> str:
    """SHA-256 (hex) of name and pixels."""
    sha256 = hashlib.sha256(image.name.encode(errors="surrogateescape"))
    for pixels in (image.lr, image.hr):
        sha256.update(str(pixels.shape).encode())
        sha256.update(np.ascontiguousarray(pixels).data)
    return sha256.hexdigest()
