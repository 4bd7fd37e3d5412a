"""Non-Local Sparse Attention: attention within buckets of spherical locality-sensitive hashing."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import (
    Attention,
    AttentionError,
    Cost,
    check_qkv,
    embedding_channels,
    require_at_least,
    to_map,
    to_rows,
)
from .cores.native import WIDTH, why_not_native
from .cores.native import nlsa as native_hash
from .cores.native import softmax as native
from .cores.softmax import (
    Lines,
    attend_tile,
    float_rows,
    native_space,
    no_autocast,
    refuse_second_derivative,
    sum_dtype,
    tile_gradients,
    tile_workers,
)
from .cores.tiles import (
    even_step,
    in_cache,
    num_workers,
    pieces_of_image,
    scratch,
    share_tiles,
    tile_limit,
)
from .cores.triton import why_not_triton
from .implementations import implementation, register_core, run
from .registry import register_attention

# Scores that are held at once: on the CPU as many as the cache holds, see :mod:`.tiles`; elsewhere
# 128 MB, for few launches.
_CPU_TILE = in_cache()
_TILE = 2**25
# Products of a tile, whose rows are gathered together; positions of a tile when rounds are merged.
_GROUPS = 4
_POSITIONS = 2048

#: Keys are divided by their norm, but by no less than this.
MIN_NORM = 5e-5


def num_buckets(n: int, chunk_size: int) -> int:
    """Hash buckets for n positions: n // S, made even, between 2 and 128."""
    return max(2, min(n // chunk_size + (n // chunk_size) % 2, 128))


def hash_codes(x: Tensor, rotations: Tensor) -> Tensor:
    """Spherical LSH: the arg-max of [xR, −xR] for each round, in float32 at least.

    Args:
        x: embeddings ``[B, N, c]``.
        rotations: random rotations ``[r, c, nb / 2]``.

    Returns:
        Bucket codes ``[B, r, N]`` in 0 … nb − 1; no gradient flows through them.
    """
    r, c, half = rotations.shape
    batch, n, _ = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    x = x.detach()
    flat = rotations.to(dtype).permute(1, 0, 2).reshape(c, r * half)
    codes = torch.empty(batch, r, n, dtype=torch.long, device=x.device)
    workers = tile_workers(batch * n * 2 * r * half, x.device)
    width = even_step(n, 2 * r * half, _tile_size(x.device), workers if batch < workers else 1)

    def worker(_: int) -> Callable[[_Positions], None]:
        space, is_largest = (scratch(name, flat, width, r, 2 * half) for name in ("codes", "mask"))

        def hash_tile(tile: _Positions) -> None:
            b, i = tile
            rotated = torch.mm(x[b, i].to(dtype), flat).view(-1, r, half)
            both = space[: rotated.shape[0]]
            both[..., :half] = rotated
            torch.neg(rotated, out=both[..., half:])
            codes[b, :, i] = _arg_max(both, is_largest[: both.shape[0]]).T

        return hash_tile

    with no_autocast(x):
        tiles = [(b, slice(i, i + width)) for b in range(batch) for i in range(0, n, width)]
        share_tiles(tiles, x.device, worker)
    return codes


def _native_hash_codes(x: Tensor, rotations: Tensor) -> Tensor:
    """As :func:`hash_codes`, by a kernel in C."""
    rows = float_rows(x.detach())
    turned = rotations.to(torch.float32).mT.contiguous()
    batch, n, c = rows.shape
    r, half, _ = turned.shape
    codes = torch.empty(batch, r, n, dtype=torch.long, device=x.device)
    workers = tile_workers(batch * n * 2 * r * half, x.device, own_threads=True)
    step = math.ceil(n / pieces_of_image(batch, workers))

    def worker(_: int) -> Callable[[_Positions], None]:
        space = scratch("native", rows, native_hash.space_of(c, half))

        def hash_tile(tile: _Positions) -> None:
            b, i = tile
            native_hash.hash_codes(rows[b, i], turned, codes[b, :, i], space)

        return hash_tile

    tiles = [(b, slice(i, i + step)) for b in range(batch) for i in range(0, n, step)]
    share_tiles(tiles, x.device, worker, own_threads=True)
    return codes


def _arg_max(x: Tensor, space: Tensor) -> Tensor:
    """Arg-max of ``[T, r, M]`` over M, the first of equal ones; ``space`` is as large.

    On the CPU torch's goes through one number after the other. Here a product picks the index of
    the largest, unless there are several, as of zeros.
    """
    if x.device.type == "cpu":
        torch.eq(x, x.amax(-1, keepdim=True), out=space)
        index = torch.arange(x.shape[-1], dtype=x.dtype)
        ways = torch.stack([index, torch.ones_like(index)], dim=1)
        picked, count = torch.matmul(space, ways).unbind(-1)
        if bool((count == 1).all()):
            return picked.long()
    return x.argmax(-1)


def sort_codes(codes: Tensor, buckets: int) -> Tensor:
    """Positions ``[B, r, N]`` in stable order of their codes ``[B, r, N]``, 0 … buckets − 1."""
    if codes.device.type != "cpu":
        return codes.sort(dim=-1, stable=True).indices
    # One sort of all rounds, in one dimension and of short integers: there torch has a radix sort.
    lists = codes.flatten(0, 1)
    number = torch.arange(lists.shape[0]).unsqueeze(1)
    dtype = torch.int16 if lists.shape[0] * buckets < 2**15 else torch.int32
    keys = (lists + number * buckets).to(dtype).flatten()
    order = keys.sort(stable=True).indices.view_as(lists)
    return order.sub_(number * lists.shape[1]).view_as(codes)


def _tile_size(device: torch.device) -> int:
    return tile_limit(device, _CPU_TILE, _TILE)


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, rotations: Tensor, chunk_size: int = 144
) -> Tensor:
    """Non-Local Sparse Attention (Mei, Fan, Zhou, CVPR 2021).

    Per round, positions are sorted by hash code (stable) and cut into chunks of S; each chunk
    attends to itself and its two neighbours, circularly. A last incomplete chunk is filled with
    the last sorted entries repeated. Rounds are merged by their log-sum-exps.

    Args:
        q: queries ``[B, c, H, W]``; they are hashed as well.
        k: keys ``[B, c, H, W]``, divided here by max(norm, 5e-5).
        v: values ``[B, c_out, H, W]``.
        rotations: one random rotation per round, ``[r, c, nb / 2]``.
        chunk_size: S.

    Returns:
        ``[B, c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together.

    Implementations: ``native``, ``triton`` (its backward pass is tiled), ``tiled``, ``reference``;
    ``auto`` is native on the CPU where it can run (not in float64, nor without a C compiler), else
    tiled.

    Numerics: error up to ``(6 u + 2 min(1, g)) max|v|`` for the same buckets, see
    :mod:`.softmax`; S is the largest norm of a query.
    """
    check_qkv(q, k, v)
    if rotations.dim() != 3 or rotations.shape[1] != q.shape[1]:
        raise AttentionError(
            f"rotations must be [rounds, {q.shape[1]}, buckets / 2], got {list(rotations.shape)}"
        )
    return run("nlsa", q, k, v, rotations, chunk_size)


def _attend_sorted(
    hashed: Callable[[Tensor, Tensor], Tensor],
    function: type[_ChunkedAttention],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotations: Tensor,
    chunk_size: int,
) -> Tensor:
    """Hash and sort by a function, then the attention by one on rows and their order."""
    queries, values = (to_rows(t).contiguous() for t in (q, v))
    keys = normalise_keys(queries if k is q else to_rows(k))
    order = sort_codes(hashed(queries, rotations), 2 * rotations.shape[2])
    with no_autocast(v):
        out = function.apply(queries, keys, values, order, chunk_size)
    return to_map(out, like=v)


def normalise_keys(k: Tensor) -> Tensor:
    """Rows ``[B, N, c]`` divided by max(norm, 5e-5), float32 at least: a half's norm overflows."""
    # Norms of rows that are not in one piece take ten times as long on the CPU.
    k = k.to(torch.promote_types(k.dtype, torch.float32)).contiguous()
    return k / torch.linalg.vector_norm(k, dim=-1, keepdim=True).clamp_min(MIN_NORM)


def padded_order(order: Tensor, chunk_size: int) -> Tensor:
    """Sorted positions ``[B, N]``, filled up to whole chunks with the last ones repeated."""
    n = order.shape[1]
    padding = -n % chunk_size
    slots = torch.arange(n + padding, device=order.device)
    slots[n:] = (slots[n:] - padding) % n
    return order[:, slots]


class _ChunkedAttention(torch.autograd.Function):
    """All rounds over rows ``[B, N, ·]`` for sorted positions ``[B, r, N]``; chunks of S.

    Tiles are a few neighbouring chunks of one round. Their rows are gathered once; windows of
    three chunks are views of them. The rounds' sums are merged, so the backward pass needs the
    merged output and log-sum-exp only.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, order: Tensor, chunk_size: int
    ) -> Tensor:
        batch, n, c_out = v.shape
        dtype = sum_dtype(v)
        plan = _Plan(order, chunk_size, v.device)
        # In sorted order: (acc, top, norm) of every round.
        sums = Lines(
            *(v.new_empty(batch, plan.rounds, plan.slots, s, dtype=dtype) for s in (c_out, 1, 1))
        )

        def attend(_: int) -> Callable[[_Chunks], None]:
            space = scratch("scores", v, plan.scores, dtype=dtype)
            rows_of = [
                scratch(f"rows {i}", v, plan.most_rows, t.shape[-1], dtype=dtype)
                for i, t in enumerate((q, k, v))
            ]

            def attend_chunks(tile: _Chunks) -> None:
                b, r, chunks = tile
                rows, around = plan.rows(chunks), plan.around(tile)
                queries = _take(q[b], around[chunk_size:-chunk_size], rows_of[0])
                keys, values = (
                    _take(t[b], around, rows) for t, rows in zip((k, v), rows_of[1:], strict=True)
                )
                found = Lines(*(t[b, r, rows].unflatten(0, (-1, chunk_size)) for t in sums))
                for i, window in plan.groups(chunks):
                    lines = attend_tile(
                        queries.unflatten(0, (-1, chunk_size))[i],
                        _windows(keys[window], chunk_size),
                        _windows(values[window], chunk_size),
                        space,
                        acc=found.acc[i],
                    )
                    found.top[i], found.norm[i] = lines.top, lines.norm

            return attend_chunks

        share_tiles(plan.tiles, v.device, attend)
        out = torch.empty_like(v)
        lse = v.new_empty(batch, n, 1, dtype=dtype)

        def merge(tile: _Positions) -> None:
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
        _keep(ctx, q, k, v, out, lse, order, chunk_size)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("sparse_attention")
        q, k, v, out, lse, order = ctx.saved_tensors
        chunk_size: int = ctx.chunk_size
        batch, n = v.shape[:2]
        dtype = sum_dtype(v)
        plan = _Plan(order, chunk_size, v.device)
        grad_out = grads[0].contiguous()
        # In sorted order, by chunk; what a tile adds to its neighbours' chunks stands aside.
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

        def add(number: int) -> Callable[[_Chunks], None]:
            gradients = ctx.worker(plan, saved)(number)

            def add_chunks(tile: _Chunks) -> None:
                b, r, chunks = tile
                by_query, *by_keys = gradients(tile)
                chunked[0][b, r, chunks] = by_query
                for inner, outer, whole in zip(chunked[1:], aside, by_keys, strict=True):
                    inner[b, r, chunks] = whole[1:-1]
                    outer[b, r, plan.spans.index(chunks)] = whole[:: len(whole) - 1]

            return add_chunks

        share_tiles(plan.tiles, v.device, add, own_threads=ctx.own_threads)

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

        def gather(tile: _Positions) -> None:
            b, i = tile
            for whole, t in zip(results, slotted, strict=True):
                whole[b, i] = F.embedding_bag(plan.places[b, i], t[b].flatten(0, 1), mode="sum")

        share_tiles(plan.positions, v.device, lambda _: gather)

        return *results, None, None


class _TritonAttention(_ChunkedAttention):
    """The forward pass by Triton kernels; the backward pass is the tiled one."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, order: Tensor, chunk_size: int
    ) -> Tensor:
        from .cores.triton import nlsa as kernels

        out, lse = kernels.attend(q, k, v, order, chunk_size)
        _keep(ctx, q, k, v, out, lse, order, chunk_size)
        return out


