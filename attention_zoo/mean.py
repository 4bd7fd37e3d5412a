"""The plain mean: a control that attends to all positions alike."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from .base import Attention, Cost, check_qkv, no_autocast, sum_dtype
from .registry import register_attention


@register_attention("mean")
class Mean(Attention):
    """``y_i = mean_j v_j``: what attention gives without matching.

    Shapes: ``[B, C, H, W]`` to ``[B, C, H, W]``; v is a 1x1 convolution of x.

    Numerics: error up to ``u max|v|`` and that of a sum in float32, see :mod:`.base`.

    Args:
        channels: channels C of input and output.
        res_scale: weight of the mean in ``y = x + res_scale · mean``.
    """

    label_format: ClassVar[str] = "Mean"
    source: ClassVar[str] = "control: uniform weights"
    complexity: ClassVar[str] = "O(N)"

    def __init__(self, channels: int, *, res_scale: float = 0.1) -> None:
        super().__init__(channels, res_scale=res_scale)
        self.value = nn.Conv2d(channels, channels, 1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x, x, v): query and key are not looked at."""
        return x, x, self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The mean of v over all positions, at each of them."""
        check_qkv(q, k, v)
        return mean_of(v)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """``1 / N`` everywhere, ``[B, H, W]``."""
        return q.new_full((q.shape[0], *q.shape[2:]), 1 / (q.shape[2] * q.shape[3]))

    def cost(self, height: int, width: int) -> Cost:
        """N C² MACs of the projection; additions alone are no MACs."""
        return Cost(projections=self.channels**2 * height * width, core=0, executed=0)


def mean_of(v: Tensor) -> Tensor:
    """The mean of ``[B, C, H, W]`` over positions, at each of them: a view of one position."""
    with no_autocast(v):
        return v.mean((2, 3), keepdim=True, dtype=sum_dtype(v)).to(v.dtype).expand_as(v)
