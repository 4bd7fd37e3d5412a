"""Softmax attention of rows, ``[B, N, c]`` to ``[B, N, c_out]``: tiled, fused and native.

Row i of the output is ``sum_j softmax_j(q_i · k_j) v_j``, without a scale: Eq. 1 of the ENLCA
paper. Numerics: see :mod:`attention_zoo.base`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..base import no_autocast, sum_dtype
from . import native
from .native import softmax as native_softmax
from .softmax import (
    CPU_TILE,
    LOG2_E,
    attend_tile,
    finish_tile,
    key_tiles,
    refuse_second_derivative,
    score_gradients,
    tile_size,
    tile_workers,
)
from .tiles import added_up, num_workers, scratch, share_tiles, split_tiles

_BFLOAT16_CAPABILITY = (8, 0)
_FUSED = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
)


def softmax_attention_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Tile by tile: softmax attention and the log of its normaliser, both differentiable.

    Args:
        q: queries ``[B, N, c]``.
        k: keys ``[B, M, c]``.
        v: values ``[B, M, c_out]``.

    Returns:
        Output ``[B, N, c_out]`` in the dtype of ``v``, and log-sum-exp of the scores ``[B, N]``
        (float32 for half-precision inputs).
    """
    with no_autocast(q):
        return _TiledAttention.apply(q, k, v)


