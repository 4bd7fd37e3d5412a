"""Softmax attention, tile by tile: attend to some keys, go on with others, finish.

Non-local attention is one call, NLSA is chunks within rounds merged over rounds, Criss-Cross is
columns, then rows. No N x M tensor is ever kept whole, forward or backward.

Numerics, in all modules: u is the unit roundoff of the dtype (float32 2^-24, bfloat16 2^-8,
float16 2^-11); scores are summed in float32, whose rounding changes weights by the relative
``g = exp(2 (c + 4) 2^-24 S) - 1`` at most, S being the largest score in magnitude (norm of query
times norm of key). Where g reaches 1 (S = 3e5 for c = 16), float32 cannot tell scores apart:
results stay finite, for norms up to 1e19, whose squares float32 holds, but weights mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import native
from .native import softmax as native_softmax
from .products import FEW_MACS, add_product, by_onednn, prefers_onednn, product
from .tiles import cut, even_step, leaves_cache, num_workers, scratch, share_tiles, tile_limit

# Scores of a tile that are held at once: on the CPU 2 or 4 MB in float32, see :mod:`.tiles`;
# elsewhere 128 MB, for few launches.
_CPU_TILE = 10**6 if leaves_cache() else 5 * 10**5
_TILE = 2**25
# The longest row of scores that is held at once; longer ones are cut.
_CPU_KEYS, _KEYS = 1000 if leaves_cache() else 450, 2048
_KEY_TILE = 256
# Fewer scores than these are not worth a second thread.
_FEW_SCORES = 2**16
# How far, in units of log 2, later scores may exceed the first keys' maximum before it is raised:
# sums of 2^20 weights, times values of 1e19, stay below the largest float32.
_MOST_ABOVE = 40.0
# Below every score, and finite.
_LOWEST = -3e38
#: exp is taken as 2^(x log2(e)): on an AMD processor torch's exp2 takes a third of the time of its
#: exp (on an Intel one 1.4 times).
LOG2_E = 1 / math.log(2)
# Up to this width the fused CPU kernel's time goes into exp, and padding c to c_out is free.
_PAD_WIDTH = 32
_BFLOAT16_CAPABILITY = (8, 0)
_FUSED = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
)


def softmax_attention_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention without scaling, Eq. 1 of the ENLCA paper, by torch's fused kernel.

    Args:
        q: queries ``[B, N, c]``.
        k: keys ``[B, M, c]``.
        v: values ``[B, M, c_out]``.

    Returns:
        ``[B, N, c_out]``, row i being ``sum_j softmax_j(q_i · k_j) v_j``.

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
    # A fourth dimension (heads) is needed: with three, torch falls back to the N x M path silently.
    # So it does for rows that are not contiguous, as those of a map that is not channels-last.
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


def prefers_fused(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether torch's fused kernel can run and is the better path.

    On the CPU padding must cost nothing, and the kernel's own matrix products be no slower.
    """
    if why_not_fused(q, k, v):
        return False
    (n, c), m, c_out = q.shape[-2:], k.shape[-2], v.shape[-1]
    if q.device.type == "cuda":
        return True
    if q.dtype == torch.float32 and _tiles_are_faster(n, m, c):
        return False
    return c == c_out or max(c, c_out) <= _PAD_WIDTH


def _tiles_are_faster(n: int, m: int, c: int) -> bool:
    """Whether tiles in float32 have faster products than torch's fused kernel on this CPU."""
    return prefers_onednn() and n * m * c >= FEW_MACS


def softmax_macs(n: int, m: int, c: int, c_out: int) -> int:
    """MACs that NLA executes on this CPU for one image of n queries, m keys, in float32."""
    if max(c, c_out) <= _PAD_WIDTH and not _tiles_are_faster(n, m, c):
        c = c_out = max(c, c_out)
    return n * m * (c + c_out)


