"""Hash codes of NLSA, by ``nlsa.c``."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from torch import Tensor

from . import library


@cache
def _functions() -> Any:
    found = library()
    size, memory = ctypes.c_ssize_t, ctypes.c_void_p
    found.nlsa_space.argtypes, found.nlsa_space.restype = [size] * 2, size
    found.nlsa_hash.argtypes = [memory] * 2 + [size] * 4 + [memory, size, memory]
    found.nlsa_hash.restype = None
    return found


def space_of(c: int, half: int) -> int:
    """Numbers in float32 of the memory that :func:`hash_codes` takes."""
    return int(_functions().nlsa_space(c, half))


def hash_codes(x: Tensor, rotations: Tensor, codes: Tensor, space: Tensor) -> None:
    """The first of the largest of [xR, −xR] for each round. Float32, in one piece.

    Args:
        x: embeddings ``[n, c]``.
        rotations: R of each round, transposed: ``[r, nb / 2, c]``.
        codes: receives the codes ``[r, n]``, int64, in one piece along n.
        space: overwritten, of :func:`space_of` numbers.
    """
    rounds, half, _ = rotations.shape
    sizes = (*x.shape, rounds, half)
    _functions().nlsa_hash(
        x.data_ptr(),
        rotations.data_ptr(),
        *sizes,
        codes.data_ptr(),
        codes.stride(0),
        space.data_ptr(),
    )
