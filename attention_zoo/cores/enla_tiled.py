"""ENLA's passes over positions tile by tile, with torch's operations: any device, any dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    like_values,
)
from .softmax import LOG2_E
from .tiles import in_cache, num_workers, scratch, share_tiles, split_tiles, tile_limit

# Features of one tile: on the CPU a fourth more than the cache holds, see :mod:`.tiles`, since
# calls cost more than what leaves it; elsewhere 32 MB.
_CPU_TILE = in_cache() * 5 // 4
_TILE = 2**23

_Tile = tuple[slice, slice, int]


class TiledPasses:
    """See :class:`.enla.Passes`."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, c_out: int, feature_map: FeatureMap
    ) -> None:
        self._q, self._k, self._v = q, k, v
        self._c_out, self._feature_map = c_out, feature_map
        self._dtype = feature_map.projection.dtype
        self._m = feature_map.projection.shape[0]
        self._tiles, self._rows, self._parts = _tiles(v, self._m, c_out)

    def _share(self, like: Tensor, work: Callable[[_Tile, _Workspace], None]) -> None:
        """Do the work of every tile, in memory of the layout of ``like``."""

        def worker(_: int) -> Callable[[_Tile], None]:
            workspace = _Workspace(like, self._rows, self._dtype)
            return lambda tile: work(tile, workspace)

        share_tiles(self._tiles, like.device, worker)

    def sum_keys(self) -> KeySums:
        k, v, dtype, m = self._k, self._v, self._dtype, self._m
        feature_map, of_parts = self._feature_map, (v.shape[0], self._parts)
        sums = KeySums(
            v.new_empty(*of_parts, m, v.shape[2], dtype=dtype),
            v.new_empty(*of_parts, m, dtype=dtype),
            v.new_zeros(*of_parts, m, 1, dtype=dtype),
            v.new_empty(*of_parts, v.shape[2], dtype=dtype),
        )

        def sum_tile(tile: _Tile, workspace: _Workspace) -> None:
            b, i, part = tile
            features = _Embedded(k[b, i], feature_map, workspace).exponents()
            if not feature_map.unshifted:
                shift = features.amax(1, keepdim=True)
                features.sub_(shift)
                sums.shift[b, part] = shift.mT
            features.exp2_()
            values = v[b, i].to(dtype)
            torch.bmm(features.mT, values, out=sums.values[b, part])
            torch.sum(features, 1, out=sums.features[b, part])
            torch.sum(values, 1, out=sums.total[b, part])

        self._share(k, sum_tile)
        return sums

    def attend(
        self, context: Tensor, eps_sums: Tensor, shift: Tensor, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        q, feature_map = self._q, self._feature_map
        out = like_values(self._v, self._c_out)
        normaliser = q.new_empty(*q.shape[:2], 1, dtype=self._dtype)
        columns = [t.contiguous() for t in context.tensor_split([self._c_out], dim=2)]
        eps_columns = eps_sums.tensor_split([self._c_out], dim=2)

        def attend_tile(tile: _Tile, workspace: _Workspace) -> None:
            b, i, _ = tile
            queries = _Embedded(q[b, i], feature_map, workspace)
            features, scale = queries.features(shift[b], floor[b])
            sums, norm = workspace.product(features, columns[0][b], "sums"), normaliser[b, i]
            torch.bmm(features, columns[1][b], out=norm)
            for t, eps_column in zip((sums, norm), eps_columns, strict=True):
                if scale is None:
                    t.add_(eps_column[b])
                else:
                    t.addcmul_(scale, eps_column[b])
            torch.div(sums, norm, out=out[b, i])

        self._share(q, attend_tile)
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
        q, feature_map, dtype, c_out = self._q, self._feature_map, self._dtype, self._c_out
        of_parts = (q.shape[0], self._parts)
        grad_q = torch.empty_like(q)
        part_values = q.new_empty(*of_parts, self._m, c_out, dtype=dtype)
        part_norm = q.new_empty(*of_parts, self._m, 1, dtype=dtype)
        part_eps = q.new_empty(*of_parts, c_out + 1, dtype=dtype)

        def add_tile(tile: _Tile, workspace: _Workspace) -> None:
            b, i, part = tile
            queries = _Embedded(q[b, i], feature_map, workspace)
            features, scale = queries.features(shift[b], floor[b])
            grad_tile = grad_out[b, i].to(dtype)
            grads = workspace.take("sums", (*grad_tile.shape[:2], c_out + 1))
            grad_sums, grad_norm = grads.tensor_split([c_out], dim=2)
            torch.div(grad_tile, normaliser[b, i], out=grad_sums)
            along = torch.mul(grad_sums, out[b, i], out=workspace.take("along", grad_sums.shape))
            torch.sum(along, 2, keepdim=True, out=grad_norm).neg_()
            torch.bmm(features.mT, grad_sums, out=part_values[b, part])
            torch.bmm(features.mT, grad_norm, out=part_norm[b, part])
            torch.sum(grads if scale is None else grads * scale, 1, out=part_eps[b, part])
            grad_features = workspace.product(grads, context[b].mT, "gradient of features")
            queries.gradient(features.mul_(grad_features), grad_q[b, i])

        self._share(q, add_tile)
        grad_context = torch.cat([part_values, part_norm], dim=3).sum(1)
        return grad_q, grad_context, part_eps.sum(1, keepdim=True)

    def key_gradients(
        self, grad_values: Tensor, grad_features: Tensor, grad_total: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        k, v, feature_map, dtype = self._k, self._v, self._feature_map, self._dtype
        grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)

        def write_tile(tile: _Tile, workspace: _Workspace) -> None:
            b, i, _ = tile
            keys = _Embedded(k[b, i], feature_map, workspace)
            features = keys.exponents()
            if not feature_map.unshifted:
                features.sub_(shift[b].mT)
            features.exp2_()
            products = workspace.product(features, grad_values[b], "sums")
            torch.add(products, grad_total[b], out=grad_v[b, i])
            values = v[b, i].to(dtype)
            grad = workspace.product(values, grad_values[b].mT, "gradient of features")
            keys.gradient(features.mul_(grad.add_(grad_features[b].mT)), grad_k[b, i])

        self._share(k, write_tile)
        return grad_k, grad_v


implementation("enla", "tiled")(
    partial(attend_rows, partial(RandomFeatureAttention.apply, TiledPasses))
)


def _tiles(v: Tensor, m: int, c_out: int) -> tuple[list[_Tile], int, int]:
    """Tiles (images, positions, part), rows of the largest, and the parts of an image."""
    batch, n, c_in = v.shape
    limit = tile_limit(v.device, _CPU_TILE, _TILE)
    workers = num_workers(v.device) if batch * n * m >= FEW_FEATURES else 1
    tiles, group, width = split_tiles(batch, n, max(m, c_in, c_out), limit, workers)
    numbered = [(b, i, i.start // width) for b, i in tiles]
    return numbered, group * width, math.ceil(n / width)


class _Workspace:
    """A worker's memory for its tiles, in the layout of the maps: by rows, or by channels."""

    def __init__(self, like: Tensor, rows: int, dtype: torch.dtype) -> None:
        self._by_rows = like.stride(2) == 1
        self._like, self._rows, self._dtype = like, rows, dtype
        self._taken: dict[tuple[str, Sequence[int]], Tensor] = {}

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """``[B, T, width]``, the same memory whenever this name is asked for."""
        if (name, shape) not in self._taken:
            batch, rows, width = shape
            memory = scratch(f"enla {name}", self._like, self._rows * width, dtype=self._dtype)
            memory = memory[: batch * rows * width]
            self._taken[name, shape] = (
                memory.view(batch, rows, width)
                if self._by_rows
                else memory.view(batch, width, rows).mT
            )
        return self._taken[name, shape]

    def product(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """``a @ b``, in the memory of that name."""
        return torch.bmm(a, b, out=self.take(name, (*a.shape[:2], b.shape[2])))


class _Embedded:
    """A tile of embeddings ``[B, T, c]``, kept as u / length: normalised if amplified."""

    def __init__(self, x: Tensor, feature_map: FeatureMap, workspace: _Workspace) -> None:
        self._feature_map, self._workspace = feature_map, workspace
        dtype, amplification = feature_map.projection.dtype, feature_map.amplification
        x = x.to(dtype)
        # torch's norm over what is not contiguous takes ten times as long.
        square = torch.mul(x, x, out=workspace.take("embedded", x.shape)).sum(2, keepdim=True)
        self._half_square: Tensor | None = None  # |u|²/2, less that of full length
        if amplification is None:
            self._u = x
            self._half_square = square.mul_(LOG2_E / 2)
            return
        norm = square.sqrt_()
        self._any_short = not feature_map.unshifted or float(norm.amin()) <= MIN_NORM
        if self._any_short:
            self._short = norm <= MIN_NORM
            length = (norm / MIN_NORM).clamp_max_(1)
            self._half_square = length.square_().sub_(1).mul_(amplification / 2 * LOG2_E)
        self._norm = norm.clamp_(MIN_NORM, math.sqrt(torch.finfo(dtype).max))
        self._u = torch.div(x, self._norm, out=workspace.take("embedded", x.shape))

    def exponents(self) -> Tensor:
        """``Fu − |u|²/2`` ``[B, T, m]`` in the tile's memory."""
        products = self._products()
        return products if self._half_square is None else products.sub_(self._half_square)

    def features(self, shift: Tensor, floor: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features of queries ``[B, T, m]``, and what eps adds to each; None if unshifted.

        Unless unshifted, both are over the largest of each query. If unshifted, eps adds
        ``2^floor``. Arguments as in :meth:`.enla.Passes.attend`.
        """
        if self._feature_map.unshifted:
            return self.exponents().exp2_(), None
        assert self._half_square is not None
        exponents = self._products().add_(shift.mT)
        floor = floor + self._half_square
        top = torch.maximum(exponents.amax(2, keepdim=True), floor)
        return exponents.sub_(top).exp2_(), floor.sub_(top).exp2_()

    def gradient(self, grad: Tensor, out: Tensor) -> None:
        """Gradient ``[B, T, c]`` to ``out``, given that of ``Fu − |u|²/2`` ``[B, T, m]``."""
        projection = self._feature_map.projection.expand(grad.shape[0], -1, -1)
        grad_u = self._workspace.product(grad, projection, "gradient")
        amplification = self._feature_map.amplification
        if amplification is None:
            torch.addcmul(grad_u, self._u, grad.sum(2, keepdim=True), value=-1, out=out)
            return
        # Of a normalised vector only what is orthogonal to it counts.
        along = torch.mul(grad_u, self._u, out=self._workspace.take("along", grad_u.shape))
        along = along.sum(2, keepdim=True)
        if self._any_short:
            grad_square = grad.sum(2, keepdim=True).mul_(amplification)
            along = torch.where(self._short, grad_square, along)
        torch.div(grad_u.addcmul_(self._u, along, value=-1), self._norm, out=out)

    def _products(self) -> Tensor:
        scaled = self._feature_map.scaled.expand(self._u.shape[0], -1, -1)
        return self._workspace.product(self._u, scaled, "features")
