"""Criss-Cross Attention: every position attends to its own column and row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import Attention, Cost, check_qkv, embedding_channels, require_at_least
from .cores.native import WIDTH, why_not_native
from .cores.native import softmax as native
from .cores.softmax import (
    Lines,
    attend_tile,
    finish_tile,
    float_rows,
    key_tiles,
    native_space,
    no_autocast,
    refuse_second_derivative,
    sum_dtype,
    tile_gradients,
    tile_workers,
)
from .cores.tiles import even_step, pieces_of_image, scratch, share_tiles, tile_limit
from .implementations import implementation, register_core, run
from .nla import position_scores
from .registry import register_attention

# Scores of a tile that are held at once: on the CPU 2 MB in float32, see :mod:`.tiles`; elsewhere
# 128 MB, for few launches.
_CPU_TILE = 2**19
_TILE = 2**25


def criss_cross_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over the H + W − 1 positions of the own column and row under one softmax.

    Every position attends to its column, without itself, and goes on with its row by online
    softmax: no mask is kept. Of a map that is not channels-last, a tile's columns are copied.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.

    Returns:
        ``[B, c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together.

    Implementations: ``native``, ``tiled``, ``reference``; ``auto`` is native on the CPU where it
    can run (not in float64, nor without a C compiler), else tiled.

    Numerics: error up to ``(4 u + 4 min(1, g)) max|v|``, see :mod:`.softmax`.
    """
    check_qkv(q, k, v)
    return run("criss-cross", q, k, v)


register_core("criss-cross", lambda *maps: "tiled" if why_not_native(*maps) else "native")


