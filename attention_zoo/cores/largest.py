"""Attention of each position to the largest of its scores, by tiles of queries.

What outlives a tile is which positions were chosen and their weights, N times ``count`` numbers
each. Where few of many are chosen, the CPU gathers their vectors. Elsewhere products are dense,
with zeros where nothing was chosen: they take less time there, and add up in a fixed order on every
device, which additions to gathered places do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _python_dispatch

from ..base import no_autocast, sum_dtype, to_map, to_rows
from .softmax import refuse_second_derivative, tile_size, tile_workers
from .tiles import added_up, num_workers, scratch, share_tiles, split_tiles

# Scores of a row that share a maximum.
_GROUP = 8
# The CPU gathers vectors where at most one of so many positions is chosen.
_FEW = 16


class Rule(NamedTuple):
    """How scores become weights.

    Attributes:
        weigh: the chosen scores ``[..., count]``, descending, to their weights.
        gradient: those weights and their gradient to the gradient of the scores.
    """

    weigh: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]


def attend_to_largest(q: Tensor, k: Tensor, v: Tensor, count: int, rule: Rule) -> Tensor:
    """Sum of values, weighted by the largest ``count`` of ``q_i · k_j`` for every i.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        count: scores of a row that count; all, if there are fewer positions.
        rule: makes weights of them.

    Returns:
        ``[B, c_out, H, W]``. Everything is in float32 at least.
    """
    dtype = sum_dtype(v)
    with no_autocast(v):
        rows = (to_rows(t).to(dtype) for t in (q, k, v))
        return to_map(_Largest.apply(*rows, count, rule), like=v).to(v.dtype)


def weights_of_largest(scores: Tensor, count: int, rule: Rule) -> Tensor:
    """Weights of one query's scores ``[B, H, W]``: zero where they do not count."""
    rows = scores.flatten(1)
    values, chosen = largest(rows, min(count, rows.shape[1]))
    return torch.zeros_like(rows).scatter(1, chosen, rule.weigh(values)).view_as(scores)


def executed_macs(n: int, c: int, c_out: int) -> int:
    """MACs that :func:`attend_to_largest` executes for one image of n positions, if dense."""
    return n * _padded(n) * (c + c_out)


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row, descending, and where they are.

    Of equal scores it is open which are taken, but always the same ones on one device.

    Args:
        scores: ``[..., M]``.
        count: at most M.

    Returns:
        Values and indices, ``[..., count]``.
    """
    groups = scores.shape[-1] // _GROUP
    if scores.shape[-1] % _GROUP or _GROUP * count > 3 * groups:
        return _pick(scores, count)
    # The largest scores lie in the groups with the largest maxima. Neighbours are alike, so the
    # positions of a group lie far apart.
    tops = scores.unflatten(-1, (_GROUP, groups)).amax(-2)
    _, group = _pick(tops, count)
    first = torch.arange(0, scores.shape[-1], groups, device=scores.device)
    at = (first.unsqueeze(-1) + group.unsqueeze(-2)).flatten(-2)
    values, found = _pick(scores.gather(-1, at), count)
    return values, at.gather(-1, found)


def _pick(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As :func:`largest`, from all scores at once."""
    if scores.device.type != "cpu" or scores.dtype != torch.float32 or _is_watched():
        return scores.topk(count, dim=-1)
    if not has_vector_sort():
        return scores.topk(count, dim=-1)
    # Integers that are ordered as the scores, above the position counted from the end.
    last = scores.shape[-1] - 1
    bits = scores.contiguous().view(torch.int32)
    ordered = ((bits >> 31) & 0x7FFFFFFF).bitwise_xor_(bits)
    from_end = torch.arange(last, -1, -1, device=scores.device)
    keys = ordered.to(torch.int64).bitwise_left_shift_(32).bitwise_or_(from_end).numpy()
    keys.partition(last + 1 - count, axis=-1)
    top = keys[..., last + 1 - count :]
    top.sort(axis=-1)
    chosen = last - (torch.from_numpy(top).flip(-1) & 0xFFFFFFFF)
    return scores.gather(-1, chosen), chosen


@cache
def has_vector_sort() -> bool:
    """Whether numpy is there, from 2.0: it sorts and partitions with vector instructions.

    torch's own sort and topk do not on the CPU: they take twice to ten times as long.
    """
    try:
        import numpy
    except ImportError:
        return False
    return int(numpy.__version__.split(".")[0]) >= 2


_Tile = tuple[slice, slice]


class _Largest(torch.autograd.Function):
    """Rows q, k, v ``[B, N, ·]`` in the dtype of sums, number of scores that count, and rule."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, count: int, rule: Rule) -> Tensor:
        n, count = q.shape[1], min(count, q.shape[1])
        q, (k, v) = q.contiguous(), (_pad(t) for t in (k, v))
        out, weights = (q.new_empty(*q.shape[:2], width) for width in (v.shape[2], count))
        chosen = torch.empty_like(weights, dtype=torch.int32)
        gathers = _gathers(weights, k)
        tiles, size = _tiles(q, k.shape[1])

        def worker(_: int) -> Callable[[_Tile], None]:
            workspace = scratch("scores", q, size)

            def attend(tile: _Tile) -> None:
                b, i = tile
                scores = _products(q[b, i], k[b], workspace)
                scores[..., n:] = -math.inf
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
        grad, grad_q, n = grads[0].contiguous(), torch.empty_like(q), q.shape[1]
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
                of_keys = (k[b], v[b], sum_k[b], sum_v[b])
                if workspace is None:
                    grad_q[b, i] = _gathered_gradients(*of_queries, *of_keys, ctx.rule)
                else:
                    grad_q[b, i] = _dense_gradients(*of_queries, *of_keys, ctx.rule, workspace)

            return add

        share_tiles(tiles, q.device, worker, fixed=True)
        grad_k, grad_v = (t[:, :n] for t in added_up(sums))
        return grad_q, grad_k, grad_v, None, None


def _dense_gradients(
    q: Tensor,
    grad: Tensor,
    weights: Tensor,
    at: Tensor,
    k: Tensor,
    v: Tensor,
    sum_k: Tensor,
    sum_v: Tensor,
    rule: Rule,
    workspace: Tensor,
) -> Tensor:
    """Gradient of a tile's queries; those of keys and values are added to their sums."""
    pairs = _products(grad, v, workspace)
    grad_scores = rule.gradient(weights, pairs.gather(-1, at))
    _spread(weights, at, pairs)
    torch.baddbmm(sum_v, pairs.mT, grad, out=sum_v)
    _spread(grad_scores, at, pairs)
    torch.baddbmm(sum_k, pairs.mT, q, out=sum_k)
    return torch.bmm(pairs, k)


def _gathered_gradients(
    q: Tensor,
    grad: Tensor,
    weights: Tensor,
    at: Tensor,
    k: Tensor,
    v: Tensor,
    sum_k: Tensor,
    sum_v: Tensor,
    rule: Rule,
) -> Tensor:
    """As :func:`_dense_gradients`, from the vectors of the chosen positions alone."""
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
    return few and weights.device.type == "cpu" and not _is_watched()


def _is_watched() -> bool:
    """Whether somebody counts or records operations, and sees only torch's, on every device."""
    return torch.jit.is_tracing() or _python_dispatch._get_current_dispatch_mode() is not None


def _padded(n: int) -> int:
    return n + -n % _GROUP


def _pad(rows: Tensor) -> Tensor:
    """Rows ``[B, N, c]``, contiguous, and zeros up to whole groups."""
    return F.pad(rows, (0, 0, 0, -rows.shape[1] % _GROUP)).contiguous()


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
