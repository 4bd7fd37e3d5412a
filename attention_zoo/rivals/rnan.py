"""Residual non-local attention of RNAN: a mask, made with a non-local block, weighs a trunk.

Paper: Residual Non-local Attention Networks, Zhang et al., ICLR 2019, Section 3.2-3.3.
Equation: ``y = trunk(v) · sigmoid(mask(v + W(softmax(q kᵀ) g(v))))``; trunk and mask are
convolutions.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``; g and W are 1x1 convolutions.
Numerics, see :mod:`attention_zoo.base`: error up to ``(2 u + min(1, g)) T``. T is the largest sum
of absolute values that the trunk adds up for a position. Values beyond the range of half precision
become its largest number. In g, S is the sum of absolute terms that enters the sigmoid, and the
number of terms of all its layers stands in place of c.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..base import (
    Attention,
    Cost,
    check_qkv,
    embedding_channels,
    no_autocast,
    require_at_least,
    sum_dtype,
)
from ..layers import call_in_dtype, call_together
from ..nla import non_local_attention, softmax_macs
from ..registry import register_attention


class ResidualBlock(nn.Module):
    """``u + conv(relu(conv(u)))``, 3x3, in the dtype of u."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same."""
        return x + call_in_dtype(self.second, call_in_dtype(self.first, x).relu())


@register_attention("rnan")
class ResidualNonLocalAttention(Attention):
    """RNAN's residual non-local attention: ``y = x + res_scale · trunk(x) · mask(x)``.

    The trunk is ``2 blocks`` residual blocks. The mask is a non-local block
    ``z = x + W(softmax(theta(x) phi(x)^T) g(x))``, then ``blocks`` residual blocks, a convolution
    of stride 2, ``2 blocks`` residual blocks, a transposed convolution (6x6, stride 2), the sum
    with what entered the strided one, ``blocks`` residual blocks, a 1x1 convolution and a sigmoid.
    W begins at zero, as released.

    The residual blocks before and after both branches are left out: the backbone has its own. The
    softmax normalises rows, as in the paper; the released code normalises columns. Where H or W is
    odd, the transposed convolution makes one row or column too many, which is cut off. Everything
    is computed in float32 at least, for the mask of long features.

    Args:
        channels: channels C of input and output.
        blocks: residual blocks m of the mask at full size (the paper: 1, and t = 2 of the trunk).
        reduction: the non-local block has C / reduction channels (the paper: 2).
        res_scale: weight of the attention (1 in the paper).
    """

    label_format: ClassVar[str] = "RNAN mask"
    source: ClassVar[str] = (
        "Residual Non-local Attention Networks, Zhang et al., ICLR 2019, Section 3.2-3.3"
    )
    complexity: ClassVar[str] = "O(N²)"

    def __init__(
        self, channels: int, *, blocks: int = 1, reduction: int = 2, res_scale: float = 0.1
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("blocks", blocks, 1)
        self.blocks = blocks
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, self.embedding, 1)
        self.joined = nn.Conv2d(self.embedding, channels, 1)
        nn.init.zeros_(self.joined.weight)
        assert self.joined.bias is not None
        nn.init.zeros_(self.joined.bias)
        self.trunk = _residual_blocks(channels, 2 * blocks)
        self.before = _residual_blocks(channels, blocks)
        self.down = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.below = _residual_blocks(channels, 2 * blocks)
        self.up = nn.ConvTranspose2d(channels, channels, 6, stride=2, padding=2)
        self.after = _residual_blocks(channels, blocks)
        self.last = nn.Conv2d(channels, channels, 1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]``, and x itself."""
        return *call_together(x, self.query, self.key), x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Both branches: ``trunk(v) · mask(q, k, v)``, ``[B, C, H, W]``."""
        check_qkv(q, k, v)
        with no_autocast(v):
            x = v.to(sum_dtype(v))
            mask = self.mask(q.to(x.dtype), k.to(x.dtype), x)
            out = self.trunk(x) * mask
            if v.dtype != x.dtype:  # the trunk of long features exceeds float16's range
                most = torch.finfo(v.dtype).max
                out = out.clamp(-most, most)
            return out.to(v.dtype)

    def mask(self, q: Tensor, k: Tensor, x: Tensor) -> Tensor:
        """Weights 0 … 1 of every channel and position, ``[B, C, H, W]``."""
        seen = non_local_attention(q, k, call_in_dtype(self.value, x))
        x = self.before(x + call_in_dtype(self.joined, seen))
        below = self.below(call_in_dtype(self.down, x))
        above = call_in_dtype(self.up, below)[..., : x.shape[2], : x.shape[3]]
        return call_in_dtype(self.last, self.after(x + above)).sigmoid()

    def cost(self, height: int, width: int) -> Cost:
        """Core 2 N² c MACs plus the convolutions of both branches; projections 2 N C c."""
        n, c, channels = height * width, self.embedding, self.channels
        below = -(-height // 2) * -(-width // 2)
        block = 18 * channels**2
        convolutions = 2 * n * channels * c + n * channels**2  # g and W; 1x1
        convolutions += 4 * self.blocks * n * block  # trunk, before, after
        convolutions += below * ((9 + 36) * channels**2 + 2 * self.blocks * block)
        return Cost(
            projections=2 * n * channels * c,
            core=2 * n**2 * c + convolutions,
            executed=softmax_macs(n, n, c, c) + convolutions,
        )


def _residual_blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))
