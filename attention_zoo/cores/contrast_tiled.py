"""The contrastive loss and its gradient in one pass over tiles of rows, on any device.

Only the largest start + count entries of a row enter, and the gradient touches 2·count of them, so
nothing of the N x N matrix outlives its tile. Scores are in units of log 2; losses and gradients
are not. Notation as in :mod:`attention_zoo.enlca`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..enla import normalise
from ..implementations import implementation
from .largest import has_vector_sort
from .softmax import LOG2_E, refuse_second_derivative
from .tiles import num_workers, scratch, share_tiles, split_tiles

# Elements of the correlation matrix that are alive at once, in each of four buffers: on the CPU
# 2 MB in float32, see :mod:`.tiles`; elsewhere 32 MB.
_CPU_TILE = 2**19
_TILE = 2**23
# Rows up to this length are sorted by a network of vector instructions: numpy takes a quarter of
# the time for an entry that it takes in longer ones.
_NETWORK = 512

_Tile = tuple[int, slice, slice]


@implementation("contrast", "tiled")
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
    q, k = (normalise(t, amplification).flatten(2) for t in (q, k))
    loss: Tensor = _ContrastiveLoss.apply(q, k, count, start, margin, hinge)
    return loss


class _ContrastiveLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, count: int, start: int, margin: float, hinge: bool
    ) -> Tensor:
        batch, _, n = q.shape
        needs_grad = any(ctx.needs_input_grad[:2])
        tiles, size = _tiles(q)
        order = _shuffled(q, start + count + 1)
        if order is not None:
            k = k[..., order]
        grad_q = torch.empty_like(q)
        # Tiles of rows share their keys: each worker has sums of its own.
        workers = min(len(tiles), num_workers(q.device, own_threads=True))
        sums = [torch.zeros_like(k) for _ in range(workers if needs_grad else 0)]
        losses = q.new_empty(len(tiles))

        def worker(number: int) -> Callable[[_Tile], None]:
            workspace = scratch("contrast", q, 4, size)

            def rank(tile: _Tile) -> None:
                index, b, i = tile
                q_i, k_b = q[b, :, i] * LOG2_E, k[b]
                shape = (q_i.shape[0], q_i.shape[2], n)
                scores, *spare = workspace[:, : math.prod(shape)].view(4, *shape)
                torch.bmm(q_i.mT, k_b, out=scores)
                losses[index], grad = _rank_loss(
                    scores, spare, count, start, margin, hinge, needs_grad
                )
                if grad is not None:
                    grad_q[b, :, i] = torch.bmm(k_b, grad.mT)
                    sums[number][b] += torch.bmm(q_i, grad)

            return rank

        share_tiles(tiles, q.device, worker, own_threads=True, fixed=True)  # numpy sorts on one
        for other in sums[1:]:
            sums[0] += other
        total = losses.sum()
        if needs_grad:
            grad_k = sums[0].mul_(1 / LOG2_E)
            if order is not None:
                grad_k = grad_k[..., order.argsort()]
            ctx.save_for_backward(grad_q, grad_k)
        ctx.rows = batch * n
        return total / (batch * n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("contrastive_loss")
        grad_q, grad_k = ctx.saved_tensors
        scale = grads[0] / ctx.rows
        return grad_q * scale, grad_k * scale, None, None, None, None


def _tiles(q: Tensor) -> tuple[list[_Tile], int]:
    """Tiles (number, images, rows), and the scores that one of them holds at once."""
    batch, _, n = q.shape
    limit = _CPU_TILE if q.device.type == "cpu" else _TILE
    tiles, group, rows = split_tiles(batch, n, n, limit, num_workers(q.device, own_threads=True))
    return [(index, *tile) for index, tile in enumerate(tiles)], group * rows * n


def _rank_loss(
    scores: Tensor,
    spare: list[Tensor],
    count: int,
    start: int,
    margin: float,
    hinge: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Loss of rows of scores ``[B, M, N]``, summed, and its gradient if that is needed.

    d loss / d score is minus the softmax within the first group, plus that of the second. The
    scores and three spare tensors of their shape are overwritten.
    """
    if scores.device.type != "cpu" or start < count or not has_vector_sort():
        return _rank_by_index(scores, count, start, margin, hinge, needs_grad)
    # Values alone are enough: which entries they are follows from comparing with the bounds.
    kept = start + count
    found = _largest(spare[0].copy_(scores), min(kept + 1, scores.shape[-1]))
    top = found[..., -kept:]
    first, second = top[..., start:], top[..., :count]
    loss, active, lse = _group_loss(first, second, margin, hinge)
    if not needs_grad:
        return loss, None
    below = found.shape[-1] - kept
    edges = [below, below + count, below + start]
    # Equal entries on a bound (or NaN): only indices tell which of them belong to a group.
    inner = [edge for edge in edges if edge > 0]
    apart = (found[..., inner] > found[..., [edge - 1 for edge in inner]]).all(-1)
    tied = apart.logical_and_(found[..., -1] == found[..., -1]).logical_not_()
    rows = scores[tied] if bool(tied.any()) else None
    # No entry of a row that does not count reaches these.
    bounds = [found[..., e : e + 1].masked_fill(active == 0, math.inf) for e in edges]
    # In place, into the dtype of the scores: a tensor of bool is not written with vectors.
    weight, before_second, in_first = (
        t.copy_(scores).ge_(bound) for t, bound in zip(spare, bounds, strict=True)
    )
    weight.sub_(before_second).sub_(in_first)
    # Above 0 are only the entries between the groups, whose weight is 0.
    exponent = scores.sub_(lse[1]).addcmul_(in_first, lse[1] - lse[0]).clamp_max_(0)
    grad = exponent.exp2_().mul_(weight)
    if rows is not None:
        _, grad_tied = _rank_by_index(rows, count, start, margin, hinge)
        assert grad_tied is not None
        grad[tied] = grad_tied
    return loss, grad


