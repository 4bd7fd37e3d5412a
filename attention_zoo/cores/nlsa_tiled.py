"""NLSA by tiles of a few neighbouring chunks of one round.

The rows of a tile are gathered once; windows of three chunks are views of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import no_autocast, sum_dtype
from ..implementations import implementation
from .nlsa import Chunks, Gradients, Plan, Positions, SortedAttention, attend_sorted, tile_size
from .softmax import PartialSoftmax, attend_tile, tile_gradients, tile_workers
from .tiles import scratch, share_tiles, step_length


def hash_codes(x: Tensor, rotations: Tensor) -> Tensor:
    """As :func:`attention_zoo.nlsa.hash_codes`, tile by tile."""
    r, c, half = rotations.shape
    batch, n, _ = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    x = x.detach()
    flat = rotations.to(dtype).permute(1, 0, 2).reshape(c, r * half)
    codes = torch.empty(batch, r, n, dtype=torch.long, device=x.device)
    workers = tile_workers(batch * n * 2 * r * half, x.device)
    width = step_length(n, 2 * r * half, tile_size(x.device), workers if batch < workers else 1)

    def worker(_: int) -> Callable[[Positions], None]:
        workspace, is_largest = (
            scratch(name, flat, width, r, 2 * half) for name in ("codes", "mask")
        )

        def hash_tile(tile: Positions) -> None:
            b, i = tile
            rotated = torch.mm(x[b, i].to(dtype), flat).view(-1, r, half)
            both = workspace[: rotated.shape[0]]
            both[..., :half] = rotated
            torch.neg(rotated, out=both[..., half:])
            codes[b, :, i] = _arg_max(both, is_largest[: both.shape[0]]).T

        return hash_tile

    with no_autocast(x):
        tiles = [(b, slice(i, i + width)) for b in range(batch) for i in range(0, n, width)]
        share_tiles(tiles, x.device, worker)
    return codes


def _arg_max(x: Tensor, workspace: Tensor) -> Tensor:
    """Arg-max of ``[T, r, M]`` over M, the first of equal ones; the workspace is as large.

    torch's arg-max on the CPU reads one number after the other. Here a product picks the index of
    the largest entry, unless several are equal, as in zeros.
    """
    if x.device.type == "cpu" and not torch.jit.is_tracing():
        torch.eq(x, x.amax(-1, keepdim=True), out=workspace)
        index = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
        ways = torch.stack([index, torch.ones_like(index)], dim=1)
        picked, count = torch.matmul(workspace, ways).unbind(-1)
        if bool((count == 1).all()):
            return picked.long()
    return x.argmax(-1)


class _TiledAttention(SortedAttention):
    """The sums of every round are kept, and merged at the end."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, order: Tensor, chunk_size: int
    ) -> Tensor:
        batch, n, c_out = v.shape
        dtype = sum_dtype(v)
        plan = Plan(order, chunk_size, v.device)
        # In sorted order, of every round.
        sums = PartialSoftmax(
            *(v.new_empty(batch, plan.rounds, plan.slots, s, dtype=dtype) for s in (c_out, 1, 1))
        )

        def attend(_: int) -> Callable[[Chunks], None]:
            workspace = scratch("scores", v, plan.scores, dtype=dtype)
            gathered = [
                scratch(f"rows {i}", v, plan.most_rows, t.shape[-1], dtype=dtype)
                for i, t in enumerate((q, k, v))
            ]

            def attend_chunks(tile: Chunks) -> None:
                b, r, chunks = tile
                rows, around = plan.rows(chunks), plan.around(tile)
                queries = _take(q[b], around[chunk_size:-chunk_size], gathered[0])
                keys, values = (
                    _take(t[b], around, out) for t, out in zip((k, v), gathered[1:], strict=True)
                )
                found = PartialSoftmax(
                    *(t[b, r, rows].unflatten(0, (-1, chunk_size)) for t in sums)
                )
                for i, window in plan.groups(chunks):
                    state = attend_tile(
                        queries.unflatten(0, (-1, chunk_size))[i],
                        _windows(keys[window], chunk_size),
                        _windows(values[window], chunk_size),
                        workspace,
                        acc=found.acc[i],
                    )
                    found.top[i], found.norm[i] = state.top, state.norm

            return attend_chunks

        share_tiles(plan.tiles, v.device, attend)
        out = torch.empty_like(v)
        lse = v.new_empty(batch, n, 1, dtype=dtype)

        def merge(tile: Positions) -> None:
            b, i = tile
            places = plan.places[b, i]
            tops, norms = (torch.take(t[b], places) for t in (sums.top, sums.norm))
            top = tops.amax(1, keepdim=True)
            weights = tops.sub_(top).exp2_()
            norm = norms.mul_(weights).sum(1, keepdim=True)
            out[b, i] = F.embedding_bag(
                places, sums.acc[b].flatten(0, 1), mode="sum", per_sample_weights=weights.div_(norm)
            )
            lse[b, i] = norm.log2_().add_(top)

        share_tiles(plan.positions, v.device, lambda _: merge)
        SortedAttention.keep(ctx, (q, k, v, out, lse, order), chunk_size, gradients)
        return out


