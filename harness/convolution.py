"""3x3 convolution of the backbone: torch's, or on the CPU by Winograd's algorithm in C.

On the CPU torch's library computes every one of the 36 products of 2x2 outputs; Winograd's
F(2x2, 3x3) (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016), which
GPU libraries use for small kernels as well, needs 16. Results differ by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.implementations import implementation, register_core, run
from attention_zoo.native import WIDTH, why_not_native
from attention_zoo.native import winograd as native
from attention_zoo.tiles import num_workers, scratch, share_tiles

# Fewer products are not worth a second thread.
_FEW_MACS = 2**20


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution with zero padding.

    Args:
        x: ``[B, C, H, W]``.
        weight: ``[outputs, C, 3, 3]``.
        bias: ``[outputs]``.

    Returns:
        ``[B, outputs, H, W]``.

    Raises:
        AttentionError: an implementation was chosen that cannot run on these.

    Implementations (of ``conv3x3``): ``native``, ``reference``, which is torch's; ``auto`` is
    native on the CPU where it can run: in float32, channels-last, C and outputs multiples of 16.
    """
    return run("conv3x3", x, weight, bias)


class Conv3x3(nn.Conv2d):
    """:func:`conv3x3` as a layer."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, out_channels, H, W]``."""
        assert self.bias is not None
        return conv3x3(x, self.weight, self.bias)


def rows_on_cpu(x: Tensor) -> bool:
    """Whether x is channels-last on the CPU, and not NCHW as well."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return x.device.type == "cpu" and channels_last and not x.is_contiguous()


def _why_not_native(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    if reason := why_not_native(bias, weight, x):
        return reason
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return "convolution in C is in float32"
    if not rows_on_cpu(x):
        return "convolution in C takes channels-last maps"
    if any(count % WIDTH for count in weight.shape[:2]):
        return f"convolution in C takes multiples of {WIDTH} channels"
    return None


register_core("conv3x3", lambda *args: "reference" if _why_not_native(*args) else "native")


@implementation("conv3x3", "reference")
def _by_torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


@implementation("conv3x3", "native", _why_not_native)
def _native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out: Tensor = _Winograd.apply(x, weight, bias)
    return out


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
        # Convolved with the kernels turned round, gradients go back to the inputs.
        turned = weight.flip(2, 3).transpose(0, 1)
        by_x = _convolve(grad, turned, None) if needs_x else None
        by_weight = _by_weight(x, grad) if needs_weight else None
        return by_x, by_weight, grad.sum((0, 2, 3)) if needs_bias else None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    maps = x.permute(0, 2, 3, 1)
    outputs, inputs = weight.shape[:2]
    weights = native.transform(weight)
    # No view, which could not be overwritten, as by a ReLU in place.
    shape = (x.shape[0], outputs, *x.shape[2:])
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows = out.permute(0, 2, 3, 1)

    def convolve(_: int) -> Callable[[slice], None]:
        space = scratch("native", maps, native.space_of(inputs, outputs))
        return lambda tiles: native.convolve(maps, weights, bias, rows, tiles, space)

    share_tiles(_pieces(maps, outputs), x.device, convolve, own_threads=True)
    return out


def _by_weight(x: Tensor, grad: Tensor) -> Tensor:
    maps, grads = (t.permute(0, 2, 3, 1) for t in (x, grad))
    inputs, outputs = maps.shape[3], grads.shape[3]
    # One piece for each worker: what it finds is large.
    pieces = _pieces(maps, outputs, 1)
    found = maps.new_empty(len(pieces), 16, inputs, outputs)

    def add(_: int) -> Callable[[tuple[int, slice]], None]:
        space = scratch("native", maps, native.space_of(inputs, outputs))
        return lambda tile: native.by_weights(maps, grads, found[tile[0]], tile[1], space)

    share_tiles(list(enumerate(pieces)), x.device, add, own_threads=True)
    by_weight = native.transform_back(found.sum(0))
    return by_weight.contiguous(memory_format=torch.channels_last)


def _pieces(maps: Tensor, outputs: int, of_worker: int = 4) -> list[slice]:
    """Tiles of maps ``[B, H, W, C]`` in pieces, so many for each worker."""
    count = native.tiles_of(maps)
    many = maps.numel() * 9 * outputs >= _FEW_MACS
    workers = num_workers(maps.device, own_threads=True) if many else 1
    step = math.ceil(count / (of_worker * workers if workers > 1 else 1))
    return [slice(i, min(i + step, count)) for i in range(0, count, step)]
