"""Up to three 1x1 convolutions of one map, by ``projections.c``.

All tensors are float32 and contiguous.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from . import Job, library

#: Convolutions that a call takes at most.
MOST_LAYERS = 3
_Pointers, _Sizes = ctypes.c_void_p * MOST_LAYERS, ctypes.c_ssize_t * MOST_LAYERS


class Projections(Job):
    """``struct projections`` of ``projections.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weights", "turned", "bias")),
        *((name, _Pointers) for name in ("grads", "outs")),
        *((name, ctypes.c_void_p) for name in ("grad_x", "grad_weights", "grad_bias")),
        *((name, ctypes.c_ssize_t) for name in ("positions", "c", "w")),
        ("widths", _Sizes),
        *((name, ctypes.c_ssize_t) for name in ("rows", "workers")),
    )


def pointers(tensors: Sequence[Tensor]) -> Any:
    """One tensor for each layer, as a field of :class:`Projections`."""
    return _Pointers(*(t.data_ptr() for t in tensors))


def sizes(numbers: Sequence[int]) -> Any:
    """One number for each layer, as a field."""
    return _Sizes(*numbers)


@cache
def _functions() -> Any:
    found = library()
    size = ctypes.c_ssize_t
    found.projections_workspace.argtypes, found.projections_workspace.restype = [size] * 2, size
    for function in (found.projections_forward, found.projections_backward):
        function.argtypes = [ctypes.POINTER(Projections), ctypes.c_void_p]
        function.restype = None
    return found


def workspace_size(rows: int, w: int) -> int:
    """Numbers of memory for each worker."""
    return int(_functions().projections_workspace(rows, w))


def forward(job: Projections, workspace: Tensor) -> None:
    """All outputs. The workspace, :func:`workspace_size` for each worker, is overwritten."""
    _functions().projections_forward(job, workspace.data_ptr())


def backward(job: Projections, workspace: Tensor) -> None:
    """The gradients. The workspace is as in :func:`forward`."""
    _functions().projections_backward(job, workspace.data_ptr())
