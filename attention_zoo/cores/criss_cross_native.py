"""Criss-Cross by kernels in C, float32 inside: all columns first, then all rows.

``auto`` takes it wherever it can run, else tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..implementations import implementation, register_core
from .criss_cross_tiled import attend_maps
from .native import WIDTH, float_rows, why_not_native
from .native import softmax as native
from .softmax import refuse_second_derivative, tile_workers
from .tiles import pieces_of_image


class _NativeCrissCross(torch.autograd.Function):
    """Rows ``[B, H, W, ·]``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        maps = [float_rows(t) for t in (q, k, v)]
        out, top, norm = (maps[0].new_empty(*v.shape[:3], width) for width in (v.shape[3], 1, 1))

        for columns, lines, tiles in _lines((*maps, out, top, norm)):
            # Columns come first, without the position itself; rows contain it, and continue.
            native.attend(lines, tiles, before=not columns, finish=not columns, leave_out=columns)
        ctx.save_for_backward(q, k, v, out, top)
        return out.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative("criss_cross_attention")
        *given, out, lse = ctx.saved_tensors  # read once: torch's checkpoint allows no more
        q, k, v, out, grad = (float_rows(t, WIDTH) for t in (*given, out, grads[0]))
        sums = [torch.empty_like(t) for t in (q, k, v)]

        for columns, lines, tiles in _lines((q, k, v, out, lse, grad, *sums)):
            again = not columns
            native.gradients(lines, tiles, add_q=again, add_kv=again, leave_out=columns)
        found = zip(sums, given, strict=True)
        return tuple(s[..., : t.shape[3]].to(t.dtype) for s, t in found)


def _lines(
    maps: Sequence[Tensor],
) -> Iterator[tuple[bool, list[native.Lines], native.Tiles]]:
    """All columns of maps ``[B, H, W, ·]``, then all rows: whether it is columns, lines, tiles."""
    batch, height, width, _ = maps[0].shape
    scores = batch * height * width * (height + width)
    workers = tile_workers(scores, maps[0].device, own_threads=True)
    for columns in (True, False):
        group = math.ceil((width if columns else height) / pieces_of_image(batch, workers))
        turned = (x.transpose(1, 2) if columns else x for x in maps)
        yield columns, [native.Lines(x) for x in turned], native.Tiles(workers, group)


register_core("criss-cross", lambda *maps: "tiled" if why_not_native(*maps) else "native")
implementation("criss-cross", "native", why_not_native)(partial(attend_maps, _NativeCrissCross))
