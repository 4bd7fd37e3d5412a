"""The largest scores of each row, and sums over them, by ``largest.c``.

All tensors are contiguous; numbers are float32, places int32.
"""

from __future__ import annotations

import ctypes

from torch import Tensor

from . import Job, call, workspace_of


class Selection(Job):
    """``struct selection`` of ``largest.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "values", "at")),
        *((name, ctypes.c_ssize_t) for name in ("images", "n", "m", "c", "count")),
        *((name, ctypes.c_ssize_t) for name in ("rows", "workers")),
    )


class Chosen(Job):
    """``struct chosen`` of ``largest.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weights", "at", "queries", "keys", "out")),
        *((name, ctypes.c_ssize_t) for name in ("images", "n", "d", "count")),
        *((name, ctypes.c_ssize_t) for name in ("rows", "workers")),
    )


def workspace_size(rows: int, m: int, count: int) -> int:
    """Numbers of memory for each worker of :func:`select`."""
    return workspace_of("selection_workspace", rows, m, count)


def select(job: Selection, workspace: Tensor) -> None:
    """The largest scores of every row. The workspace of all workers is overwritten."""
    call("largest_select", job, workspace)


def sums(job: Chosen) -> None:
    """Weighted sums of the keys that each row chose."""
    call("chosen_sums", job)


def dots(job: Chosen) -> None:
    """Products of each row's vector with the keys that it chose."""
    call("chosen_dots", job)


def spread(job: Chosen) -> None:
    """Add each row's vector, weighted, to the sums of what it chose."""
    call("chosen_spread", job)
