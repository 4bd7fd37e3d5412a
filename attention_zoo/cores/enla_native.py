"""ENLA's passes over positions by kernels in C: the CPU, float32, exponents that need no shift."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ..enla import MIN_NORM
from ..implementations import implementation
from .enla import (
    FEW_FEATURES,
    FeatureMap,
    KeySums,
    RandomFeatureAttention,
    attend_rows,
    can_stay_unshifted,
)
from .native import WIDTH, float_rows, why_not_native
from .native import enla as native
from .softmax import LOG2_E
from .tiles import num_workers, pieces_of_image, scratch


class NativePasses:
    """See :class:`.enla.Passes`; shifts are 0."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, c_out: int, feature_map: FeatureMap
    ) -> None:
        assert feature_map.unshifted
        assert feature_map.amplification is not None
        self._given = q, k, v
        self._q, self._k, self._v = (float_rows(t, w) for t, w in ((q, 1), (k, 1), (v, WIDTH)))
        self._c_out, self._m = c_out, feature_map.projection.shape[0]
        self._scaled = (feature_map.projection * LOG2_E).contiguous()
        half_square = feature_map.amplification / 2 * LOG2_E
        most = math.sqrt(torch.finfo(torch.float32).max)
        self._feature_map = native.FeatureMap(self._scaled, half_square, MIN_NORM, most)
        batch, n, c = q.shape
        self._width = max(self._v.shape[2], c_out + -c_out % WIDTH)
        many = batch * n * self._m >= FEW_FEATURES
        workers = num_workers(q.device, own_threads=True) if many else 1
        rows = math.ceil(n / pieces_of_image(batch, workers))
        self._parts = math.ceil(n / rows)
        self._sizes = {"images": batch, "positions": n, "rows": rows, "workers": workers}
        size = native.workspace_size(self._m, c, self._width)
        self._workspace = scratch("native", self._scaled, workers * size)

    def _run(self, number: int, x: Tensor, d: int, **tensors: Tensor) -> None:
        """A pass over queries or keys x; d is the width of values or output."""
        job = native.Pass.of(map=self._feature_map, x=x, d=d, **self._sizes, **tensors)
        native.run(number, job, self._width, self._workspace)

    def sum_keys(self) -> KeySums:
        batch, _, width = self._v.shape
        sums = KeySums(
            self._q.new_empty(batch, self._parts, self._m, width),
            self._q.new_empty(batch, self._parts, self._m),
            self._q.new_zeros(batch, self._parts, self._m, 1),
            self._q.new_empty(batch, self._parts, width),
        )

        tensors = {"to_sums": sums.values, "to_norm": sums.features, "to_total": sums.total}
        self._run(native.SUM_KEYS, self._k, width, v=self._v, **tensors)
        c_in = self._given[2].shape[2]
        return sums._replace(values=sums.values[..., :c_in], total=sums.total[..., :c_in])

    def attend(
        self, context: Tensor, eps_sums: Tensor, shift: Tensor, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, n, _ = self._q.shape
        out, normaliser = self._q.new_empty(batch, n, self._c_out), self._q.new_empty(batch, n, 1)
        sums, norm = (t.contiguous() for t in context.tensor_split([self._c_out], dim=2))
        eps, eps_norm = (t.contiguous() for t in eps_sums.tensor_split([self._c_out], dim=2))
        self._run(
            native.ATTEND,
            self._q,
            self._c_out,
            sums=sums,
            norm=norm,
            eps_sums=eps,
            eps_norm=eps_norm,
            to_out=out,
            to_normaliser=normaliser,
        )
        return out, normaliser

    def query_gradients(
        self,
        grad_out: Tensor,
        out: Tensor,
        normaliser: Tensor,
        context: Tensor,
        shift: Tensor,
        floor: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums, norm = (t.contiguous() for t in context.tensor_split([self._c_out], dim=2))
        sums, out, grad_out = (float_rows(t, WIDTH) for t in (sums, out, grad_out))
        batch, _, width = out.shape
        grad_q = torch.empty_like(self._q)
        grad_sums = self._q.new_empty(batch, self._parts, self._m, width)
        grad_norm = self._q.new_empty(batch, self._parts, self._m, 1)
        grad_eps = self._q.new_empty(batch, self._parts, width + 1)

        self._run(
            native.QUERY_GRADIENTS,
            self._q,
            width,
            sums=sums,
            norm=norm,
            out=out,
            normaliser=normaliser,
            grad=grad_out,
            to_x=grad_q,
            to_sums=grad_sums,
            to_norm=grad_norm,
            to_eps=grad_eps,
        )
        grad_context = torch.cat([grad_sums[..., : self._c_out], grad_norm], dim=3).sum(1)
        grad_eps = torch.cat([grad_eps[..., : self._c_out], grad_eps[..., -1:]], dim=2)
        return grad_q.to(self._given[0].dtype), grad_context, grad_eps.sum(1, keepdim=True)

    def key_gradients(
        self, grad_values: Tensor, grad_features: Tensor, grad_total: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        grad_k, grad_v = torch.empty_like(self._k), torch.empty_like(self._v)
        grad_sums, grad_total = (float_rows(t, WIDTH) for t in (grad_values, grad_total))
        grad_norm = grad_features.contiguous()

        self._run(
            native.KEY_GRADIENTS,
            self._k,
            self._v.shape[2],
            v=self._v,
            grad_sums=grad_sums,
            grad_norm=grad_norm,
            grad_total=grad_total,
            to_x=grad_k,
            to_v=grad_v,
        )
        _, k, v = self._given
        return grad_k.to(k.dtype), grad_v[..., : v.shape[2]].to(v.dtype)


def why_not(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    eps: float,
    amplification: float | None,
    value_map: tuple[Tensor, Tensor] | None,
) -> str | None:
    """As :func:`.native.why_not_native`; besides, exponents must need no shift."""
    if reason := why_not_native(*(value_map or ()), q, k, v):
        return reason
    if amplification is None:
        return "the kernels in C normalise the embeddings: give an amplification"
    if not can_stay_unshifted(projection, amplification):
        return "the kernels in C shift no exponents, which this amplification and projection need"
    return None


implementation("enla", "native", why_not)(
    partial(attend_rows, RandomFeatureAttention, NativePasses)
)
