"""Convolutional attention of ESC, a control: a long reach without attention.

Paper: Emulating Self-attention with Convolution for Efficient Image Super-Resolution (ESC), Lee et
al., ICCV 2025 (ConvAttn).
Equation: ``y = W [x_1 * L + x_1 * D(x_1), x_2]``: x_1 is a quarter of the channels, x_2 the others.
L is a kernel of 13 x 13 that mixes the channels of x_1; D has 3 x 3 and takes each channel alone,
``D = W_U gelu(W_D mean(x_1))`` for each image; W is a 1x1 convolution.
Shapes: x and y ``[B, C, H, W]``, x_1 ``[B, p, H, W]``, L ``[p, p, 13, 13]``, D ``[B, p, 3, 3]``.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import Attention, AttentionError, Cost, no_autocast, require_at_least, sum_dtype
from ..layers import call_in_dtype
from ..registry import register_attention

# Side of the dynamic kernel.
_DYNAMIC = 3


def convolutional_attention(x: Tensor, large: Tensor, dynamic: Tensor) -> Tensor:
    """The sum of two convolutions with zero padding, one with a kernel of each image.

    Args:
        x: ``[B, p, H, W]``.
        large: kernel of all images and channels, ``[p, p, K, K]``, K odd.
        dynamic: a kernel for each image and channel, ``[B, p, K', K']``, K' odd.

    Returns:
        ``[B, p, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together.
    """
    shapes = [list(t.shape) for t in (x, large, dynamic)]
    if (
        not x.dim() == large.dim() == dynamic.dim() == 4
        or large.shape[:2] != (x.shape[1], x.shape[1])
        or dynamic.shape[:2] != x.shape[:2]
        or any(t.shape[2] != t.shape[3] or t.shape[2] % 2 == 0 for t in (large, dynamic))
    ):
        raise AttentionError(
            f"x, large, dynamic must be [B, p, H, W], [p, p, K, K], [B, p, K', K'], K odd: {shapes}"
        )
    alone = x.reshape(1, -1, *x.shape[2:])  # images side by side, as channels
    kernels = dynamic.reshape(-1, 1, *dynamic.shape[2:])
    local = F.conv2d(alone, kernels, padding=dynamic.shape[2] // 2, groups=len(kernels))
    return F.conv2d(x, large, padding=large.shape[2] // 2) + local.view(x.shape)


def symmetric(kernel: Tensor) -> Tensor:
    """The mean of a kernel ``[…, K, K]`` over its eight flips and turns."""
    for other in (lambda t: t.flip(-1), lambda t: t.flip(-2), lambda t: t.mT):
        kernel = (kernel + other(kernel)) / 2
    return kernel


@register_attention("large-kernel")
class LargeKernel(Attention):
    """ESC's convolutional attention of the features themselves: ``x + res_scale · y``.

    As in the authors' code L is the mean over its flips and turns, and D begins at zero. ESC shares
    one L among all blocks of a network; here each module has its own. Its LayerNorm, ConvFFN and
    the window attention of its blocks are left out.

    Args:
        channels: channels C of input and output.
        kernel: side of the large kernel, odd (ESC: 13).
        split: C / split channels are convolved, rounded down, at least 1 (ESC: 16 of 64).
        res_scale: weight of the result in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Large kernel-{kernel}x{kernel}"
    source: ClassVar[str] = "ESC, Lee et al., ICCV 2025 (ConvAttn)"
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self, channels: int, *, kernel: int = 13, split: int = 4, res_scale: float = 0.1
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("kernel", kernel, 1)
        if kernel % 2 == 0:
            raise AttentionError(f"kernel must be odd, to have a centre, got {kernel}")
        require_at_least("split", split, 1)
        self.kernel = kernel
        self.convolved = max(1, channels // split)
        self.hidden = max(1, self.convolved // 2)
        self.large = nn.Parameter(torch.empty(self.convolved, self.convolved, kernel, kernel))
        nn.init.kaiming_uniform_(self.large, a=math.sqrt(5))
        self.down = nn.Linear(self.convolved, self.hidden)
        self.up = nn.Linear(self.hidden, self.convolved * _DYNAMIC**2)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.output = nn.Conv2d(channels, channels, 1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x, x, x), each ``[B, C, H, W]``: the convolutions are the operation itself."""
        return x, x, x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`convolutional_attention` of some channels of v, and W of all, ``[B, C, H, W]``."""
        dtype = sum_dtype(v)
        with no_autocast(v):
            x, rest = v.to(dtype).split([self.convolved, self.channels - self.convolved], 1)
            large = symmetric(self.large.to(dtype))
            x = convolutional_attention(x, large, self.dynamic_kernels(x))
            out = call_in_dtype(self.output, torch.cat([x, rest], 1))
            if v.dtype != dtype:  # sums of many long features exceed float16's range
                most = torch.finfo(v.dtype).max
                out = out.clamp(-most, most)
            return out.to(v.dtype)

    def dynamic_kernels(self, x: Tensor) -> Tensor:
        """D of the convolved channels ``[B, p, H, W]``: ``[B, p, 3, 3]``."""
        hidden = F.gelu(call_in_dtype(self.down, x.mean((2, 3))))
        return call_in_dtype(self.up, hidden).view(*x.shape[:2], _DYNAMIC, _DYNAMIC)

    def cost(self, height: int, width: int) -> Cost:
        """Core N (p² K² + 9 p) MACs and 10 p h for D of h hidden channels; executed: plus N C²."""
        n, p = height * width, self.convolved
        core = n * (p**2 * self.kernel**2 + p * _DYNAMIC**2)
        core += p * self.hidden * (1 + _DYNAMIC**2)
        return Cost(projections=0, core=core, executed=core + n * self.channels**2)
