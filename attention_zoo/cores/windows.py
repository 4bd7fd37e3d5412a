"""Softmax attention of many windows alike, each to keys of its own, with a bias of every pair.

Windows of Swin, windows whose keys reach further, and tiles of sliding windows are all of this
kind. Positions come last: products are slow whose results have rows of a head's few channels.
Inside, scores are in units of log 2. Numerics: see :mod:`attention_zoo.base`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..base import no_autocast, split_heads
from .softmax import LOG2_E, refuse_second_derivative, tile_size, tile_workers
from .tiles import num_workers, scratch, share_tiles, step_length


def attend_windows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """``softmax(q·k / sqrt(d) + bias)`` within each of W windows with ``heads`` heads each.

    Args:
        q: queries ``[W · heads, d, L]``, contiguous; the heads of a window stand together.
        k: keys ``[W · heads, d, K]``, contiguous.
        v: values ``[W · heads, d_out, K]``, contiguous.
        bias: of every query and key, ``[heads, L, K]``, in the dtype of the sums.

    Returns:
        ``[W · heads, d_out, L]``.
    """
    with no_autocast(v):
        return _Windows.apply(q, k, v, bias)


def bias_of_pairs(bias: Tensor, keys: tuple[int, int]) -> Tensor:
    """The bias of every pair of positions in a window, which is known by offset.

    Args:
        bias: by offset (query − key + keys − 1) of rows and of columns, ``[heads, S, T]``.
        keys: rows and columns of keys in a window, h and w.

    Returns:
        ``[heads, S + 1 − h, T + 1 − w, h, w]``.
    """
    # Offsets grow with the query and shrink with the key.
    return bias.flip(1, 2).unfold(1, keys[0], 1).unfold(2, keys[1], 1).flip(1, 2)


def to_windows(
    x: Tensor, heads: int, size: tuple[int, int], stride: tuple[int, int] | None = None
) -> Tensor:
    """``[B, C, H, W]`` to windows ``[W · heads, C / heads, h · w]``, which fill the map.

    They lie side by side, or ``stride`` rows and columns apart.
    """
    h, w = size
    x = split_heads(x, heads)
    if stride is None:
        x = x.unflatten(4, (-1, w)).unflatten(3, (-1, h)).permute(0, 3, 5, 1, 2, 4, 6)
    else:
        x = x.unfold(3, h, stride[0]).unfold(4, w, stride[1]).permute(0, 3, 4, 1, 2, 5, 6)
    return x.reshape(-1, x.shape[4], h * w)


def from_windows(windows: Tensor, like: Tensor, heads: int, size: tuple[int, int]) -> Tensor:
    """What :func:`to_windows` made, side by side, back to a map: batch, height, width as like."""
    h, w = size
    down, across = like.shape[2] // h, like.shape[3] // w
    out = windows.view(len(like), down, across, heads, -1, h, w).permute(0, 3, 4, 1, 5, 2, 6)
    return out.reshape(len(like), -1, *like.shape[2:])


def window_softmax(
    q: Tensor, k: Tensor, v: Tensor, log2_bias: Tensor, workspace: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of values, norms ``[W · heads, L, 1]`` and largest scores of a tile of windows.

    Args:
        q: as in :func:`attend_windows`, in the dtype of the sums, as are k and v.
        k: keys.
        v: values.
        log2_bias: the bias in units of log 2; -inf where a query does not see a key.
        workspace: overwritten; at least one number for each score.
    """
    weights = _scores(q, k, log2_bias, workspace)
    top = weights.amax(-1, keepdim=True)
    norm = weights.sub_(top).exp2_().sum(-1, keepdim=True)
    return torch.bmm(v, weights.mT), norm, top


