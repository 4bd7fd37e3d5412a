"""3x3 convolutions of the backbone: torch's, or on the CPU by :mod:`.winograd`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.cores.tiles import num_workers, share_tiles, split_tiles
from attention_zoo.implementations import implementation, register_core, run

from . import winograd
from .winograd import rows_on_cpu


class UpsamplingConv(nn.Conv2d):
    """3x3 convolution to factor² · C channels and pixel shuffle.

    For channels-last maps on the CPU the convolution's outputs are ordered by subpixel, then
    channel, so that the shuffle copies runs of factor · C numbers instead of single numbers.

    Args:
        channels: C, of input and output.
        factor: of the height and the width.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__(channels, factor**2 * channels, 3, padding=1)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, factor · H, factor · W]``."""
        factor, channels = self.factor, self.in_channels
        if not rows_on_cpu(x):
            return F.pixel_shuffle(super().forward(x), factor)
        assert self.bias is not None
        weight, bias = (
            t.unflatten(0, (channels, factor**2)).transpose(0, 1).flatten(0, 1)
            for t in (self.weight, self.bias)
        )
        y = conv3x3(x, weight, bias).permute(0, 2, 3, 1)
        y = y.unflatten(3, (factor, factor, channels)).transpose(2, 3)
        return y.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class NarrowConv(nn.Conv2d):
    """3x3 convolution to a few channels.

    A convolution to 3 channels leaves most of a CPU's vector lanes idle. For channels-last maps in
    float32 on the CPU, the 9 · 3 products of every position are one matrix product, whose planes
    are then shifted and summed.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, out_channels, H, W]``."""
        plain = not rows_on_cpu(x) or x.dtype != torch.float32 or torch.jit.is_tracing()
        if plain or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return _ShiftedSums.apply(x, self.weight, self.bias)


# Products of a tile: 4 MB.
_PRODUCTS = 2**20
_Rows = tuple[slice, slice]


class _ShiftedSums(torch.autograd.Function):
    """3x3 convolution with zero padding, by one product for all taps.

    Tiles are small images together, or rows of a large one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        outputs = weight.shape[0]
        taps = weight.detach().permute(2, 3, 0, 1).reshape(9 * outputs, channels)
        images = x.detach().permute(0, 2, 3, 1)
        out = x.new_empty(batch, outputs, height, width)

        def worker(_: int) -> Callable[[_Rows], None]:
            def convolve(tile: _Rows) -> None:
                rows = slice(tile[1].start, min(tile[1].stop, height))
                above, below = max(rows.start - 1, 0), min(rows.stop + 1, height)
                inputs = images[tile[0], above:below]
                planes = torch.mm(taps, inputs.reshape(-1, channels).T)
                planes = planes.view(3, 3, outputs, len(inputs), below - above, width)
                sums = out[tile[0], :, rows].transpose(0, 1)
                sums.copy_(bias.detach().view(-1, 1, 1, 1).expand_as(sums))
                for i in range(3):
                    to = slice(max(rows.start, 1 - i), min(rows.stop, height + 1 - i))
                    of = slice(to.start + i - 1 - above, to.stop + i - 1 - above)
                    to = slice(to.start - rows.start, to.stop - rows.start)
                    for j in range(3):
                        left, right = max(0, 1 - j), min(width, width + 1 - j)
                        shifted = planes[i, j, ..., of, left + j - 1 : right + j - 1]
                        sums[..., to, left:right] += shifted

            return convolve

        share_tiles(_tiles(x, outputs), x.device, worker)
        ctx.save_for_backward(x, weight)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        _, channels, _, width = x.shape
        outputs = weight.shape[0]
        taps = weight.permute(2, 3, 0, 1).reshape(9 * outputs, channels)
        images = x.permute(0, 2, 3, 1)
        padded = F.pad(grad.contiguous(), (1, 1, 1, 1)).transpose(0, 1)
        grad_images = torch.empty_like(images)
        tiles = [(i, *tile) for i, tile in enumerate(_tiles(x, outputs))]
        parts = x.new_empty(len(tiles), 9 * outputs, channels)

        def worker(_: int) -> Callable[[tuple[int, slice, slice]], None]:
            def add(tile: tuple[int, slice, slice]) -> None:
                index, group, rows = tile
                inputs = images[group, rows]
                first, count = rows.start, inputs.shape[1]
                planes = padded.new_empty(3, 3, outputs, len(inputs), count, width)
                for i in range(3):
                    for j in range(3):
                        top, left = first + 2 - i, 2 - j
                        planes[i, j] = padded[:, group, top : top + count, left : left + width]
                grad_taps = planes.view(9 * outputs, -1)
                torch.mm(grad_taps, inputs.reshape(-1, channels), out=parts[index])
                to = grad_images[group, rows].view(-1, channels)
                torch.mm(grad_taps.T, taps, out=to)

            return add

        share_tiles(tiles, x.device, worker)
        grad_weight = parts.sum(0).view(3, 3, outputs, channels).permute(2, 3, 0, 1)
        grad_weight = grad_weight.contiguous(memory_format=torch.channels_last)
        return grad_images.permute(0, 3, 1, 2), grad_weight, grad.sum((0, 2, 3))


def _tiles(x: Tensor, outputs: int) -> list[_Rows]:
    """Tiles (images, rows) of ``[B, C, H, W]``."""
    batch, _, height, width = x.shape
    size = 9 * outputs * width
    return split_tiles(batch, height, size, _PRODUCTS, num_workers(x.device))[0]


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution with zero padding.

    Args:
        x: ``[B, C, H, W]``.
        weight: ``[outputs, C, 3, 3]``.
        bias: ``[outputs]``.

    Returns:
        ``[B, outputs, H, W]``.

    Raises:
        AttentionError: the chosen implementation cannot run on these.

    Implementations (of ``conv3x3``): ``native``, and torch's, named ``reference`` and ``released``.
    ``auto`` is native on the CPU where it can run (in float32, channels-last, C and outputs
    multiples of 16), else reference.
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


register_core(
    "conv3x3", lambda *args: "reference" if winograd.why_not(*args) else "native", auxiliary=True
)
implementation("conv3x3", "native", winograd.why_not)(winograd.convolve)


@implementation("conv3x3", "released")  # the authors' code calls torch's too
@implementation("conv3x3", "reference")
def _by_torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)
