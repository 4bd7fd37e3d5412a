"""Scans of a map along its rows or columns, in chunks of positions, for recurrences with decays.

A recurrence is linear in its state: within a chunk its outputs are matrix products, and one state
for each chunk is handed on. Each pass over the map (row by row; column by column) is scanned
forward and backward. Cumulated decays are sums of logarithms over a chunk, so that nothing is
divided by a tiny decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import AttentionError
from ..nlsa import MIN_NORM
from .tiles import step_length, tile_limit

#: Positions of a chunk. The last chunk of a map is filled up with zeros.
CHUNK = 32
#: No decay counts as less than exp of this: sums over a chunk keep four digits in float32.
LEAST_LOG_DECAY = -30.0
#: Numbers of a tile's largest tensor: on the CPU for the cache, and so that memory is used again.
CPU_TILE, TILE = 2**18, 2**25


def require_directions(directions: int) -> None:
    """Raise AttentionError unless a map can be scanned in so many directions."""
    if directions not in (2, 4) or isinstance(directions, (bool, float)):
        raise AttentionError(
            f"directions must be 2 (rows, both ways) or 4 (columns too), got {directions!r}"
        )


def num_chunks(n: int) -> int:
    """Chunks of n positions."""
    return -(-n // CHUNK)


def to_chunks(maps: Sequence[Tensor]) -> Tensor:
    """One map ``[B, C, H, W]`` for each pass, to ``[K, P, B, C, chunk]``.

    The first pass goes row by row, the second, if there is one, column by column.
    """
    passes = [maps[0].flatten(2), *(x.transpose(2, 3).flatten(2) for x in maps[1:])]
    filling = -passes[0].shape[2] % CHUNK
    return torch.stack(
        [F.pad(x, (0, filling)).unflatten(2, (-1, CHUNK)).movedim(2, 0) for x in passes], 1
    )


def sum_of_passes(chunks: Tensor, like: Tensor) -> Tensor:
    """``[K, P, B, C, chunk]`` back to maps ``[B, C, H, W]``, H and W as in ``like``, added up."""
    height, width = like.shape[2:]
    rows, *columns = (x.movedim(0, 2).flatten(2)[..., : height * width] for x in chunks.unbind(1))
    out = rows.unflatten(2, (height, width))
    for x in columns:
        out = out + x.unflatten(2, (width, height)).transpose(2, 3)
    return out


def gates_in_chunks(gates: Tensor, directions: int, heads: int) -> tuple[Tensor, Tensor]:
    """``[B, directions · heads, H, W]`` to forward and backward gates ``[K, P, B, heads, chunk]``.

    Directions are rows forward, rows backward, columns forward, columns backward.
    """
    chunks = to_chunks(gates.chunk(directions // 2, dim=1))
    return chunks[..., :heads, :], chunks[..., heads:, :]


def split_chunks(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tiles of tensors ``[M, …]``, some of the M chunks each.

    Args:
        size: numbers that a chunk takes in the largest tensor that is made of it.
        tensors: of the same M.
    """
    like = tensors[0]
    length = step_length(len(like), size, tile_limit(like.device, CPU_TILE, TILE))
    return zip(*(t.split(length) for t in tensors), strict=True)


def cumulated(log_decay: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    """Sums up to each position of its chunk, that position included, and over the whole chunk.

    Args:
        log_decay: ``[…, chunk]``.
        backward: whether the direction enters chunks at their last position.

    Returns:
        Like ``log_decay``, and ``[…, 1]``.
    """
    if backward:
        sums = log_decay.flip(-1).cumsum(-1).flip(-1)
        return sums, sums[..., :1]
    sums = log_decay.cumsum(-1)
    return sums, sums[..., -1:]


def in_order(directions: Sequence[Tensor], chunks: int) -> tuple[Tensor, ...]:
    """Forward and backward ``[M, …]`` to K times ``[2 M / K, …]``.

    Those of backward come from the last chunk on.
    """
    forward, backward = (t.unflatten(0, (chunks, -1)) for t in directions)
    # Taken apart at once: by themselves, K chunks would each have a gradient of K chunks.
    return torch.stack([forward, backward.flip(0)], 1).flatten(1, 2).unbind(0)


def back_in_place(steps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What :func:`in_order` took apart, ``[M, …]`` each."""
    forward, backward = torch.stack(list(steps)).unflatten(1, (2, -1)).unbind(1)
    return forward.flatten(0, 1), backward.flip(0).flatten(0, 1)


def unit_length(x: Tensor, dim: int) -> Tensor:
    """x over its norms along ``dim``, which count as at least 5e-5; float32 at least."""
    # torch's norm over any but the last dimension takes ten times as long on the CPU.
    return x * x.square().sum(dim, keepdim=True).clamp_min(MIN_NORM**2).rsqrt()


def unit_triangular_inverse(x: Tensor) -> Tensor:
    """Inverses of upper triangular matrices ``[M, chunk, chunk]`` whose diagonal counts as 1.

    Blocks on the diagonal grow from 2 x 2 on: the corner of ``[[A, C], [0, B]]⁻¹`` is ``−A⁻¹ C
    B⁻¹``. These are matrix products: torch solves each small system with all threads. Sums of
    powers would be products too, but lose all digits where keys are alike.
    """
    count, size = len(x), 1
    found = x.new_ones(count * CHUNK, 1, 1)
    while size < CHUNK:
        blocks = x.unflatten(2, (-1, 2 * size)).unflatten(1, (-1, 2 * size))
        corner = blocks.diagonal(dim1=1, dim2=3)[:, :size, size:].movedim(3, 1).flatten(0, 1)
        first, last = found.unflatten(0, (-1, 2)).unbind(1)
        if size > 1:
            corner = torch.bmm(torch.bmm(first, corner), last)
        top = torch.cat([first, -corner], 2)
        found = torch.cat([top, torch.cat([torch.zeros_like(corner), last], 2)], 1)
        size *= 2
    return found


def draw_log_rates(count: int) -> Tensor:
    """Logarithms of rates a in exp(−a Δ), uniform in 1 … 16 as Mamba draws them."""
    return torch.empty(count).uniform_(1, 16).log()


def draw_step_biases(count: int) -> Tensor:
    """Biases b with softplus(b) log-uniform in 0.001 … 0.1, the steps Δ that Mamba begins with."""
    steps = torch.pow(10.0, torch.empty(count).uniform_(-3, -1))
    return steps.expm1().log()