def softmax_attention_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention and the log of its normaliser, both differentiable.

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
    """Softmax attention on the CPU by kernels in C, see :mod:`.native`.

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


def no_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off: the dtype of the inputs decides, and sums are kept in float32."""
    if like.device.type == "meta":
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def refuse_second_derivative(name: str) -> None:
    """Called in a hand-written backward pass, which autograd cannot differentiate again.

    Raises:
        RuntimeError: the graph of the gradient is asked for (``create_graph=True``).
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name} is once_differentiable: it has no second derivative")


class Lines(NamedTuple):
    """Queries of a tile after some of their keys; scores are in units of log 2.

    Attributes:
        acc: sum of ``2^(score - top) · value``, ``[B, N, c_out]``.
        top: largest score so far, or not far below it, ``[B, N, 1]``.
        norm: sum of ``2^(score - top)``, ``[B, N, 1]``.
    """

    acc: Tensor
    top: Tensor
    norm: Tensor


def attend_tile(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    space: Tensor,
    before: Lines | None = None,
    left_out: int | None = None,
    acc: Tensor | None = None,
) -> Lines:
    """Attention of a tile's queries to more keys, by online softmax.

    Args:
        q: queries ``[B, N, c]``, float32 or float64; keys and values are raised to that.
        k: keys ``[B, M, c]``.
        v: values ``[B, M, c_out]``.
        space: overwritten; ``B · N`` numbers at least for each key of a :func:`key_tiles` slice.
        before: what the same queries attended to before; overwritten.
        left_out: if not None, query i leaves out key i + left_out.
        acc: memory of the result's ``acc``, if there is no ``before``.
    """
    state = before
    for j in key_tiles(k.shape[1], k.device):
        keys, values = k[:, j].to(q.dtype), v[:, j].to(q.dtype)
        without = None if left_out is None else left_out - j.start
        scores = _products(q, keys, space, LOG2_E)
        if without is not None:
            scores.diagonal(without, dim1=1, dim2=2).fill_(-math.inf)
        # Finite even where all keys are left out, so that differences are.
        top = scores.amax(-1, keepdim=True).clamp_min_(_LOWEST)
        if state is None:
            weights = scores.sub_(top).exp2_()
            norm = weights.sum(-1, keepdim=True)
            state = Lines(product(weights, values, acc), top, norm)
            continue
        if _is_far_above(top, state.top):
            torch.maximum(top, state.top, out=top)
            shrink = state.top.sub_(top).exp2_()
            state.acc.mul_(shrink)
            state.norm.mul_(shrink)
        else:
            top = state.top
        weights = scores.sub_(top).exp2_()
        norm = weights.sum(-1, keepdim=True).add_(state.norm)
        state = Lines(add_product(state.acc, weights, values), top, norm)
    assert state is not None
    return state


def _is_far_above(found: Tensor, top: Tensor) -> bool:
    """Whether any score leaves what the sums under ``top`` can hold.

    Off the CPU that is taken for granted: looking would wait for the device.
    """
    return found.device.type != "cpu" or bool((found - top > _MOST_ABOVE).any())


def finish_tile(lines: Lines, out: Tensor, lse: Tensor) -> None:
    """Divide the sums by their norms, at the end of a tile.

    Args:
        lines: after all keys; ``norm`` is overwritten.
        out: receives the output ``[B, N, c_out]``.
        lse: receives log2 of the sum of 2^score, ``[B, N, 1]``.
    """
    torch.div(lines.acc, lines.norm, out=out)
    torch.add(lines.norm.log2_(), lines.top, out=lse)


def tile_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    space: Tensor,
    left_out: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by a tile's queries, keys and values: ``P^T dO`` and ``P · (dO V^T - delta)``.

    Args:
        q: queries ``[B, N, c]``.
        k: keys ``[B, M, c]``.
        v: values ``[B, M, c_out]``.
        grad: gradient of the output ``[B, N, c_out]``.
        lse: log2 of the sum of 2^score over all keys of a query, ``[B, N, 1]``.
        delta: ``rowsum(dO · O)`` minus the gradient of the log-sum-exp, ``[B, N, 1]``.
        space: ``[2, at least B · N · M]``, overwritten.
        left_out: as in :func:`attend_tile`.
    """
    weights, grad_scores = _score_gradients(q, k, v, grad, lse, delta, space, left_out)
    grad_v = product(weights.mT, grad)
    return product(grad_scores, k), product(grad_scores.mT, q), grad_v


