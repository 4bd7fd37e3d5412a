"""What the implementations of NLSA share: the sort, the plan of its tiles, the backward pass.

``auto`` takes native kernels on the CPU and Triton's on CUDA where they can run, else tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import no_autocast, sum_dtype, to_map, to_rows
from ..implementations import register_core
from ..nlsa import normalise_keys, padded_order
from .native import why_not_native
from .softmax import refuse_second_derivative
from .tiles import in_cache, num_workers, share_tiles, step_length, tile_limit
from .triton import prefers_triton

# Scores that are held at once: on the CPU as many as the cache holds, see :mod:`.tiles`; elsewhere
# 128 MB, for few launches.
_CPU_TILE = in_cache()
_TILE = 2**25
# Products of a tile, whose rows are gathered together; positions of a tile when rounds are merged.
_GROUPS = 4
_POSITIONS = 2048

#: (image, round, neighbouring chunks) of a tile.
Chunks = tuple[int, int, slice]
#: (image, positions) of a tile.
Positions = tuple[int, slice]
#: Gradients of a tile: of the queries of its chunks ``[K, S, c]``, and of the keys and values of
#: these and the two chunks beside them ``[K + 2, S, ·]``.
Gradients = Callable[[Chunks], tuple[Tensor, ...]]
#: Takes the plan and (q, k, v, out, lse, gradient of out); returns what makes, for the number of a
#: worker, its :data:`Gradients`.
GradientWorker = Callable[["Plan", tuple[Tensor, ...]], Callable[[int], Gradients]]


def why_not_native_nlsa(q: Tensor, k: Tensor, v: Tensor, *_: object) -> str | None:
    """As :func:`.native.why_not_native`, of what the core takes."""
    return why_not_native(q, k, v)


def _rule(*args: Any) -> str:
    if prefers_triton(*args):
        return "triton"
    return "tiled" if why_not_native_nlsa(*args) else "native"


register_core("nlsa", _rule)


def attend_sorted(
    hash_codes: Callable[[Tensor, Tensor], Tensor],
    function: type[torch.autograd.Function],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotations: Tensor,
    chunk_size: int,
) -> Tensor:
    """NLSA of maps, by a function that hashes, and one on rows ``[B, N, ·]`` and their order."""
    queries, values = (to_rows(t).contiguous() for t in (q, v))
    keys = normalise_keys(queries if k is q else to_rows(k))
    order = sort_codes(hash_codes(queries, rotations), 2 * rotations.shape[2])
    with no_autocast(v):
        out = function.apply(queries, keys, values, order, chunk_size)
    return to_map(out, like=v)


def sort_codes(codes: Tensor, buckets: int) -> Tensor:
    """Positions ``[B, r, N]`` in stable order of their codes ``[B, r, N]``, 0 … buckets − 1."""
    if codes.device.type != "cpu":
        return codes.sort(dim=-1, stable=True).indices
    # One sort of all rounds, one-dimensional and of short integers: torch has a radix sort for it.
    lists = codes.flatten(0, 1)
    number = torch.arange(lists.shape[0], device=codes.device).unsqueeze(1)
    dtype = torch.int16 if lists.shape[0] * buckets < 2**15 else torch.int32
    keys = (lists + number * buckets).to(dtype).flatten()
    order = keys.sort(stable=True).indices.view_as(lists)
    return order.sub_(number * lists.shape[1]).view_as(codes)


def tile_size(device: torch.device) -> int:
    """Scores, or entries of [xR, −xR], that a tile holds at once."""
    return tile_limit(device, _CPU_TILE, _TILE)


class SortedAttention(torch.autograd.Function):
    """All rounds over rows ``[B, N, ·]``, given sorted positions ``[B, r, N]`` and S.

    A subclass has the forward pass, which ends with :meth:`keep`. The rounds are merged, so the
    backward pass needs only the merged output and log-sum-exp.
    """

    @staticmethod
    def keep(
        ctx: Any,
        saved: tuple[Tensor, ...],
        chunk_size: int,
        worker: GradientWorker,
    ) -> None:
        """Keep what the backward pass needs.

        Args:
            ctx: of the forward pass.
            saved: q, k, v, output, log2 of the sum of 2^score ``[B, N, 1]``, order.
            chunk_size: S.
            worker: does the tiles of the backward pass.
        """
        ctx.save_for_backward(*saved)
        ctx.chunk_size, ctx.worker = chunk_size, worker

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        refuse_second_derivative("sparse_attention")
        q, k, v, out, lse, order = ctx.saved_tensors
        chunk_size: int = ctx.chunk_size
        batch, n = v.shape[:2]
        dtype = sum_dtype(v)
        plan = Plan(order, chunk_size, v.device)
        grad_out = grads[0].contiguous()
        # In sorted order, by chunk. What a tile adds to its neighbours' chunks is kept aside.
        chunked = [
            v.new_empty(batch, plan.rounds, plan.chunks, chunk_size, t.shape[-1], dtype=dtype)
            for t in (q, k, v)
        ]
        aside = [
            v.new_empty(
                batch, plan.rounds, len(plan.spans), 2, chunk_size, t.shape[-1], dtype=dtype
            )
            for t in (k, v)
        ]
        saved = (q, k, v, out, lse, grad_out)

        def add(number: int) -> Callable[[Chunks], None]:
            gradients = ctx.worker(plan, saved)(number)

            def add_chunks(tile: Chunks) -> None:
                b, r, chunks = tile
                grad_queries, *grad_keys = gradients(tile)
                chunked[0][b, r, chunks] = grad_queries
                for inner, outer, whole in zip(chunked[1:], aside, grad_keys, strict=True):
                    inner[b, r, chunks] = whole[1:-1]
                    outer[b, r, plan.spans.index(chunks)] = whole[:: len(whole) - 1]

            return add_chunks

        share_tiles(plan.tiles, v.device, add)

        # Made on the device: a copy from the host cannot be part of a CUDA graph.
        starts = torch.arange(0, plan.chunks, plan.width, device=v.device)
        before = (starts - 1) % plan.chunks
        after = (starts + plan.width).clamp_max_(plan.chunks) % plan.chunks
        for inner, outer in zip(chunked[1:], aside, strict=True):
            inner.index_add_(2, before, outer[:, :, :, 0])
            inner.index_add_(2, after, outer[:, :, :, 1])
        slotted = [t.flatten(2, 3) for t in chunked]
        for t in slotted:
            t.index_add_(2, plan.repeated, t[:, :, n:].clone())
        results = [torch.empty_like(t) for t in (q, k, v)]

        def gather(tile: Positions) -> None:
            b, i = tile
            for whole, t in zip(results, slotted, strict=True):
                whole[b, i] = F.embedding_bag(plan.places[b, i], t[b].flatten(0, 1), mode="sum")

        share_tiles(plan.positions, v.device, lambda _: gather)

        return *results, None, None


class Plan:
    """How the sorted positions ``[B, r, N]`` are split into tiles.

    Attributes:
        rounds, chunks, slots: hash rounds; chunks per round; positions per round, with the repeated
            ones.
        places: slot of every position in each round, counted through all rounds: ``[B, N, r]``.
        repeated: ranks of the positions that fill up the last chunk.
        width: largest number of chunks in a span.
        spans: neighbouring chunks of one round that are done together.
        tiles: (image, round, span) of each tile.
        scores, most_rows: scores and gathered rows that a tile holds at once.
        positions: (image, positions) of the tiles of the step after the chunks.
    """

    def __init__(self, order: Tensor, chunk_size: int, device: torch.device) -> None:
        batch, self.rounds, n = order.shape
        self.size = chunk_size
        padded = padded_order(order.flatten(0, 1), chunk_size).unflatten(0, (batch, -1))
        self.slots = padded.shape[2]
        self.chunks = self.slots // chunk_size
        # One more chunk on either side closes the circle.
        ends = padded[:, :, -chunk_size:], padded[:, :, :chunk_size]
        self._around = torch.cat([ends[0], padded, ends[1]], dim=2)
        ranks = torch.empty_like(order)
        ranks.scatter_(2, order, torch.arange(n, device=device).expand_as(order))
        first = torch.arange(0, self.rounds * self.slots, self.slots, device=device)
        self.places = ranks.add_(first.unsqueeze(1)).transpose(1, 2).contiguous()
        slots = torch.arange(n, self.slots, device=device)
        self.repeated = (slots - (self.slots - n)) % n
        scores = 3 * chunk_size**2
        self._group = max(1, min(self.chunks, tile_size(device) // scores))
        self.scores = self._group * scores
        self.width = self._group * _GROUPS
        self.spans = [
            slice(c, min(c + self.width, self.chunks)) for c in range(0, self.chunks, self.width)
        ]
        self.most_rows = (min(self.width, self.chunks) + 2) * chunk_size
        self.tiles = [
            (b, r, span) for b in range(batch) for r in range(self.rounds) for span in self.spans
        ]
        step = step_length(n, 1, _POSITIONS, num_workers(device))
        self.positions = [(b, slice(i, i + step)) for b in range(batch) for i in range(0, n, step)]

    def rows(self, chunks: slice) -> slice:
        """Slots of these chunks."""
        return slice(chunks.start * self.size, chunks.stop * self.size)

    def around(self, tile: Chunks) -> Tensor:
        """Positions in a tile's chunks, the chunk before and the chunk after."""
        b, r, chunks = tile
        return self._around[b, r, chunks.start * self.size : (chunks.stop + 2) * self.size]

    def lines(self, r: int) -> tuple[Tensor, Tensor]:
        """Positions of a round's chunks ``[B, K, S]``; with those around each, ``[B, K, 3 S]``."""
        around = self._around[:, r]
        own = around[:, self.size : -self.size].unflatten(1, (-1, self.size))
        return own, around.unfold(1, 3 * self.size, self.size)

    def groups(self, chunks: slice) -> list[tuple[slice, slice]]:
        """(chunks within the tile, rows of their windows) of each product."""
        count = chunks.stop - chunks.start
        starts = range(0, count, self._group)
        groups = [slice(i, min(i + self._group, count)) for i in starts]
        return [(i, slice(i.start * self.size, (i.stop + 2) * self.size)) for i in groups]
