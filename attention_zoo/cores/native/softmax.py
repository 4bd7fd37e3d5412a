"""Softmax attention of many lines of rows at once, by ``softmax.c``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..tiles import scratch
from . import Job, call, workspace_of

#: Queries that are done together: they share one reading of the keys.
QUERIES = 144


class Lines(NamedTuple):
    """Rows of every line of every image, and where a worker finds or leaves them.

    Attributes:
        rows: ``[B, L, n, w]`` or, with ``which``, all rows of an image ``[B, N, w]``. With one more
            dimension in front, each worker has its own.
        which: indices of the rows of each line, ``[B, L, n]``, int64.
        by_tile: how much further, in numbers, the lines of an image's next tile are.
    """

    rows: Tensor
    which: Tensor | None = None
    by_tile: int = 0


@dataclass(frozen=True)
class Tiles:
    """How the queries of all lines are shared.

    Attributes:
        workers: threads.
        lines: of a tile; None for all of an image.
        queries: of a tile; None for all of a line.
        last_queries: of the last line of an image; None for as many as the others have.
        fixed: the tiles of a worker depend on their number alone, so that its sums do.
    """

    workers: int
    lines: int | None = None
    queries: int | None = None
    last_queries: int | None = None
    fixed: bool = False


class _Lines(ctypes.Structure):
    """``struct lines`` of ``vectors.h``."""

    _fields_ = (
        ("at", ctypes.c_void_p),
        ("which", ctypes.c_void_p),
        *((name, ctypes.c_ssize_t) for name in ("by_row", "by_line", "by_image", "by_tile")),
        *((name, ctypes.c_ssize_t) for name in ("by_worker", "which_by_image")),
    )


class _Softmax(Job):
    """``struct softmax`` of ``softmax.c``."""

    _fields_ = (
        ("rows", _Lines * 9),
        *((name, ctypes.c_ssize_t) for name in ("images", "lines", "queries", "last_queries")),
        *((name, ctypes.c_ssize_t) for name in ("lines_of_tile", "queries_of_tile", "workers")),
        *((name, ctypes.c_ssize_t) for name in ("m", "c", "d")),
        ("flags", ctypes.c_int * 3),
        ("gradients", ctypes.c_int),
        ("fixed", ctypes.c_int),
    )


def attend(
    lines: Sequence[Lines],
    tiles: Tiles,
    *,
    before: bool = False,
    finish: bool = True,
    leave_out: bool = False,
) -> None:
    """The queries of every line attend to its keys, by online softmax, in float32.

    Six kinds of lines, with n queries and m keys each:

    - q, k, v: queries, c wide; keys, c wide; values, c_out wide.
    - out: receives the output or, unless ``finish``, the sum of ``2^(score - top) · value``.
    - top: receives log2 of the sum of 2^score, one wide, scores being in units of log 2, or, unless
      ``finish``, the largest score or one not far below it.
    - norm: receives the sum of ``2^(score - top)``, one wide, unless ``finish``.

    Args:
        lines: q, k, v, out, top, norm.
        tiles: how threads share the queries.
        before: continue after earlier keys, whose sums are in the last three.
        finish: divide by the norm; else leave the sums.
        leave_out: query i leaves out key i.
    """
    _share(lines, tiles, (before, finish, leave_out))


def gradients(
    lines: Sequence[Lines],
    tiles: Tiles,
    *,
    add_q: bool = False,
    add_kv: bool = False,
    leave_out: bool = False,
) -> None:
    """Gradients of the queries, keys and values of every line, in float32.

    Nine kinds of lines:

    - q, k, v: as for :func:`attend`; widths are multiples of ``native.WIDTH``.
    - out, lse: what :func:`attend` left in ``out`` and ``top``, ``finish`` being set.
    - grad: gradient of ``out``.
    - grad_q, grad_k, grad_v: receive the gradients. Lines of one tile may share keys and values.

    Args:
        lines: q, k, v, out, lse, grad, grad_q, grad_k, grad_v.
        tiles: how threads share the queries.
        add_q: add to the content of ``grad_q``.
        add_kv: add to the content of ``grad_k`` and ``grad_v``; else the first queries set them.
        leave_out: query i leaves out key i.
    """
    _share(lines, tiles, (add_q, add_kv, leave_out))


def _share(lines: Sequence[Lines], tiles: Tiles, flags: tuple[bool, bool, bool]) -> None:
    q, k, v = lines[:3]
    images, count, queries = (q.rows if q.which is None else q.which).shape[:3]
    keys = (k.rows if k.which is None else k.which).shape[2]
    c, d = q.rows.shape[-1], v.rows.shape[-1]
    job = _Softmax.of(
        rows=tuple(map(_described, lines)),
        images=images,
        lines=count,
        queries=queries,
        last_queries=queries if tiles.last_queries is None else tiles.last_queries,
        lines_of_tile=tiles.lines or count,
        queries_of_tile=tiles.queries or queries,
        workers=tiles.workers,
        m=keys,
        c=c,
        d=d,
        flags=flags,
        gradients=len(lines) == 9,
        fixed=tiles.fixed,
    )
    size = workspace_of("softmax_workspace", c, d)
    memory = scratch("native", q.rows, tiles.workers * size)
    call("share_softmax", job, memory)


def _described(lines: Lines) -> _Lines:
    """Float32, contiguous along w; indices int64, contiguous along n."""
    rows, which, by_tile = lines
    assert rows.dtype == torch.float32
    assert rows.shape[-1] == 1 or rows.stride(-1) == 1
    own = rows.dim() == (4 if which is not None else 5)
    by_worker, *strides = rows.stride() if own else (0, *rows.stride())
    at = rows.data_ptr()
    if which is None:
        by_image, by_line, by_row, _ = strides
        return _Lines(at, None, by_row, by_line, by_image, by_tile, by_worker, 0)
    assert which.dtype == torch.int64
    assert which.shape[2] == 1 or which.stride(2) == 1
    by_image, by_row, _ = strides
    which_by_image, by_line, _ = which.stride()
    place = which.data_ptr()
    return _Lines(at, place, by_row, by_line, by_image, by_tile, by_worker, which_by_image)
