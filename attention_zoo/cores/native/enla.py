"""ENLA's passes over positions, by ``enla.c``. All tensors are float32 and contiguous.

Sums over keys are ``[m, d]``, d being a multiple of ``native.WIDTH``; their norm is ``[m]``. Every
function overwrites a workspace of :func:`workspace_size` numbers.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from torch import Tensor

from . import library


class FeatureMap(ctypes.Structure):
    """How features are made: ``struct feature_map`` of ``enla.c``. It keeps no memory alive.

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
    feature_map = ctypes.POINTER(FeatureMap)
    found.enla_workspace.argtypes, found.enla_workspace.restype = [size] * 3, size
    for name, arguments in (
        ("enla_sum", [memory] * 2 + [size] * 2 + [memory] * 4),
        ("enla_attend", [memory] + [size] * 2 + [memory] * 3 + [number] + [memory] * 3),
        ("enla_query_gradients", [memory] + [size] * 2 + [memory] * 10),
        ("enla_key_gradients", [memory] * 2 + [size] * 2 + [memory] * 6),
    ):
        function = getattr(found, name)
        function.argtypes, function.restype = [feature_map, *arguments], None
    return found


def workspace_size(m: int, c: int, width: int) -> int:
    """Numbers of memory that each pass takes; width is the larger of values and output."""
    return int(_functions().enla_workspace(m, c, width))


def sum_keys(
    feature_map: FeatureMap,
    k: Tensor,
    v: Tensor,
    sums: Tensor,
    norm: Tensor,
    total: Tensor,
    workspace: Tensor,
) -> None:
    """Sums over keys and values.

    Args:
        feature_map: of the keys.
        k, v: keys ``[n, c]`` and values ``[n, d]``.
        sums: receives the sums of features times values ``[m, d]``.
        norm: receives the sums of features ``[m]``.
        total: receives the sum of values ``[d]``.
        workspace: overwritten.
    """
    results = (t.data_ptr() for t in (sums, norm, total, workspace))
    _functions().enla_sum(feature_map, k.data_ptr(), v.data_ptr(), *v.shape, *results)


def attend(
    feature_map: FeatureMap,
    q: Tensor,
    sums: Tensor,
    norm: Tensor,
    eps_sums: Tensor,
    eps_norm: float,
    out: Tensor,
    normaliser: Tensor,
    workspace: Tensor,
) -> None:
    """Output of queries; here d is any width.

    Args:
        feature_map: of the queries.
        q: queries ``[n, c]``.
        sums, norm: over keys, ``[m, d]`` and ``[m]``.
        eps_sums, eps_norm: what eps adds to every query's sums ``[d]`` and norm.
        out: receives the output ``[n, d]``.
        normaliser: receives what it was divided by ``[n]``.
        workspace: overwritten.
    """
    taken = (t.data_ptr() for t in (sums, norm, eps_sums))
    results = (t.data_ptr() for t in (out, normaliser, workspace))
    _functions().enla_attend(feature_map, q.data_ptr(), *out.shape, *taken, eps_norm, *results)


def query_gradients(
    feature_map: FeatureMap,
    q: Tensor,
    sums: Tensor,
    norm: Tensor,
    out: Tensor,
    normaliser: Tensor,
    grad_out: Tensor,
    grad_q: Tensor,
    grad_sums: Tensor,
    grad_norm: Tensor,
    grad_eps: Tensor,
    workspace: Tensor,
) -> None:
    """Gradients of what :func:`attend` took.

    Args:
        feature_map: of the queries.
        q, sums, norm, out, normaliser: as there.
        grad_out: gradient of the output ``[n, d]``.
        grad_q: receives that of the queries ``[n, c]``.
        grad_sums, grad_norm: receive those of the sums ``[m, d]`` and the norm ``[m]``.
        grad_eps: receives those of ``eps_sums`` and ``eps_norm`` ``[d + 1]``.
        workspace: overwritten.
    """
    taken = (t.data_ptr() for t in (sums, norm, out, normaliser, grad_out))
    results = (t.data_ptr() for t in (grad_q, grad_sums, grad_norm, grad_eps, workspace))
    _functions().enla_query_gradients(feature_map, q.data_ptr(), *out.shape, *taken, *results)


def key_gradients(
    feature_map: FeatureMap,
    k: Tensor,
    v: Tensor,
    grad_sums: Tensor,
    grad_norm: Tensor,
    grad_total: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    workspace: Tensor,
) -> None:
    """Gradients of what :func:`sum_keys` took.

    Args:
        feature_map: of the keys.
        k, v: as there.
        grad_sums, grad_norm, grad_total: gradients of its results.
        grad_k, grad_v: receive those of keys ``[n, c]`` and values ``[n, d]``.
        workspace: overwritten.
    """
    maps = (k.data_ptr(), v.data_ptr(), *v.shape)
    taken = (t.data_ptr() for t in (grad_sums, grad_norm, grad_total))
    results = (t.data_ptr() for t in (grad_k, grad_v, workspace))
    _functions().enla_key_gradients(feature_map, *maps, *taken, *results)
