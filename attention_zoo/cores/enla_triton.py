"""ENLA's forward pass by Triton kernels on CUDA; the backward pass is the tiled one."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ..enla import MIN_NORM
from ..implementations import implementation
from .enla import (
    FeatureMap,
    Passes,
    RandomFeatureAttention,
    attend_rows,
    like_values,
    map_sums,
)
from .enla_tiled import TiledPasses
from .triton import why_not_triton


class _TritonAttention(RandomFeatureAttention):
    @staticmethod
    def forward(
        ctx: Any,
        passes_of: type[Passes],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        projection: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        amplification: float | None,
    ) -> Tensor:
        from .triton import enla as kernels  # Triton may be missing

        projection = projection.contiguous()
        log2_eps = FeatureMap(projection, eps, amplification, shifted=True).log2_eps
        sums_of_v, shift = kernels.summarise(k, v, projection, log2_eps, amplification, MIN_NORM)
        context = map_sums(sums_of_v, weight, bias)
        out = like_values(v, context.shape[2] - 1)
        normaliser = kernels.attend(
            q, projection, context, shift, out, log2_eps, amplification, MIN_NORM
        )
        saved = (q, k, v, projection, weight, bias, out, sums_of_v, context, shift, normaliser)
        ctx.save_for_backward(*saved)
        ctx.eps, ctx.amplification, ctx.shifted = eps, amplification, True
        ctx.passes_of = passes_of
        return out


implementation("enla", "triton", why_not_triton)(
    partial(attend_rows, partial(_TritonAttention.apply, TiledPasses))
)
