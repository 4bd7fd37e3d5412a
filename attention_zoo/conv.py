"""A plain 3x3 convolution: the yardstick of the ENLCA paper's Table 4 and a control in training."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from .base import Attention, Cost
from .registry import register_attention


@register_attention("conv")
class Conv(Attention):
    """``y = x + res_scale · (W * x + b)``, W being a 3x3 kernel with zero padding.

    Shapes: ``[B, C, H, W]`` to ``[B, C, H, W]``.

    Numerics: error up to ``(u + g) (max|v| max_o sum|weight| + max|bias|)``, see :mod:`.base`;
    S = 9, the taps.

    Args:
        channels: channels C of input and output.
        res_scale: weight of the convolution in the sum.
    """

    label_format: ClassVar[str] = "Conv"
    source: ClassVar[str] = "ENLCA, Xia et al., AAAI 2022, Table 4"
    complexity: ClassVar[str] = "O(N)"

    def __init__(self, channels: int, *, res_scale: float = 0.1) -> None:
        super().__init__(channels, res_scale=res_scale)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x, x, x), each ``[B, C, H, W]``: the convolution is the operation itself."""
        return x, x, x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """3x3 convolution of v, ``[B, C, H, W]``."""
        return self.conv(v)

    def cost(self, height: int, width: int) -> Cost:
        """9 c c_out N MACs."""
        macs = 9 * self.channels**2 * height * width
        return Cost(projections=0, core=macs, executed=macs)
