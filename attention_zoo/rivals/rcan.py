"""Channel attention of RCAN, a control: it weighs channels, and no position sees another one.

Paper: RCAN, Zhang et al., ECCV 2018, Eq. 8-10.
Equation: ``y = x · sigmoid(W_U relu(W_D mean(x)))``, the mean over positions.
Shapes: x and y ``[B, C, H, W]``; the weights are ``[B, C]``.
Numerics, see :mod:`attention_zoo.base`: error up to ``(2 u + min(1, g)) max|x|``. In g, C + N
stands in place of c. S is the largest sum of absolute terms that enters the sigmoid.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ..base import Attention, Cost, no_autocast, require_at_least, sum_dtype
from ..layers import call_in_dtype
from ..registry import register_attention


@register_attention("channel-attention")
class ChannelAttention(Attention):
    """RCAN's channel attention of the features themselves: ``x + res_scale · y``.

    In RCAN it scales the output of two convolutions in a residual block.

    Args:
        channels: channels C of input and output.
        squeeze: the hidden layer has C / squeeze channels, rounded down, at least 1.
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "RCAN CA"
    source: ClassVar[str] = "RCAN, Zhang et al., ECCV 2018, Eq. 8-10"
    complexity: ClassVar[str] = "O(N)"

    def __init__(self, channels: int, *, squeeze: int = 16, res_scale: float = 0.1) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("squeeze", squeeze, 1)
        self.hidden = max(1, channels // squeeze)
        self.down = nn.Linear(channels, self.hidden)
        self.up = nn.Linear(self.hidden, channels)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x, x, x), each ``[B, C, H, W]``: the features themselves are weighed."""
        return x, x, x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Eq. 10: every channel of v times its weight, ``[B, C, H, W]``."""
        dtype = sum_dtype(v)
        with no_autocast(v):
            return (v.to(dtype) * self.channel_weights(v)[:, :, None, None]).to(v.dtype)

    def channel_weights(self, v: Tensor) -> Tensor:
        """Eq. 8-9: ``sigmoid(W_U relu(W_D mean(v)))``, ``[B, C]``, in the dtype of sums."""
        with no_autocast(v):
            mean = v.mean((2, 3), dtype=sum_dtype(v))
            return call_in_dtype(self.up, call_in_dtype(self.down, mean).relu()).sigmoid()

    def cost(self, height: int, width: int) -> Cost:
        """2 C · C / squeeze MACs for any map."""
        macs = 2 * self.channels * self.hidden
        return Cost(projections=0, core=macs, executed=macs)