def window_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log2_bias: Tensor,
    grad: Tensor,
    delta: Tensor,
    lse: Tensor,
    workspace: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by scores ``[W · heads, L, K]`` and values, and by q and k times sqrt(d).

    Args:
        q: as in :func:`window_softmax`, as are k, v and log2_bias.
        k: keys.
        v: values.
        log2_bias: bias.
        grad: gradient of the output, ``[W · heads, d_out, L]``.
        delta: its product with the output, summed over channels, ``[W · heads, L, 1]``.
        lse: log2 of the sum of 2^score, ``[W · heads, L, 1]``.
        workspace: ``[2, at least one number for each score]``, overwritten.
    """
    # Rounding of a huge score must not lift it above the sum that holds it.
    weights = _scores(q, k, log2_bias, workspace[0]).sub_(lse).clamp_max_(0).exp2_()
    grad_scores = workspace[1, : weights.numel()].view_as(weights)
    torch.bmm(grad.mT, v, out=grad_scores)
    grad_scores.sub_(delta).mul_(weights)
    return grad_scores, grad @ weights, k @ grad_scores.mT, q @ grad_scores


class _Windows(torch.autograd.Function):
    """A tile has a few windows; the backward pass computes their weights again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        out = v.new_empty(len(q), v.shape[1], q.shape[2])
        lse = bias.new_empty(len(q), q.shape[2], 1)
        tiles, size = _tiles(q, bias)
        log2_bias = bias * LOG2_E

        def worker(_: int) -> Callable[[slice], None]:
            workspace = scratch("scores", bias, size)

            def attend(i: slice) -> None:
                queries, keys, values = (t[i].to(bias.dtype) for t in (q, k, v))
                sums, norm, top = window_softmax(queries, keys, values, log2_bias, workspace)
                torch.div(sums, norm.mT, out=out[i])
                torch.add(norm.log2_(), top, out=lse[i])

            return attend

        share_tiles(tiles, v.device, worker)
        ctx.save_for_backward(q, k, v, bias, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative("window_attention")
        q, k, v, bias, out, lse = ctx.saved_tensors
        grad_out = grads[0].contiguous()  # else torch multiplies window by window
        tiles, size = _tiles(q, bias)
        log2_bias, scale = bias * LOG2_E, 1 / math.sqrt(q.shape[1])
        found = [torch.empty_like(t) for t in (q, k, v)]
        # Windows share the bias: each worker has its own sum.
        sums = [
            torch.zeros_like(bias) for _ in range(max(1, min(len(tiles), num_workers(v.device))))
        ]

        def worker(number: int) -> Callable[[slice], None]:
            workspace = scratch("scores", bias, 2, size)
            grad_bias = sums[number]

            def add(i: slice) -> None:
                queries, keys, values, grad = (t[i].to(bias.dtype) for t in (q, k, v, grad_out))
                delta = (grad * out[i]).sum(1).unsqueeze(2)
                of_scores, of_v, of_q, of_k = window_gradients(
                    queries, keys, values, log2_bias, grad, delta, lse[i], workspace
                )
                grad_bias.add_(of_scores.unflatten(0, (-1, len(bias))).sum(0))
                parts = (of_q, scale), (of_k, scale), (of_v, 1.0)
                for whole, (part, factor) in zip(found, parts, strict=True):
                    torch.mul(part, factor, out=whole[i])

            return add

        share_tiles(tiles, v.device, worker, fixed=True)
        for other in sums[1:]:
            sums[0] += other
        return *found, sums[0]


def _scores(q: Tensor, k: Tensor, log2_bias: Tensor, workspace: Tensor) -> Tensor:
    """Scores ``[W · heads, L, K]`` in ``workspace``, in units of log 2."""
    shape = (len(q), q.shape[2], k.shape[2])
    scores = workspace[: math.prod(shape)].view(shape)
    scores.view(-1, *log2_bias.shape).copy_(log2_bias)
    factor = LOG2_E / math.sqrt(q.shape[1])
    # Not in place by name: torch's counter of operations does not know that.
    return torch.baddbmm(scores, q.mT, k, alpha=factor, out=scores)


def _tiles(q: Tensor, bias: Tensor) -> tuple[list[slice], int]:
    """Tiles of whole windows, and the scores of one; the backward pass holds two such buffers."""
    heads, size = len(bias), bias.numel()
    workers = tile_workers(len(q) // heads * size, q.device)
    step = step_length(len(q) // heads, size, tile_size(q.device, buffers=2), workers)
    return [slice(i, i + step * heads) for i in range(0, len(q), step * heads)], step * size
