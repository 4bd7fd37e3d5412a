"""Triton kernels for CUDA, imported only where they run: Triton is optional."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def why_not_triton(q: Tensor, k: Tensor, v: Tensor, *_: object) -> str | None:
    """Why no Triton kernel can run on maps ``[B, c, H, W]``; None if one can.

    With ``TRITON_INTERPRET=1`` set before the first use, Triton's interpreter runs them on the
    CPU: slowly, for tests.
    """
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if v.device.type != "cuda" and not _interpreted(v):
        return f"Triton's kernels need a CUDA device, not {v.device.type}"
    if v.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the Triton kernels do not take {str(v.dtype).removeprefix('torch.')}"
    if q.shape[1] > MOST_CHANNELS:
        return f"embeddings have {q.shape[1]} channels, more than {MOST_CHANNELS}"
    return None


def prefers_triton(q: Tensor, k: Tensor, v: Tensor, *_: object) -> bool:
    """Whether ``auto`` takes a Triton kernel: on a CUDA device, wherever one can run."""
    return v.device.type == "cuda" and why_not_triton(q, k, v) is None


def _interpreted(like: Tensor) -> bool:
    return like.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def precision(like: Tensor) -> tuple[str, str]:
    """How matrix products of such values are done: (those of exponents, those with values).

    Three TF32 products for each give float32's precision on the matrix units, where its own would
    not run. bfloat16 is coarser than one TF32 product, but its exponents, in float32, are not.
    float16 is as fine as TF32, and gradients by small embeddings magnify what a product loses.
    """
    if like.dtype == torch.bfloat16:
        return "tf32x3", "tf32"
    if like.dtype == torch.float16:
        return "tf32x3", "tf32x3"
    if torch.get_float32_matmul_precision() != "highest":
        return "tf32", "tf32"
    return "tf32x3", "tf32x3"


def on_device(like: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(like.device) if like.device.type == "cuda" else nullcontext()


#: Widest embedding: tiles of F and of embeddings fit the shared memory of any CUDA device.
MOST_CHANNELS = 64


@cache
def processors(device: torch.device) -> int:
    """Programs that run at once: multiprocessors of the device, 2 in the interpreter."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def block(width: int, most: int) -> int:
    """Power of two that holds the width: 16, which matrix units ask for, to ``most``."""
    return min(most, max(16, 1 << (width - 1).bit_length()))
