"""3x3 convolution with zero padding, by ``winograd.c``. Maps are float32 and in one piece."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import library

#: G of F(2x2, 3x3): a kernel g becomes ``G g Gᵀ``.
_G = torch.tensor(
    [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float32, device="cpu"
)
_KERNEL = torch.kron(_G, _G)


class Map(ctypes.Structure):
    """A map ``[B, H, W, C]``, as ``struct map`` in ``winograd.c``; it keeps no memory alive."""

    _fields_ = (
        ("at", ctypes.c_void_p),
        ("height", ctypes.c_ssize_t),
        ("width", ctypes.c_ssize_t),
        ("channels", ctypes.c_ssize_t),
    )

    def __init__(self, x: Tensor) -> None:
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        super().__init__(x.data_ptr(), *x.shape[1:])


@cache
def _functions() -> Any:
    found = library()
    size, memory, place = ctypes.c_ssize_t, ctypes.c_void_p, ctypes.POINTER(Map)
    found.winograd_space.argtypes, found.winograd_space.restype = [size] * 2, size
    for name, arguments in (
        ("winograd_convolve", [place, memory, memory, place]),
        ("winograd_by_weights", [place, place, memory]),
    ):
        function = getattr(found, name)
        function.argtypes, function.restype = [*arguments, size, size, memory], None
    return found


def space_of(inputs: int, outputs: int) -> int:
    """Numbers in float32 of the memory that the functions take."""
    return int(_functions().winograd_space(inputs, outputs))


def tiles_of(x: Tensor) -> int:
    """Tiles of 2x2 outputs in maps ``[B, H, W, C]``, the last of a row or column perhaps half."""
    batch, height, width, _ = x.shape
    return batch * ((height + 1) // 2) * ((width + 1) // 2)


def transform(weight: Tensor) -> Tensor:
    """Kernels ``[outputs, inputs, 3, 3]`` for :func:`convolve`: ``[16, inputs, outputs]``."""
    outputs, inputs = weight.shape[:2]
    kernels = torch.mm(weight.reshape(outputs * inputs, 9), _KERNEL.T)
    return kernels.view(outputs, inputs, 16).permute(2, 1, 0).contiguous()


def transform_back(by_weights: Tensor) -> Tensor:
    """Gradients by what :func:`transform` gives become those by kernels."""
    _, inputs, outputs = by_weights.shape
    kernels = by_weights.permute(2, 1, 0).reshape(outputs * inputs, 16)
    return torch.mm(kernels, _KERNEL).view(outputs, inputs, 3, 3)


def convolve(
    x: Tensor, weights: Tensor, bias: Tensor | None, y: Tensor, tiles: slice, space: Tensor
) -> None:
    """Some tiles of a convolution.

    Args:
        x: inputs ``[B, H, W, C]``; C and the outputs are multiples of ``native.WIDTH``.
        weights: from :func:`transform`.
        bias: of the outputs.
        y: receives the outputs ``[B, H, W, outputs]``.
        tiles: which ones, of :func:`tiles_of`.
        space: overwritten, of :func:`space_of` numbers.
    """
    add = None if bias is None else bias.data_ptr()
    span = (tiles.start, tiles.stop - tiles.start)
    function = _functions().winograd_convolve
    function(Map(x), weights.data_ptr(), add, Map(y), *span, space.data_ptr())


def by_weights(x: Tensor, grad: Tensor, found: Tensor, tiles: slice, space: Tensor) -> None:
    """Gradients of some tiles by the weights.

    Args:
        x: inputs ``[B, H, W, C]``.
        grad: gradients by the outputs ``[B, H, W, outputs]``.
        found: receives the gradients ``[16, C, outputs]``.
        tiles: which ones, of :func:`tiles_of`.
        space: overwritten, of :func:`space_of` numbers.
    """
    span = (tiles.start, tiles.stop - tiles.start)
    function = _functions().winograd_by_weights
    function(Map(x), Map(grad), found.data_ptr(), *span, space.data_ptr())