def _by(function: type[torch.autograd.Function], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The attention by a function on ``[B, H, W, ·]``."""
    with no_autocast(v):
        out: Tensor = function.apply(*(t.permute(0, 2, 3, 1) for t in (q, k, v)))
    return out.permute(0, 3, 1, 2)


_Lines = tuple[int, slice]


class _CrissCross(torch.autograd.Function):
    """Rows ``[B, H, W, ·]``; tiles are whole lines: all columns first, then all rows."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if any(ctx.needs_input_grad):  # rows in one piece serve both passes
            q, k, v = (t.contiguous() for t in (q, k, v))
        dtype = sum_dtype(v)
        batch, height, width, _ = v.shape
        out, lse = v.new_empty(v.shape), v.new_empty(batch, height, width, 1, dtype=dtype)
        # Of the columns; rows go on with them in place.
        sums = Lines(
            out if v.dtype == dtype else v.new_empty(v.shape, dtype=dtype),
            *(v.new_empty(batch, height, width, 1, dtype=dtype) for _ in range(2)),
        )

        def attend(columns: bool, size: int, _: int) -> Callable[[_Lines], None]:
            space = scratch("scores", v, size, dtype=dtype)

            def attend_columns(tile: _Lines) -> None:
                queries, keys, values = _matrices((q, k, v), tile, True, dtype)
                found = Lines(*(_lines(t, tile, True) for t in sums))
                lines = attend_tile(queries, keys, values, space, left_out=0, acc=found.acc)
                found.top.copy_(lines.top)
                found.norm.copy_(lines.norm)

            def attend_rows(tile: _Lines) -> None:
                queries, keys, values = _matrices((q, k, v), tile, False, dtype)
                of_columns = Lines(*(t[tile] for t in sums))
                lines = attend_tile(queries, keys, values, space, before=of_columns)
                finish_tile(lines, out[tile], lse[tile])

            return attend_columns if columns else attend_rows

        for columns in (True, False):
            tiles, size = _tiles(v, columns)
            share_tiles(tiles, v.device, partial(attend, columns, size))
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative("criss_cross_attention")
        q, k, v, out, lse = ctx.saved_tensors
        dtype = sum_dtype(v)
        sums = [t.new_empty(t.shape, dtype=dtype) for t in (q, k, v)]

        def add(columns: bool, size: int, _: int) -> Callable[[_Lines], None]:
            space = scratch("scores", v, 2, size, dtype=dtype)

            def add_lines(tile: _Lines) -> None:
                queries, keys, values, grad, outputs = _matrices(
                    (q, k, v, grads[0], out), tile, columns, dtype
                )
                delta = (grad * outputs).sum(-1, keepdim=True)
                lses = _lines(lse, tile, columns)
                of_q, of_k, of_v = (_lines(s, tile, columns) for s in sums)
                for j in key_tiles(keys.shape[1], keys.device):
                    left_out = -j.start if columns else None
                    found = tile_gradients(
                        queries, keys[:, j], values[:, j], grad, lses, delta, space, left_out
                    )
                    # Columns come first; a query's gradient is that of all its keys.
                    new = (columns and j.start == 0, columns, columns)
                    parts = (of_q, of_k[:, j], of_v[:, j])
                    for part, one, first in zip(parts, found, new, strict=True):
                        part.copy_(one) if first else part.add_(one)

            return add_lines

        for columns in (True, False):
            tiles, size = _tiles(v, columns, buffers=2)
            share_tiles(tiles, v.device, partial(add, columns, size))
        return tuple(s.to(t.dtype) for s, t in zip(sums, (q, k, v), strict=True))


class _NativeCrissCross(torch.autograd.Function):
    """As :class:`_CrissCross`, by kernels in C."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        maps = [float_rows(t) for t in (q, k, v)]
        out, top, norm = (maps[0].new_empty(*v.shape[:3], width) for width in (v.shape[3], 1, 1))

        def attend(columns: bool, *lines: Tensor) -> native.Work:
            # Columns come first, without the position itself: rows have it, and go on.
            return native.attend(*lines, before=not columns, finish=not columns, leave_out=columns)

        _do_lines((*maps, out, top, norm), v.shape[3], attend)
        ctx.save_for_backward(q, k, v, out, top)
        return out.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative("criss_cross_attention")
        given, lse = ctx.saved_tensors[:3], ctx.saved_tensors[4]
        q, k, v, out, grad = (float_rows(t, WIDTH) for t in (*ctx.saved_tensors[:4], grads[0]))
        sums = [torch.empty_like(t) for t in (q, k, v)]

        def add(columns: bool, *lines: Tensor) -> native.Work:
            again = not columns
            return native.gradients(*lines, add_q=again, add_kv=again, leave_out=columns)

        _do_lines((q, k, v, out, lse, grad, *sums), v.shape[3], add)
        found = zip(sums, given, strict=True)
        return tuple(s[..., : t.shape[3]].to(t.dtype) for s, t in found)


def _do_lines(maps: Sequence[Tensor], c_out: int, prepare: Callable[..., native.Work]) -> None:
    """All columns of maps ``[B, H, W, ·]``, then all rows; q is the first of the maps."""
    batch, height, width, c = maps[0].shape
    scores = batch * height * width * (height + width)
    workers = tile_workers(scores, maps[0].device, own_threads=True)
    for columns in (True, False):
        count, length = (width, height) if columns else (height, width)
        group = math.ceil(count / pieces_of_image(batch, workers))
        works = [
            prepare(columns, *(x[b].transpose(0, 1) if columns else x[b] for x in maps))
            for b in range(batch)
        ]
        tiles = [
            (work, slice(i, min(i + group, count)))
            for work in works
            for i in range(0, count, group)
        ]

        def worker(_: int, length: int = length) -> Callable[[tuple[native.Work, slice]], None]:
            space = native_space(c, c_out)
            return lambda tile: tile[0](tile[1], slice(0, length), space)

        share_tiles(tiles, maps[0].device, worker, own_threads=True)


implementation("criss-cross", "native", why_not_native)(partial(_by, _NativeCrissCross))
implementation("criss-cross", "tiled")(partial(_by, _CrissCross))


def _lines(x: Tensor, tile: _Lines, columns: bool) -> Tensor:
    """The tile's lines of ``[B, H, W, c]``: ``[lines, positions, c]``, a view."""
    b, lines = tile
    return x[b, :, lines].transpose(0, 1) if columns else x[b, lines]


def _matrices(
    maps: Sequence[Tensor], tile: _Lines, columns: bool, dtype: torch.dtype
) -> Iterator[Tensor]:
    """The tile's lines of each map as matrices of that dtype, which a product can read in place."""
    for number, x in enumerate(maps):
        lines = _lines(x, tile, columns)
        if lines.stride(2) == 1 or lines.stride(1) == 1:
            yield lines.to(dtype)
        else:
            rows = lines.transpose(0, 1)
            copy = scratch(f"lines {number}", x, *rows.shape, dtype=dtype).copy_(rows)
            yield copy.transpose(0, 1)


def _tiles(v: Tensor, columns: bool, buffers: int = 1) -> tuple[list[_Lines], int]:
    """(image, lines) of each tile, and the scores that each buffer of one holds at once."""
    batch, height, width, _ = v.shape
    count, length = (width, height) if columns else (height, width)
    scores = length * max(j.stop - j.start for j in key_tiles(length, v.device))
    limit = tile_limit(v.device, _CPU_TILE, _TILE) // buffers
    workers = tile_workers(batch * count * length**2, v.device)
    group = even_step(count, scores, limit, workers if batch < workers else 1)
    tiles = [(b, slice(i, i + group)) for b in range(batch) for i in range(0, count, group)]
    return tiles, group * scores


@register_attention("criss-cross")
class CrissCrossAttention(Attention):
    """Criss-Cross Attention with 1x1 embeddings: ``y = x + gamma · out``, gamma learned from 0.

    Args:
        channels: channels C of input and output.
        reduction: query and key have C / reduction channels.
        recurrence: how often the same module is applied in a row (2 in CCNet).
    """

    label_format: ClassVar[str] = "Criss-Cross"
    source: ClassVar[str] = "CCNet: Criss-Cross Attention, Huang et al., ICCV 2019"
    complexity: ClassVar[str] = "O(N√N)"

    def __init__(self, channels: int, *, reduction: int = 8, recurrence: int = 1) -> None:
        super().__init__(channels)
        require_at_least("recurrence", recurrence, 1)
        self.recurrence = recurrence
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    @classmethod
    def label(cls, **options: Any) -> str:
        """Criss-Cross, with -R2 and so on for a recurrence above 1."""
        recurrence = options.get("recurrence", 1)
        return "Criss-Cross" if recurrence == 1 else f"Criss-Cross-R{recurrence}"

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, H, W]``, ``recurrence`` passes with the same weights."""
        for _ in range(self.recurrence):
            x = super().forward(x)
        return x

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`criss_cross_attention`, one pass."""
        return criss_cross_attention(q, k, v)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """``x + gamma · y``."""
        return x + self.gamma * y

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Weights ``[B, H, W]`` of one pass, zero off the column and row of (row, col)."""
        scores = position_scores(q, k, row, col)
        on_path = torch.zeros_like(scores, dtype=torch.bool)
        on_path[:, row, :] = True
        on_path[:, :, col] = True
        scores = scores.masked_fill(~on_path, -torch.inf)
        return scores.flatten(1).softmax(1).view_as(scores)

    def cost(self, height: int, width: int) -> Cost:
        """Core N (H + W) (c + c_out) MACs a pass; projections N C (2c + C)."""
        n, c = height * width, self.embedding
        core = n * (height + width) * (c + self.channels)
        projections = n * self.channels * (2 * c + self.channels)
        return Cost(
            projections=self.recurrence * projections,
            core=self.recurrence * core,
            executed=self.recurrence * core,
        )
