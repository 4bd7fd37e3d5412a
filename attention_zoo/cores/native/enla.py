"""ENLA's passes over positions, by ``enla.c``. All tensors are float32 and contiguous.

The width d of values, and of an output that is given, is a multiple of ``native.WIDTH``.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from torch import Tensor

from . import Job, library

#: Numbers of the passes.
SUM_KEYS, ATTEND, QUERY_GRADIENTS, KEY_GRADIENTS = range(4)


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


class Pass(Job):
    """``struct enla`` of ``enla.c``: the tensors of a pass over positions, and where results go."""

    _fields_ = (
        ("map", FeatureMap),
        *((name, ctypes.c_ssize_t) for name in ("images", "positions", "rows", "d", "workers")),
        *((name, ctypes.c_void_p) for name in ("x", "v", "sums", "norm", "eps_sums", "eps_norm")),
        *((name, ctypes.c_void_p) for name in ("out", "normaliser", "grad")),
        *((name, ctypes.c_void_p) for name in ("grad_sums", "grad_norm", "grad_total")),
        *((name, ctypes.c_void_p) for name in ("to_sums", "to_norm", "to_total", "to_eps")),
        *((name, ctypes.c_void_p) for name in ("to_out", "to_normaliser", "to_x", "to_v")),
    )


@cache
def _functions() -> Any:
    found = library()
    size = ctypes.c_ssize_t
    found.enla_workspace.argtypes, found.enla_workspace.restype = [size] * 3, size
    found.enla_pass.argtypes = [ctypes.POINTER(Pass), ctypes.c_int, size, ctypes.c_void_p]
    found.enla_pass.restype = None
    return found


def workspace_size(m: int, c: int, width: int) -> int:
    """Numbers of memory for each worker; width is the larger of values and output."""
    return int(_functions().enla_workspace(m, c, width))


def run(number: int, job: Pass, width: int, workspace: Tensor) -> None:
    """Do a pass: its results are the fields ``to_…``.

    Args:
        number: :data:`SUM_KEYS`, :data:`ATTEND`, :data:`QUERY_GRADIENTS` or :data:`KEY_GRADIENTS`.
        job: what it takes and where its results go.
        width: as for :func:`workspace_size`.
        workspace: of that size for each worker, overwritten.
    """
    _functions().enla_pass(job, number, width, workspace.data_ptr())
