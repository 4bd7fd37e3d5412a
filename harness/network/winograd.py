"""3x3 convolution with zero padding by Winograd's F(2x2, 3x3), in C, for the CPU.

torch's library computes every one of the 36 products of 2x2 outputs; Winograd's algorithm needs 16
(Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016). GPU libraries use it
for small kernels too. Results differ by rounding.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention_zoo.cores.native import WIDTH, library, why_not_native
from attention_zoo.cores.tiles import num_workers, scratch, share_tiles

_SOURCE = Path(__file__).with_suffix(".c")
#: G of F(2x2, 3x3): a kernel g becomes ``G g Gᵀ``.
_G = torch.tensor(
    [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float32, device="cpu"
)
_KERNEL = torch.kron(_G, _G)
# Fewer MACs are not worth a second thread.
_FEW_MACS = 2**20


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution, differentiable once.

    Args:
        x: ``[B, C, H, W]``, float32, channels-last; C and outputs are multiples of 16.
        weight: ``[outputs, C, 3, 3]``.
        bias: ``[outputs]``.

    Returns:
        ``[B, outputs, H, W]``, channels-last.

    Raises:
        RuntimeError: the kernel cannot run, see :func:`why_not`.
    """
    out: Tensor = _Winograd.apply(x, weight, bias)
    return out


