"""Transposed attention: channels attend to channels, their likeness summed over positions."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Attention, AttentionError, Cost, check_qkv, require_at_least
from .registry import register_attention
from .softmax import no_autocast, sum_dtype

#: Rows are divided by their norm, but by no less than this.
MIN_NORM = 1e-12


def transposed_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """Eq. 1 of Restormer: ``V · softmax(α K Q)``, head by head.

    Each channel of q and k is a row over positions, of unit length. O(N) time and memory.

    Args:
        q: queries ``[B, C, H, W]``.
        k: keys ``[B, C, H, W]``.
        v: values ``[B, C, H, W]``.
        temperature: α of each head, ``[heads]``.

    Returns:
        ``[B, C, H, W]`` in the dtype of v.

    Raises:
        AttentionError: the shapes do not fit together, or heads do not divide the channels.

    Numerics: products are summed in float32 at least; finite for features up to 1e18.
    """
    check_qkv(q, k, v)
    heads = len(temperature)
    if v.shape[1] != q.shape[1] or v.shape[1] % heads:
        raise AttentionError(
            f"transposed attention takes q, k, v of the same channels, a multiple of the {heads} "
            f"heads, got {q.shape[1]} and {v.shape[1]}"
        )
    with no_autocast(v):
        queries, keys, values = (
            t.to(sum_dtype(v)).flatten(2).unflatten(1, (heads, -1)) for t in (q, k, v)
        )
        queries, keys = (F.normalize(t, dim=-1, eps=MIN_NORM) for t in (queries, keys))
        scores = torch.matmul(queries, keys.mT) * temperature.to(queries.dtype).view(-1, 1, 1)
        out = torch.matmul(scores.softmax(-1), values)
    return out.to(v.dtype).view(v.shape)


@register_attention("mdta")
class TransposedAttention(Attention):
    """Restormer's multi-Dconv head transposed attention (MDTA).

    q, k and v by 1x1 and depthwise 3x3 convolutions without bias, then attention between channels
    and a 1x1 convolution. Restormer's layer normalisation before it is left out, as every module
    here takes the backbone's features as they are.

    Args:
        channels: channels C of input and output.
        heads: a divisor of C; by default heads of about 48 channels, as Restormer's, in a power
            of 2.
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "MDTA"
    source: ClassVar[str] = "Restormer, Zamir et al., CVPR 2022, Eq. 1"
    complexity: ClassVar[str] = "O(N)"

    def __init__(self, channels: int, *, heads: int | None = None, res_scale: float = 0.1) -> None:
        super().__init__(channels, res_scale=res_scale)
        if heads is None:
            heads = math.gcd(channels, 2 ** max(0, round(math.log2(channels / 48))))
        require_at_least("heads", heads, 1)
        if channels % heads:
            raise AttentionError(f"heads {heads} does not divide the {channels} channels")
        self.heads = heads
        self.query, self.key, self.value = (
            nn.Sequential(
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            )
            for _ in range(3)
        )
        self.temperature = nn.Parameter(torch.ones(heads))
        self.out = nn.Conv2d(channels, channels, 1, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k and v of the same shape."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`transposed_attention`, then the 1x1 convolution."""
        return self.out(transposed_attention(q, k, v, self.temperature))

    def cost(self, height: int, width: int) -> Cost:
        """Core N (2 C² / heads + C²) MACs; projections 3 N (C² + 9 C)."""
        n, channels = height * width, self.channels
        core = n * (2 * channels**2 // self.heads + channels**2)
        return Cost(projections=3 * n * (channels**2 + 9 * channels), core=core, executed=core)
