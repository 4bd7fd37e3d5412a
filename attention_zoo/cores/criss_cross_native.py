"""Criss-Cross by kernels in C, float32 inside: all columns first, then all rows.

``auto`` takes it wherever it can run, else tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..implementations import implementation, register_core
from .criss_cross_tiled import attend_maps
from .native import WIDTH, float_rows, why_not_native
from .native import softmax as native
from .softmax import refuse_second_derivative, tile_workers
from .tiles import pieces_of_image, share_tiles


class _NativeCrissCross(torch.autograd.Function):
    """Rows ``[B, H, W, ·]``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        maps = [float_rows(t) for t in (q, k, v)]
        out, top, norm = (maps[0].new_empty(*v.shape[:3], width) for width in (v.shape[3], 1, 1))

        def attend(columns: bool, *lines: Tensor) -> native.Work:
            # Columns come first, without the position itself; rows contain it, and continue.
            return native.attend(*lines, before=not columns, finish=not columns, leave_out=columns)

        _do_lines((*maps, out, top, norm), v.shape[3], attend)
        ctx.save_for_backward(q, k, v, out, top)
        return out.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative("criss_cross_attention")
        *given, out, lse = ctx.saved_tensors  # read once: torch's checkpoint allows no more
        q, k, v, out, grad = (float_rows(t, WIDTH) for t in (*given, out, grads[0]))
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
            workspace = native.workspace(c, c_out)
            return lambda tile: tile[0](tile[1], slice(0, length), workspace)

        share_tiles(tiles, maps[0].device, worker, own_threads=True)


register_core("criss-cross", lambda *maps: "tiled" if why_not_native(*maps) else "native")
implementation("criss-cross", "native", why_not_native)(partial(attend_maps, _NativeCrissCross))