def why_not(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    """Why the kernel cannot run on these; None if it can. The first use compiles it."""
    if reason := why_not_native(bias, weight, x, sources=(_SOURCE,)):
        return reason
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return "convolution in C is in float32"
    if not rows_on_cpu(x):
        return "convolution in C takes channels-last maps"
    if any(count % WIDTH for count in weight.shape[:2]):
        return f"convolution in C takes multiples of {WIDTH} channels"
    return None


def rows_on_cpu(x: Tensor) -> bool:
    """Whether x is channels-last on the CPU, and not NCHW as well."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return x.device.type == "cpu" and channels_last and not x.is_contiguous()


class _Winograd(torch.autograd.Function):
    """Winograd's F(2x2, 3x3), forward and backward; ``[B, H, W, ·]`` inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        # Gradients of the inputs are gradients of the outputs, convolved with the flipped kernels.
        turned = weight.flip(2, 3).transpose(0, 1)
        grad_x = _convolve(grad, turned, None) if needs_x else None
        grad_weight = _grad_weight(x, grad) if needs_weight else None
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if needs_bias else None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    maps = x.permute(0, 2, 3, 1)
    outputs = weight.shape[0]
    weights = _transform(weight)
    # Not a view: a ReLU in place may overwrite it.
    shape = (x.shape[0], outputs, *x.shape[2:])
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows = out.permute(0, 2, 3, 1)

    def convolve(_: int) -> Callable[[slice], None]:
        workspace = _workspace(maps, outputs)
        return lambda tiles: _convolve_tiles(maps, weights, bias, rows, tiles, workspace)

    share_tiles(_pieces(maps, outputs), x.device, convolve, own_threads=True)
    return out


def _grad_weight(x: Tensor, grad: Tensor) -> Tensor:
    maps, grads = (t.permute(0, 2, 3, 1) for t in (x, grad))
    inputs, outputs = maps.shape[3], grads.shape[3]
    # One piece for each worker: its result is large.
    pieces = _pieces(maps, outputs, 1)
    found = maps.new_empty(len(pieces), 16, inputs, outputs)

    def add(_: int) -> Callable[[tuple[int, slice]], None]:
        workspace = _workspace(maps, outputs)
        return lambda tile: _grad_weight_tiles(maps, grads, found[tile[0]], tile[1], workspace)

    share_tiles(list(enumerate(pieces)), x.device, add, own_threads=True)
    grad_weight = _transform_back(found.sum(0))
    return grad_weight.contiguous(memory_format=torch.channels_last)


def _pieces(maps: Tensor, outputs: int, of_worker: int = 4) -> list[slice]:
    """Tiles of maps ``[B, H, W, C]``, in so many pieces for each worker."""
    count = _tiles_of(maps)
    many = maps.numel() * 9 * outputs >= _FEW_MACS
    workers = num_workers(maps.device, own_threads=True) if many else 1
    step = math.ceil(count / (of_worker * workers if workers > 1 else 1))
    return [slice(i, min(i + step, count)) for i in range(0, count, step)]


class _Map(ctypes.Structure):
    """A map ``[B, H, W, C]``, ``struct map`` of ``winograd.c``; it keeps no memory alive."""

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
    found = library(_SOURCE)
    size, memory, place = ctypes.c_ssize_t, ctypes.c_void_p, ctypes.POINTER(_Map)
    found.winograd_workspace.argtypes, found.winograd_workspace.restype = [size] * 2, size
    for name, arguments in (
        ("winograd_convolve", [place, memory, memory, place]),
        ("winograd_grad_weights", [place, place, memory]),
    ):
        function = getattr(found, name)
        function.argtypes, function.restype = [*arguments, size, size, memory], None
    return found


def _workspace(maps: Tensor, outputs: int) -> Tensor:
    """Memory of the calling thread for the functions below, for maps ``[B, H, W, C]``."""
    size = int(_functions().winograd_workspace(maps.shape[3], outputs))
    return scratch("native", maps, size)


def _tiles_of(x: Tensor) -> int:
    """Tiles of 2x2 outputs in maps ``[B, H, W, C]``, the last of a row or column perhaps half."""
    batch, height, width, _ = x.shape
    return batch * ((height + 1) // 2) * ((width + 1) // 2)


def _transform(weight: Tensor) -> Tensor:
    """Kernels ``[outputs, inputs, 3, 3]`` to ``G g Gᵀ`` of each, ``[16, inputs, outputs]``."""
    outputs, inputs = weight.shape[:2]
    kernels = torch.mm(weight.reshape(outputs * inputs, 9), _KERNEL.T)
    return kernels.view(outputs, inputs, 16).permute(2, 1, 0).contiguous()


def _transform_back(grad_weights: Tensor) -> Tensor:
    """Gradients of the result of :func:`_transform` to gradients of the kernels."""
    _, inputs, outputs = grad_weights.shape
    kernels = grad_weights.permute(2, 1, 0).reshape(outputs * inputs, 16)
    return torch.mm(kernels, _KERNEL).view(outputs, inputs, 3, 3)


def _convolve_tiles(
    x: Tensor, weights: Tensor, bias: Tensor | None, y: Tensor, tiles: slice, workspace: Tensor
) -> None:
    """Some tiles of a convolution.

    Args:
        x: inputs ``[B, H, W, C]``; C and the outputs are multiples of ``native.WIDTH``.
        weights: from :func:`_transform`.
        bias: of the outputs.
        y: receives the outputs ``[B, H, W, outputs]``.
        tiles: slice of the tiles, of :func:`_tiles_of`.
        workspace: from :func:`_workspace`, overwritten.
    """
    add = None if bias is None else bias.data_ptr()
    span = (tiles.start, tiles.stop - tiles.start)
    function = _functions().winograd_convolve
    function(_Map(x), weights.data_ptr(), add, _Map(y), *span, workspace.data_ptr())


def _grad_weight_tiles(
    x: Tensor, grad: Tensor, found: Tensor, tiles: slice, workspace: Tensor
) -> None:
    """Gradients of the weights, from some tiles.

    Args:
        x: inputs ``[B, H, W, C]``.
        grad: gradients of the outputs ``[B, H, W, outputs]``.
        found: receives the gradients ``[16, C, outputs]``.
        tiles: slice of the tiles, of :func:`_tiles_of`.
        workspace: from :func:`_workspace`, overwritten.
    """
    span = (tiles.start, tiles.stop - tiles.start)
    function = _functions().winograd_grad_weights
    function(_Map(x), _Map(grad), found.data_ptr(), *span, workspace.data_ptr())
