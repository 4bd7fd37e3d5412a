"""How inputs are made from images: decimation and Gaussian noise.

Noise is white and Gaussian, with a standard deviation sigma on the scale of 0…255.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import UserError
from .bicubic import downscale
from .files import Pixels

Floats = NDArray[np.float32]
#: How ``--degradation`` makes an LR image smaller.
DECIMATIONS = ("bicubic", "box", "nearest")


class Degradation(ABC):
    """How an input is made from an image. It works on patches and on whole images alike."""

    @property
    def from_bicubic(self) -> bool:
        """Whether the bicubic LR image is used, which a folder may hold."""
        return False

    @abstractmethod
    def pair(
        self, hr: Pixels, lr: Pixels | None, scale: int, generator: np.random.Generator
    ) -> tuple[NDArray[Any], Pixels]:
        """Input and target.

        Args:
            hr: uint8 ``[..., H, W, 3]``, RGB; H and W are multiples of the scale.
            lr: its bicubic LR image, uint8 ``[..., H/scale, W/scale, 3]``. None if it is not used,
                or is to be made; then ``hr`` is one image.
            scale: s.
            generator: draws the noise.

        Returns:
            The input ``[..., H/scale, W/scale, 3]``, uint8 or float32 where 1 stands for 255, and
            the target ``[..., H, W, 3]``.
        """


@dataclass(frozen=True)
class Decimation(Degradation):
    """A smaller image, with noise or without, in 8 bits as a file would hold it.

    Attributes:
        method: ``bicubic`` as in :mod:`.bicubic`; ``box``, the mean of scale x scale pixels,
            rounded half up; ``nearest``, the top left one of them, without antialiasing.
        noise: sigma, 0 to 255; the noisy image is rounded and clipped to 8 bits.

    Raises:
        UserError: a value is out of range.
    """

    method: str = "bicubic"
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in DECIMATIONS:
            raise UserError(
                f"unknown degradation {self.method!r}: choose from {', '.join(DECIMATIONS)}"
            )
        if not 0 <= self.noise <= 255:
            raise UserError(f"noise must be 0 to 255, got {self.noise:g}")

    @property
    def from_bicubic(self) -> bool:
        """As :attr:`Degradation.from_bicubic`."""
        return self.method == "bicubic"

    def pair(
        self, hr: Pixels, lr: Pixels | None, scale: int, generator: np.random.Generator
    ) -> tuple[NDArray[Any], Pixels]:
        """As :meth:`Degradation.pair`; the input is uint8."""
        if self.method == "nearest":
            lr = hr[..., ::scale, ::scale, :]
        elif self.method == "box":
            lr = box(hr, scale)
        elif lr is None:
            lr = downscale(hr, scale)
        if self.noise:
            noisy = lr + self.noise * generator.standard_normal(lr.shape)
            lr = np.clip(np.floor(noisy + 0.5), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(lr), hr


#: What super-resolution does by default.
BICUBIC = Decimation()


@dataclass(frozen=True)
class GreyNoise(Degradation):
    """The grey image with noise, which is neither rounded nor clipped.

    All three channels of input and target are equal.

    Attributes:
        sigma: 1 to 255.

    Raises:
        UserError: a value is out of range.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not 1 <= self.sigma <= 255:
            raise UserError(f"sigma must be 1 to 255, got {self.sigma:g}")

    def pair(
        self, hr: Pixels, lr: Pixels | None, scale: int, generator: np.random.Generator
    ) -> tuple[NDArray[Any], Pixels]:
        """As :meth:`Degradation.pair`; the input is float32."""
        clean = grey(hr)
        noisy = (clean + self.sigma * generator.standard_normal(clean.shape)) / 255
        return _in_three_channels(noisy.astype(np.float32)), _in_three_channels(clean)


def grey(image: Pixels) -> Pixels:
    """Luma of BT.601 in full range: uint8 RGB ``[..., H, W, 3]`` to ``[..., H, W]``.

    It is rounded to 8 bits in Pillow's integers (its mode ``L``), so that an image with three
    equal channels keeps their values.
    """
    red, green, blue = (image[..., channel].astype(np.uint32) for channel in range(3))
    return ((19_595 * red + 38_470 * green + 7_471 * blue + 32_768) >> 16).astype(np.uint8)


def box(hr: Pixels, scale: int) -> Pixels:
    """Mean of scale x scale pixels, rounded half up: ``[..., H, W, C]`` to ``[..., H/s, W/s, C]``.

    Raises:
        ValueError: H or W is not a multiple of the scale.
    """
    *batch, height, width, channels = hr.shape
    cells = hr.reshape(*batch, height // scale, scale, width // scale, scale, channels)
    total, count = cells.sum(axis=(-4, -2), dtype=np.int64), scale * scale
    return ((2 * total + count) // (2 * count)).astype(np.uint8)


def image_generator(test_set: str, name: str) -> np.random.Generator:
    """The generator of a test image's noise: the same in every run and on every machine."""
    text = f"{test_set}/{name}".encode(errors="surrogateescape")
    key = np.frombuffer(hashlib.sha256(text).digest()[:16], dtype="<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def patch_generator(seed: int, step: int) -> np.random.Generator:
    """The generator of the noise on a step's patches, apart from the one that chooses them."""
    key = np.array([seed + 2**32, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _in_three_channels(image: NDArray[Any]) -> NDArray[Any]:
    return np.repeat(image[..., None], 3, axis=-1)