class _NativeChunkedAttention(_ChunkedAttention):
    """As :class:`_ChunkedAttention`, by kernels in C; rows are gathered there.

    Rounds go on with the sums of those before, in place: nothing is merged.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, order: Tensor, chunk_size: int
    ) -> Tensor:
        rows = [float_rows(t) for t in (q, k, v)]
        plan = _Plan(order, chunk_size, v.device)
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

            def worker(_: int, works: list[native.Work] = works) -> Callable[[_Chunks], None]:
                space = native_space(q.shape[-1], v.shape[-1])

                def attend_chunks(tile: _Chunks) -> None:
                    for chunks, queries in plan.without_repeated(tile[2]):
                        works[tile[0]](chunks, queries, space)

                return attend_chunks

            tiles = [
                (b, r, slice(i, min(i + step, plan.chunks)))
                for b in range(v.shape[0])
                for i in range(0, plan.chunks, step)
            ]
            share_tiles(tiles, v.device, worker, own_threads=True)
        _keep(ctx, q, k, v, out, top, order, chunk_size, _native_gradients)
        return out.to(v.dtype)


_Saved = tuple[Tensor, ...]
_Gradients = Callable[["_Chunks"], tuple[Tensor, ...]]
#: Takes the plan and what is saved; gives, for a worker, what does a tile: gradients by the queries
#: of its chunks ``[K, S, c]``, and by keys and values of these and the two around them.
_Worker = Callable[["_Plan", _Saved], Callable[[int], _Gradients]]


def _keep(
    ctx: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    order: Tensor,
    chunk_size: int,
    worker: _Worker | None = None,
) -> None:
    """Keep what the backward pass needs, whose tiles are done by a worker in C or by torch."""
    ctx.save_for_backward(q, k, v, out, lse, order)
    ctx.chunk_size, ctx.worker, ctx.own_threads = chunk_size, worker or _gradients, bool(worker)


def _gradients(plan: _Plan, saved: _Saved) -> Callable[[int], _Gradients]:
    q, k, v, out, lse, grad_out = saved
    size, n, dtype = plan.size, v.shape[1], sum_dtype(v)

    def worker(_: int) -> _Gradients:
        space = scratch("scores", v, 2, plan.scores, dtype=dtype)
        rows_of = [
            scratch(f"rows {i}", v, plan.most_rows, t.shape[-1], dtype=dtype)
            for i, t in enumerate((q, k, v, v, v))
        ]

        def by_chunks(tile: _Chunks) -> tuple[Tensor, ...]:
            b, _, chunks = tile
            count = chunks.stop - chunks.start
            around = plan.around(tile)
            own = around[size:-size]
            places = (own, around, around, own, own)
            queries, keys, values, grad, outputs = (
                _take(t[b], place, rows)
                for t, place, rows in zip((q, k, v, grad_out, out), places, rows_of, strict=True)
            )
            lses = lse[b].index_select(0, own)
            delta = outputs.mul_(grad).sum(-1, keepdim=True)
            padding = plan.rows(chunks).stop - n
            if padding > 0:  # these queries' outputs are no one's
                grad[-padding:], delta[-padding:] = 0, 0
            by_query = v.new_empty(count, size, q.shape[-1], dtype=dtype)
            by_keys = [v.new_zeros(count + 2, size, t.shape[-1], dtype=dtype) for t in (k, v)]
            by_chunk = [t.unflatten(0, (-1, size)) for t in (queries, grad, lses, delta)]
            for i, window in plan.groups(chunks):
                query, grad_i, lse_i, delta_i = (t[i] for t in by_chunk)
                by_query[i], *by_windows = tile_gradients(
                    query,
                    _windows(keys[window], size),
                    _windows(values[window], size),
                    grad_i,
                    lse_i,
                    delta_i,
                    space,
                )
                for whole, one in zip(by_keys, by_windows, strict=True):
                    for neighbour, part in enumerate(one.split(size, dim=1)):
                        whole[i.start + neighbour : i.stop + neighbour] += part
            return by_query, *by_keys

        return by_chunks

    return worker


def _native_gradients(plan: _Plan, saved: _Saved) -> Callable[[int], _Gradients]:
    q, k, v, out, grad = (float_rows(saved[i], WIDTH) for i in (0, 1, 2, 3, 5))
    lse, size = saved[4], plan.size
    widths = [t.shape[-1] for t in saved[:3]]

    def worker(_: int) -> _Gradients:
        space = native_space(q.shape[-1], v.shape[-1])

        def by_chunks(tile: _Chunks) -> tuple[Tensor, ...]:
            b, r, chunks = tile
            count = chunks.stop - chunks.start
            by_query = q.new_zeros(count, size, q.shape[-1])
            by_keys = [t.new_zeros(count + 2, size, t.shape[-1]) for t in (k, v)]
            own, windows = (t[chunks] for t in plan.lines(b, r))
            by_windows = [t.flatten(0, 1).unfold(0, 3 * size, size).mT for t in by_keys]
            add = native.gradients(
                (q[b], own),
                (k[b], windows),
                (v[b], windows),
                (out[b], own),
                (lse[b], own),
                (grad[b], own),
                by_query,
                by_windows[0],
                by_windows[1],
                add_kv=True,
            )
            for those, queries in plan.without_repeated(chunks):
                add(slice(those.start - chunks.start, those.stop - chunks.start), queries, space)
            return tuple(t[..., :w] for t, w in zip((by_query, *by_keys), widths, strict=True))

        return by_chunks

    return worker


def _why_not_native(q: Tensor, k: Tensor, v: Tensor, *_: object) -> str | None:
    return why_not_native(q, k, v)


# The Triton kernels have run in the interpreter and been compiled, but not yet run on a GPU: they
# are taken by name only.
register_core("nlsa", lambda *args: "tiled" if _why_not_native(*args) else "native")
implementation("nlsa", "native", _why_not_native)(
    partial(_attend_sorted, _native_hash_codes, _NativeChunkedAttention)
)
implementation("nlsa", "tiled")(partial(_attend_sorted, hash_codes, _ChunkedAttention))
implementation("nlsa", "triton", why_not_triton)(
    partial(_attend_sorted, hash_codes, _TritonAttention)
)


_Chunks = tuple[int, int, slice]
_Positions = tuple[int, slice]


class _Plan:
    """How the sorted positions ``[B, r, N]`` are cut into tiles.

    Attributes:
        rounds, chunks, slots: hash rounds; chunks of one; positions of one, repeated ones too.
        places: of every position, its slot in each round, counted through all: ``[B, N, r]``.
        repeated: ranks of the positions that fill up the last chunk.
        width: chunks of one round that are done together at most.
        spans: neighbouring chunks of one round that are done together.
        tiles: (image, round, span) of each tile.
        scores, most_rows: scores and gathered rows of a tile that are held at once.
        positions: (image, positions) of the tiles of what follows the chunks.
    """

    def __init__(self, order: Tensor, chunk_size: int, device: torch.device) -> None:
        batch, self.rounds, n = order.shape
        self.size = chunk_size
        padded = padded_order(order.flatten(0, 1), chunk_size).unflatten(0, (batch, -1))
        self.slots = padded.shape[2]
        self.chunks = self.slots // chunk_size
        # One chunk more on either side closes the circle.
        ends = padded[:, :, -chunk_size:], padded[:, :, :chunk_size]
        self._around = torch.cat([ends[0], padded, ends[1]], dim=2)
        ranks = torch.empty_like(order)
        ranks.scatter_(2, order, torch.arange(n, device=device).expand_as(order))
        first = torch.arange(0, self.rounds * self.slots, self.slots, device=device)
        self.places = ranks.add_(first.unsqueeze(1)).transpose(1, 2).contiguous()
        slots = torch.arange(n, self.slots, device=device)
        self.repeated = (slots - (self.slots - n)) % n
        scores = 3 * chunk_size**2
        self._group = max(1, min(self.chunks, _tile_size(device) // scores))
        self.scores = self._group * scores
        self.width = self._group * _GROUPS
        self.spans = [
            slice(c, min(c + self.width, self.chunks)) for c in range(0, self.chunks, self.width)
        ]
        self.most_rows = (min(self.width, self.chunks) + 2) * chunk_size
        self.tiles = [
            (b, r, span) for b in range(batch) for r in range(self.rounds) for span in self.spans
        ]
        step = even_step(n, 1, _POSITIONS, num_workers(device))
        self.positions = [(b, slice(i, i + step)) for b in range(batch) for i in range(0, n, step)]

    def rows(self, chunks: slice) -> slice:
        """Slots of these chunks."""
        return slice(chunks.start * self.size, chunks.stop * self.size)

    def around(self, tile: _Chunks) -> Tensor:
        """Positions in a tile's chunks, the chunk before and the chunk after."""
        b, r, chunks = tile
        return self._around[b, r, chunks.start * self.size : (chunks.stop + 2) * self.size]

    def lines(self, b: int, r: int) -> tuple[Tensor, Tensor]:
        """Positions of a round's chunks ``[K, S]``; with the chunks around each, ``[K, 3 S]``."""
        around = self._around[b, r]
        own = around[self.size : -self.size].unflatten(0, (-1, self.size))
        return own, around.unfold(0, 3 * self.size, self.size)

    def without_repeated(self, chunks: slice) -> list[tuple[slice, slice]]:
        """(chunks, their queries) that cover each position of these chunks once."""
        repeated = self.repeated.shape[0]
        last = self.chunks - 1
        if chunks.stop <= last or not repeated:
            return [(chunks, slice(0, self.size))]
        whole = [(slice(chunks.start, last), slice(0, self.size))] if chunks.start < last else []
        return [*whole, (slice(last, last + 1), slice(0, self.size - repeated))]

    def groups(self, chunks: slice) -> list[tuple[slice, slice]]:
        """(chunks within the tile, rows of their windows) of each product."""
        count = chunks.stop - chunks.start
        starts = range(0, count, self._group)
        groups = [slice(i, min(i + self._group, count)) for i in starts]
        return [(i, slice(i.start * self.size, (i.stop + 2) * self.size)) for i in groups]


