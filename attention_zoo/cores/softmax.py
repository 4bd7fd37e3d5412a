"""Softmax attention of one tile: attend to some keys, go on with more keys, finish.

Non-local attention is one call, NLSA is chunks within rounds merged over rounds, Criss-Cross is
columns, then rows. No N x M tensor is ever kept whole, forward or backward. Inside, scores are in
units of log 2. Numerics: see :mod:`attention_zoo.base`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .tiles import leaves_cache, num_workers, step_length, tile_limit

#: Scores of a tile that are held at once: on the CPU 2 or 4 MB in float32, see :mod:`.tiles`;
#: elsewhere 128 MB, for few launches.
CPU_TILE = 10**6 if leaves_cache() else 5 * 10**5
TILE = 2**25
# The longest row of scores that is held at once; longer rows are split.
_CPU_KEYS, _KEYS = 1000 if leaves_cache() else 450, 2048
_KEY_TILE = 256
# Fewer scores than these are not worth a second thread.
_FEW_SCORES = 2**16
# How far later scores may exceed the first keys' maximum before it is raised: sums of 2^20 weights,
# times values of 1e19, stay below the largest float32.
_MOST_ABOVE = 40.0
# Below every score, and finite.
_LOWEST = -3e38
#: exp is computed as 2^(x log2(e)): on an AMD processor torch's exp2 takes a third of the time of
#: its exp (on an Intel processor 1.4 times).
LOG2_E = 1 / math.log(2)


def attend_tile(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    workspace: Tensor,
    before: PartialSoftmax | None = None,
    left_out: int | None = None,
    acc: Tensor | None = None,
) -> PartialSoftmax:
    """Attention of a tile's queries to more keys, by online softmax.

    Args:
        q: queries ``[B, N, c]``, float32 or float64; keys and values are raised to that.
        k: keys ``[B, M, c]``.
        v: values ``[B, M, c_out]``.
        workspace: overwritten; at least ``B · N`` numbers for each key of a :func:`key_tiles`
            slice.
        before: the same queries after earlier keys; overwritten.
        left_out: if not None, query i leaves out key i + left_out.
        acc: memory for the result's ``acc``, if there is no ``before``.
    """
    state = before
    for j in key_tiles(k.shape[1], k.device):
        keys, values = k[:, j].to(q.dtype), v[:, j].to(q.dtype)
        scores = _products(q, keys, workspace, LOG2_E)
        if left_out is not None:
            scores.diagonal(left_out - j.start, dim1=1, dim2=2).fill_(-math.inf)
        # Finite even where all keys are left out, so that differences are defined.
        top = scores.amax(-1, keepdim=True).clamp_min_(_LOWEST)
        if state is None:
            weights = scores.sub_(top).exp2_()
            norm = weights.sum(-1, keepdim=True)
            state = PartialSoftmax(torch.bmm(weights, values, out=acc), top, norm)
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
        # Not named as in-place: torch's counter of operations does not know that form.
        total = torch.baddbmm(state.acc, weights, values, out=state.acc)
        state = PartialSoftmax(total, top, norm)
    assert state is not None
    return state


class PartialSoftmax(NamedTuple):
    """Queries of a tile after some of their keys; scores are in units of log 2.

    Attributes:
        acc: sum of ``2^(score - top) · value``, ``[B, N, c_out]``.
        top: largest score so far, or not far below it, ``[B, N, 1]``.
        norm: sum of ``2^(score - top)``, ``[B, N, 1]``.
    """

    acc: Tensor
    top: Tensor
    norm: Tensor


def _is_far_above(found: Tensor, top: Tensor) -> bool:
    """Whether any score exceeds what the sums under ``top`` can hold.

    Off the CPU the answer is always yes: looking would wait for the device.
    """
    return found.device.type != "cpu" or bool((found - top > _MOST_ABOVE).any())


def finish_tile(partial: PartialSoftmax, out: Tensor, lse: Tensor) -> None:
    """Divide the sums by their norms, after all keys of a tile.

    Args:
        partial: after all keys; ``norm`` is overwritten.
        out: receives the output ``[B, N, c_out]``.
        lse: receives log2 of the sum of 2^score, ``[B, N, 1]``.
    """
    torch.div(partial.acc, partial.norm, out=out)
    torch.add(partial.norm.log2_(), partial.top, out=lse)


def tile_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    workspace: Tensor,
    left_out: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a tile's queries, keys and values: ``P^T dO`` and ``P · (dO V^T - delta)``.

    Args:
        q: queries ``[B, N, c]``.
        k: keys ``[B, M, c]``.
        v: values ``[B, M, c_out]``.
        grad: gradient of the output ``[B, N, c_out]``.
        lse: log2 of the sum of 2^score over all keys of a query, ``[B, N, 1]``.
        delta: ``rowsum(dO · O)`` minus the gradient of the log-sum-exp, ``[B, N, 1]``.
        workspace: ``[2, at least B · N · M]``, overwritten.
        left_out: as in :func:`attend_tile`.
    """
    weights, grad_scores = score_gradients(q, k, v, grad, lse, delta, workspace, left_out)
    grad_v = torch.bmm(weights.mT, grad)
    return torch.bmm(grad_scores, k), torch.bmm(grad_scores.mT, q), grad_v


def score_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    workspace: Tensor,
    left_out: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights P and the gradient of the scores, P · (dO V^T - delta), in ``workspace``.

    Arguments as in :func:`tile_gradients`; both results are ``[B, N, M]``.
    """
    # Rounding of a huge score must not lift it above the sum that contains it.
    weights = _products(q, k, workspace[0], LOG2_E).sub_(lse).clamp_max_(0).exp2_()
    if left_out is not None:
        weights.diagonal(left_out, dim1=1, dim2=2).zero_()
    return weights, _products(grad, v, workspace[1]).sub_(delta).mul_(weights)


def _products(a: Tensor, b: Tensor, workspace: Tensor, factor: float = 1.0) -> Tensor:
    """``factor · a bᵀ`` of rows, in ``workspace``, whose content does not matter."""
    shape = (a.shape[0], a.shape[1], b.shape[1])
    out = workspace[: math.prod(shape)].view(shape)
    return torch.baddbmm(out, a, b.mT, beta=0, alpha=factor, out=out)


def key_tiles(keys: int, device: torch.device) -> list[slice]:
    """Slices of keys whose scores are held at once."""
    if device.type == "cpu":
        width = step_length(keys, 1, _CPU_KEYS)
        if width % 128 == 0 and width < keys:
            width += 8  # rows whose distance is a power of 2 share few places of the cache
    else:
        width = keys if keys <= _KEYS else _KEY_TILE
    return [slice(j, min(j + width, keys)) for j in range(0, keys, width)]


def tile_size(device: torch.device, buffers: int = 1) -> int:
    """Scores per buffer of a tile that holds so many buffers at once."""
    return tile_limit(device, CPU_TILE, TILE) // buffers


def tile_workers(scores: int, device: torch.device, own_threads: bool = False) -> int:
    """Number of workers that share so many scores, see :func:`.tiles.share_tiles`."""
    return num_workers(device, own_threads) if scores >= _FEW_SCORES else 1


def refuse_second_derivative(name: str) -> None:
    """Called in a hand-written backward pass, which autograd cannot differentiate again.

    Raises:
        RuntimeError: the graph of the gradient is asked for (``create_graph=True``).
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name} is once_differentiable: it has no second derivative")
