"""Permuted self-attention of SRFormer: large windows, keys and values of cells of 2x2 positions.

Paper: SRFormer, Zhou et al., ICCV 2023 (permuted self-attention, PSA).
Equation: ``softmax(Q K_pᵀ / sqrt(d) + bias) V_p`` within a window of M x M positions and a head of
d channels. K and V have C / 4 channels; K_p and V_p are those of a cell of 2x2 positions side by
side, C channels again, so that scores are M² x (M / 2)². The learned bias is of the cell of the
query and the cell of the key; a 1x1 convolution joins the heads.
Shapes: q ``[B, C, H, W]``, k and v ``[B, C / 4, H, W]``, y ``[B, C, H, W]``, bias
``[heads, M − 1, M − 1]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..base import (
    Attention,
    AttentionError,
    Cost,
    check_heads,
    check_qkv,
    require_at_least,
    sum_dtype,
)
from ..cores.windows import attend_windows, bias_of_pairs, from_windows, to_windows
from ..implementations import outside_graphs, refuse_transforms
from ..registry import register_attention
from .window import position_bias, window_cuts


@outside_graphs
def permuted_window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Multi-head attention of the positions of a window to its cells of 2x2 positions.

    The border cuts windows; each part in the map is a window of its own. Where it cuts a cell, as
    on maps with an odd side, the cell repeats its row or column.

    Args:
        q: queries ``[B, 4 c, H, W]``; heads are runs of 4 c / heads channels.
        k: keys ``[B, c, H, W]``. The channels of a cell are those of its upper left, upper right,
            lower left and lower right position, in this order, as in the authors' code: with four
            heads each sees one of the four.
        v: values ``[B, c_out, H, W]``.
        bias: per head and per offset (cell of the query − cell of the key + M / 2 − 1) of rows and
            of columns, ``[heads, M − 1, M − 1]``.

    Returns:
        ``[B, 4 c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together.
    """
    refuse_transforms("permuted-window")
    if q.dim() != 4 or k.dim() != 4 or q.shape[1] != 4 * k.shape[1]:
        shapes = [list(t.shape) for t in (q, k)]
        raise AttentionError(f"q and k must be [B, 4 c, H, W] and [B, c, H, W], got {shapes}")
    check_qkv(q[:, : k.shape[1]], k, v)
    if bias.dim() != 3 or bias.shape[1] != bias.shape[2] or bias.shape[1] % 2 == 0:
        raise AttentionError(f"bias must be [heads, M - 1, M - 1], M even, got {list(bias.shape)}")
    heads, cells = len(bias), (bias.shape[1] + 1) // 2
    check_heads(heads, q.shape[1], 4 * v.shape[1])
    pairs = bias_of_pairs(bias.to(sum_dtype(v)), (cells, cells))
    pairs = pairs.repeat_interleave(2, 1).repeat_interleave(2, 2)
    maps = q, cells_of(k), cells_of(v)
    down, across = (window_cuts(length, 2 * cells, 0) for length in v.shape[2:])
    strips = []
    for (_, h), *rows in zip(down, *_split(maps, down, 2), strict=True):
        parts = zip(across, *_split(rows, across, 3), strict=True)
        strips.append([_attend_alike(pairs, (h, w), *qkv) for (_, w), *qkv in parts])
    return torch.cat([torch.cat(strip, dim=3) for strip in strips], dim=2)


def cells_of(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` to cells of 2x2 positions, ``[B, 4 C, ceil(H / 2), ceil(W / 2)]``."""
    for dim in (2, 3):
        if x.shape[dim] % 2:
            x = torch.cat([x, x.narrow(dim, x.shape[dim] - 1, 1)], dim)
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def _split(
    maps: Sequence[Tensor], cuts: list[tuple[int, int]], dim: int
) -> tuple[tuple[Tensor, ...], ...]:
    """Queries by positions; keys and values by cells, of which the last may be cut."""
    positions = [length for length, _ in cuts]
    cells = [-(-length // 2) for length in positions]
    q, k, v = maps
    return q.split(positions, dim), k.split(cells, dim), v.split(cells, dim)


def _attend_alike(pairs: Tensor, size: tuple[int, int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bias ``[heads, M, M, M / 2, M / 2]``; a map that windows of this size fill, and its cells."""
    heads, (h, w) = len(pairs), size
    key_size = -(-h // 2), -(-w // 2)
    bias = pairs[:, :h, :w, : key_size[0], : key_size[1]]
    queries, keys, values = (
        to_windows(t, heads, of) for t, of in ((q, size), (k, key_size), (v, key_size))
    )
    bias = bias.reshape(heads, h * w, math.prod(key_size))
    return from_windows(attend_windows(queries, keys, values, bias), q, heads, size)


@register_attention("permuted-window")
class PermutedWindowAttention(Attention):
    """SRFormer's permuted self-attention (PSA): windows of 24 x 24, relative position bias.

    The 1x1 convolutions that leave keys and values a quarter of the channels are part of the
    attention operation, which takes them from the features. SRFormer's LayerNorm and ConvFFN are
    left out, and the displacement by half a window of every other block.

    Args:
        channels: channels C of input and output, a multiple of 4.
        window: side M of a window, even (SRFormer: 24).
        heads: attention heads, each with a bias of its own (SRFormer: 6, of 180 channels).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Permuted window-w{window}"
    source: ClassVar[str] = "SRFormer, Zhou et al., ICCV 2023 (PSA)"
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self, channels: int, *, window: int = 24, heads: int = 4, res_scale: float = 0.1
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("window", window, 2)
        if window % 2:
            raise AttentionError(f"window must be even, as it has cells of 2x2, got {window}")
        if channels % 4:
            raise AttentionError(f"channels must be a multiple of 4, got {channels}")
        check_heads(heads, channels)
        self.window = window
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels // 4, 1)
        self.value = nn.Conv2d(channels, channels // 4, 1)
        self.output = nn.Conv2d(channels, channels, 1)
        self.bias = position_bias(heads, window - 1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q ``[B, C, H, W]``, and x itself twice."""
        return self.query(x), x, x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`permuted_window_attention` of reduced k and v, and the convolution that joins."""
        check_qkv(q, k, v)
        return self.output(permuted_window_attention(q, self.key(k), self.value(v), self.bias))

    def cost(self, height: int, width: int) -> Cost:
        """Core N M² / 4 · 2 C MACs.

        Executed: windows cut by the border; N C² / 2 to reduce keys and values, N C² to join heads.
        """
        n, channels = height * width, self.channels
        pairs = math.prod(
            sum(
                positions * -(-size // 2) for positions, size in window_cuts(length, self.window, 0)
            )
            for length in (height, width)
        )
        return Cost(
            projections=n * channels**2,
            core=n * self.window**2 // 4 * 2 * channels,
            executed=pairs * 2 * channels + n * channels**2 // 2 + n * channels**2,
        )
