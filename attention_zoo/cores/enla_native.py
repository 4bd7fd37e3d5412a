"""ENLA's passes over positions by kernels in C: the CPU, float32, exponents that need no shift."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from .tiles import num_workers, pieces_of_image, scratch, share_tiles

_Tile = tuple[int, slice, int]


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
        width = max(self._v.shape[2], c_out + -c_out % WIDTH)
        self._workspace = native.workspace_size(self._m, c, width)
        many = batch * n * self._m >= FEW_FEATURES
        workers = num_workers(q.device, own_threads=True) if many else 1
        rows = math.ceil(n / pieces_of_image(batch, workers))
        self._tiles = [
            (b, slice(i, min(i + rows, n)), part)
            for b in range(batch)
            for part, i in enumerate(range(0, n, rows))
        ]
        self._parts = math.ceil(n / rows)

    def _share(self, work: Callable[[int, slice, int, Tensor], None]) -> None:
        """Do the work of every tile: an image, its positions, the part's number, and memory."""

        def worker(_: int) -> Callable[[_Tile], None]:
            workspace = scratch("native", self._scaled, self._workspace)
            return lambda tile: work(*tile, workspace)

        share_tiles(self._tiles, self._q.device, worker, own_threads=True)

    def sum_keys(self) -> KeySums:
        batch, _, width = self._v.shape
        sums = KeySums(
            self._q.new_empty(batch, self._parts, self._m, width),
            self._q.new_empty(batch, self._parts, self._m),
            self._q.new_zeros(batch, self._parts, self._m, 1),
            self._q.new_empty(batch, self._parts, width),
        )

        def sum_tile(b: int, i: slice, part: int, workspace: Tensor) -> None:
            results = (sums.values[b, part], sums.features[b, part], sums.total[b, part])
            native.sum_keys(self._feature_map, self._k[b, i], self._v[b, i], *results, workspace)

        self._share(sum_tile)
        c_in = self._given[2].shape[2]
        return sums._replace(values=sums.values[..., :c_in], total=sums.total[..., :c_in])

    def attend(
        self, context: Tensor, eps_sums: Tensor, shift: Tensor, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, n, _ = self._q.shape
        out, normaliser = self._q.new_empty(batch, n, self._c_out), self._q.new_empty(batch, n, 1)
        sums, norm = (t.contiguous() for t in context.tensor_split([self._c_out], dim=2))
        eps_norm = eps_sums[:, 0, -1].tolist()

        def attend_tile(b: int, i: slice, _: int, workspace: Tensor) -> None:
            over_keys = (sums[b], norm[b], eps_sums[b], eps_norm[b])
            results = (out[b, i], normaliser[b, i])
            native.attend(self._feature_map, self._q[b, i], *over_keys, *results, workspace)

        self._share(attend_tile)
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

        def add_tile(b: int, i: slice, part: int, workspace: Tensor) -> None:
            taken = (sums[b], norm[b], out[b, i], normaliser[b, i], grad_out[b, i])
            results = (grad_q[b, i], grad_sums[b, part], grad_norm[b, part], grad_eps[b, part])
            native.query_gradients(self._feature_map, self._q[b, i], *taken, *results, workspace)

        self._share(add_tile)
        grad_context = torch.cat([grad_sums[..., : self._c_out], grad_norm], dim=3).sum(1)
        grad_eps = torch.cat([grad_eps[..., : self._c_out], grad_eps[..., -1:]], dim=2)
        return grad_q.to(self._given[0].dtype), grad_context, grad_eps.sum(1, keepdim=True)

    def key_gradients(
        self, grad_values: Tensor, grad_features: Tensor, grad_total: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        grad_k, grad_v = torch.empty_like(self._k), torch.empty_like(self._v)
        grad_sums, grad_total = (float_rows(t, WIDTH) for t in (grad_values, grad_total))
        grad_norm = grad_features.contiguous()

        def write_tile(b: int, i: slice, _: int, workspace: Tensor) -> None:
            taken = (self._k[b, i], self._v[b, i], grad_sums[b], grad_norm[b], grad_total[b])
            results = (grad_k[b, i], grad_v[b, i])
            native.key_gradients(self._feature_map, *taken, *results, workspace)

        self._share(write_tile)
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