def _score_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    space: Tensor,
    left_out: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights P and the gradient by scores, P · (dO V^T - delta), in ``space``."""
    # Rounding of a huge score must not lift it above the sum that holds it.
    weights = _products(q, k, space[0], LOG2_E).sub_(lse).clamp_max_(0).exp2_()
    if left_out is not None:
        weights.diagonal(left_out, dim1=1, dim2=2).zero_()
    return weights, _products(grad, v, space[1]).sub_(delta).mul_(weights)


def _products(a: Tensor, b: Tensor, space: Tensor, factor: float = 1.0) -> Tensor:
    """``factor · a bᵀ`` of rows, perhaps in ``space``, whose content does not matter."""
    if by_onednn(a, b.mT):
        return product(a * factor, b.mT)
    shape = (a.shape[0], a.shape[1], b.shape[1])
    out = space[: math.prod(shape)].view(shape)
    return torch.baddbmm(out, a, b.mT, beta=0, alpha=factor, out=out)


def key_tiles(keys: int, device: torch.device) -> list[slice]:
    """Slices of keys whose scores are held at once."""
    if device.type == "cpu":
        width = even_step(keys, 1, _CPU_KEYS)
        if width % 128 == 0 and width < keys:
            width += 8  # rows whose distance is a power of 2 share few places of the cache
    else:
        width = keys if keys <= _KEYS else _KEY_TILE
    return [slice(j, min(j + width, keys)) for j in range(0, keys, width)]


def tile_size(device: torch.device, buffers: int = 1) -> int:
    """Scores of a tile of which so many buffers are held at once."""
    return tile_limit(device, _CPU_TILE, _TILE) // buffers


def tile_workers(scores: int, device: torch.device, own_threads: bool = False) -> int:
    """How many workers shall share so many scores, see :func:`.tiles.share_tiles`."""
    return num_workers(device, own_threads) if scores >= _FEW_SCORES else 1


def sum_dtype(x: Tensor) -> torch.dtype:
    """In which sums are kept: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _TiledAttention(torch.autograd.Function):
    """Attention tile by tile with online softmax; the backward pass recomputes the tiles."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        dtype = sum_dtype(v)
        out = v.new_empty(*q.shape[:2], v.shape[-1])
        lse = v.new_empty(*q.shape[:2], 1, dtype=dtype)
        tiles, size = _tiles(q, k)

        def worker(_: int) -> Callable[[_Tile], None]:
            space = scratch("scores", v, size, dtype=dtype)

            def attend(tile: _Tile) -> None:
                b, i = tile
                lines = attend_tile(q[b, i].to(dtype).contiguous(), k[b], v[b], space)
                finish_tile(lines, out[b, i], lse[b, i])

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


class _NativeAttention(torch.autograd.Function):
    """As :class:`_TiledAttention`, by kernels in C: tiles are of queries, keys are read in turn."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = [float_rows(t) for t in (q, k, v)]
        out, lse = (rows[0].new_empty(*q.shape[:2], w) for w in (v.shape[-1], 1))
        attend = native_softmax.attend(rows[0], rows[1], rows[2], out, lse, lse)

        def worker(_: int) -> Callable[[_Tile], None]:
            space = native_space(q.shape[-1], v.shape[-1])
            return lambda tile: attend(*tile, space)

        share_tiles(_native_tiles(q, k), v.device, worker, own_threads=True)
        ctx.save_for_backward(q, k, v, out, lse)
        return out.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative("softmax_attention_native")
        given = ctx.saved_tensors[:3]
        q, k, v, out, grad = (
            float_rows(t, native.WIDTH) for t in (*given, ctx.saved_tensors[3], grads[0])
        )
        lse = ctx.saved_tensors[4]
        tiles = _native_tiles(q, k)
        grad_q = torch.empty_like(q)
        # Tiles share their keys: each worker has sums of its own.
        sums = [
            [torch.zeros_like(t) for t in (k, v)]
            for _ in range(min(len(tiles), num_workers(v.device, own_threads=True)))
        ]

        def worker(number: int) -> Callable[[_Tile], None]:
            space = native_space(q.shape[-1], v.shape[-1])
            saved = (q, k, v, out, lse, grad)
            add = native_softmax.gradients(*saved, grad_q, *sums[number], add_kv=True)
            return lambda tile: add(*tile, space)

        share_tiles(tiles, v.device, worker, own_threads=True, fixed=True)
        for other in sums[1:]:
            for whole, part in zip(sums[0], other, strict=True):
                whole += part
        found = zip((grad_q, *sums[0]), given, strict=True)
        return tuple(t[..., : x.shape[-1]].to(x.dtype) for t, x in found)


