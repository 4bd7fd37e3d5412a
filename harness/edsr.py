"""The EDSR backbone (Lim et al., CVPRW 2017) with places for attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo import Attention
from attention_zoo.tiles import cut, num_workers, share_tiles

from .config import Variant
from .convolution import Conv3x3, conv3x3, rows_on_cpu

#: Mean RGB of DIV2K in 0…1, subtracted from the input and added to the output.
RGB_MEAN = (0.4488, 0.4371, 0.4040)


class ResidualBlock(nn.Module):
    """``u + res_scale · conv(relu(conv(u)))``, without batch normalisation."""

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.conv1 = Conv3x3(channels, channels)
        self.conv2 = Conv3x3(channels, channels)
        self.res_scale = res_scale

    def forward(self, u: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        y = self.conv2(torch.relu_(self.conv1(u)))
        return torch.add(u, y, alpha=self.res_scale)


class UpsamplingConv(nn.Conv2d):
    """3x3 convolution to factor² · C channels and pixel shuffle.

    Channels-last on the CPU, the convolution's outputs are ordered by subpixel, then channel: the
    shuffle then copies runs of factor · C numbers instead of single ones.

    Args:
        channels: C, of input and output.
        factor: height and width grow by it.
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

    A convolution to 3 channels leaves most of a CPU's vector lanes idle. Channels-last in float32
    on the CPU, the 9 · 3 products of every position are one matrix product, whose planes are then
    shifted and summed.
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
    """3x3 convolution with zero padding, by one product for all taps; tiles are rows of images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        outputs = weight.shape[0]
        taps = weight.detach().permute(2, 3, 0, 1).reshape(9 * outputs, channels)
        images = x.detach().permute(0, 2, 3, 1)
        out = x.new_empty(batch, outputs, height, width)

        def worker(_: int) -> Callable[[_Rows], None]:
            def convolve(tile: _Rows) -> None:
                image, rows = tile[0].start, tile[1]
                rows = slice(rows.start, min(rows.stop, height))
                above, below = max(rows.start - 1, 0), min(rows.stop + 1, height)
                inputs = images[image, above:below].reshape(-1, channels)
                planes = torch.mm(taps, inputs.T).view(3, 3, outputs, below - above, width)
                sums = out[image, :, rows]
                sums.copy_(bias.detach().view(-1, 1, 1).expand_as(sums))
                for i in range(3):
                    to = slice(max(rows.start, 1 - i), min(rows.stop, height + 1 - i))
                    of = slice(to.start + i - 1 - above, to.stop + i - 1 - above)
                    to = slice(to.start - rows.start, to.stop - rows.start)
                    for j in range(3):
                        left, right = max(0, 1 - j), min(width, width + 1 - j)
                        shifted = planes[i, j, :, of, left + j - 1 : right + j - 1]
                        sums[:, to, left:right] += shifted

            return convolve

        share_tiles(_image_rows(x, outputs), x.device, worker)
        ctx.save_for_backward(x, weight)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        _, channels, height, width = x.shape
        outputs = weight.shape[0]
        taps = weight.permute(2, 3, 0, 1).reshape(9 * outputs, channels)
        images = x.permute(0, 2, 3, 1)
        padded = F.pad(grad.contiguous(), (1, 1, 1, 1))
        by_images = torch.empty_like(images)
        tiles = [(i, *tile) for i, tile in enumerate(_image_rows(x, outputs))]
        parts = x.new_empty(len(tiles), 9 * outputs, channels)

        def worker(_: int) -> Callable[[tuple[int, slice, slice]], None]:
            def add(tile: tuple[int, slice, slice]) -> None:
                index, image, rows = tile[0], tile[1].start, tile[2]
                first, count = rows.start, min(rows.stop, height) - rows.start
                planes = padded.new_empty(3, 3, outputs, count, width)
                for i in range(3):
                    for j in range(3):
                        top, left = first + 2 - i, 2 - j
                        planes[i, j] = padded[image, :, top : top + count, left : left + width]
                by_taps = planes.view(9 * outputs, -1)
                inputs = images[image, rows].reshape(-1, channels)
                torch.mm(by_taps, inputs, out=parts[index])
                torch.mm(by_taps.T, taps, out=by_images[image, rows].view(-1, channels))

            return add

        share_tiles(tiles, x.device, worker)
        by_weight = parts.sum(0).view(3, 3, outputs, channels).permute(2, 3, 0, 1)
        by_weight = by_weight.contiguous(memory_format=torch.channels_last)
        return by_images.permute(0, 3, 1, 2), by_weight, grad.sum((0, 2, 3))


def _image_rows(x: Tensor, outputs: int) -> list[_Rows]:
    """Tiles (one image, rows) of ``[B, C, H, W]``."""
    batch, _, height, width = x.shape
    size = 9 * outputs * width
    tiles, group, _ = cut(batch, height, size, _PRODUCTS, num_workers(x.device))
    if group == 1:
        return tiles
    return [(slice(b, b + 1), slice(0, height)) for b in range(batch)]


class EDSR(nn.Module):
    """EDSR with attention modules between its blocks.

    Args:
        blocks: residual blocks; at least 4 for modules at :func:`quarters`.
        channels: feature channels.
        scale: 2, 3 or 4.
        block_res_scale: residual scale of the blocks (0.1 in the paper's 32 x 256 network).
        image_range: largest pixel value that the layers see (255 in EDSR's released networks);
            images go in and come out in 0…1 all the same.
    """

    mean: Tensor

    def __init__(
        self,
        blocks: int,
        channels: int,
        scale: int,
        block_res_scale: float = 1.0,
        image_range: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale, self.image_range = scale, image_range
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(channels, block_res_scale) for _ in range(blocks))
        self.body_end = Conv3x3(channels, channels)
        steps = {2: (2,), 3: (3,), 4: (2, 2)}[scale]
        self.upsampler = nn.Sequential()
        for i, factor in enumerate(steps):
            # Named as in EDSR's own checkpoints, where a pixel shuffle stands between.
            self.upsampler.add_module(str(2 * i), UpsamplingConv(channels, factor))
        self.tail = NarrowConv(channels, 3)
        #: Attention modules by the number of blocks before them; empty for plain EDSR.
        self.attention = nn.ModuleDict()

    def insert(self, modules: Sequence[Attention], positions: Sequence[int]) -> None:
        """Insert attention modules, each after so many blocks."""
        for position, module in zip(positions, modules, strict=True):
            self.attention[str(position)] = module

    @property
    def attention_modules(self) -> list[Attention]:
        """The inserted modules, first to last."""
        return [module for module in self.attention.values() if isinstance(module, Attention)]

    def forward(self, x: Tensor) -> Tensor:
        """LR ``[B, 3, H, W]`` in 0…1 to SR ``[B, 3, scale·H, scale·W]``, not clamped."""
        # With the range 1 neither the product nor the quotient changes a bit.
        head = self.head((x - self.mean) * self.image_range)
        u = self._attend(0, head)
        for i, block in enumerate(self.blocks, start=1):
            u = self._attend(i, block(u))
        return self.tail(self.upsampler(self.body_end(u) + head)) / self.image_range + self.mean

    def _attend(self, position: int, u: Tensor) -> Tensor:
        key = str(position)
        return self.attention[key](u) if key in self.attention else u

    def auxiliary_loss(self) -> Tensor:
        """Mean of the modules' auxiliary losses, a scalar; zero without modules."""
        losses = [module.auxiliary_loss() for module in self.attention_modules]
        return torch.stack(losses).mean() if losses else self.mean.new_zeros(())

    def enable_auxiliary(self, enabled: bool) -> None:
        """Whether training forwards leave auxiliary losses."""
        for module in self.attention_modules:
            module.auxiliary_enabled = enabled

    def redraw(self) -> None:
        """Draw the modules' random projections anew."""
        for module in self.attention_modules:
            module.redraw()


def quarters(blocks: int) -> tuple[int, ...]:
    """Where the five modules stand: before the first block and after each quarter of them."""
    return tuple(round(i * blocks / 4) for i in range(5))


def build_network(
    variant: Variant,
    *,
    blocks: int,
    channels: int,
    scale: int,
    block_res_scale: float = 1.0,
    image_range: float = 1.0,
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> EDSR:
    """EDSR with the variant's modules, initialised from ``seed``.

    The modules stand at ``positions``, each after so many blocks; by default at :func:`quarters`.
    The backbone's weights depend on the seed alone: they are drawn first, the modules' after them
    from a seed of their own. The global random state is left as it was.

    Raises:
        AttentionError: an option that the module refuses, such as m = 0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = EDSR(blocks, channels, scale, block_res_scale, image_range)
        if variant.name != "none":
            torch.manual_seed(seed + 2**32)
            places = quarters(blocks) if positions is None else positions
            network.insert([variant.create(channels) for _ in places], places)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
