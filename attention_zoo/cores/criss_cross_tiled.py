"""Criss-Cross by tiles of whole lines: all columns first, then all rows.

Every position attends to its column, without itself, and continues with its row by online softmax,
so no mask is kept. Of a map that is not channels-last, the columns of a tile are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..base import no_autocast, sum_dtype
from ..implementations import implementation
from .softmax import (
    PartialSoftmax,
    attend_tile,
    finish_tile,
    key_tiles,
    refuse_second_derivative,
    tile_gradients,
    tile_workers,
)
from .tiles import scratch, share_tiles, step_length, tile_limit

# Scores of a tile that are held at once: on the CPU 2 MB in float32, see :mod:`.tiles`; elsewhere
# 128 MB, for few launches.
_CPU_TILE = 2**19
_TILE = 2**25

_Lines = tuple[int, slice]


def attend_maps(function: type[torch.autograd.Function], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of maps ``[B, ·, H, W]`` by a function on ``[B, H, W, ·]``."""
    with no_autocast(v):
        out: Tensor = function.apply(*(t.permute(0, 2, 3, 1) for t in (q, k, v)))
    return out.permute(0, 3, 1, 2)


class _CrissCross(torch.autograd.Function):
    """Rows ``[B, H, W, ·]``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Contiguous rows serve both passes; a trace is compared with one that records no gradients.
        if any(ctx.needs_input_grad) or torch.jit.is_tracing():
            q, k, v = (t.contiguous() for t in (q, k, v))
        dtype = sum_dtype(v)
        batch, height, width, _ = v.shape
        out, lse = v.new_empty(v.shape), v.new_empty(batch, height, width, 1, dtype=dtype)
        # Sums over the columns, which the rows continue in place.
        sums = PartialSoftmax(
            out if v.dtype == dtype else v.new_empty(v.shape, dtype=dtype),
            *(v.new_empty(batch, height, width, 1, dtype=dtype) for _ in range(2)),
        )

        def attend(columns: bool, size: int, _: int) -> Callable[[_Lines], None]:
            workspace = scratch("scores", v, size, dtype=dtype)

            def attend_columns(tile: _Lines) -> None:
                queries, keys, values = _matrices((q, k, v), tile, True, dtype)
                found = PartialSoftmax(*(_lines(t, tile, True) for t in sums))
                state = attend_tile(queries, keys, values, workspace, left_out=0, acc=found.acc)
                found.top.copy_(state.top)
                found.norm.copy_(state.norm)

            def attend_rows(tile: _Lines) -> None:
                queries, keys, values = _matrices((q, k, v), tile, False, dtype)
                before = PartialSoftmax(*(t[tile] for t in sums))
                state = attend_tile(queries, keys, values, workspace, before=before)
                finish_tile(state, out[tile], lse[tile])

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
            workspace = scratch("scores", v, 2, size, dtype=dtype)

            def add_lines(tile: _Lines) -> None:
                queries, keys, values, grad, outputs = _matrices(
                    (q, k, v, grads[0], out), tile, columns, dtype
                )
                delta = (grad * outputs).sum(-1, keepdim=True)
                lses = _lines(lse, tile, columns)
                grad_q, grad_k, grad_v = (_lines(s, tile, columns) for s in sums)
                for j in key_tiles(keys.shape[1], keys.device):
                    left_out = -j.start if columns else None
                    found = tile_gradients(
                        queries, keys[:, j], values[:, j], grad, lses, delta, workspace, left_out
                    )
                    # Columns come first; a query's gradient is the sum over all its keys.
                    new = (columns and j.start == 0, columns, columns)
                    parts = (grad_q, grad_k[:, j], grad_v[:, j])
                    for part, one, first in zip(parts, found, new, strict=True):
                        part.copy_(one) if first else part.add_(one)

            return add_lines

        for columns in (True, False):
            tiles, size = _tiles(v, columns, buffers=2)
            share_tiles(tiles, v.device, partial(add, columns, size))
        return tuple(s.to(t.dtype) for s, t in zip(sums, (q, k, v), strict=True))


implementation("criss-cross", "tiled")(partial(attend_maps, _CrissCross))


def _lines(x: Tensor, tile: _Lines, columns: bool) -> Tensor:
    """The tile's lines of ``[B, H, W, c]``: ``[lines, positions, c]``, a view."""
    b, lines = tile
    return x[b, :, lines].transpose(0, 1) if columns else x[b, lines]


def _matrices(
    maps: Sequence[Tensor], tile: _Lines, columns: bool, dtype: torch.dtype
) -> Iterator[Tensor]:
    """The tile's lines of each map in that dtype, as matrices that a product reads in place."""
    for number, x in enumerate(maps):
        lines = _lines(x, tile, columns)
        if lines.stride(2) == 1 or lines.stride(1) == 1:
            yield lines.to(dtype)
        else:
            rows = lines.transpose(0, 1)
            copy = scratch(f"lines {number}", x, *rows.shape, dtype=dtype).copy_(rows)
            yield copy.transpose(0, 1)


def _tiles(v: Tensor, columns: bool, buffers: int = 1) -> tuple[list[_Lines], int]:
    """(image, lines) of each tile, and the scores that each buffer of a tile holds at once."""
    batch, height, width, _ = v.shape
    count, length = (width, height) if columns else (height, width)
    scores = length * max(j.stop - j.start for j in key_tiles(length, v.device))
    limit = tile_limit(v.device, _CPU_TILE, _TILE) // buffers
    workers = tile_workers(batch * count * length**2, v.device)
    group = step_length(count, scores, limit, workers if batch < workers else 1)
    tiles = [(b, slice(i, i + group)) for b in range(batch) for i in range(0, count, group)]
    return tiles, group * scores
