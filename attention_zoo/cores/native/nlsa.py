"""Hash codes of NLSA, and sums over its rounds, by ``nlsa.c``."""

from __future__ import annotations

import ctypes

from torch import Tensor

from ..tiles import scratch
from . import Job, call, workspace_of


class _Hashing(Job):
    """``struct hashing`` of ``nlsa.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "rotations", "codes")),
        *((name, ctypes.c_ssize_t) for name in ("images", "positions", "c", "rounds", "half")),
        *((name, ctypes.c_ssize_t) for name in ("rows", "workers")),
    )


class _Gathering(Job):
    """``struct gathering`` of ``nlsa.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("from", "places", "to")),
        *((name, ctypes.c_ssize_t) for name in ("images", "positions", "slots", "width")),
        *((name, ctypes.c_ssize_t) for name in ("rounds", "rows", "workers")),
    )


def hash_codes(x: Tensor, rotations: Tensor, codes: Tensor, rows: int, workers: int) -> None:
    """The arg-max of [xR, −xR] for each round, the first of equal ones; float32, contiguous.

    Args:
        x: embeddings ``[B, N, c]``.
        rotations: R of each round, transposed: ``[r, nb / 2, c]``.
        codes: receives the codes ``[B, r, N]``, int64.
        rows: of a tile.
        workers: threads.
    """
    images, positions, c = x.shape
    rounds, half, _ = rotations.shape
    job = _Hashing.of(
        x=x,
        rotations=rotations,
        codes=codes,
        images=images,
        positions=positions,
        c=c,
        rounds=rounds,
        half=half,
        rows=rows,
        workers=workers,
    )
    size = workspace_of("nlsa_workspace", c, half)
    memory = scratch("native", x, workers * size)  # alive until the call has ended
    call("nlsa_hash", job, memory)


def gather(slots: Tensor, places: Tensor, out: Tensor, rows: int, workers: int) -> None:
    """Sums over rounds; float32, contiguous.

    Args:
        slots: ``[B, slots, w]``.
        places: the slot of each position in each round, int64, ``[B, N, r]``.
        out: receives the sums ``[B, N, w]``.
        rows: of a tile.
        workers: threads.
    """
    images, positions, rounds = places.shape
    job = _Gathering.of(
        **{"from": slots},
        places=places,
        to=out,
        images=images,
        positions=positions,
        slots=slots.shape[1],
        width=slots.shape[2],
        rounds=rounds,
        rows=rows,
        workers=workers,
    )
    call("nlsa_gather", job)
