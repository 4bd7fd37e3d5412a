"""Overlapping cross-attention of HAT: windows of queries, and larger windows of keys around them.

Paper: Activating More Pixels in Image Super-Resolution Transformer (HAT), Chen et al., CVPR 2023
(overlapping cross-attention block, OCAB).
Equation: ``softmax(Q Kᵀ / sqrt(d) + bias) V`` of the M x M queries of a window and the
(1 + γ) M x (1 + γ) M keys centred on it, with a learned bias per relative position and a head of d
channels; then a 1x1 convolution joins the heads.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``, bias ``[heads, S, S]`` with
S = 2 (M + r) − 1; r = γ M / 2, rounded down, is how far keys reach beyond a window's sides.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..base import AttentionError, Cost, check_heads, check_qkv, require_at_least, sum_dtype
from ..cores.windows import attend_windows, bias_of_pairs, from_windows, to_windows
from ..implementations import outside_graphs, refuse_transforms
from ..registry import register_attention
from .window import WindowAttention, position_bias


@outside_graphs
def overlap_window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, window: int) -> Tensor:
    """Multi-head attention of each window of M x M positions to the larger one centred on it.

    The border cuts both windows: a query sees the keys of its larger window that lie in the map.
    HAT fills the rest with keys and values of zero, which take part in the softmax.

    Args:
        q: queries ``[B, c, H, W]``; heads are runs of c / heads channels.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        bias: per head and per offset (query − key + M + r − 1) of rows and of columns,
            ``[heads, 2 (M + r) − 1, 2 (M + r) − 1]``.
        window: side M of a window of queries.

    Returns:
        ``[B, c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together.
    """
    refuse_transforms("overlap-window")
    check_qkv(q, k, v)
    require_at_least("window", window, 1)
    reach = (bias.shape[-1] + 1) // 2 - window
    if bias.dim() != 3 or bias.shape[1] != bias.shape[2] or bias.shape[1] % 2 == 0 or reach < 0:
        raise AttentionError(
            f"bias must be [heads, S, S] with S odd and >= 2 window - 1, got {list(bias.shape)}"
        )
    heads = len(bias)
    check_heads(heads, q.shape[1], v.shape[1])
    dtype = sum_dtype(v)
    pairs = bias_of_pairs(bias.to(dtype), (window + 2 * reach,) * 2)
    # Keys of several windows are the same: their gradients are summed in this dtype.
    keys, values = k.to(dtype), v.to(dtype)
    down, across = (_runs(length, window, reach) for length in v.shape[2:])
    strips = [
        torch.cat([_attend_run(pairs, q, keys, values, rows, columns) for columns in across], dim=3)
        for rows in down
    ]
    return torch.cat(strips, dim=2).to(v.dtype)


class _Run(NamedTuple):
    """Neighbouring windows that are alike, along one side of the map."""

    queries: slice
    keys: slice  #: of all of them
    length: int  #: of a window of queries
    key_length: int
    first_key: int  #: of those that a window has far from the border


def _runs(length: int, window: int, reach: int) -> list[_Run]:
    windows = []
    for start in range(0, length, window):
        keys = slice(max(0, start - reach), min(start + window + reach, length))
        windows.append((slice(start, min(start + window, length)), keys))

    def kind(one: tuple[slice, slice]) -> tuple[int, int, int]:
        queries, keys = one
        before = queries.start - keys.start
        return queries.stop - queries.start, keys.stop - keys.start, reach - before

    runs = []
    for alike, group in groupby(windows, kind):
        found = list(group)
        (first, first_keys), (last, last_keys) = found[0], found[-1]
        queries = slice(first.start, last.stop)
        runs.append(_Run(queries, slice(first_keys.start, last_keys.stop), *alike))
    return runs


def _attend_run(
    pairs: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: _Run, columns: _Run
) -> Tensor:
    """Bias ``[heads, M, M, M + 2 r, M + 2 r]``; the queries of the windows that are alike."""
    heads, window = len(pairs), pairs.shape[1]
    size, key_size = (rows.length, columns.length), (rows.key_length, columns.key_length)
    queries = q[:, :, rows.queries, columns.queries]
    (h, y), (w, x) = ((run.key_length, run.first_key) for run in (rows, columns))
    bias = pairs[:, : size[0], : size[1], y : y + h, x : x + w]
    keys, values = (
        to_windows(t[:, :, rows.keys, columns.keys], heads, key_size, (window, window))
        for t in (k, v)
    )
    bias = bias.reshape(heads, math.prod(size), math.prod(key_size))
    out = attend_windows(to_windows(queries, heads, size), keys, values, bias)
    return from_windows(out, queries, heads, size)


@register_attention("overlap-window")
class OverlapWindowAttention(WindowAttention):
    """HAT's overlapping cross-attention (OCA) with 1x1 embeddings, relative position bias.

    HAT's LayerNorm and MLP are left out, and the other blocks of its groups: shifted windows
    (:class:`.window.ShiftedWindowAttention`) with channel attention beside them.

    Args:
        channels: channels C of input and output.
        window: side M of a window of queries (HAT: 16).
        overlap: γ: keys are of a window (1 + γ) times as large.
        heads: attention heads, each with a bias of its own.
        reduction: query and key have C / reduction channels (1 in HAT).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Overlap window-w{window}"
    source: ClassVar[str] = "HAT, Chen et al., CVPR 2023 (OCAB)"

    def __init__(
        self,
        channels: int,
        *,
        window: int = 16,
        overlap: float = 0.5,
        heads: int = 4,
        reduction: int = 1,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(
            channels, window=window, heads=heads, reduction=reduction, res_scale=res_scale
        )
        if not 0 <= overlap < math.inf:
            raise AttentionError(f"overlap must be a number of at least 0, got {overlap!r}")
        self.overlap = overlap
        self.reach = int(overlap * window / 2)
        self.bias = position_bias(heads, 2 * (window + self.reach) - 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`overlap_window_attention`, then the 1x1 convolution that joins the heads."""
        return self.output(overlap_window_attention(q, k, v, self.bias, self.window))

    def cost(self, height: int, width: int) -> Cost:
        """Core N (M + 2 r)² (c + C) MACs; executed: what the border leaves, plus N C²."""
        n, c = height * width, self.embedding + self.channels
        pairs = math.prod(
            sum(
                (run.queries.stop - run.queries.start) * run.key_length
                for run in _runs(length, self.window, self.reach)
            )
            for length in (height, width)
        )
        return Cost(
            projections=super().cost(height, width).projections,
            core=n * (self.window + 2 * self.reach) ** 2 * c,
            executed=pairs * c + n * self.channels**2,
        )
