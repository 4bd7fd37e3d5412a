"""Attention to the largest scores by tiles of queries, in torch's operations.

What outlives a tile is which positions were chosen and their weights, N times ``count`` numbers
each. Where few of many are chosen, the CPU gathers their vectors. Elsewhere products are dense,
with zeros where nothing was chosen: they take less time there, and add up in a fixed order on every
device, which additions to gathered places do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..implementations import implementation
from .largest import Rule, largest
from .softmax import refuse_second_derivative, tile_size, tile_workers
from .tiles import added_up, is_watched, num_workers, scratch, share_tiles, split_tiles

# The CPU gathers vectors where at most one of so many positions is chosen.
_FEW = 16


@implementation("largest", "tiled")
def attend_rows(q: Tensor, k: Tensor, v: Tensor, count: int, rule: Rule) -> Tensor:
    """Of rows ``[B, N, ·]``."""
    out: Tensor = _Largest.apply(q, k, v, count, rule)
    return out


_Tile = tuple[slice, slice]


class _Part(NamedTuple):
    """What the gradients of a tile are made of: rows of its queries, and of the images' keys."""

    q: Tensor
    grad: Tensor
    weights: Tensor
    at: Tensor
    k: Tensor
    v: Tensor
    sum_k: Tensor
    sum_v: Tensor


class _Largest(torch.autograd.Function):
    """Rows q, k, v ``[B, N, ·]`` in the dtype of sums, number of scores that count, and rule."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, count: int, rule: Rule) -> Tensor:
        q, k, v = (t.contiguous() for t in (q, k, v))
        count = min(count, q.shape[1])
        out, weights = (q.new_empty(*q.shape[:2], width) for width in (v.shape[2], count))
        chosen = torch.empty_like(weights, dtype=torch.int32)
        gathers = _gathers(weights, k)
        tiles, size = _tiles(q, k.shape[1])

        def worker(_: int) -> Callable[[_Tile], None]:
            workspace = scratch("scores", q, size)

            def attend(tile: _Tile) -> None:
                b, i = tile
                scores = _products(q[b, i], k[b], workspace)
                values, at = largest(scores, count)
                found = rule.weigh(values)
                if gathers:
                    out[b, i] = _weighted_sums(found, at, v[b])
                else:
                    out[b, i] = torch.bmm(_spread(found, at, scores), v[b])
                weights[b, i], chosen[b, i] = found, at

            return attend

        share_tiles(tiles, q.device, worker)
        ctx.save_for_backward(q, k, v, weights, chosen)
        ctx.rule = rule
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("attend_to_largest")
        q, k, v, weights, chosen = ctx.saved_tensors
        grad, grad_q = grads[0].contiguous(), torch.empty_like(q)
        gathers = _gathers(weights, k)
        width = weights.shape[2] * max(q.shape[2], v.shape[2]) if gathers else k.shape[1]
        tiles, size = _tiles(q, width)
        # Tiles share their keys: each worker has its own sums.
        sums = [
            [torch.zeros_like(t) for t in (k, v)]
            for _ in range(max(1, min(len(tiles), num_workers(q.device))))
        ]

        def worker(number: int) -> Callable[[_Tile], None]:
            workspace = None if gathers else scratch("scores", q, size)
            sum_k, sum_v = sums[number]

            def add(tile: _Tile) -> None:
                b, i = tile
                of_queries = (q[b, i], grad[b, i], weights[b, i], chosen[b, i].to(torch.int64))
                part = _Part(*of_queries, k[b], v[b], sum_k[b], sum_v[b])
                if workspace is None:
                    grad_q[b, i] = _gathered_gradients(part, ctx.rule)
                else:
                    grad_q[b, i] = _dense_gradients(part, ctx.rule, workspace)

            return add

        share_tiles(tiles, q.device, worker, fixed=True)
        grad_k, grad_v = added_up(sums)
        return grad_q, grad_k, grad_v, None, None


def _dense_gradients(part: _Part, rule: Rule, workspace: Tensor) -> Tensor:
    """Gradient of a tile's queries; those of keys and values are added to their sums."""
    pairs = _products(part.grad, part.v, workspace)
    grad_scores = rule.gradient(part.weights, pairs.gather(-1, part.at))
    _spread(part.weights, part.at, pairs)
    torch.baddbmm(part.sum_v, pairs.mT, part.grad, out=part.sum_v)
    _spread(grad_scores, part.at, pairs)
    torch.baddbmm(part.sum_k, pairs.mT, part.q, out=part.sum_k)
    return torch.bmm(pairs, part.k)


def _gathered_gradients(part: _Part, rule: Rule) -> Tensor:
    """As :func:`_dense_gradients`, from the vectors of the chosen positions alone."""
    q, grad, weights, at, k, v, sum_k, sum_v = part
    rows = _flat(at, v).flatten()
    values = v.flatten(0, 1).index_select(0, rows).view(-1, at.shape[2], v.shape[2])
    grad_weights = torch.bmm(grad.reshape(-1, 1, grad.shape[2]), values.mT).view(at.shape)
    grad_scores = rule.gradient(weights, grad_weights)
    for total, factors, vectors in ((sum_v, weights, grad), (sum_k, grad_scores, q)):
        parts = factors.unsqueeze(-1) * vectors.unsqueeze(-2)
        total.flatten(0, 1).index_add_(0, rows, parts.view(-1, vectors.shape[2]))
    return _weighted_sums(grad_scores, at, k)


def _weighted_sums(weights: Tensor, at: Tensor, vectors: Tensor) -> Tensor:
    """Sum of the chosen of ``[B, M, c]``: weights and places are ``[B, N, count]``."""
    sums = F.embedding_bag(
        _flat(at, vectors),
        vectors.flatten(0, 1),
        per_sample_weights=weights.reshape(-1, weights.shape[2]),
        mode="sum",
    )
    return sums.view(*at.shape[:2], -1)


def _flat(at: Tensor, vectors: Tensor) -> Tensor:
    """Places ``[B, N, count]`` in each image's ``[B, M, c]`` as places in all of them."""
    images = torch.arange(len(vectors), device=at.device).mul_(vectors.shape[1])
    return (at + images[:, None, None]).flatten(0, 1)


def _gathers(weights: Tensor, k: Tensor) -> bool:
    """Whether to gather vectors, for weights ``[B, N, count]`` and keys ``[B, M, c]``."""
    few = _FEW * weights.shape[2] <= k.shape[1]
    return few and weights.device.type == "cpu" and not is_watched()


def _tiles(q: Tensor, width: int) -> tuple[list[_Tile], int]:
    """Tiles (images, queries), and the numbers of the largest; a query takes ``width``."""
    batch, n, _ = q.shape
    workers = tile_workers(batch * n * width, q.device)
    tiles, group, rows = split_tiles(batch, n, width, tile_size(q.device), workers)
    return tiles, group * rows * width


def _products(a: Tensor, b: Tensor, workspace: Tensor) -> Tensor:
    """``a bᵀ`` of rows ``[B, N, c]`` and ``[B, M, c]``, in ``workspace``."""
    shape = (a.shape[0], a.shape[1], b.shape[1])
    return torch.bmm(a, b.mT, out=workspace[: math.prod(shape)].view(shape))


def _spread(values: Tensor, at: Tensor, into: Tensor) -> Tensor:
    """``into`` with these values at their places, and zeros elsewhere."""
    return into.zero_().scatter_(-1, at, values)
