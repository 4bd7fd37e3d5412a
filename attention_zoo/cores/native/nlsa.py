"""Hash codes of NLSA, by ``nlsa.c``."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from torch import Tensor

from ..tiles import scratch
from . import library


@cache
def _functions() -> Any:
    found = library()
    size, memory = ctypes.c_ssize_t, ctypes.c_void_p
    found.nlsa_workspace.argtypes, found.nlsa_workspace.restype = [size] * 2, size
    found.nlsa_hash.argtypes = [memory] * 2 + [size] * 4 + [memory, size, memory]
    found.nlsa_hash.restype = None
    return found


def workspace(like: Tensor, half: int) -> Tensor:
    """Memory of the calling thread for :func:`hash_codes` of embeddings ``[…, c]``, float32."""
    size = int(_functions().nlsa_workspace(like.shape[-1], half))
    return scratch("native", like, size)


def hash_codes(x: Tensor, rotations: Tensor, codes: Tensor, workspace: Tensor) -> None:
    """The arg-max of [xR, −xR] for each round, the first of equal ones; float32, contiguous.

    Args:
        x: embeddings ``[n, c]``.
        rotations: R of each round, transposed: ``[r, nb / 2, c]``.
        codes: receives the codes ``[r, n]``, int64, contiguous along n.
        workspace: from :func:`workspace`, overwritten.
    """
    rounds, half, _ = rotations.shape
    sizes = (*x.shape, rounds, half)
    _functions().nlsa_hash(
        x.data_ptr(),
        rotations.data_ptr(),
        *sizes,
        codes.data_ptr(),
        codes.stride(0),
        workspace.data_ptr(),
    )
