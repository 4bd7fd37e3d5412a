"""NLSA by kernels in C, float32 inside: they hash, and gather the rows themselves.

Each round continues the sums of the rounds before in place, so nothing is merged.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..implementations import implementation
from .native import WIDTH, float_rows
from .native import nlsa as native_hash
from .native import softmax as native
from .nlsa import Plan, attend_sorted, why_not_native_nlsa
from .softmax import refuse_second_derivative, tile_workers
from .tiles import num_workers, pieces_of_image


def hash_codes(x: Tensor, rotations: Tensor) -> Tensor:
    """As :func:`attention_zoo.nlsa.hash_codes`."""
    rows = float_rows(x.detach())
    turned = rotations.to(torch.float32).mT.contiguous()
    batch, n, _ = rows.shape
    r, half, _ = turned.shape
    codes = torch.empty(batch, r, n, dtype=torch.long, device=x.device)
    workers = tile_workers(batch * n * 2 * r * half, x.device, own_threads=True)
    native_hash.hash_codes(rows, turned, codes, _rows(batch, n, workers), workers)
    return codes


def _rows(batch: int, n: int, workers: int) -> int:
    """Positions of a tile."""
    return math.ceil(n / pieces_of_image(batch, workers))


class _NativeAttention(torch.autograd.Function):
    """Rows ``[B, N, ·]``, given sorted positions ``[B, r, N]`` and the size S of a chunk."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, order: Tensor, chunk_size: int
    ) -> Tensor:
        rows = [float_rows(t) for t in (q, k, v)]
        plan = Plan(order, chunk_size, v.device)
        out, top, norm = (rows[0].new_empty(*v.shape[:2], width) for width in (v.shape[2], 1, 1))
        tiles = _tiles(plan, v.shape[0])
        for r in range(plan.rounds):
            own, windows = plan.lines(r)
            which = (own, windows, windows, own, own, own)
            lines = [*map(native.Lines, (*rows, out, top, norm), which)]
            native.attend(lines, tiles, before=r > 0, finish=r == plan.rounds - 1)
        ctx.save_for_backward(q, k, v, out, top, order)
        ctx.chunk_size = chunk_size
        return out.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("sparse_attention")
        *given, out, lse, order = ctx.saved_tensors  # read once
        q, k, v, out, grad = (float_rows(t, WIDTH) for t in (*given, out, grads[0]))
        plan = Plan(order, ctx.chunk_size, v.device)
        batch, n = v.shape[:2]
        tiles = _tiles(plan, batch)
        slots = _Slots(plan, tiles.lines or plan.chunks)
        sums = [t.new_zeros(batch, plan.rounds, *slots.shape, t.shape[-1]) for t in (q, k, v)]
        for r in range(plan.rounds):
            own, windows = plan.lines(r)
            grad_q, grad_k, grad_v = (slots.lines(t[:, r]) for t in sums)
            which = (own, windows, windows, own, own, own)
            lines = [*map(native.Lines, (q, k, v, out, lse, grad), which)]
            # Keys are those of a chunk, the one before it and the one after; queries its own.
            lines += [grad_q._replace(rows=grad_q.rows[:, 1:]), grad_k, grad_v]
            native.gradients(lines, tiles, add_kv=True)
        places = slots.places(plan.places)
        results = [torch.empty_like(t) for t in (q, k, v)]
        for to, t in zip(results, sums, strict=True):
            slots.join(t)
            rows = _rows(batch, n, tiles.workers)
            native_hash.gather(t.flatten(1, 4), places, to, rows, tiles.workers)
        found = zip(results, given, strict=True)
        return *(t[..., : x.shape[2]].to(x.dtype) for t, x in found), None, None


def _tiles(plan: Plan, batch: int) -> native.Tiles:
    """A tile is some neighbouring chunks of one round."""
    workers = num_workers(plan.places.device, own_threads=True)
    chunks = math.ceil(plan.chunks / pieces_of_image(batch, workers))
    return native.Tiles(workers, chunks, last_queries=plan.size - plan.repeated.shape[0])


class _Slots:
    """Where gradients of sorted positions stand: chunk by chunk, between the chunks around a tile.

    Tiles would write to their neighbours' chunks at once; so each has slots of its own for those,
    whose content :meth:`join` adds.

    Attributes:
        shape: tiles, chunks of a tile and the two around it, slots of a chunk.
    """

    def __init__(self, plan: Plan, width: int) -> None:
        self._plan, self._width = plan, width
        count = math.ceil(plan.chunks / width)
        self.shape = (count, width + 2, plan.size)
        self._last = plan.chunks - (count - 1) * width

    def lines(self, sums: Tensor) -> native.Lines:
        """The windows of three chunks of ``[B, tiles, chunks, S, w]``; the next is a chunk on."""
        flat = sums.flatten(1, 2)
        return native.Lines(flat, by_tile=2 * self._plan.size * sums.shape[-1])

    def places(self, places: Tensor) -> Tensor:
        """From slots without the chunks around tiles, counted through all rounds, to those with."""
        plan = self._plan
        r = torch.arange(plan.rounds, device=places.device)
        chunk = (places - r * plan.slots).div_(plan.size, rounding_mode="floor")
        around = chunk.div_(self._width, rounding_mode="floor").mul_(2).add_(1).mul_(plan.size)
        return places + around + r * (math.prod(self.shape) - plan.slots)

    def join(self, sums: Tensor) -> None:
        """Add what belongs to other slots ``[B, r, tiles, chunks, S, w]``."""
        plan, width, last = self._plan, self._width, self._last
        sums[:, :, :-1, width] += sums[:, :, 1:, 0]
        sums[:, :, -1, last] += sums[:, :, 0, 0]
        sums[:, :, 1:, 1] += sums[:, :, :-1, width + 1]
        sums[:, :, 0, 1] += sums[:, :, -1, last + 1]
        if count := plan.repeated.shape[0]:
            flat = sums.flatten(2, 4)
            slots = torch.cat([plan.repeated, torch.arange(plan.slots - count, plan.slots)])
            chunk = slots // plan.size
            to, of = (slots + (2 * (chunk // width) + 1) * plan.size).split(count)
            flat.index_add_(2, to, flat[:, :, of])


implementation("nlsa", "native", why_not_native_nlsa)(
    partial(attend_sorted, hash_codes, _NativeAttention)
)
