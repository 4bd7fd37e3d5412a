"""ENLCA's contrastive loss, by ``contrast.c``. All tensors are float32 and contiguous."""

from __future__ import annotations

import ctypes

from torch import Tensor

from . import Job, call, workspace_of


class Contrast(Job):
    """``struct contrast`` of ``contrast.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("given_q", "given_k", "losses", "to_q", "to_k")),
        *((name, ctypes.c_void_p) for name in ("q", "k", "columns", "factor_q", "factor_k")),
        *((name, ctypes.c_void_p) for name in ("grad_q", "grad_k")),
        *((name, ctypes.c_ssize_t) for name in ("images", "positions", "width", "c", "n", "rows")),
        *((name, ctypes.c_ssize_t) for name in ("workers", "count", "start")),
        *((name, ctypes.c_float) for name in ("length", "min_norm", "margin", "scale")),
        *((name, ctypes.c_int) for name in ("hinge", "needs_grad")),
    )


def workspace_size(n: int, rows: int, count: int) -> int:
    """Numbers of memory for each worker."""
    return workspace_of("contrast_workspace", n, rows, count)


def rank(job: Contrast, workspace: Tensor) -> None:
    """The loss of every row and, if needed, the gradients of the embeddings.

    Args:
        job: what to do, and where results go.
        workspace: :func:`workspace_size` for each worker, overwritten.
    """
    call("contrast_rank", job, workspace)
