"""Rank-enhanced linear attention (RELA, LAformer): a depthwise convolution mends the low rank.

Paper: Breaking Complexity Barriers, Ai et al., 2025, arXiv 2505.16157, Section 3.
Equation: ``y_i = phi(q_i) sum_j phi(k_j)ᵀ v_j / (phi(q_i)·sum_j phi(k_j) + eps) + D(v)_i`` with
``phi = ReLU``; D is a depthwise convolution. The matrix of the first term's weights, N x N, has at
most rank c; that of D can have full rank.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..base import (
    Attention,
    AttentionError,
    Cost,
    check_qkv,
    embedding_channels,
    no_autocast,
    require_at_least,
    sum_dtype,
)
from ..registry import register_attention

#: Added to the sum of a query's weights, which is 0 where it shares no feature with any key.
EPS = 1e-6


def rectified_linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``relu(Q) (relu(K)ᵀ V)`` over the sums of its weights plus 1e-6.

    Keys and 1e-6 are divided by the largest feature of the image's keys, and queries by the sums
    of their weights before the values are summed, so that no sum overflows.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.

    Returns:
        ``[B, c_out, H, W]``; 0 where a query shares no feature with any key.

    Raises:
        AttentionError: the shapes do not fit together.
    """
    check_qkv(q, k, v)
    dtype = sum_dtype(v)
    with no_autocast(v):
        queries, keys = (t.to(dtype).flatten(2).relu() for t in (q, k))
        largest = keys.detach().amax((1, 2), keepdim=True)
        largest = torch.where(largest > 0, largest, 1)
        keys = keys / largest
        context = torch.matmul(v.to(dtype).flatten(2), keys.mT)  # [B, c_out, c]
        norm = torch.matmul(keys.sum(2).unsqueeze(1), queries) + EPS / largest
        return torch.matmul(context, queries / norm).view(v.shape).to(v.dtype)


@register_attention("rela")
class RankEnhancedLinearAttention(Attention):
    """Linear attention of rectified features plus a depthwise convolution of the values.

    It has one head, 1x1 embeddings and no 1x1 convolution after it. LAformer's channel attention,
    gated feed-forward network and LayerNorm are left out. The authors' code was not at hand: in
    public re-implementations phi is the ReLU of other linear attention in vision or 1 + ELU, and
    the convolution is 5x5. Ours takes the ReLU, which leaves weights of exactly 0.

    Args:
        channels: channels C of input and output.
        kernel: side of the depthwise convolution, odd.
        reduction: query and key have C / reduction channels (1 in the paper).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "RELA-{kernel}x{kernel}"
    source: ClassVar[str] = "LAformer, Ai et al., 2025, arXiv 2505.16157, Section 3"
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self, channels: int, *, kernel: int = 5, reduction: int = 4, res_scale: float = 0.1
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("kernel", kernel, 1)
        if kernel % 2 == 0:
            raise AttentionError(f"kernel must be odd, got {kernel}")
        self.kernel = kernel
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.local = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`rectified_linear_attention` plus the depthwise convolution of v."""
        return rectified_linear_attention(q, k, v) + self.local(v)

    def cost(self, height: int, width: int) -> Cost:
        """2 N c C MACs, N c for the normaliser, N C times the kernel's area for the convolution."""
        n, c = height * width, self.embedding
        core = n * (2 * c * self.channels + c + self.kernel**2 * self.channels)
        return Cost(
            projections=n * self.channels * (2 * c + self.channels), core=core, executed=core
        )
