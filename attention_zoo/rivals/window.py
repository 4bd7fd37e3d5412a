"""Window attention of Swin and SwinIR: every position attends to the square window it lies in.

Papers: Swin Transformer, Liu et al., ICCV 2021, Eq. 4; SwinIR, Liang et al., ICCVW 2021.
Equation: ``softmax(Q Kᵀ / sqrt(d) + bias) V`` within a window of M x M positions and a head of d
channels, with a learned bias per relative position; then a 1x1 convolution joins the heads.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``, bias ``[heads, 2M − 1, 2M − 1]``.
Numerics, see :mod:`attention_zoo.base`: error up to ``(3 u + 2 min(1, g)) (max|v| max_o
sum|weight| + max|bias|)``, with the weight and bias of the 1x1 convolution. S is the largest norm
of query times norm of key over sqrt(d), plus the largest relative position bias.
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
    sum_dtype,
)
from ..cores.windows import attend_windows, bias_of_pairs, from_windows, to_windows
from ..implementations import outside_graphs, refuse_transforms
from ..layers import call_together
from ..registry import register_attention


@outside_graphs
def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, shift: int = 0) -> Tensor:
    """Multi-head self-attention within windows of M x M positions, Eq. 4 of the Swin paper.

    Windows begin at rows and columns shift, shift + M, … The border cuts windows; each part in the
    map is a window of its own. The paper's cyclic shift computes the same with masks, which
    separate positions that were not adjacent; here neither masks nor padding are needed.

    Args:
        q: queries ``[B, c, H, W]``; heads are runs of c / heads channels.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        bias: per head and per offset (query − key + M − 1) of rows and of columns,
            ``[heads, 2M − 1, 2M − 1]``.
        shift: displacement of the windows, 0 … M − 1.

    Returns:
        ``[B, c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together, or the shift is out of range.
    """
    refuse_transforms("window attention")
    check_qkv(q, k, v)
    if bias.dim() != 3 or bias.shape[1] != bias.shape[2] or bias.shape[1] % 2 == 0:
        raise AttentionError(f"bias must be [heads, 2M - 1, 2M - 1], got {list(bias.shape)}")
    heads, window = len(bias), (bias.shape[1] + 1) // 2
    check_heads(heads, q.shape[1], v.shape[1])
    if not 0 <= shift < window:
        raise AttentionError(f"shift must be 0 … {window - 1} for windows of {window}, got {shift}")
    pairs = bias_of_pairs(bias.to(sum_dtype(v)), (window, window))
    down, across = (window_cuts(length, window, shift) for length in v.shape[2:])
    strips = []
    for (_, h), *rows in zip(down, *(_split(t, down, 2) for t in (q, k, v)), strict=True):
        parts = zip(across, *(_split(t, across, 3) for t in rows), strict=True)
        strips.append([_attend_alike(pairs[:, :h, :w, :h, :w], *qkv) for (_, w), *qkv in parts])
    return torch.cat([torch.cat(strip, dim=3) for strip in strips], dim=2)


def window_cuts(length: int, window: int, shift: int) -> list[tuple[int, int]]:
    """(positions, length of a window) of each run of windows that are of one length."""
    first = min(shift, length)
    last = (length - first) % window
    cuts = [(first, first), (length - first - last, window), (last, last)]
    return [(positions, size) for positions, size in cuts if positions]


def _split(x: Tensor, cuts: list[tuple[int, int]], dim: int) -> tuple[Tensor, ...]:
    return x.split([positions for positions, _ in cuts], dim)


def _attend_alike(bias: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bias ``[heads, h, w, h, w]``; maps that windows of h x w fill."""
    heads, (h, w) = len(bias), bias.shape[1:3]
    queries, keys, values = (to_windows(t, heads, (h, w)) for t in (q, k, v))
    out = attend_windows(queries, keys, values, bias.reshape(heads, h * w, h * w))
    return from_windows(out, v, heads, (h, w))


def position_bias(heads: int, side: int) -> nn.Parameter:
    """A bias for each head and each offset of rows and of columns, ``[heads, side, side]``."""
    bias = nn.Parameter(torch.empty(heads, side, side))
    nn.init.trunc_normal_(bias, std=0.02)
    return bias


@register_attention("window")
class WindowAttention(Attention):
    """W-MSA of Swin and SwinIR with 1x1 embeddings: windows side by side, relative position bias.

    The papers' LayerNorm and MLP are left out. Their transformers alternate this module with the
    shifted one; here all modules of a network are of one kind.

    Args:
        channels: channels C of input and output.
        window: side M of a window.
        heads: attention heads, each with a bias of its own.
        reduction: query and key have C / reduction channels (1 in the papers).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Window-w{window}"
    source: ClassVar[str] = (
        "Swin Transformer, Liu et al., ICCV 2021, Eq. 4; SwinIR, Liang et al., ICCVW 2021"
    )
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self,
        channels: int,
        *,
        window: int = 8,
        heads: int = 4,
        reduction: int = 1,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("window", window, 1)
        self.window = window
        self.embedding = embedding_channels(channels, reduction)
        check_heads(heads, self.embedding, channels)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)
        self.bias = position_bias(heads, 2 * window - 1)

    @property
    def shift(self) -> int:
        """Rows and columns by which the windows are displaced."""
        return 0

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return call_together(x, self.query, self.key, self.value)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`window_attention`, then the 1x1 convolution that joins the heads."""
        return self.output(window_attention(q, k, v, self.bias, self.shift))

    def cost(self, height: int, width: int) -> Cost:
        """Core N M² (c + C) MACs; executed: windows cut by the border, plus N C² to join heads."""
        n, c = height * width, self.embedding + self.channels
        pairs = math.prod(
            sum(positions * size for positions, size in cuts)
            for cuts in (window_cuts(side, self.window, self.shift) for side in (height, width))
        )
        return Cost(
            projections=n * self.channels * (2 * self.embedding + self.channels),
            core=n * self.window**2 * c,
            executed=pairs * c + n * self.channels**2,
        )


@register_attention("shifted-window")
class ShiftedWindowAttention(WindowAttention):
    """SW-MSA of Swin and SwinIR: as ``window``, the windows displaced by half of their side.

    Args:
        channels: channels C of input and output.
        window: side M of a window; the displacement is M // 2.
        heads: attention heads, each with a bias of its own.
        reduction: query and key have C / reduction channels (1 in the papers).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Shifted window-w{window}"

    @property
    def shift(self) -> int:
        """M // 2."""
        return self.window // 2
