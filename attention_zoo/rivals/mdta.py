"""Multi-Dconv head Transposed Attention of Restormer: channels attend to channels.

Paper: Restormer, Zamir et al., CVPR 2022, Eq. 1.
Equation: ``y_i = sum_j softmax_j(t cos(q_i, k_j)) v_j`` for the channels i, j of a head, then a 1x1
convolution joins the heads. The cosine is that of whole channels, over all positions; t is learned.
Shapes: q, k, v and y ``[B, C, H, W]``; C/heads x C/heads weights for any map.
Numerics, see :mod:`attention_zoo.base`: error up to ``(3 u + 2 min(1, g)) max|v| max_o
sum|weight|``, with the weight of the 1x1 convolution. In g, N + C stands in place of c. S is the
largest t.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..base import (
    Attention,
    AttentionError,
    Cost,
    check_heads,
    check_qkv,
    no_autocast,
    split_heads,
    sum_dtype,
)
from ..nlsa import MIN_NORM
from ..registry import register_attention


def transposed_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """Eq. 1 of the Restormer paper, without its projections.

    Args:
        q: queries ``[B, C, H, W]``; heads are runs of C / heads channels.
        k: keys ``[B, C, H, W]``.
        v: values ``[B, C, H, W]``.
        temperature: the factor t of each head, ``[heads]``.

    Returns:
        ``[B, C, H, W]``. Norms of channels count as at least 5e-5.

    Raises:
        AttentionError: the shapes do not fit together.
    """
    check_qkv(q, k, v)
    if v.shape[1] != q.shape[1]:
        raise AttentionError(
            f"channels attend to channels: q and v must have as many, got {q.shape[1]} and "
            f"{v.shape[1]}"
        )
    dtype = sum_dtype(v)
    heads = len(temperature)
    queries, keys, values = (split_heads(t, heads).flatten(3).to(dtype) for t in (q, k, v))
    with no_autocast(v):
        # The norms divide the few products, not the maps.
        norm_q, norm_k = (
            torch.linalg.vector_norm(t, dim=-1, keepdim=True).clamp_min(MIN_NORM)
            for t in (queries, keys)
        )
        cosines = torch.matmul(queries, keys.mT) / (norm_q * norm_k.mT)
        weights = (cosines * temperature.to(dtype).view(heads, 1, 1)).softmax(-1)
        return torch.matmul(weights, values).view(v.shape).to(v.dtype)


@register_attention("mdta")
class TransposedAttention(Attention):
    """MDTA: 1x1, then depthwise 3x3 convolutions make q, k and v; none of them has a bias.

    The paper's LayerNorm and feed-forward network are left out. Its stages at full resolution have
    one head. Norms are clamped at 5e-5, not at the released 1e-12, because half precision cannot
    hold the inverse of the latter.

    Args:
        channels: channels C of input and output.
        heads: attention heads, each with a temperature of its own.
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "MDTA"
    source: ClassVar[str] = "Restormer, Zamir et al., CVPR 2022, Eq. 1"
    complexity: ClassVar[str] = "O(N)"

    def __init__(self, channels: int, *, heads: int = 1, res_scale: float = 0.1) -> None:
        super().__init__(channels, res_scale=res_scale)
        check_heads(heads, channels)
        self.pointwise = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.depthwise = nn.Conv2d(
            3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False
        )
        self.temperature = nn.Parameter(torch.ones(heads))
        self.output = nn.Conv2d(channels, channels, 1, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k, v, each ``[B, C, H, W]``."""
        q, k, v = self.depthwise(self.pointwise(x)).chunk(3, dim=1)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`transposed_attention`, then the 1x1 convolution that joins the heads."""
        return self.output(transposed_attention(q, k, v, self.temperature))

    def cost(self, height: int, width: int) -> Cost:
        """Core 2 N C² / heads MACs; executed: N C² more to join the heads."""
        n, c = height * width, self.channels
        core = 2 * n * c**2 // len(self.temperature)
        return Cost(projections=3 * n * c * (c + 9), core=core, executed=core + n * c**2)