def _rank_by_index(
    scores: Tensor, count: int, start: int, margin: float, hinge: bool, needs_grad: bool = True
) -> tuple[Tensor, Tensor | None]:
    """As :func:`_rank_loss`, of rows ``[..., N]``; the scores become the gradient."""
    top_k = scores.topk(start + count, dim=-1)
    first, second = top_k.values[..., :count], top_k.values[..., start:]
    loss, active, lse = _group_loss(first, second, margin, hinge)
    if not needs_grad:
        return loss, None
    grad = scores.zero_()
    grad.scatter_(-1, top_k.indices[..., :count], (first - lse[0]).exp2_().mul_(-active))
    grad.scatter_add_(-1, top_k.indices[..., start:], (second - lse[1]).exp2_().mul_(active))
    return loss, grad


def _group_loss(
    first: Tensor, second: Tensor, margin: float, hinge: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Summed loss of groups ``[B, M, count]``; which rows count; log2 of both groups' sums."""
    lse = _log2_sum(first), _log2_sum(second)
    loss = (lse[1] - lse[0]) / LOG2_E + margin
    active = (loss > 0).to(loss.dtype) if hinge else torch.ones_like(loss)
    return (loss * active).sum(), active, lse


def _log2_sum(scores: Tensor) -> Tensor:
    """log2 of the sum of 2^score over the last dimension, kept as one."""
    top = scores.amax(-1, keepdim=True)
    return (scores - top).exp2_().sum(-1, keepdim=True).log2_().add_(top)


def _largest(scores: Tensor, kept: int) -> Tensor:
    """The ``kept`` largest entries of each row ``[B, M, N]``, ascending, ``[B, M, kept]``.

    The scores are sorted in place, piece by piece; the result may be a view of them.
    """
    rows = scores.flatten(0, 1)
    bounds, from_each = _pieces(rows.shape[1], kept)
    for i, j in pairwise(bounds):
        rows[:, i:j].numpy().sort(axis=-1)
    if len(bounds) > 2:
        found = torch.cat([rows[:, j - from_each : j] for j in bounds[1:]], dim=1)
        found.numpy().sort(axis=-1)
        found = found[:, -kept:]
        left = [rows[:, j - from_each - 1] for i, j in pairwise(bounds) if j - i > from_each]
        if from_each >= kept or all(bool((t <= found[:, 0]).all()) for t in left):
            return found.unflatten(0, scores.shape[:2])
        rows.numpy().sort(axis=-1)
    return scores[..., -kept:]


def _pieces(n: int, kept: int) -> tuple[list[int], int]:
    """Bounds of the pieces that a row is sorted in, and how many entries of each are looked at.

    The ``kept`` largest of a row are among the largest of each piece: all that may be, or half as
    many again as a piece's share, which entries in random order hardly ever exceed.
    """
    count = math.ceil(n / _NETWORK)
    if count == 1 or 2 * kept > n:
        return [0, n], kept
    share = max(_NETWORK // count, 3 * kept // (2 * count) + 16)
    return [n * i // count for i in range(count + 1)], min(kept, n // count, share)


def _shuffled(q: Tensor, kept: int) -> Tensor | None:
    """An order of the keys in which any piece of a row is a sample of it; None if none is needed.

    Neighbours are alike: as they come, a piece of the image would hold most of the largest.
    """
    n = q.shape[2]
    if q.device.type != "cpu" or not has_vector_sort() or _pieces(n, kept)[1] >= kept:
        return None
    return torch.randperm(n, generator=torch.Generator().manual_seed(n), device="cpu")
