"""Softmax attention of many lines of rows at once, by ``softmax.c``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..tiles import scratch
from . import library

#: Queries that are done together: they share one reading of the keys.
QUERIES = 144

#: Lines ``[L, n, w]``; or rows ``[N, w]`` with the indices of the rows of each line, ``[L, n]``.
Rows = Tensor | tuple[Tensor, Tensor]


class _Lines(ctypes.Structure):
    """Lines of rows, ``struct lines`` of ``vectors.h``; it does not keep the memory alive."""

    _fields_ = (
        ("at", ctypes.c_void_p),
        ("which", ctypes.c_void_p),
        ("by_row", ctypes.c_ssize_t),
        ("by_line", ctypes.c_ssize_t),
    )


class Work:
    """A function of ``softmax.c`` with its tensors; a call does some queries of some lines.

    It keeps the tensors alive. Several threads may call it at once.
    """

    def __init__(
        self,
        function: Any,
        rows: Sequence[Rows],
        sizes: tuple[int, int, int],
        flags: tuple[bool, bool, bool],
    ) -> None:
        self._function, self._rows = function, rows
        self._structures = [_lines(x) for x in rows]
        places = map(ctypes.addressof, self._structures)
        self._arguments = (*places, *sizes, *map(int, flags))

    def __call__(self, lines: slice, queries: slice, workspace: Tensor) -> None:
        """Do these queries of these lines; the :func:`workspace` is overwritten."""
        span = (lines.start, lines.stop - lines.start)
        those = (queries.start, queries.stop - queries.start)
        self._function(*self._arguments, *span, *those, workspace.data_ptr())


@cache
def _functions() -> Any:
    found = library()
    size, flag, memory = ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p
    found.softmax_workspace.argtypes, found.softmax_workspace.restype = [size] * 2, size
    for name, count in (("softmax_attend", 6), ("softmax_gradients", 9)):
        function = getattr(found, name)
        function.argtypes = [memory] * count + [size] * 3 + [flag] * 3 + [size] * 4 + [memory]
        function.restype = None
    return found


def workspace(c: int, c_out: int) -> Tensor:
    """Memory of the calling thread for one call of :class:`Work`."""
    like = torch.empty(0, dtype=torch.float32, device="cpu")
    return scratch("native", like, int(_functions().softmax_workspace(c, c_out)))


def attend(
    q: Rows,
    k: Rows,
    v: Rows,
    out: Rows,
    top: Rows,
    norm: Rows,
    *,
    before: bool = False,
    finish: bool = True,
    leave_out: bool = False,
) -> Work:
    """The queries of every line attend to its keys, by online softmax, in float32.

    Args:
        q: queries, n per line, c wide.
        k: keys, m per line, c wide.
        v: values, m per line, c_out wide.
        out: receives the output ``[L, n, c_out]`` or, unless ``finish``, the sum of
            ``2^(score - top) · value``.
        top: receives log2 of the sum of 2^score ``[L, n, 1]``, scores being in units of log 2, or,
            unless ``finish``, the largest score or one not far below it.
        norm: receives the sum of ``2^(score - top)`` ``[L, n, 1]``, unless ``finish``.
        before: continue after earlier keys, whose sums are in the last three.
        finish: divide by the norm; else leave the sums.
        leave_out: query i leaves out key i.

    Returns:
        The work, which is done when it is called.
    """
    sizes = (_count(k), _width(q), _width(v))
    flags = (before, finish, leave_out)
    return Work(_functions().softmax_attend, (q, k, v, out, top, norm), sizes, flags)


def gradients(
    q: Rows,
    k: Rows,
    v: Rows,
    out: Rows,
    lse: Rows,
    grad: Rows,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    *,
    add_q: bool = False,
    add_kv: bool = False,
    leave_out: bool = False,
) -> Work:
    """Gradients of the queries, keys and values of every line, in float32.

    Args:
        q, k, v: as for :func:`attend`; widths are multiples of ``native.WIDTH``.
        out, lse: what :func:`attend` left in ``out`` and ``top``, ``finish`` being set.
        grad: gradient of ``out``.
        grad_q, grad_k, grad_v: receive the gradients, ``[L, n, c]``, ``[L, m, c]`` and
            ``[L, m, c_out]``. Keys and values of different lines may be the same.
        add_q: add to the content of ``grad_q``.
        add_kv: add to the content of ``grad_k`` and ``grad_v``; else the first queries set them.
        leave_out: query i leaves out key i.

    Returns:
        The work, which is done when it is called.
    """
    places = (q, k, v, out, lse, grad, grad_q, grad_k, grad_v)
    sizes = (_count(k), _width(q), _width(v))
    flags = (add_q, add_kv, leave_out)
    return Work(_functions().softmax_gradients, places, sizes, flags)


def _lines(x: Rows) -> _Lines:
    """Lines of float32, contiguous along w; indices of rows, int64, contiguous along n."""
    rows, which = x if isinstance(x, tuple) else (x, None)
    assert rows.dtype == torch.float32
    assert rows.shape[-1] == 1 or rows.stride(-1) == 1
    if which is None:
        return _Lines(rows.data_ptr(), None, rows.stride(1), rows.stride(0))
    assert which.dtype == torch.int64
    assert which.shape[1] == 1 or which.stride(1) == 1
    return _Lines(rows.data_ptr(), which.data_ptr(), rows.stride(0), which.stride(0))


def _count(x: Rows) -> int:
    return x[1].shape[1] if isinstance(x, tuple) else x.shape[1]


def _width(x: Rows) -> int:
    return x[0].shape[1] if isinstance(x, tuple) else x.shape[2]