def softmax_attention_native(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By kernels in C on the CPU, see :mod:`.native`.

    Args:
        q: queries ``[B, N, c]``.
        k: keys ``[B, M, c]``.
        v: values ``[B, M, c_out]``.

    Returns:
        ``[B, N, c_out]`` in the dtype of ``v``.

    Raises:
        RuntimeError: the kernels cannot run, see :func:`.native.why_not_native`.
    """
    with no_autocast(q):
        return _NativeAttention.apply(q, k, v)


def softmax_attention_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """By torch's fused kernel.

    Args:
        q: queries ``[B, N, c]``.
        k: keys ``[B, M, c]``.
        v: values ``[B, M, c_out]``.

    Returns:
        ``[B, N, c_out]``.

    Raises:
        RuntimeError: torch has no such kernel for these, see :func:`why_not_fused`.
    """
    c, c_out = q.shape[-1], v.shape[-1]
    # The kernels of the CPU and for half precision take one width for query, key and value. Those
    # of CUDA take multiples of 8 only, and anything else goes the N x M way.
    if q.device.type != "cuda":
        c = c_out = max(c, c_out)
    else:
        c, c_out = _multiple_of_8(c), _multiple_of_8(c_out)
        if q.dtype != torch.float32:
            c = c_out = max(c, c_out)
    # A fourth dimension (heads) is needed: with three, torch silently takes the N x M path. It also
    # does so for rows that are not contiguous, as those of a map that is not channels-last.
    q, k, v_padded = (
        F.pad(t, (0, width - t.shape[-1])).contiguous().unsqueeze(1)
        for t, width in ((q, c), (k, c), (v, c_out))
    )
    with no_autocast(q), _only_fused(q):
        if q.device.type == "cpu":
            out = _FusedAttention.apply(q, k, v_padded)
        else:
            out = F.scaled_dot_product_attention(q, k, v_padded, scale=1.0)
    return out.squeeze(1)[..., : v.shape[-1]]


def _multiple_of_8(width: int) -> int:
    return width + -width % 8


def _only_fused(q: Tensor) -> AbstractContextManager[Any]:
    """On CUDA an error instead of torch's silent way to an N x M matrix."""
    if q.device.type != "cuda":
        return nullcontext()
    return sdpa_kernel(list(_FUSED))


def why_not_fused(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why torch has no fused kernel for these rows; None if it has."""
    if q.device.type == "cuda" and q.dtype == torch.float64:
        return "torch's fused CUDA kernels do not take float64"
    if q.device.type == "cuda" and q.dtype == torch.bfloat16:
        capability = torch.cuda.get_device_capability(q.device)
        if capability < _BFLOAT16_CAPABILITY:
            return (
                "torch's fused kernels take bfloat16 from CUDA capability 8.0 on; "
                f"this device has {capability[0]}.{capability[1]}"
            )
    return None


_Tile = tuple[slice, slice]


class _TiledAttention(torch.autograd.Function):
    """Attention tile by tile with online softmax; the backward pass recomputes the tiles."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        dtype = sum_dtype(v)
        out = v.new_empty(*q.shape[:2], v.shape[-1])
        lse = v.new_empty(*q.shape[:2], 1, dtype=dtype)
        tiles, size = _tiles(q, k)

        def worker(_: int) -> Callable[[_Tile], None]:
            workspace = scratch("scores", v, size, dtype=dtype)

            def attend(tile: _Tile) -> None:
                b, i = tile
                state = attend_tile(q[b, i].to(dtype).contiguous(), k[b], v[b], workspace)
                finish_tile(state, out[b, i], lse[b, i])

            return attend

        share_tiles(tiles, v.device, worker)
        ctx.save_for_backward(q, k, v, out, lse)
        return out, (lse * (1 / LOG2_E)).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        refuse_second_derivative("softmax_attention_lse")
        return _gradients(*ctx.saved_tensors, *grads)


class _FusedAttention(torch.autograd.Function):
    """torch's fused forward pass on the CPU, our backward pass: faster, finite for any score.

    q, k, v are ``[B, 1, N, c]``, contiguous and of one width.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, scale=1.0
        )
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative("softmax_attention_fused")
        q, k, v, out, lse = ctx.saved_tensors
        q, k, v, out, grad = (t.squeeze(1) for t in (q, k, v, out, grads[0]))
        log2_sum = lse.view(*q.shape[:2], 1) * LOG2_E
        found = _gradients(q, k, v, out, log2_sum, grad)
        return tuple(t.unsqueeze(1) for t in found)


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows q, k, v; lse is log2 of the sum of 2^score, ``[B, N, 1]``."""
    dtype = sum_dtype(v)
    tiles, size = _tiles(q, k, buffers=2)
    grad_q = torch.empty_like(q)
    # Tiles share their keys: each worker has its own sums.
    sums = [
        [torch.zeros_like(t, dtype=dtype) for t in (k, v)]
        for _ in range(max(1, min(len(tiles), num_workers(v.device))))
    ]

    def worker(number: int) -> Callable[[_Tile], None]:
        workspace = scratch("scores", v, 2, size, dtype=dtype)
        sum_k, sum_v = sums[number]

        def add(tile: _Tile) -> None:
            b, i = tile
            grad = grad_out[b, i].to(dtype).contiguous()
            delta = (grad * out[b, i]).sum(-1, keepdim=True)
            if grad_lse is not None:
                delta.sub_(grad_lse[b, i, None])
            queries = q[b, i].to(dtype).contiguous()
            grad_queries = torch.zeros_like(queries)
            for j in key_tiles(k.shape[1], k.device):
                keys, values = k[b, j].to(dtype), v[b, j].to(dtype)
                weights, grad_scores = score_gradients(
                    queries, keys, values, grad, lse[b, i], delta, workspace
                )
                for total, left, right in (
                    (sum_v[b, j], weights.mT, grad),
                    (grad_queries, grad_scores, keys),
                    (sum_k[b, j], grad_scores.mT, queries),
                ):
                    torch.baddbmm(total, left, right, out=total)
            grad_q[b, i] = grad_queries

        return add

    share_tiles(tiles, v.device, worker, fixed=True)
    grad_k, grad_v = added_up(sums)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def _tiles(q: Tensor, k: Tensor, buffers: int = 1) -> tuple[list[_Tile], int]:
    """Tiles (images, queries), and the scores that each buffer of a tile holds at once."""
    batch, n, m = *q.shape[:2], k.shape[1]
    keys = max(j.stop - j.start for j in key_tiles(m, q.device))
    workers = tile_workers(batch * n * m, q.device)
    tiles, group, rows = split_tiles(batch, n, keys, tile_size(q.device, buffers), workers)
    return tiles, group * rows * keys


class _NativeAttention(torch.autograd.Function):
    """Attention by kernels in C: a tile is a group of queries, which reads the keys in turn."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = [native.float_rows(t) for t in (q, k, v)]
        out, lse = (rows[0].new_empty(*q.shape[:2], w) for w in (v.shape[-1], 1))
        lines = [_one_image(t) for t in (*rows, out, lse, lse)]
        native_softmax.attend(lines, _native_tiles(q, k))
        ctx.save_for_backward(q, k, v, out, lse)
        return out.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative("softmax_attention_native")
        *given, out, lse = ctx.saved_tensors  # read once: torch's checkpoint allows no more
        q, k, v, out, grad = (native.float_rows(t, native.WIDTH) for t in (*given, out, grads[0]))
        tiles = _native_tiles(q, k)
        grad_q = torch.empty_like(q)
        # Tiles share their keys: each worker has its own sums.
        sums = [t.new_zeros(tiles.workers, *t.shape) for t in (k, v)]
        lines = [_one_image(t) for t in (q, k, v, out, lse, grad, grad_q, *sums)]
        native_softmax.gradients(lines, tiles, add_kv=True)
        found = zip((grad_q, *(t.sum(0) for t in sums)), given, strict=True)
        return tuple(t[..., : x.shape[-1]].to(x.dtype) for t, x in found)


def _one_image(rows: Tensor) -> native_softmax.Lines:
    """A line for each image ``[B, N, w]``, all of one image."""
    return native_softmax.Lines(rows.unsqueeze(-4))


def _native_tiles(q: Tensor, k: Tensor) -> native_softmax.Tiles:
    """Tiles with no more queries than the kernels take at once."""
    batch, n, m = *q.shape[:2], k.shape[1]
    most = native_softmax.QUERIES * m if n > native_softmax.QUERIES else CPU_TILE
    workers = tile_workers(batch * n * m, q.device, own_threads=True)
    tiles, lines, queries = split_tiles(batch, n, m, most, workers)
    return native_softmax.Tiles(min(workers, len(tiles)), lines, queries, fixed=True)
