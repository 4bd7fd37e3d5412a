"""Attention to the largest scores by kernels in C: a row of scores is read where it was made.

No row is sorted whole, see ``native/largest.c``. Only what was chosen is read again: besides the
scores no product is dense. ``auto`` takes it wherever it can run, else tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..implementations import implementation, register_core
from .largest import Rule
from .native import WIDTH, float_rows, padded, why_not_native
from .native import largest as native
from .softmax import refuse_second_derivative, tile_workers
from .tiles import added_up, num_workers, pieces_of_image, scratch, share_tiles

# Scores that a tile holds at once, and its most rows: they stay in the second-level cache.
_TILE = 2**17
_MOST_ROWS = 48
# Ranking what is chosen takes its square; reading one by one pays where few are.
_MOST_CHOSEN = 512
_FEW = 4
# Of so many numbers torch's operations take no second thread.
_FEW_NUMBERS = 2**11


def why_not(q: Tensor, k: Tensor, v: Tensor, count: int, _: Rule) -> str | None:
    """As :func:`.native.why_not_native`; besides, few of many positions are chosen."""
    if count > _MOST_CHOSEN or _FEW * count > q.shape[1]:
        return f"the kernels in C choose up to {_MOST_CHOSEN} positions, one of {_FEW} at most"
    return why_not_native(q, k, v)


@implementation("largest", "native", why_not)
def attend_rows(q: Tensor, k: Tensor, v: Tensor, count: int, rule: Rule) -> Tensor:
    """Of rows ``[B, N, ·]``."""
    out: Tensor = _Largest.apply(q, k, v, count, rule)
    width = v.shape[2]
    return out if out.shape[2] == width else out[..., :width].contiguous()


class _Largest(torch.autograd.Function):
    """Rows ``[B, N, ·]`` in float32; the output is as wide as the kernels take it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, count: int, rule: Rule) -> Tensor:
        batch, n, c = q.shape
        q, k, values = float_rows(q), float_rows(k, WIDTH), float_rows(v, WIDTH)
        m, rows = padded(n), max(1, min(_MOST_ROWS, _TILE // padded(n)))
        workers = tile_workers(batch * n * n, q.device, own_threads=True)
        scores = q.new_empty(batch, n, count)
        at = torch.empty_like(scores, dtype=torch.int32)
        columns = F.pad(k[..., :c].mT, (0, m - n)).contiguous()
        of = {"q": q, "k": columns, "values": scores, "at": at}
        sizes = {"images": batch, "n": n, "m": m, "c": c, "count": count, "rows": rows}
        job = native.Selection.of(**of, **sizes, workers=workers)
        native.select(job, scratch("native", q, workers * native.workspace_size(rows, m, count)))
        weights = _by_tiles(rule.weigh, scores)
        out = torch.empty_like(values)
        _share(native.sums, _workers(weights), weights, at, out, keys=values)
        ctx.save_for_backward(q, k, values, weights, at)
        ctx.rule = rule
        ctx.c_out = v.shape[2]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("attend_to_largest")
        q, k, v, weights, at = (
            t.contiguous() for t in ctx.saved_tensors
        )  # hooks may change layouts
        c = q.shape[2]
        q, grad = (float_rows(t, WIDTH) for t in (q, grads[0]))
        grad_weights, grad_q = torch.empty_like(weights), torch.empty_like(q)
        workers = _workers(weights)
        _share(native.dots, workers, weights, at, grad_weights, queries=grad, keys=v)
        grad_scores = _by_tiles(ctx.rule.gradient, weights, grad_weights)
        _share(native.sums, workers, grad_scores, at, grad_q, keys=k)
        # Rows share their keys: each worker has sums of its own.
        sum_k, sum_v = (t.new_zeros(workers, *t.shape) for t in (k, v))
        _share(native.spread, workers, grad_scores, at, sum_k, queries=q)
        _share(native.spread, workers, weights, at, sum_v, queries=grad)
        grad_k, grad_v = added_up([[*pair] for pair in zip(sum_k, sum_v, strict=True)])
        return grad_q[..., :c], grad_k[..., :c], grad_v[..., : ctx.c_out], None, None


def _by_tiles(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """The function of rows ``[B, N, count]``, by threads of our own.

    Torch's would have to wake up, and a forked process has none.
    """
    first = rows[0]
    batch, n, _ = first.shape
    out = torch.empty_like(first)
    workers = num_workers(first.device, own_threads=True) if first.numel() > _FEW_NUMBERS else 1
    size = math.ceil(n / pieces_of_image(batch, workers))
    tiles = [(b, slice(i, i + size)) for b in range(batch) for i in range(0, n, size)]

    def worker(_: int) -> Callable[[tuple[int, slice]], None]:
        def work(tile: tuple[int, slice]) -> None:
            out[tile] = function(*(t[tile] for t in rows))

        return work

    share_tiles(tiles, first.device, worker, own_threads=True)
    return out


def _share(
    function: Callable[[native.Chosen], None],
    workers: int,
    weights: Tensor,
    at: Tensor,
    out: Tensor,
    **vectors: Tensor,
) -> None:
    """Call it for all rows; the vectors are queries, keys or both."""
    batch, n, count = weights.shape
    d = next(iter(vectors.values())).shape[2]
    of = {"weights": weights, "at": at, "out": out, **vectors}
    sizes = {"images": batch, "n": n, "d": d, "count": count, "rows": _MOST_ROWS}
    function(native.Chosen.of(**of, **sizes, workers=workers))


def _workers(weights: Tensor) -> int:
    return tile_workers(weights.numel(), weights.device, own_threads=True)


def _rule(*args: Any) -> str:
    return "tiled" if why_not(*args) else "native"


register_core("largest", _rule)
