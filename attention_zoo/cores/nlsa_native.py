"""NLSA by kernels in C, float32 inside: they hash, and gather the rows themselves.

Each round continues the sums of the rounds before in place, so nothing is merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..implementations import implementation
from .native import WIDTH, float_rows
from .native import nlsa as native_hash
from .native import softmax as native
from .nlsa import (
    Chunks,
    Gradients,
    Plan,
    Positions,
    SortedAttention,
    attend_sorted,
    why_not_native_nlsa,
)
from .softmax import tile_workers
from .tiles import num_workers, pieces_of_image, share_tiles


def hash_codes(x: Tensor, rotations: Tensor) -> Tensor:
    """As :func:`attention_zoo.nlsa.hash_codes`."""
    rows = float_rows(x.detach())
    turned = rotations.to(torch.float32).mT.contiguous()
    batch, n, _ = rows.shape
    r, half, _ = turned.shape
    codes = torch.empty(batch, r, n, dtype=torch.long, device=x.device)
    workers = tile_workers(batch * n * 2 * r * half, x.device, own_threads=True)
    step = math.ceil(n / pieces_of_image(batch, workers))

    def worker(_: int) -> Callable[[Positions], None]:
        workspace = native_hash.workspace(rows, half)

        def hash_tile(tile: Positions) -> None:
            b, i = tile
            native_hash.hash_codes(rows[b, i], turned, codes[b, :, i], workspace)

        return hash_tile

    tiles = [(b, slice(i, i + step)) for b in range(batch) for i in range(0, n, step)]
    share_tiles(tiles, x.device, worker, own_threads=True)
    return codes


class _NativeAttention(SortedAttention):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, order: Tensor, chunk_size: int
    ) -> Tensor:
        rows = [float_rows(t) for t in (q, k, v)]
        plan = Plan(order, chunk_size, v.device)
        out, top, norm = (rows[0].new_empty(*v.shape[:2], width) for width in (v.shape[2], 1, 1))
        workers = num_workers(v.device, own_threads=True)
        step = math.ceil(plan.chunks / pieces_of_image(v.shape[0], workers))
        for r in range(plan.rounds):
            works = []
            for b in range(v.shape[0]):
                own, windows = plan.lines(b, r)
                works.append(
                    native.attend(
                        (rows[0][b], own),
                        (rows[1][b], windows),
                        (rows[2][b], windows),
                        (out[b], own),
                        (top[b], own),
                        (norm[b], own),
                        before=r > 0,
                        finish=r == plan.rounds - 1,
                    )
                )

            def worker(_: int, works: list[native.Work] = works) -> Callable[[Chunks], None]:
                workspace = native.workspace(q.shape[-1], v.shape[-1])

                def attend_chunks(tile: Chunks) -> None:
                    for chunks, queries in plan.without_repeated(tile[2]):
                        works[tile[0]](chunks, queries, workspace)

                return attend_chunks

            tiles = [
                (b, r, slice(i, min(i + step, plan.chunks)))
                for b in range(v.shape[0])
                for i in range(0, plan.chunks, step)
            ]
            share_tiles(tiles, v.device, worker, own_threads=True)
        saved = (q, k, v, out, top, order)
        SortedAttention.keep(ctx, saved, chunk_size, _gradients, own_threads=True)
        return out.to(v.dtype)


def _gradients(plan: Plan, saved: tuple[Tensor, ...]) -> Callable[[int], Gradients]:
    q, k, v, out, grad = (float_rows(saved[i], WIDTH) for i in (0, 1, 2, 3, 5))
    lse, size = saved[4], plan.size
    widths = [t.shape[-1] for t in saved[:3]]

    def worker(_: int) -> Gradients:
        workspace = native.workspace(q.shape[-1], v.shape[-1])

        def grad_chunks(tile: Chunks) -> tuple[Tensor, ...]:
            b, r, chunks = tile
            count = chunks.stop - chunks.start
            grad_queries = q.new_zeros(count, size, q.shape[-1])
            grad_keys = [t.new_zeros(count + 2, size, t.shape[-1]) for t in (k, v)]
            own, windows = (t[chunks] for t in plan.lines(b, r))
            grad_windows = [t.flatten(0, 1).unfold(0, 3 * size, size).mT for t in grad_keys]
            add = native.gradients(
                (q[b], own),
                (k[b], windows),
                (v[b], windows),
                (out[b], own),
                (lse[b], own),
                (grad[b], own),
                grad_queries,
                grad_windows[0],
                grad_windows[1],
                add_kv=True,
            )
            for lines, queries in plan.without_repeated(chunks):
                within = slice(lines.start - chunks.start, lines.stop - chunks.start)
                add(within, queries, workspace)
            return tuple(
                t[..., :w] for t, w in zip((grad_queries, *grad_keys), widths, strict=True)
            )

        return grad_chunks

    return worker


implementation("nlsa", "native", why_not_native_nlsa)(
    partial(attend_sorted, hash_codes, _NativeAttention)
)
