"""Neighbourhood attention (NATTEN): every position attends to the k x k positions nearest to it.

Papers: Neighborhood Attention Transformer (NAT), Hassani et al., CVPR 2023, Section 3.1, Eq. 2-4;
dilated: DiNAT, Hassani and Shi, 2022.
Equation: ``y_i = sum_j softmax_j(q_i·k_j / sqrt(d) + bias(i − j)) v_j`` over the window of i: the
square of k x k positions centred on i, moved inwards at the border, so that it always has k². A
head has d channels and a bias of its own; then a 1x1 convolution joins the heads. With dilation δ
the positions are those δ rows and columns apart.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``, bias ``[heads, 2k − 1, 2k − 1]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import groupby, product
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import (
    AttentionError,
    Cost,
    check_heads,
    check_qkv,
    no_autocast,
    require_at_least,
    split_heads,
    sum_dtype,
)
from ..cores.softmax import LOG2_E, refuse_second_derivative, tile_size
from ..cores.tiles import added_up, num_workers, scratch, share_tiles, step_length
from ..cores.windows import bias_of_pairs, window_gradients, window_softmax
from ..implementations import outside_graphs, refuse_transforms
from ..registry import register_attention
from .window import WindowAttention

# Side of a tile of queries: wider tiles score more useless pairs, narrower ones have slow products.
_LEAST_SIDE, _MOST_SIDE = 4, 10


@outside_graphs
def nearest_window_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dilation: int = 1
) -> Tensor:
    """Multi-head softmax attention of every position to the k x k positions nearest to it.

    A tile of queries attends to all keys that any of them sees; scores are -inf of keys that a
    query does not see. Tiles far from the border are alike and go together.

    On a map with fewer than k rows or columns (of those δ apart) the window has all there are.
    NATTEN refuses such a map.

    Args:
        q: queries ``[B, c, H, W]``; heads are runs of c / heads channels.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        bias: per head and per offset (query − key + k − 1) of rows and of columns, counted in
            steps of the dilation, ``[heads, 2k − 1, 2k − 1]``, k odd.
        dilation: rows and columns between neighbouring keys of a query.

    Returns:
        ``[B, c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together, or the dilation is below 1.
    """
    refuse_transforms("neighbourhood")
    check_qkv(q, k, v)
    require_at_least("dilation", dilation, 1)
    if bias.dim() != 3 or bias.shape[1] != bias.shape[2] or bias.shape[1] % 4 != 1:
        raise AttentionError(f"bias must be [heads, 2k - 1, 2k - 1], k odd, got {list(bias.shape)}")
    check_heads(len(bias), q.shape[1], v.shape[1])
    dtype = sum_dtype(v)
    with no_autocast(v):
        queries, keys, values, table = (t.to(dtype) for t in (q, k, v, bias))
        if dilation == 1:
            return _attend(queries, keys, values, table).to(v.dtype)
        return _dilated(queries, keys, values, table, dilation).to(v.dtype)


def _dilated(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """Each phase, the positions ``dilation`` apart, is a map of its own; alike ones go together."""
    batch, _, height, width = v.shape
    by_phase = [_phases(t, dilation) for t in (q, k, v)]
    out = torch.zeros_like(by_phase[2])
    for (a, h), (b, w) in product(_kinds(height, dilation), _kinds(width, dilation)):
        queries, keys, values = (t[:, a, b, :, :h, :w].flatten(0, 2) for t in by_phase)
        found = _attend(queries, keys, values, bias)
        out[:, a, b, :, :h, :w] = found.view(batch, a.stop - a.start, -1, *found.shape[1:])
    return out.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def _phases(x: Tensor, dilation: int) -> Tensor:
    """``[B, C, H, W]``, filled up with zeros, to ``[B, phases, phases, C, rows, columns]``."""
    down, across = (min(dilation, length) for length in x.shape[2:])
    x = F.pad(x, (0, -x.shape[3] % across, 0, -x.shape[2] % down))
    return x.unflatten(3, (-1, across)).unflatten(2, (-1, down)).permute(0, 3, 5, 1, 2, 4)


def _kinds(length: int, dilation: int) -> list[tuple[slice, int]]:
    """Phases along a side of the map, and the number of positions of each."""
    steps = min(dilation, length)
    more = length % steps
    kinds = [(slice(0, more), length // steps + 1), (slice(more, steps), length // steps)]
    return [(phases, positions) for phases, positions in kinds if phases.start < phases.stop]


class _Run(NamedTuple):
    """Neighbouring tiles that are alike, along one side of the map."""

    start: int  #: first query of the first tile
    first: int  #: first key of the first tile
    tiles: int  #: as many of them, ``size`` positions apart
    size: int  #: queries of a tile
    keys: int  #: keys of a tile
    seen: tuple[int, ...]  #: first key that each query sees, from the first one of the tile
    window: int  #: keys that each query sees

    @property
    def offset(self) -> int:
        """First query − first key, of every tile."""
        return self.start - self.first

    def part(self, i: int, tiles: int) -> _Run:
        """So many tiles from tile i on, or those that are left."""
        moved = self.start + i * self.size, self.first + i * self.size
        return self._replace(start=moved[0], first=moved[1], tiles=min(tiles, self.tiles - i))


def _runs(length: int, window: int) -> list[_Run]:
    side = min(max(window // 2 + 1, _LEAST_SIDE), _MOST_SIDE)
    wide = min(window, length)
    firsts = [min(max(0, at - wide // 2), length - wide) for at in range(length)]
    tiles = []
    for start in range(0, length, side):
        of_tile = firsts[start : start + side]
        seen = tuple(first - of_tile[0] for first in of_tile)
        keys = of_tile[-1] + wide - of_tile[0]
        tiles.append(_Run(start, of_tile[0], 1, len(of_tile), keys, seen, wide))
    groups = [list(g) for _, g in groupby(tiles, lambda tile: (tile.size, tile.offset, tile.seen))]
    return [group[0]._replace(tiles=len(group)) for group in groups]


class _Tiles(NamedTuple):
    """Tiles that are done at once."""

    images: slice
    rows: _Run
    columns: _Run

    def queries(self, x: Tensor, heads: int) -> Tensor:
        """A view of their queries in a map, see :func:`_windows`."""
        sides = ((run.start, run.size, run.size, run.tiles) for run in self[1:])
        return _windows(x[self.images], heads, *sides)

    def keys(self, x: Tensor, heads: int) -> Tensor:
        """A view of their keys, which overlap."""
        sides = ((run.first, run.keys, run.size, run.tiles) for run in self[1:])
        return _windows(x[self.images], heads, *sides)

    def add_to_keys(self, x: Tensor, heads: int, part: Tensor) -> None:
        """Add ``[tiles · heads, d, K]`` to a map, in pieces of tiles that do not overlap."""
        part = part.view(self.keys(x, heads).shape)
        down, across = (
            [slice(j, min(j + step, run.keys)) for j in range(0, run.keys, step)]
            for run in self[1:]
            for step in [run.size if run.tiles > 1 else run.keys]
        )
        for i, j in product(down, across):
            sides = (
                (run.first + piece.start, piece.stop - piece.start, run.size, run.tiles)
                for run, piece in zip(self[1:], (i, j), strict=True)
            )
            _windows(x[self.images], heads, *sides).add_(part[..., i, j])


#: First position, length, distance and number of windows, along one side of the map.
_Side = tuple[int, int, int, int]


def _windows(x: Tensor, heads: int, rows: _Side, columns: _Side) -> Tensor:
    """A view ``[B, down, across, heads, C / heads, h, w]`` of a map ``[B, C, H, W]``."""
    x = split_heads(x, heads)
    for dim, (start, length, step, count) in ((3, rows), (4, columns)):
        x = x.narrow(dim, start, (count - 1) * step + length).unfold(dim, length, step)
    return x.permute(0, 3, 4, 1, 2, 5, 6)


def _flat(windows: Tensor) -> Tensor:
    """``[B, down, across, heads, d, h, w]`` to ``[tiles · heads, d, h · w]``, contiguous."""
    return windows.reshape(-1, windows.shape[4], windows.shape[5] * windows.shape[6])


def _tiles(q: Tensor, bias: Tensor) -> tuple[list[_Tiles], int]:
    """Tiles, and the scores of the largest."""
    (heads, window), limit = (len(bias), (bias.shape[1] + 1) // 2), tile_size(q.device, buffers=2)
    batch, workers = len(q), num_workers(q.device)
    found, most = [], 0
    for rows, columns in product(*(_runs(length, window) for length in q.shape[2:])):
        size = heads * rows.size * rows.keys * columns.size * columns.keys
        across = step_length(columns.tiles, size, limit)
        down = step_length(rows.tiles, size * across, limit, workers if batch == 1 else 1)
        images = step_length(batch, size * across * down, limit, workers)
        most = max(most, size * across * down * images)
        for b in range(0, batch, images):
            for i in range(0, rows.tiles, down):
                for j in range(0, columns.tiles, across):
                    parts = rows.part(i, down), columns.part(j, across)
                    found.append(_Tiles(slice(b, min(b + images, batch)), *parts))
    return found, most


class _BiasOfTiles:
    """log2(e) times the bias of the pairs in a tile, ``[heads, L, K]``; -inf of keys not seen."""

    def __init__(self, bias: Tensor) -> None:
        self.bias = bias * LOG2_E
        self.kind: object = None
        self.found = bias

    def of(self, tiles: _Tiles) -> Tensor:
        """Kept until the next kind of tiles."""
        kind = [(run.size, run.offset, run.seen) for run in tiles[1:]]
        if kind != self.kind:
            rows, columns = tiles[1:]
            table = F.pad(self.bias, self.margins(tiles))
            pairs = bias_of_pairs(table, (rows.keys, columns.keys))
            down, across = (self._out_of_sight(run) for run in (rows, columns))
            hidden = down[:, None, :, None] | across[None, :, None, :]
            self.found = pairs.masked_fill(hidden, -math.inf).flatten(3, 4).flatten(1, 2)
            self.kind = kind
        return self.found

    def _out_of_sight(self, run: _Run) -> Tensor:
        first = torch.tensor(run.seen, device=self.bias.device)[:, None]
        keys = torch.arange(run.keys, device=self.bias.device)
        return (keys < first) | (keys >= first + run.window)

    def margins(self, tiles: _Tiles) -> list[int]:
        """Of the table of offsets that occur in a tile around the table of all, for F.pad."""
        window = (self.bias.shape[1] + 1) // 2
        return [
            margin
            for run in (tiles.columns, tiles.rows)
            for margin in (run.keys - window - run.offset, run.size + run.offset - window)
        ]

    def gradient(self, tiles: _Tiles, grad_scores: Tensor) -> Tensor:
        """Of the bias, from gradients ``[tiles · heads, L, K]``: sums over equal offsets."""
        rows, columns = tiles[1:]
        grad = grad_scores.view(-1, len(self.bias), *grad_scores.shape[1:]).sum(0)
        grad = grad.view(-1, rows.size, columns.size, rows.keys, columns.keys).flip(3, 4)
        shape = len(grad), rows.size + rows.keys - 1, columns.size, columns.keys
        by_row = grad.new_zeros(shape)
        for i in range(rows.size):
            by_row[:, i : i + rows.keys] += grad[:, i].transpose(1, 2)
        table = grad.new_zeros(*shape[:2], columns.size + columns.keys - 1)
        for j in range(columns.size):
            table[:, :, j : j + columns.keys] += by_row[:, :, j]
        return F.pad(table, [-margin for margin in self.margins(tiles)])


class _NearestWindow(torch.autograd.Function):
    """Maps ``[B, C, H, W]`` in the dtype of sums; the backward pass does each tile again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        heads = len(bias)
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        lse = out.new_empty(len(v), heads, *v.shape[2:])
        tiles, size = _tiles(q, bias)

        def worker(_: int) -> Callable[[_Tiles], None]:
            workspace, biases = scratch("scores", bias, size), _BiasOfTiles(bias)

            def attend(some: _Tiles) -> None:
                queries = _flat(some.queries(q, heads))
                keys, values = (_flat(some.keys(t, heads)) for t in (k, v))
                log2_bias = biases.of(some)
                sums, norm, top = window_softmax(queries, keys, values, log2_bias, workspace)
                _put(some.queries(out, heads), sums.div_(norm.mT))
                _put(some.queries(lse, heads), norm.log2_().add_(top))

            return attend

        share_tiles(tiles, v.device, worker)
        ctx.save_for_backward(q, k, v, bias, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative("nearest_window_attention")
        q, k, v, bias, out, lse = ctx.saved_tensors
        heads, grad_out = len(bias), grads[0]
        scale = math.sqrt(heads / q.shape[1])
        deltas = split_heads(grad_out * out, heads).sum(2)
        grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
        tiles, size = _tiles(q, bias)
        sums: dict[int, list[Tensor]] = {}  # keys of several tiles are the same

        def worker(number: int) -> Callable[[_Tiles], None]:
            workspace, biases = scratch("scores", bias, 2, size), _BiasOfTiles(bias)
            grad_k, grad_v, grad_bias = sums[number] = [
                torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (k, v, bias)
            ]

            def attend(some: _Tiles) -> None:
                queries, grad = (_flat(some.queries(t, heads)) for t in (q, grad_out))
                delta, norm = (_flat(some.queries(t, heads)).mT for t in (deltas, lse))
                keys, values = (_flat(some.keys(t, heads)) for t in (k, v))
                of_scores, of_v, of_q, of_k = window_gradients(
                    queries, keys, values, biases.of(some), grad, delta, norm, workspace
                )
                grad_bias.add_(biases.gradient(some, of_scores))
                _put(some.queries(grad_q, heads), of_q.mul_(scale))
                some.add_to_keys(grad_k, heads, of_k.mul_(scale))
                some.add_to_keys(grad_v, heads, of_v)

            return attend

        share_tiles(tiles, q.device, worker, fixed=True)
        return grad_q, *added_up([sums[number] for number in sorted(sums)])


def _put(into: Tensor, part: Tensor) -> None:
    into.copy_(part.view(into.shape))


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    out: Tensor = _NearestWindow.apply(q, k, v, bias)
    return out


@register_attention("neighbourhood")
class NearestWindowAttention(WindowAttention):
    """NAT's neighbourhood attention, and DiNAT's, with 1x1 embeddings and relative position bias.

    The papers' LayerNorm and MLP are left out. As in the authors' code the bias is added to scores
    that are scaled already. DiNAT alternates dilations; here all modules of a network are alike.
    Unlike ``nlrn`` a position at the border sees as many as all others.

    Args:
        channels: channels C of input and output.
        window: side k of the neighbourhood, odd (NAT: 7).
        dilation: rows and columns between neighbouring keys (DiNAT: up to what the map allows).
        heads: attention heads, each with a bias of its own.
        reduction: query and key have C / reduction channels (1 in the papers).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Neighbourhood-{window}x{window}"
    source: ClassVar[str] = (
        "Neighborhood Attention Transformer, Hassani et al., CVPR 2023, Eq. 2-4; "
        "DiNAT, Hassani and Shi, 2022"
    )

    def __init__(
        self,
        channels: int,
        *,
        window: int = 7,
        dilation: int = 1,
        heads: int = 4,
        reduction: int = 1,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(
            channels, window=window, heads=heads, reduction=reduction, res_scale=res_scale
        )
        if window % 2 == 0:
            raise AttentionError(f"window must be odd, to have a centre, got {window}")
        require_at_least("dilation", dilation, 1)
        self.dilation = dilation

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`nearest_window_attention`, then the 1x1 convolution that joins the heads."""
        return self.output(nearest_window_attention(q, k, v, self.bias, self.dilation))

    def cost(self, height: int, width: int) -> Cost:
        """Core: N k² (c + C) MACs, less on maps smaller than the window.

        Executed: (c + C) MACs for each pair that a tile scores, plus N C² to join the heads.
        """
        pairs, scored = 1, 1
        for side in (height, width):
            maps = [n for phases, n in self._maps(side) for _ in range(phases)]
            pairs *= sum(n * min(n, self.window) for n in maps)
            scored *= sum(r.tiles * r.size * r.keys for n in maps for r in _runs(n, self.window))
        c = self.embedding + self.channels
        return Cost(
            projections=super().cost(height, width).projections,
            core=pairs * c,
            executed=scored * c + height * width * self.channels**2,
        )

    def _maps(self, side: int) -> Iterator[tuple[int, int]]:
        """(number, positions) of the phases along a side; of none, none."""
        if side:
            yield from ((s.stop - s.start, n) for s, n in _kinds(side, self.dilation))
