"""Up to three 1x1 convolutions of one map, by ``projections.c``.

All tensors are float32 and contiguous.
"""

from __future__ import annotations

import ctypes

from torch import Tensor

from . import Job, call, workspace_of

#: Convolutions that a call takes at most.
MOST_LAYERS = 3


class Projections(Job):
    """``struct projections`` of ``projections.c``; arrays have an entry for each layer."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weights", "turned", "bias")),
        *((name, ctypes.c_void_p * MOST_LAYERS) for name in ("grads", "outs")),
        *((name, ctypes.c_void_p) for name in ("grad_x", "grad_weights", "grad_bias")),
        *((name, ctypes.c_ssize_t) for name in ("positions", "c", "w")),
        ("widths", ctypes.c_ssize_t * MOST_LAYERS),
        *((name, ctypes.c_ssize_t) for name in ("rows", "workers")),
    )


def workspace_size(rows: int, w: int) -> int:
    """Numbers of memory for each worker."""
    return workspace_of("projections_workspace", rows, w)


def forward(job: Projections, workspace: Tensor) -> None:
    """All outputs. The workspace, :func:`workspace_size` for each worker, is overwritten."""
    call("projections_forward", job, workspace)


def backward(job: Projections, workspace: Tensor) -> None:
    """The gradients. The workspace is as in :func:`forward`."""
    call("projections_backward", job, workspace)