def _windows(rows: Tensor, chunk_size: int) -> Tensor:
    """Rows of K + 2 chunks as the K windows of three, a view ``[K, 3 S, c]``."""
    return rows.unfold(0, 3 * chunk_size, chunk_size).mT


def _take(rows: Tensor, positions: Tensor, out: Tensor) -> Tensor:
    """Rows ``[N, c]`` at positions ``[M]``: ``[M, c]``, written into ``out``."""
    out = out[: positions.shape[0]]
    if rows.dtype == out.dtype:
        return torch.index_select(rows, 0, positions, out=out)
    return out.copy_(rows.index_select(0, positions))


def _seeded_rotations(seed: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@lru_cache(maxsize=64)
def _rotations_on(device: torch.device, seed: int, shape: tuple[int, int, int]) -> Tensor:
    """Kept on the device: a copy from the host would wait for it, and break a CUDA graph."""
    with torch.inference_mode(False):  # it may be used in and out of that mode
        return _seeded_rotations(seed, shape).to(device)


@register_attention("nlsa")
class NonLocalSparseAttention(Attention):
    """NLSA: one 3x3 embedding serves query and key, a 1x1 convolution makes the value.

    Rotations are drawn per forward in training, from torch's global generator; in evaluation they
    come from a generator seeded with ``evaluation_seed``, so a number can be reproduced.

    Args:
        channels: channels C of input and output.
        rounds: hash rounds r.
        chunk_size: S.
        reduction: query and key have C / reduction channels.
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "NLSA-r{rounds}"
    source: ClassVar[str] = "Image Super-Resolution with Non-Local Sparse Attention, CVPR 2021"
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self,
        channels: int,
        *,
        rounds: int = 4,
        chunk_size: int = 144,
        reduction: int = 4,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("rounds", rounds, 1)
        require_at_least("chunk_size", chunk_size, 1)
        self.rounds, self.chunk_size = rounds, chunk_size
        self.embedding = embedding_channels(channels, reduction)
        self.evaluation_seed = 0
        self.match = nn.Conv2d(channels, self.embedding, 3, padding=1)
        self.value = nn.Conv2d(channels, channels, 1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q = k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        match = self.match(x)
        return match, match, self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`sparse_attention` with fresh (training) or seeded (evaluation) rotations."""
        check_qkv(q, k, v)
        return sparse_attention(q, k, v, self.rotations(q), self.chunk_size)

    def rotations(self, q: Tensor) -> Tensor:
        """Rotations ``[r, c, nb / 2]`` for queries ``[B, c, H, W]``."""
        half = num_buckets(q.shape[2] * q.shape[3], self.chunk_size) // 2
        shape = (self.rounds, q.shape[1], half)
        if self.training:
            return torch.randn(shape, device=q.device)
        if q.device.type == "cuda":
            return _rotations_on(q.device, self.evaluation_seed, shape)
        return _seeded_rotations(self.evaluation_seed, shape).to(q.device)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Weights ``[B, H, W]``, zero outside the chunks that the query's hashes select."""
        height, width = q.shape[2:]
        position = row * width + col
        queries, keys = to_rows(q), normalise_keys(to_rows(k))
        rotations = self.rotations(q)
        order = sort_codes(hash_codes(queries, rotations), 2 * rotations.shape[2])
        with no_autocast(q):
            scores = torch.einsum("bc,bnc->bn", queries[:, position].to(keys.dtype), keys)
        weights = torch.zeros_like(scores)
        top = scores.amax(1, keepdim=True)
        for r in range(self.rounds):
            positions = padded_order(order[:, r], self.chunk_size)
            chunks = positions.shape[1] // self.chunk_size
            rank = (order[:, r] == position).int().argmax(1)
            neighbours = rank.unsqueeze(1) // self.chunk_size + torch.arange(-1, 2, device=q.device)
            seen = positions.unflatten(1, (chunks, self.chunk_size))
            seen = torch.stack(
                [s[i % chunks].flatten() for s, i in zip(seen, neighbours, strict=True)]
            )
            # exp(lse_r) · softmax_r = exp(score): rounds add up, then one normalisation.
            weights.scatter_add_(1, seen, (scores.gather(1, seen) - top).exp())
        return (weights / weights.sum(1, keepdim=True)).view(-1, height, width)

    def cost(self, height: int, width: int) -> Cost:
        """Core r N (3 S (c + c_out) + 128 c) MACs; executed: padded chunks, nb / 2 columns."""
        n, c, c_out = height * width, self.embedding, self.channels
        window = 3 * self.chunk_size * (c + c_out)
        padded = n + -n % self.chunk_size
        columns = num_buckets(n, self.chunk_size) // 2
        return Cost(
            projections=n * self.channels * (9 * c + c_out),
            core=self.rounds * n * (window + 128 * c),
            executed=self.rounds * (padded * window + n * c * columns),
        )
