"""Differential attention: the difference of two softmax attentions, which cancels what both share.

Paper: Differential Transformer, Ye et al., ICLR 2025, Eq. 1-3.
Equation: ``D_h = (softmax(Q1 K1ᵀ / sqrt(d)) - l softmax(Q2 K2ᵀ / sqrt(d))) V`` of each head h, with
``l = exp(a1·b1) - exp(a2·b2) + l_init``; then ``y = W cat_h((1 - l_init) g D_h / rms(D_h))``. The
vectors a1, b1, a2, b2 of d channels, the gain g and the 1x1 convolution W are learned.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``, a and b ``[d]``, g the channels of a head.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..base import (
    Attention,
    AttentionError,
    Cost,
    check_heads,
    check_qkv,
    embedding_channels,
    require_at_least,
    split_heads,
    sum_dtype,
)
from ..layers import call_together
from ..nla import non_local_attention, softmax_macs
from ..registry import register_attention

# Added to the mean square, as in the released code.
_EPS = 1e-5


def differential_attention(
    q: Tensor, k: Tensor, v: Tensor, weight: float | Tensor, heads: int = 2
) -> Tensor:
    """Softmax attention of every first head, minus ``weight`` times that of every second.

    Both are :func:`attention_zoo.nla.non_local_attention`, in float32 at least: the difference may
    be small, and the norm that follows it in the module magnifies what rounding leaves.

    Args:
        q: queries ``[B, c, H, W]``; heads are runs of c / heads channels.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``; two heads share a run of 2 c_out / heads channels.
        weight: a number, or a tensor with one.
        heads: softmax attentions, an even number.

    Returns:
        ``[B, c_out, H, W]``, without norm and factor.

    Raises:
        AttentionError: the shapes do not fit together, or heads is odd or does not divide c, c_out.
    """
    check_qkv(q, k, v)
    _check_pairs(heads, v.shape[1], q.shape[1])
    dtype = sum_dtype(v)
    d = q.shape[1] // heads
    queries, keys = (split_heads(t.to(dtype), heads).flatten(0, 1) for t in (q, k))
    values = split_heads(v.to(dtype), heads // 2).repeat_interleave(2, dim=1).flatten(0, 1)
    both = non_local_attention(queries / math.sqrt(d), keys, values)
    first, second = both.unflatten(0, (-1, 2)).unbind(1)
    return (first - weight * second).reshape(v.shape).to(v.dtype)


def _check_pairs(heads: int, *widths: int) -> None:
    check_heads(heads, *widths)
    if heads % 2:
        raise AttentionError(f"heads must be even, two for each difference, got {heads}")


@register_attention("differential")
class DifferentialAttention(Attention):
    """Multi-head differential attention with 1x1 embeddings, head-wise RMS norm included.

    The transformer's LayerNorm, feed-forward network and rotary positions are left out. ``l_init``
    grows with depth in the paper, ``0.8 - 0.6 exp(-0.3 (layer - 1))``; a module does not know its
    depth, so that it is a constant, 0.8, which is the paper's other choice. As in the released
    code, all heads share l and the gain, and 1e-5 is added to the mean square.

    Weights may be negative, so there is no correlation map.

    Args:
        channels: channels C of input and output.
        heads: softmax attentions, an even number; two of them make a head of the paper.
        lambda_init: l_init, from 0 up to but not 1.
        reduction: query and key have C / reduction channels (1 in the paper).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Differential"
    source: ClassVar[str] = "Differential Transformer, Ye et al., ICLR 2025, Eq. 1-3"
    complexity: ClassVar[str] = "O(N²)"

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 2,
        lambda_init: float = 0.8,
        reduction: int = 4,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        self.embedding = embedding_channels(channels, reduction)
        _check_pairs(heads, channels, self.embedding)
        require_at_least("lambda_init", lambda_init, 0.0)
        if not lambda_init < 1:
            raise AttentionError(f"lambda_init must be below 1, got {lambda_init!r}")
        self.heads, self.lambda_init = heads, lambda_init
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        #: The vectors a1, b1, a2, b2.
        self.vectors = nn.Parameter(0.1 * torch.randn(4, self.embedding // heads))
        self.gain = nn.Parameter(torch.ones(2 * channels // heads))
        self.output = nn.Conv2d(channels, channels, 1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return call_together(x, self.query, self.key, self.value)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weight l of the second softmax, a scalar."""
        a1, b1, a2, b2 = self.vectors.to(dtype)
        return (a1 * b1).sum().exp() - (a2 * b2).sum().exp() + self.lambda_init

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`differential_attention`, the norm of each head, and the convolution W."""
        dtype = sum_dtype(v)
        out = differential_attention(q, k, v.to(dtype), self.weight(dtype), self.heads)
        out = split_heads(out, self.heads // 2)
        out = out * (out.square().mean(2, keepdim=True) + _EPS).rsqrt()
        gain = self.gain.to(dtype)[:, None, None]
        out = (out * gain).flatten(1, 2) * (1 - self.lambda_init)
        return self.output(out.to(v.dtype))

    def cost(self, height: int, width: int) -> Cost:
        """Core N² (c + 2 C) MACs; executed: the heads' products as in ``nla``, plus N C² for W."""
        n, c, channels = height * width, self.embedding, self.channels
        heads = self.heads
        return Cost(
            projections=n * channels * (2 * c + channels),
            core=n**2 * (c + 2 * channels),
            executed=heads * softmax_macs(n, n, c // heads, 2 * channels // heads)
            + n * channels**2,
        )
