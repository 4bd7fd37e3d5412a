"""ENLA, by ``enla.c``. All tensors are float32 and contiguous."""

from __future__ import annotations

import ctypes

from torch import Tensor

from . import Job, call, workspace_of


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


class Enla(Job):
    """``struct enla`` of ``enla.c``."""

    _fields_ = (
        ("map", FeatureMap),
        *((name, ctypes.c_ssize_t) for name in ("images", "positions", "rows", "workers")),
        *((name, ctypes.c_ssize_t) for name in ("d", "d_out")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "weight", "turned", "bias")),
        *((name, ctypes.c_void_p) for name in ("sums", "norms", "totals")),
        *((name, ctypes.c_void_p) for name in ("context", "norm", "scale")),
        *((name, ctypes.c_void_p) for name in ("mapped", "eps_sums", "eps_norm")),
        *((name, ctypes.c_void_p) for name in ("out", "normaliser", "grad")),
        *((name, ctypes.c_void_p) for name in ("grad_parts", "grad_norms", "grad_eps")),
        *((name, ctypes.c_void_p) for name in ("grad_mapped", "grad_context", "grad_norm")),
        *((name, ctypes.c_void_p) for name in ("grad_total", "grad_q", "grad_k", "grad_v")),
    )


def workspace_size(m: int, c: int, width: int) -> int:
    """Numbers of memory for each worker; width is the larger of values and output."""
    return workspace_of("enla_workspace", m, c, width)


def forward(job: Enla, workspace: Tensor) -> None:
    """From the inputs to ``out``; the fields up to there are needed.

    Args:
        job: what to do, and where results go.
        workspace: :func:`workspace_size` for each worker, overwritten.
    """
    call("enla_forward", job, workspace)


def backward(job: Enla, workspace: Tensor) -> None:
    """From ``grad`` to the gradients; of what :func:`forward` wrote, ``mapped`` to ``normaliser``.

    Args:
        job: as for :func:`forward`.
        workspace: likewise.
    """
    call("enla_backward", job, workspace)
