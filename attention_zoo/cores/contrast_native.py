"""The contrastive loss by kernels in C: rows of scores are ranked where they were made.

``auto`` takes it wherever it can run, else tiles. No row is sorted: see ``native/contrast.c``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..base import to_rows
from ..enla import MIN_NORM
from ..implementations import implementation, register_core
from .native import contrast as native
from .native import float_rows, padded, why_not_native
from .softmax import refuse_second_derivative, tile_workers
from .tiles import scratch

# Scores that a tile holds at once, and its most rows: they stay in the second-level cache.
_TILE = 2**17
_MOST_ROWS = 144
_MOST_AMPLIFICATION = 1e20


def why_not(q: Tensor, k: Tensor, amplification: float, *_: object) -> str | None:
    """As :func:`.native.why_not_native`; besides, sums of scores must be finite."""
    if amplification > _MOST_AMPLIFICATION:
        return f"the loss in C takes amplifications up to {_MOST_AMPLIFICATION:g}"
    if q.numel() == 0:
        return "the loss in C takes no empty batch"
    return why_not_native(q, k)


@implementation("contrast", "native", why_not)
def contrastive_loss(
    q: Tensor,
    k: Tensor,
    amplification: float,
    count: int,
    start: int,
    margin: float,
    hinge: bool,
) -> Tensor:
    """Eq. 8–10 of embeddings ``[B, c, H, W]``.

    A group has count entries; the second begins at rank start.
    """
    rows = (to_rows(t) for t in (q, k))
    loss: Tensor = _ContrastiveLoss.apply(*rows, amplification, count, start, margin, hinge)
    return loss


class _ContrastiveLoss(torch.autograd.Function):
    """Rows ``[B, N, c]``. The gradients are made with the loss, from scores that are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        amplification: float,
        count: int,
        start: int,
        margin: float,
        hinge: bool,
    ) -> Tensor:
        batch, positions, width = q.shape
        needs_grad = any(ctx.needs_input_grad[:2])
        rows_q, rows_k = (float_rows(t) for t in (q, k))
        new = rows_q.new_empty
        c, n = padded(width), padded(positions)
        parts = math.ceil(positions / min(max(1, _TILE // n), _MOST_ROWS))
        rows = math.ceil(positions / parts)  # tiles of equal size: workers are done together
        tiles = batch * parts
        workers = min(tiles, tile_workers(batch * positions**2, q.device, own_threads=True))
        losses = new(batch, positions)
        results = new(2, *rows_q.shape) if needs_grad else new(0)  # gradients of q and k
        sums: dict[str, Tensor] = {}
        if needs_grad:
            sums = {
                "to_q": results[0],
                "to_k": results[1],
                "grad_q": new(batch, positions, c),
                # Rows share their keys: each worker has sums of its own.
                "grad_k": new(workers, batch, positions, c),
            }
        normalised = {
            "q": new(batch, positions, c),
            "k": new(batch, positions, c),
            "columns": new(batch, c, n),
            "factor_q": new(batch, positions),
            "factor_k": new(batch, positions),
        }
        sizes = {
            "images": batch,
            "positions": positions,
            "width": width,
            "c": c,
            "n": n,
            "rows": rows,
            "workers": workers,
            "count": count,
            "start": start,
        }
        job = native.Contrast.of(
            given_q=rows_q,
            given_k=rows_k,
            losses=losses,
            **normalised,
            **sums,
            **sizes,
            length=math.sqrt(amplification),
            min_norm=MIN_NORM,
            margin=margin,
            scale=1 / losses.numel(),
            hinge=hinge,
            needs_grad=needs_grad,
        )
        size = native.workspace_size(n, rows, count)
        native.rank(job, scratch("native", rows_q, workers * size))
        ctx.save_for_backward(results)
        ctx.dtypes = q.dtype, k.dtype
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("contrastive_loss")
        (results,) = ctx.saved_tensors
        found = zip((results * grads[0]).unbind(), ctx.dtypes, strict=True)
        return *(t.to(dtype) for t, dtype in found), *[None] * 5


def _rule(*args: Any) -> str:
    return "tiled" if why_not(*args) else "native"


register_core("contrast", _rule, auxiliary=True)
