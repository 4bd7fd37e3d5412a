"""ENLA's passes over positions, by ``enla.c``. All tensors are float32 and in one piece."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from torch import Tensor

from . import library


class Kernel(ctypes.Structure):
    """What features are made with, as ``struct kernel`` in ``enla.c``; it keeps no memory alive.

    Args:
        projection: F ``[m, c]``, times the length of an embedding and log2(e).
        half_square: half the square of that length, times log2(e).
        min_norm, max_norm: bounds of the norm that embeddings are divided by.
    """

    _fields_ = (
        ("projection", ctypes.c_void_p),
        ("m", ctypes.c_ssize_t),
        ("c", ctypes.c_ssize_t),
        ("half_square", ctypes.c_float),
        ("min_norm", ctypes.c_float),
        ("max_norm", ctypes.c_float),
    )

    def __init__(
        self, projection: Tensor, half_square: float, min_norm: float, max_norm: float
    ) -> None:
        super().__init__(projection.data_ptr(), *projection.shape, half_square, min_norm, max_norm)


@cache
def _functions() -> Any:
    found = library()
    size, memory, number = ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_float
    kernel = ctypes.POINTER(Kernel)
    found.enla_space.argtypes, found.enla_space.restype = [size] * 3, size
    for name, arguments in (
        ("enla_sum", [memory] * 2 + [size] * 2 + [memory] * 4),
        ("enla_attend", [memory] + [size] * 2 + [memory] * 3 + [number] + [memory] * 3),
        ("enla_by_queries", [memory] + [size] * 2 + [memory] * 10),
        ("enla_by_keys", [memory] * 2 + [size] * 2 + [memory] * 6),
    ):
        function = getattr(found, name)
        function.argtypes, function.restype = [kernel, *arguments], None
    return found


def space_of(m: int, c: int, width: int) -> int:
    """Numbers of the memory that each pass takes; width is the larger of values and output."""
    return int(_functions().enla_space(m, c, width))


def sum_keys(
    kernel: Kernel, k: Tensor, v: Tensor, sums: Tensor, norm: Tensor, total: Tensor, space: Tensor
) -> None:
    """Of keys ``[n, c]`` and values ``[n, d]``: what the queries take from them.

    Args:
        kernel: of the features.
        k, v: keys and values; d is a multiple of ``native.WIDTH``.
        sums: receives the sums of features times values ``[m, d]``.
        norm: receives the sums of features ``[m]``.
        total: receives the sum of values ``[d]``.
        space: overwritten, of :func:`space_of` numbers.
    """
    results = (t.data_ptr() for t in (sums, norm, total, space))
    _functions().enla_sum(kernel, k.data_ptr(), v.data_ptr(), *v.shape, *results)


def attend(
    kernel: Kernel,
    q: Tensor,
    sums: Tensor,
    norm: Tensor,
    eps_sums: Tensor,
    eps_norm: float,
    out: Tensor,
    normaliser: Tensor,
    space: Tensor,
) -> None:
    """Output of queries ``[n, c]``.

    Args:
        kernel: of the features.
        q: queries.
        sums, norm: over keys, ``[m, d]`` and ``[m]``.
        eps_sums, eps_norm: what eps adds to every query's sums ``[d]`` and norm.
        out: receives the output ``[n, d]``.
        normaliser: receives what it was divided by ``[n]``.
        space: overwritten, of :func:`space_of` numbers.
    """
    places = (t.data_ptr() for t in (sums, norm, eps_sums))
    results = (t.data_ptr() for t in (out, normaliser, space))
    _functions().enla_attend(kernel, q.data_ptr(), *out.shape, *places, eps_norm, *results)


def by_queries(
    kernel: Kernel,
    q: Tensor,
    sums: Tensor,
    norm: Tensor,
    out: Tensor,
    normaliser: Tensor,
    grad: Tensor,
    grad_q: Tensor,
    by_sums: Tensor,
    by_norm: Tensor,
    by_eps: Tensor,
    space: Tensor,
) -> None:
    """Gradients by what :func:`attend` took.

    Args:
        kernel: of the features.
        q, sums, norm, out, normaliser: as there; d is a multiple of ``native.WIDTH``.
        grad: gradient by the output ``[n, d]``.
        grad_q: receives that by the queries ``[n, c]``.
        by_sums, by_norm: receive those by the sums ``[m, d]`` and the norm ``[m]``.
        by_eps: receives those by ``eps_sums`` and ``eps_norm`` ``[d + 1]``.
        space: overwritten, of :func:`space_of` numbers.
    """
    places = (t.data_ptr() for t in (sums, norm, out, normaliser, grad))
    results = (t.data_ptr() for t in (grad_q, by_sums, by_norm, by_eps, space))
    _functions().enla_by_queries(kernel, q.data_ptr(), *out.shape, *places, *results)


def by_keys(
    kernel: Kernel,
    k: Tensor,
    v: Tensor,
    by_sums: Tensor,
    by_norm: Tensor,
    by_total: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    space: Tensor,
) -> None:
    """Gradients by what :func:`sum_keys` took.

    Args:
        kernel: of the features.
        k, v: as there.
        by_sums, by_norm, by_total: gradients by what it gave.
        grad_k, grad_v: receive those by keys ``[n, c]`` and values ``[n, d]``.
        space: overwritten, of :func:`space_of` numbers.
    """
    places = (t.data_ptr() for t in (by_sums, by_norm, by_total))
    results = (t.data_ptr() for t in (grad_k, grad_v, space))
    _functions().enla_by_keys(kernel, k.data_ptr(), v.data_ptr(), *v.shape, *places, *results)
