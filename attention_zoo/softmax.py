"""Softmax attention as one primitive: attend to (output, log-sum-exp), merge partial results.

Non-local attention is one call, NLSA is chunks within rounds merged over rounds, Criss-Cross is
column and row merged. No N x M tensor is ever kept whole, forward or backward.

Numerics, in all modules: u is the unit roundoff of the dtype (float32 2^-24, bfloat16 2^-8,
float16 2^-11); scores are summed in float32, whose rounding changes weights by the relative
``g = exp(2 (c + 4) 2^-24 S) - 1`` at most, S being the largest score in magnitude (norm of query
times norm of key). Where g reaches 1 (S = 3e5 for c = 16), float32 cannot tell scores apart:
results stay finite, for norms up to 1e19, whose squares float32 holds, but weights mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of one tile of scores: 2 MB in float32, within the second-level caches of two cores.
_TILE = 2**19
_KEY_TILE = 512
# The longest row of scores that is held at once; longer ones go through online softmax.
_WHOLE_ROW = 2048
# Up to this width the fused CPU kernel's time goes into exp, and padding c to c_out is free.
_PAD_WIDTH = 32


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention without scaling, Eq. 1 of the ENLCA paper.

    Args:
        q: queries ``[B, N, c]``.
        k: keys ``[B, M, c]``.
        v: values ``[B, M, c_out]``.

    Returns:
        ``[B, N, c_out]``, row i being ``sum_j softmax_j(q_i · k_j) v_j``.
    """
    width = fused_width(q, v)
    if width is None:
        return softmax_attention_lse(q, k, v)[0]
    # A fourth dimension (heads) is needed: with three, torch falls back to the N x M path silently.
    # So it does for rows that are not contiguous, as those of a map that is not channels-last.
    q, k, v_padded = (
        F.pad(t, (0, width - t.shape[-1])).contiguous().unsqueeze(1) for t in (q, k, v)
    )
    with no_autocast(q):
        out = F.scaled_dot_product_attention(q, k, v_padded, scale=1.0)
    return out.squeeze(1)[..., : v.shape[-1]]


def fused_width(q: Tensor, v: Tensor) -> int | None:
    """Head width for torch's fused kernel, or None where tiles are the better path.

    The CPU kernel takes one width for query, key and value; the CUDA kernels take several.
    """
    c, c_out = q.shape[-1], v.shape[-1]
    if c == c_out or max(c, c_out) <= _PAD_WIDTH or q.device.type == "cuda":
        return max(c, c_out)
    return None


def softmax_macs(n: int, m: int, c: int, c_out: int) -> int:
    """MACs that :func:`softmax_attention` executes on the CPU for one image."""
    if max(c, c_out) <= _PAD_WIDTH:
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


def merge(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> Tensor:
    """Merge attention over disjoint sets of keys (or hash rounds) by their log-sum-exps.

    Args:
        outputs: partial outputs, each ``[..., c_out]``.
        lses: their log-sum-exps, each ``[...]``.

    Returns:
        ``sum_r softmax_r(lse_r) · output_r``, ``[..., c_out]``.
    """
    weights = torch.softmax(torch.stack(list(lses)), dim=0).unsqueeze(-1)
    return (weights.to(outputs[0].dtype) * torch.stack(list(outputs))).sum(0)


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


def _tiles(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice, list[slice]]]:
    """Slices (batch, queries, [keys]) whose scores fill a tile each."""
    batch, n, _ = q.shape
    m = k.shape[1]
    keys = m if m <= _WHOLE_ROW else _KEY_TILE
    rows = min(n, max(1, _TILE // keys))
    group = max(1, _TILE // (rows * keys))
    for b in range(0, batch, group):
        for i in range(0, n, rows):
            yield (
                slice(b, b + group),
                slice(i, i + rows),
                [slice(j, j + keys) for j in range(0, m, keys)],
            )


class _TiledAttention(torch.autograd.Function):
    """Attention tile by tile with online softmax; the backward pass recomputes the tiles."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        dtype = _sum_dtype(v)
        out = v.new_empty(*q.shape[:2], v.shape[-1])
        lse = v.new_empty(q.shape[:2], dtype=dtype)
        for b, i, key_tiles in _tiles(q, k):
            q_i = q[b, i].to(dtype)
            top = q_i.new_full((*q_i.shape[:2], 1), -math.inf)
            norm = torch.zeros_like(top)
            acc: Tensor | None = None
            for j in key_tiles:
                scores = torch.bmm(q_i, k[b, j].to(dtype).mT)
                new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
                weights = scores.sub_(new_top).exp_()
                if acc is None:
                    norm = weights.sum(-1, keepdim=True)
                    acc = torch.bmm(weights, v[b, j].to(dtype))
                else:
                    shrink = (top - new_top).exp_()
                    norm = norm.mul_(shrink).add_(weights.sum(-1, keepdim=True))
                    torch.baddbmm(acc.mul_(shrink), weights, v[b, j].to(dtype), out=acc)
                top = new_top
            assert acc is not None
            out[b, i] = acc.div_(norm).to(out.dtype)
            lse[b, i] = norm.log_().add_(top).squeeze(-1)
        ctx.save_for_backward(q, k, v, out, lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        refuse_second_derivative("softmax_attention_lse")
        q, k, v, out, lse = ctx.saved_tensors
        grad_out, grad_lse = grads
        dtype = _sum_dtype(v)
        # d softmax = P · (dP − rowsum(dO·O) + d lse)
        delta = (grad_out.to(dtype) * out).sum(-1).sub_(grad_lse).unsqueeze(-1)
        grad_q, grad_k, grad_v = (torch.zeros_like(t, dtype=dtype) for t in (q, k, v))
        for b, i, key_tiles in _tiles(q, k):
            q_i, grad_i = q[b, i].to(dtype), grad_out[b, i].to(dtype)
            for j in key_tiles:
                k_j, v_j = k[b, j].to(dtype), v[b, j].to(dtype)
                weights = torch.bmm(q_i, k_j.mT).sub_(lse[b, i].unsqueeze(-1)).exp_()
                grad_v[b, j] += torch.bmm(weights.mT, grad_i)
                grad_scores = torch.bmm(grad_i, v_j.mT).sub_(delta[b, i]).mul_(weights)
                grad_q[b, i] += torch.bmm(grad_scores, k_j)
                grad_k[b, j] += torch.bmm(grad_scores.mT, q_i)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
