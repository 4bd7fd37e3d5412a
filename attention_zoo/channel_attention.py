"""RCAN's channel attention, a control: it sees the whole map, but no position of it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from .base import Attention, Cost, check_qkv, require_at_least
from .registry import register_attention
from .softmax import sum_dtype


@register_attention("channel-attention")
class ChannelAttention(Attention):
    """Channels are weighted by what their means say: ``sigmoid(W_U relu(W_D mean(x))) · x``.

    Args:
        channels: channels C of input and output.
        squeeze: the hidden layer has C / squeeze channels, at least 1 (RCAN: 16).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Channel attention"
    source: ClassVar[str] = "RCAN, Zhang et al., ECCV 2018, Eq. 8–10"
    complexity: ClassVar[str] = "O(N)"

    def __init__(self, channels: int, *, squeeze: int = 16, res_scale: float = 0.1) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("squeeze", squeeze, 1)
        self.hidden = max(1, channels // squeeze)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, self.hidden, 1),
            nn.ReLU(),
            nn.Conv2d(self.hidden, channels, 1),
            nn.Sigmoid(),
        )

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x, x, x), each ``[B, C, H, W]``."""
        return x, x, x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[B, C, H, W]``: v times the gate of q's means, summed in float32 at least."""
        check_qkv(q, k, v)
        means = q.to(sum_dtype(q)).mean((2, 3), keepdim=True)
        return v * self.gate(means.to(v.dtype))

    def cost(self, height: int, width: int) -> Cost:
        """2 C hidden MACs, whatever the size; means and products are not counted."""
        macs = 2 * self.channels * self.hidden
        return Cost(projections=0, core=macs, executed=macs)
