"""NLSA with its forward pass by Triton kernels; hashing and the backward pass are tiled."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ..implementations import implementation
from .nlsa import SortedAttention, attend_sorted
from .nlsa_tiled import gradients, hash_codes
from .triton import why_not_triton


class _TritonAttention(SortedAttention):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, order: Tensor, chunk_size: int
    ) -> Tensor:
        from .triton import nlsa as kernels  # imported only where it runs: Triton is optional

        out, lse = kernels.attend(q, k, v, order, chunk_size)
        SortedAttention.keep(ctx, (q, k, v, out, lse, order), chunk_size, gradients)
        return out


implementation("nlsa", "triton", why_not_triton)(
    partial(attend_sorted, hash_codes, _TritonAttention)
)