def gradients(plan: Plan, saved: tuple[Tensor, ...]) -> Callable[[int], Gradients]:
    """The tiles of the backward pass, see :data:`.nlsa.GradientWorker`."""
    q, k, v, out, lse, grad_out = saved
    size, n, dtype = plan.size, v.shape[1], sum_dtype(v)

    def worker(_: int) -> Gradients:
        workspace = scratch("scores", v, 2, plan.scores, dtype=dtype)
        gathered = [
            scratch(f"rows {i}", v, plan.most_rows, t.shape[-1], dtype=dtype)
            for i, t in enumerate((q, k, v, v, v))
        ]

        def grad_chunks(tile: Chunks) -> tuple[Tensor, ...]:
            b, _, chunks = tile
            count = chunks.stop - chunks.start
            around = plan.around(tile)
            own = around[size:-size]
            places = (own, around, around, own, own)
            queries, keys, values, grad, outputs = (
                _take(t[b], place, rows)
                for t, place, rows in zip((q, k, v, grad_out, out), places, gathered, strict=True)
            )
            lses = lse[b].index_select(0, own)
            delta = outputs.mul_(grad).sum(-1, keepdim=True)
            padding = plan.rows(chunks).stop - n
            if padding > 0:  # the outputs of repeated queries are not used
                grad[-padding:], delta[-padding:] = 0, 0
            grad_queries = v.new_empty(count, size, q.shape[-1], dtype=dtype)
            grad_keys = [v.new_zeros(count + 2, size, t.shape[-1], dtype=dtype) for t in (k, v)]
            by_chunk = [t.unflatten(0, (-1, size)) for t in (queries, grad, lses, delta)]
            for i, window in plan.groups(chunks):
                query, grad_i, lse_i, delta_i = (t[i] for t in by_chunk)
                grad_queries[i], *grad_windows = tile_gradients(
                    query,
                    _windows(keys[window], size),
                    _windows(values[window], size),
                    grad_i,
                    lse_i,
                    delta_i,
                    workspace,
                )
                for whole, one in zip(grad_keys, grad_windows, strict=True):
                    for neighbour, part in enumerate(one.split(size, dim=1)):
                        whole[i.start + neighbour : i.stop + neighbour] += part
            return grad_queries, *grad_keys

        return grad_chunks

    return worker


implementation("nlsa", "tiled")(partial(attend_sorted, hash_codes, _TiledAttention))


def _windows(rows: Tensor, chunk_size: int) -> Tensor:
    """Rows of K + 2 chunks as the K windows of three, a view ``[K, 3 S, c]``."""
    return rows.unfold(0, 3 * chunk_size, chunk_size).mT


def _take(rows: Tensor, positions: Tensor, out: Tensor) -> Tensor:
    """Rows ``[N, c]`` at positions ``[M]``: ``[M, c]``, written into ``out``."""
    out = out[: positions.shape[0]]
    if rows.dtype == out.dtype:
        return torch.index_select(rows, 0, positions, out=out)
    return out.copy_(rows.index_select(0, positions))