def float_rows(x: Tensor, multiple: int = 1) -> Tensor:
    """Rows ``[…, w]`` in float32 and in one piece, with zeros up to a multiple of the width."""
    missing = -x.shape[-1] % multiple
    x = x.to(torch.float32)
    return (F.pad(x, (0, missing)) if missing else x).contiguous()


def native_space(c: int, c_out: int) -> Tensor:
    """Memory of the calling thread for :mod:`.native.softmax`."""
    like = torch.empty(0, dtype=torch.float32, device="cpu")
    return scratch("native", like, native_softmax.space_of(c, c_out))


def _native_tiles(q: Tensor, k: Tensor) -> list[_Tile]:
    """Tiles (images, queries), of no more queries than the kernels take at once."""
    batch, n, m = *q.shape[:2], k.shape[1]
    most = native_softmax.QUERIES * m if n > native_softmax.QUERIES else _CPU_TILE
    workers = tile_workers(batch * n * m, q.device, own_threads=True)
    tiles, _, _ = cut(batch, n, m, most, workers)
    return [(slice(b.start, min(b.stop, batch)), slice(i.start, min(i.stop, n))) for b, i in tiles]


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by rows q, k, v; lse is log2 of the sum of 2^score, ``[B, N, 1]``."""
    dtype = sum_dtype(v)
    tiles, size = _tiles(q, k, buffers=2)
    grad_q = torch.empty_like(q)
    # Tiles share their keys: each worker has sums of its own.
    sums = [
        [torch.zeros_like(t, dtype=dtype) for t in (k, v)]
        for _ in range(max(1, min(len(tiles), num_workers(v.device))))
    ]

    def worker(number: int) -> Callable[[_Tile], None]:
        space = scratch("scores", v, 2, size, dtype=dtype)
        sum_k, sum_v = sums[number]

        def add(tile: _Tile) -> None:
            b, i = tile
            grad = grad_out[b, i].to(dtype).contiguous()
            delta = (grad * out[b, i]).sum(-1, keepdim=True)
            if grad_lse is not None:
                delta.sub_(grad_lse[b, i, None])
            queries = q[b, i].to(dtype).contiguous()
            by_q = torch.zeros_like(queries)
            for j in key_tiles(k.shape[1], k.device):
                keys, values = k[b, j].to(dtype), v[b, j].to(dtype)
                weights, grad_scores = _score_gradients(
                    queries, keys, values, grad, lse[b, i], delta, space
                )
                add_product(sum_v[b, j], weights.mT, grad)
                add_product(by_q, grad_scores, keys)
                add_product(sum_k[b, j], grad_scores.mT, queries)
            grad_q[b, i] = by_q

        return add

    share_tiles(tiles, v.device, worker, fixed=True)
    for other in sums[1:]:
        for whole, part in zip(sums[0], other, strict=True):
            whole += part
    grad_k, grad_v = sums[0]
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


_Tile = tuple[slice, slice]


def _tiles(q: Tensor, k: Tensor, buffers: int = 1) -> tuple[list[_Tile], int]:
    """Tiles (images, queries) and the scores that each buffer of one holds at once."""
    batch, n, m = *q.shape[:2], k.shape[1]
    keys = max(j.stop - j.start for j in key_tiles(m, q.device))
    workers = tile_workers(batch * n * m, q.device)
    tiles, group, rows = cut(batch, n, keys, tile_size(q.device, buffers), workers)
    return tiles, group * rows * keys
