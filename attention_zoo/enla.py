"""Efficient Non-Local Attention: random features approximate exp(q·k), O(N) time and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import (
    Attention,
    AttentionError,
    Cost,
    check_qkv,
    embedding_channels,
    is_method,
    no_autocast,
    require_at_least,
    sum_dtype,
    to_map,
    to_rows,
)
from .cores.native import WIDTH, float_rows, why_not_native
from .cores.native import enla as native
from .cores.softmax import LOG2_E, refuse_second_derivative
from .cores.tiles import (
    in_cache,
    num_workers,
    pieces_of_image,
    scratch,
    share_tiles,
    split_tiles,
    tile_limit,
)
from .cores.triton import why_not_triton
from .implementations import implementation, register_core, run
from .nla import softmax_weights
from .registry import register_attention

#: Embeddings are divided by their norm, but by no less than this.
MIN_NORM = 5e-5

# Largest exponent, as a power of 2, with which features are not shifted: products of two of them,
# times values of 1e19, stay below the largest float32 and above the smallest.
_MILD = 48.0
# 2 to it is 0, yet differences of it are defined.
_LOG2_OF_ZERO = -1e30

# Features of one tile: on the CPU a fourth more than the cache holds, see :mod:`.tiles`, since
# calls cost more than what leaves it; elsewhere 32 MB.
_CPU_TILE = in_cache() * 5 // 4
_TILE = 2**23
# Fewer features than these are not worth a second thread.
_FEW_FEATURES = 2**15


def orthogonal_gaussian(m: int, c: int, generator: torch.Generator | None = None) -> Tensor:
    """Projection F ``[m, c]``: blocks of c orthogonal rows, each row scaled by a chi_c norm.

    Every row is distributed as N(0, I_c); rows of one block are orthogonal, which lowers the
    variance of Eq. 7 (Choromanski, Rowland, Weller 2017). With m < c the first m rows are taken.
    """
    blocks = []
    for _ in range(math.ceil(m / c)):
        basis, upper = torch.linalg.qr(torch.randn(c, c, generator=generator, dtype=torch.float64))
        # QR fixes signs by convention; undoing that makes the basis uniform (Haar).
        blocks.append((basis * upper.diagonal().sign()).T)
    norms = torch.randn(m, c, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True)
    return (torch.cat(blocks)[:m] * norms).float()


def normalise(x: Tensor, amplification: float) -> Tensor:
    """Eq. 3: ``sqrt(k) · x / max(norm, 5e-5)`` over channels of a map ``[B, c, H, W]``.

    Half precision is raised to float32, where the norm of large features stays finite.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(MIN_NORM)
    return x * (math.sqrt(amplification) / norm)


def phi(u: Tensor, projection: Tensor, eps: float = 1e-4) -> Tensor:
    """Feature map of Eq. 4, rows ``[B, N, c]`` to ``[B, N, m]``.

    ``phi(u) = m^(-1/2) · (exp(Fu − |u|²/2) + eps)``.
    """
    return (_exponent(u, projection).exp() + eps) / math.sqrt(projection.shape[0])


def random_feature_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    eps: float = 1e-4,
    amplification: float | None = None,
    value_map: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Eq. 5–6: ``D^(-1) (phi(Q)ᵀ (phi(K) Vᵀ))``.

    The factor m^(-1/2) cancels and is left out. Where the amplification and the longest row of F
    let exponentials leave float32's middle, each feature is divided by its largest value over the
    keys, each query by its largest feature: both cancel too, and keep all within 0 … 2.

    Args:
        q: amplified, normalised queries ``[B, c, H, W]`` (:func:`normalise`).
        k: amplified, normalised keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        projection: F ``[m, c]``.
        eps: added to each exponential; 0 gives the unbiased estimator of Eq. 4.
        amplification: if given, q and k are raw and normalised here with it, which is faster.
        value_map: weight W ``[c_out, C]`` and bias b ``[c_out]`` if the values are ``W x + b`` of
            v = x ``[B, C, H, W]``. As ``phi(K) Vᵀ`` is linear in them, its m rows are mapped
            instead of N positions: the same result.

    Returns:
        ``[B, c_out, H, W]`` in the dtype of v.

    Raises:
        AttentionError: the shapes do not fit together.

    Implementations: ``native``, ``triton`` (its backward pass is tiled), ``tiled``, ``reference``;
    ``auto`` is native on the CPU where it can run (not in float64, nor without a C compiler, an
    amplification, or where exponentials need the divisions told above), else tiled.

    Numerics: error up to ``(u + 2 min(1, g)) max|v|``, see :mod:`.softmax`, whatever the length of
    the raw embeddings; S is ``2 |f| sqrt(k) + k`` for the longest row f of F.
    """
    check_qkv(q, k, v)
    if projection.dim() != 2 or projection.shape[1] != q.shape[1]:
        raise AttentionError(f"projection must be [m, {q.shape[1]}], got {list(projection.shape)}")
    if value_map is not None:
        weight, bias = value_map
        if weight.dim() != 2 or weight.shape[1] != v.shape[1] or bias.shape != weight.shape[:1]:
            shapes = f"{list(weight.shape)} and {list(bias.shape)}"
            raise AttentionError(
                f"value_map must be [c_out, {v.shape[1]}] and [c_out], got {shapes}"
            )
    return run("enla", q, k, v, projection, eps, amplification, value_map)


class _TiledPasses:
    """The passes over positions, tile by tile, with torch's operations.

    Args:
        q, k: ``[B, N, c]``.
        v: ``[B, N, C]``.
        c_out: channels of the output.
        kernel: of the features.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, c_out: int, kernel: _Kernel) -> None:
        self._q, self._k, self._v, self._c_out, self._kernel = q, k, v, c_out, kernel
        self._dtype = kernel.projection.dtype
        self._m = kernel.projection.shape[0]
        self._tiles, self._width, self._parts = _tiles(v, self._m, c_out)

    def sum_keys(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums over the positions of each part.

        Returns:
            Features times values ``[B, P, m, C]``, features ``[B, P, m]``, what was subtracted from
            their exponents ``[B, P, m, 1]`` (0 if mild), values ``[B, P, C]``.
        """
        k, v, kernel, dtype, m = self._k, self._v, self._kernel, self._dtype, self._m
        batch, _, c_in = v.shape
        part_values = v.new_empty(batch, self._parts, m, c_in, dtype=dtype)
        part_norm = v.new_empty(batch, self._parts, m, dtype=dtype)
        part_shift = v.new_zeros(batch, self._parts, m, 1, dtype=dtype)
        part_total = v.new_empty(batch, self._parts, c_in, dtype=dtype)

        def worker(_: int) -> Callable[[_Tile], None]:
            space = _Space(k, self._width, dtype)

            def sum_tile(tile: _Tile) -> None:
                b, i, part = tile
                features = kernel.embed(k[b, i], space).exponents()
                if not kernel.mild:
                    shift = features.amax(1, keepdim=True)
                    features.sub_(shift)
                    part_shift[b, part] = shift.mT
                features.exp2_()
                values = v[b, i].to(dtype)
                torch.bmm(features.mT, values, out=part_values[b, part])
                torch.sum(features, 1, out=part_norm[b, part])
                torch.sum(values, 1, out=part_total[b, part])

            return sum_tile

        share_tiles(self._tiles, v.device, worker)
        return part_values, part_norm, part_shift, part_total

    def attend(
        self, context: Tensor, by_eps: Tensor, shift: Tensor, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Output ``[B, N, c_out]`` and what it was divided by ``[B, N, 1]``.

        Args:
            context: sums over keys, that of the features last, ``[B, m, c_out + 1]``.
            by_eps: what eps adds to all of them ``[B, 1, c_out + 1]``.
            shift, floor: as :meth:`_Embedded.features` takes them.
        """
        q, kernel = self._q, self._kernel
        out = _like_values(self._v, self._c_out)
        normaliser = q.new_empty(*q.shape[:2], 1, dtype=self._dtype)
        columns = [t.contiguous() for t in context.tensor_split([self._c_out], dim=2)]
        eps_columns = by_eps.tensor_split([self._c_out], dim=2)

        def worker(_: int) -> Callable[[_Tile], None]:
            space = _Space(q, self._width, self._dtype)

            def attend_tile(tile: _Tile) -> None:
                b, i, _ = tile
                features, scale = kernel.embed(q[b, i], space).features(shift[b], floor[b])
                sums, norm = space.product(features, columns[0][b], "sums"), normaliser[b, i]
                torch.bmm(features, columns[1][b], out=norm)
                for t, eps_column in zip((sums, norm), eps_columns, strict=True):
                    if scale is None:
                        t.add_(eps_column[b])
                    else:
                        t.addcmul_(scale, eps_column[b])
                torch.div(sums, norm, out=out[b, i])

            return attend_tile

        share_tiles(self._tiles, q.device, worker)
        return out, normaliser

    def by_queries(
        self,
        grad_out: Tensor,
        out: Tensor,
        normaliser: Tensor,
        context: Tensor,
        shift: Tensor,
        floor: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients by what :meth:`attend` took and by the queries.

        Returns:
            Those by queries ``[B, N, c]``, context ``[B, m, c_out + 1]``, and what eps adds
            ``[B, 1, c_out + 1]``.
        """
        q, kernel, dtype, c_out = self._q, self._kernel, self._dtype, self._c_out
        batch = q.shape[0]
        grad_q = torch.empty_like(q)
        part_values = q.new_empty(batch, self._parts, self._m, c_out, dtype=dtype)
        part_norm = q.new_empty(batch, self._parts, self._m, 1, dtype=dtype)
        part_eps = q.new_empty(batch, self._parts, c_out + 1, dtype=dtype)

        def worker(_: int) -> Callable[[_Tile], None]:
            space = _Space(q, self._width, dtype)

            def by_tile(tile: _Tile) -> None:
                b, i, part = tile
                queries = kernel.embed(q[b, i], space)
                features, scale = queries.features(shift[b], floor[b])
                by_output = grad_out[b, i].to(dtype)
                grad_sums = space.take("sums", (*by_output.shape[:2], c_out + 1))
                grad, grad_norm = grad_sums.tensor_split([c_out], dim=2)
                torch.div(by_output, normaliser[b, i], out=grad)
                along = torch.mul(grad, out[b, i], out=space.take("along", grad.shape))
                torch.sum(along, 2, keepdim=True, out=grad_norm).neg_()
                torch.bmm(features.mT, grad, out=part_values[b, part])
                torch.bmm(features.mT, grad_norm, out=part_norm[b, part])
                scaled = grad_sums if scale is None else grad_sums * scale
                torch.sum(scaled, 1, out=part_eps[b, part])
                by_feature = space.product(grad_sums, context[b].mT, "by feature")
                queries.gradient(features.mul_(by_feature), grad_q[b, i])

            return by_tile

        share_tiles(self._tiles, q.device, worker)
        by_context = torch.cat([part_values, part_norm], dim=3).sum(1)
        return grad_q, by_context, part_eps.sum(1, keepdim=True)

    def by_keys(
        self, by_value: Tensor, by_norm: Tensor, by_mean: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients by keys ``[B, N, c]`` and values ``[B, N, C]``.

        Args:
            by_value: gradients by the sums of features times values ``[B, m, C]``.
            by_norm: those by the sums of features ``[B, m, 1]``.
            by_mean: those by the sum of values ``[B, 1, C]``.
            shift: what was subtracted from exponents, if not mild, ``[B, m, 1]``.
        """
        k, v, kernel, dtype = self._k, self._v, self._kernel, self._dtype
        grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)

        def worker(_: int) -> Callable[[_Tile], None]:
            space = _Space(k, self._width, dtype)

            def by_tile(tile: _Tile) -> None:
                b, i, _ = tile
                keys = kernel.embed(k[b, i], space)
                features = keys.exponents()
                if not kernel.mild:
                    features.sub_(shift[b].mT)
                features.exp2_()
                by_v = space.product(features, by_value[b], "sums")
                torch.add(by_v, by_mean[b], out=grad_v[b, i])
                by_feature = space.product(v[b, i].to(dtype), by_value[b].mT, "by feature")
                keys.gradient(features.mul_(by_feature.add_(by_norm[b].mT)), grad_k[b, i])

            return by_tile

        share_tiles(self._tiles, v.device, worker)
        return grad_k, grad_v


class _NativePasses:
    """As :class:`_TiledPasses`, by kernels in C: float32, mild exponents only."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, c_out: int, kernel: _Kernel) -> None:
        self._given = q, k, v
        self._q, self._k, self._v = (float_rows(t, w) for t, w in ((q, 1), (k, 1), (v, WIDTH)))
        batch, n, c = q.shape
        self._c_out, self._m = c_out, kernel.projection.shape[0]
        assert kernel.mild
        assert kernel.amplification is not None
        self._scaled = (kernel.projection * LOG2_E).contiguous()
        half_square = kernel.amplification / 2 * LOG2_E
        most = math.sqrt(torch.finfo(torch.float32).max)
        self._kernel = native.Kernel(self._scaled, half_square, MIN_NORM, most)
        self._space = native.space_of(self._m, c, max(self._v.shape[2], c_out + -c_out % WIDTH))
        many = batch * n * self._m >= _FEW_FEATURES
        workers = num_workers(q.device, own_threads=True) if many else 1
        width = math.ceil(n / pieces_of_image(batch, workers))
        self._tiles = [
            (b, slice(i, min(i + width, n)), part)
            for b in range(batch)
            for part, i in enumerate(range(0, n, width))
        ]
        self._parts = math.ceil(n / width)

    def _share(self, work: Callable[[int, slice, int, Tensor], None]) -> None:
        """Call it for every tile, with the image, its positions, their number, and memory."""

        def worker(_: int) -> Callable[[tuple[int, slice, int]], None]:
            space = scratch("native", self._scaled, self._space)
            return lambda tile: work(*tile, space)

        share_tiles(self._tiles, self._q.device, worker, own_threads=True)

    def sum_keys(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, _, width = self._v.shape
        values = self._q.new_empty(batch, self._parts, self._m, width)
        norm, total = (
            self._q.new_empty(batch, self._parts, self._m),
            self._q.new_empty(batch, self._parts, width),
        )

        def sum_tile(b: int, i: slice, part: int, space: Tensor) -> None:
            sums = (values[b, part], norm[b, part], total[b, part])
            native.sum_keys(self._kernel, self._k[b, i], self._v[b, i], *sums, space)

        self._share(sum_tile)
        c_in = self._given[2].shape[2]
        return values[..., :c_in], norm, values.new_zeros(*norm.shape, 1), total[..., :c_in]

    def attend(
        self, context: Tensor, by_eps: Tensor, shift: Tensor, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, n, _ = self._q.shape
        out, normaliser = self._q.new_empty(batch, n, self._c_out), self._q.new_empty(batch, n, 1)
        sums, norm = (t.contiguous() for t in context.tensor_split([self._c_out], dim=2))
        eps = by_eps[:, 0, -1].tolist()

        def attend_tile(b: int, i: slice, _: int, space: Tensor) -> None:
            over_keys = (sums[b], norm[b], by_eps[b], eps[b])
            results = (out[b, i], normaliser[b, i])
            native.attend(self._kernel, self._q[b, i], *over_keys, *results, space)

        self._share(attend_tile)
        return out, normaliser

    def by_queries(
        self,
        grad_out: Tensor,
        out: Tensor,
        normaliser: Tensor,
        context: Tensor,
        shift: Tensor,
        floor: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums, norm = (t.contiguous() for t in context.tensor_split([self._c_out], dim=2))
        sums, out, grad = (float_rows(t, WIDTH) for t in (sums, out, grad_out))
        batch, _, width = out.shape
        grad_q = torch.empty_like(self._q)
        by_sums = self._q.new_empty(batch, self._parts, self._m, width)
        by_norm = self._q.new_empty(batch, self._parts, self._m, 1)
        by_eps = self._q.new_empty(batch, self._parts, width + 1)

        def by_tile(b: int, i: slice, part: int, space: Tensor) -> None:
            taken = (sums[b], norm[b], out[b, i], normaliser[b, i], grad[b, i])
            results = (grad_q[b, i], by_sums[b, part], by_norm[b, part], by_eps[b, part])
            native.by_queries(self._kernel, self._q[b, i], *taken, *results, space)

        self._share(by_tile)
        by_context = torch.cat([by_sums[..., : self._c_out], by_norm], dim=3).sum(1)
        of_eps = torch.cat([by_eps[..., : self._c_out], by_eps[..., -1:]], dim=2)
        return grad_q.to(self._given[0].dtype), by_context, of_eps.sum(1, keepdim=True)

    def by_keys(
        self, by_value: Tensor, by_norm: Tensor, by_mean: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        grad_k, grad_v = torch.empty_like(self._k), torch.empty_like(self._v)
        by_value, by_mean, by_norm = (
            *(float_rows(t, WIDTH) for t in (by_value, by_mean)),
            by_norm.contiguous(),
        )

        def by_tile(b: int, i: slice, _: int, space: Tensor) -> None:
            gradients = (by_value[b], by_norm[b], by_mean[b])
            results = (grad_k[b, i], grad_v[b, i])
            native.by_keys(self._kernel, self._k[b, i], self._v[b, i], *gradients, *results, space)

        self._share(by_tile)
        _, k, v = self._given
        return grad_k.to(k.dtype), grad_v[..., : v.shape[2]].to(v.dtype)


class _RandomFeatureAttention(torch.autograd.Function):
    """Eq. 5–6 over tiles of rows; q, k ``[B, N, c]``, v ``[B, N, C]``, F ``[m, c]``.

    C is c_out unless weight ``[c_out, C]`` and bias ``[c_out]`` map the values. The features
    ``[N, m]`` are never kept whole: the backward pass computes them again. What eps adds is of rank
    one, and joins the sums over positions instead of every feature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        passes_of: type[_TiledPasses] | type[_NativePasses],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        projection: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        amplification: float | None,
    ) -> Tensor:
        batch, n, c_in = v.shape
        c_out = c_in if weight is None else weight.shape[0]
        m = projection.shape[0]
        kernel = _Kernel(projection, eps, amplification)
        passes = passes_of(q, k, v, c_out, kernel)
        part_values, part_norm, part_shift, part_total = passes.sum_keys()
        if kernel.mild:  # one shift for all features
            sums, norm = part_values.sum(1), part_norm.sum(1)
            shift = (norm.amax(1, keepdim=True) / n).log2_().unsqueeze(-1).expand(batch, m, 1)
        else:
            shift = part_shift.amax(1).clamp_min_(kernel.log2_eps)
            scale = (part_shift - shift.unsqueeze(1)).exp2_()
            sums, norm = (part_values * scale).sum(1), (part_norm * scale.squeeze(-1)).sum(1)
        context = torch.cat([sums, norm.unsqueeze(-1)], dim=2).div_(n)
        if kernel.mild:
            context.mul_(shift.neg().exp2_())
        mean = part_total.sum(1, keepdim=True).div_(n)
        mean = torch.cat([mean, mean.new_ones(batch, 1, 1)], dim=2)
        context.addcmul_((kernel.log2_eps - shift).exp2_(), mean)
        sums_of_v = context  # before the map
        context = _map_sums(context, weight, bias)

        eps_q, floor = kernel.eps_features(shift)
        by_eps = (context * eps_q).sum(1, keepdim=True)
        if kernel.mild:
            by_eps.mul_(floor.exp2())
        out, normaliser = passes.attend(context, by_eps, shift, floor)
        saved = (q, k, v, projection, weight, bias, out, sums_of_v, context, shift, normaliser)
        ctx.save_for_backward(*saved)
        ctx.eps, ctx.amplification, ctx.shifted = eps, amplification, not kernel.mild
        ctx.passes_of = passes_of
        return out.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("random_feature_attention")
        q, k, v, projection, weight, bias = ctx.saved_tensors[:6]
        out, sums_of_v, context, shift, normaliser = ctx.saved_tensors[6:]
        n, c_in = v.shape[1:]
        c_out = out.shape[2]
        dtype = projection.dtype
        kernel = _Kernel(projection, ctx.eps, ctx.amplification, ctx.shifted)
        passes = ctx.passes_of(q, k, v, c_out, kernel)
        eps_q, floor = kernel.eps_features(shift)
        grad_q, grad_context, by_eps = passes.by_queries(
            grads[0], out, normaliser, context, shift, floor
        )
        if kernel.mild:
            by_eps.mul_(floor.exp2())
        grad_context.addcmul_(eps_q, by_eps)
        grad_weight = grad_bias = None
        if weight is not None:
            by_sums, by_norm = grad_context.tensor_split([c_out], dim=2)
            if ctx.needs_input_grad[5]:
                grad_weight = torch.bmm(by_sums.mT, sums_of_v[..., :c_in]).sum(0).to(weight.dtype)
            if ctx.needs_input_grad[6]:
                grad_bias = (by_sums * sums_of_v[..., c_in:]).sum((0, 1)).to(bias.dtype)
            by_norm = by_norm + torch.matmul(by_sums, bias.to(dtype)).unsqueeze(-1)
            by_sums = torch.matmul(by_sums, weight.to(dtype))
            grad_context = torch.cat([by_sums, by_norm], dim=2)
        eps_k = (kernel.log2_eps - shift).exp2_()
        by_mean = (grad_context[..., :c_in] * eps_k).sum(1, keepdim=True).div_(n)
        if kernel.mild:
            grad_context.mul_(shift.neg().exp2_())
        by_value, by_norm = grad_context.div_(n).tensor_split([c_in], dim=2)
        grad_k, grad_v = passes.by_keys(by_value.contiguous(), by_norm, by_mean, shift)
        return None, grad_q, grad_k, grad_v, None, grad_weight, grad_bias, None, None


class _TritonAttention(_RandomFeatureAttention):
    """The forward pass by Triton kernels; the backward pass is the tiled one."""

    @staticmethod
    def forward(
        ctx: Any,
        passes_of: type[_TiledPasses] | type[_NativePasses],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        projection: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        amplification: float | None,
    ) -> Tensor:
        from .cores.triton import enla as kernels

        projection = projection.contiguous()
        log2_eps = _Kernel(projection, eps, amplification, shifted=True).log2_eps
        sums_of_v, shift = kernels.summarise(k, v, projection, log2_eps, amplification, MIN_NORM)
        context = _map_sums(sums_of_v, weight, bias)
        out = _like_values(v, context.shape[2] - 1)
        normaliser = kernels.attend(
            q, projection, context, shift, out, log2_eps, amplification, MIN_NORM
        )
        saved = (q, k, v, projection, weight, bias, out, sums_of_v, context, shift, normaliser)
        ctx.save_for_backward(*saved)
        ctx.eps, ctx.amplification, ctx.shifted = eps, amplification, True
        ctx.passes_of = passes_of
        return out


def _attend_rows(
    function: type[_RandomFeatureAttention],
    passes_of: type[_TiledPasses] | type[_NativePasses],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    eps: float,
    amplification: float | None,
    value_map: tuple[Tensor, Tensor] | None,
) -> Tensor:
    with no_autocast(v):
        rows = (to_rows(t) for t in (q, k, v))
        mapped = value_map or (None, None)
        out = function.apply(
            passes_of, *rows, projection.to(sum_dtype(v)), *mapped, eps, amplification
        )
    return to_map(out, like=v)


def _map_sums(context: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Sums of values, and of features ``[B, m, C + 1]``: as if values had been mapped before."""
    if weight is None or bias is None:
        return context
    sums, norm = context.tensor_split([weight.shape[1]], dim=2)
    weight, bias = (t.to(context.dtype) for t in (weight, bias))
    mapped = torch.matmul(sums, weight.mT).addcmul_(norm, bias)
    return torch.cat([mapped, norm], dim=2)


def _like_values(v: Tensor, c_out: int) -> Tensor:
    """Room for output ``[B, N, c_out]``, in the layout of the values ``[B, N, C]``."""
    batch, n, c_in = v.shape
    if c_out == c_in:
        return torch.empty_like(v)
    if v.stride(1) == 1 < n:
        return v.new_empty(batch, c_out, n).mT
    return v.new_empty(batch, n, c_out)


def _why_not_native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    eps: float,
    amplification: float | None,
    value_map: tuple[Tensor, Tensor] | None,
) -> str | None:
    """As :func:`.native.why_not_native`; besides, exponents must be mild."""
    reason = why_not_native(*(value_map or ()), q, k, v)
    if reason is None and amplification is None:
        return "the kernels in C normalise the embeddings: give an amplification"
    if reason is None and not _is_mild(projection, math.sqrt(amplification or 0)):
        return "for that amplification and projection exponentials leave float32's middle"
    return reason


# The Triton kernels have run in the interpreter and been compiled, but not yet run on a GPU: they
# are taken by name only.
register_core("enla", lambda *args: "tiled" if _why_not_native(*args) else "native")
implementation("enla", "native", _why_not_native)(
    partial(_attend_rows, _RandomFeatureAttention, _NativePasses)
)
implementation("enla", "tiled")(partial(_attend_rows, _RandomFeatureAttention, _TiledPasses))
implementation("enla", "triton", why_not_triton)(
    partial(_attend_rows, _TritonAttention, _TiledPasses)
)


_Tile = tuple[slice, slice, int]


def _tiles(v: Tensor, m: int, c_out: int) -> tuple[list[_Tile], int, int]:
    """Tiles (images, positions, number), rows of the largest, and their number in an image."""
    batch, n, c_in = v.shape
    limit = tile_limit(v.device, _CPU_TILE, _TILE)
    workers = num_workers(v.device) if batch * n * m >= _FEW_FEATURES else 1
    tiles, group, width = split_tiles(batch, n, max(m, c_in, c_out), limit, workers)
    numbered = [(b, i, i.start // width) for b, i in tiles]
    return numbered, group * width, math.ceil(n / width)


class _Space:
    """Memory for a worker's tiles, in the layout of the maps: by rows, or by channels."""

    def __init__(self, q: Tensor, rows: int, dtype: torch.dtype) -> None:
        self.by_rows = q.stride(2) == 1
        self._q, self._rows, self._dtype = q, rows, dtype
        self._taken: dict[tuple[str, Sequence[int]], Tensor] = {}

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """``[B, T, width]``, the same memory whenever this name is asked for."""
        if (name, shape) not in self._taken:
            batch, rows, width = shape
            memory = scratch(f"enla {name}", self._q, self._rows * width, dtype=self._dtype)
            memory = memory[: batch * rows * width]
            by_rows = memory.view(batch, rows, width)
            self._taken[name, shape] = (
                by_rows if self.by_rows else memory.view(batch, width, rows).mT
            )
        return self._taken[name, shape]

    def product(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """``a @ b``, in the memory of that name."""
        shape = (*a.shape[:2], b.shape[2])
        return torch.bmm(a, b, out=self.take(name, shape))


class _Kernel:
    """F, eps and the amplification; exponents are in units of log 2.

    Where embeddings are normalised, exp(−|u|²/2) of a full-length one is left out everywhere.

    Attributes:
        length: of a normalised embedding, sqrt(k); 1 without amplification.
        log2_eps: log2 of eps, over what is left out.
        mild: whether exponents are so small, for every direction of u, that exponentials and
            their sums stay far within float32: then nothing need be subtracted from them.

    Args:
        shifted: not mild in any case.
    """

    def __init__(
        self,
        projection: Tensor,
        eps: float,
        amplification: float | None,
        shifted: bool = False,
    ) -> None:
        self.amplification = amplification
        self.length = 1.0 if amplification is None else math.sqrt(amplification)
        self.projection = projection * self.length
        self.scaled = projection.T * (LOG2_E * self.length)
        self.log2_eps = math.log2(eps) if eps > 0 else _LOG2_OF_ZERO
        self.mild = False
        if amplification is not None:
            self.log2_eps += amplification / 2 * LOG2_E
            # Off the CPU asking would wait for the device.
            if projection.device.type == "cpu" and not shifted:
                self.mild = _is_mild(projection, self.length)

    def embed(self, x: Tensor, space: _Space) -> _Embedded:
        """A tile of embeddings ``[B, T, c]``, in the tile's memory."""
        return _Embedded(x, space, self)

    def eps_features(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """What eps adds to a query's features over its largest entry ``[B, m, 1]``; log2 of that.

        Features are multiplied by ``2^shift``, but for a factor common to all if mild.
        """
        exponents = (torch.zeros_like(shift) if self.mild else shift) + self.log2_eps
        floor = exponents.amax(1, keepdim=True)
        return (exponents - floor).exp2_(), floor


def _is_mild(projection: Tensor, length: float) -> bool:
    longest = float(torch.linalg.vector_norm(projection, dim=1).amax())
    return longest * length * LOG2_E <= _MILD


class _Embedded:
    """A tile of embeddings u, kept as u / length; normalised if there is an amplification."""

    def __init__(self, x: Tensor, space: _Space, kernel: _Kernel) -> None:
        self._space, self._kernel = space, kernel
        dtype, amplification = kernel.projection.dtype, kernel.amplification
        x = x.to(dtype)
        # torch's norm over what is not contiguous takes ten times as long.
        square = torch.mul(x, x, out=space.take("embedded", x.shape)).sum(2, keepdim=True)
        self._half_square: Tensor | None = None  # |u|²/2, less that of full length
        if amplification is None:
            self._u = x
            self._half_square = square.mul_(LOG2_E / 2)
            return
        norm = square.sqrt_()
        self._any_short = not kernel.mild or float(norm.amin()) <= MIN_NORM
        if self._any_short:
            self._short = norm <= MIN_NORM
            length = (norm / MIN_NORM).clamp_max_(1)
            self._half_square = length.square_().sub_(1).mul_(amplification / 2 * LOG2_E)
        self._norm = norm.clamp_(MIN_NORM, math.sqrt(torch.finfo(dtype).max))
        self._u = torch.div(x, self._norm, out=space.take("embedded", x.shape))

    def exponents(self) -> Tensor:
        """``Fu − |u|²/2`` ``[B, T, m]`` in the tile's memory."""
        products = self._products()
        return products if self._half_square is None else products.sub_(self._half_square)

    def features(self, shift: Tensor, floor: Tensor) -> tuple[Tensor, Tensor | None]:
        """Query features ``[B, T, m]``, and what eps adds to each; the latter None if mild.

        If not mild, both are over the largest of each query. If mild, eps adds ``2^floor``.

        Args:
            shift: added to the exponents if not mild, ``[B, m, 1]``.
            floor: log2 of what eps adds at most, ``[B, 1, 1]``.
        """
        if self._kernel.mild:
            return self.exponents().exp2_(), None
        assert self._half_square is not None
        exponents = self._products().add_(shift.mT)
        floor = floor + self._half_square
        top = torch.maximum(exponents.amax(2, keepdim=True), floor)
        return exponents.sub_(top).exp2_(), floor.sub_(top).exp2_()

    def _products(self) -> Tensor:
        scaled = self._kernel.scaled.expand(self._u.shape[0], -1, -1)
        return self._space.product(self._u, scaled, "features")

    def gradient(self, grad: Tensor, out: Tensor) -> None:
        """Gradient ``[B, T, c]`` to ``out``, given that of ``Fu − |u|²/2`` ``[B, T, m]``."""
        projection = self._kernel.projection.expand(grad.shape[0], -1, -1)
        by_u = self._space.product(grad, projection, "gradient")
        if self._kernel.amplification is None:
            torch.addcmul(by_u, self._u, grad.sum(2, keepdim=True), value=-1, out=out)
            return
        # Of a normalised vector only what is orthogonal to it counts.
        along = torch.mul(by_u, self._u, out=self._space.take("along", by_u.shape))
        along = along.sum(2, keepdim=True)
        if self._any_short:
            by_square = grad.sum(2, keepdim=True).mul_(self._kernel.amplification)
            along = torch.where(self._short, by_square, along)
        torch.div(by_u.addcmul_(self._u, along, value=-1), self._norm, out=out)


def _exponent(u: Tensor, projection: Tensor) -> Tensor:
    """``Fu − |u|²/2`` of rows ``[B, N, c]``: ``[B, N, m]``, in float32 at least."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    u, projection = u.to(dtype), projection.to(dtype)
    return torch.matmul(u, projection.mT) - u.square().sum(-1, keepdim=True) / 2


def _shifted_features(
    q: Tensor, k: Tensor, projection: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """phi(q) and phi(k) ``[B, N, m]`` up to factors that cancel in the attention."""
    log_eps = math.log(eps) if eps > 0 else -math.inf
    exponent_q, exponent_k = _exponent(q, projection), _exponent(k, projection)
    shift_k = exponent_k.detach().amax(1, keepdim=True).clamp_min(log_eps)
    exponent_q = exponent_q + shift_k
    floor_q = shift_k + log_eps
    shift_q = torch.maximum(exponent_q.detach(), floor_q).amax(2, keepdim=True)
    phi_k = (exponent_k - shift_k).exp() + (log_eps - shift_k).exp()
    phi_q = (exponent_q - shift_q).exp() + (floor_q - shift_q).exp()
    return phi_q, phi_k


def weight_and_bias(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight ``[c_out, C]`` and bias ``[c_out]`` of a 1x1 convolution."""
    assert convolution.bias is not None
    return convolution.weight.flatten(1), convolution.bias


def projects_sums(module: Attention, own: type[Attention], m: int, n: int) -> bool:
    """Whether values are projected as m sums instead of n positions.

    Not where that is more work, or where the methods of ``own`` were replaced: then they are used.
    """
    replaced = not is_method(module.project, own.project) or not is_method(
        module.attend, own.attend
    )
    return n > m and not replaced


@register_attention("enla")
class EfficientNonLocalAttention(Attention):
    """ENLA with 1x1 embeddings, Eq. 2–6 of the ENLCA paper, without the contrastive loss.

    F is a buffer (``projection``), kept in checkpoints. It is drawn anew by :meth:`redraw` (the
    trainer calls it every epoch, as in the paper) and, if asked, every so many training forwards;
    never in evaluation.

    Args:
        channels: channels C of input and output.
        m: random features.
        k: amplification factor (> 0).
        reduction: query and key have C / reduction channels.
        eps: added to each feature; 0 gives the unbiased estimator.
        redraw_every: training forwards between redraws, 0 for none (released code: 640).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "ENLA-m{m}"
    source: ClassVar[str] = "ENLCA, Xia et al., AAAI 2022, Eq. 3–7"
    complexity: ClassVar[str] = "O(N)"

    projection: Tensor
    forwards: Tensor

    def __init__(
        self,
        channels: int,
        *,
        m: int = 128,
        k: float = 6.0,
        reduction: int = 4,
        eps: float = 1e-4,
        redraw_every: int = 0,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("m", m, 1)
        require_at_least("redraw_every", redraw_every, 0)
        if not 0 < k < math.inf:
            raise AttentionError(f"k must be a finite number above 0, got {k}")
        if not 0 <= eps < math.inf:
            raise AttentionError(f"eps must be a finite number, at least 0, got {eps}")
        self.m, self.k, self.eps, self.redraw_every = m, k, eps, redraw_every
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.register_buffer("projection", orthogonal_gaussian(m, self.embedding))
        self.register_buffer("forwards", torch.zeros((), dtype=torch.long))

    def redraw(self) -> None:
        """Draw F anew from torch's global CPU generator."""
        self.projection.copy_(orthogonal_gaussian(self.m, self.embedding))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to raw q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Normalise q and k (Eq. 3), then :func:`random_feature_attention`."""
        return random_feature_attention(q, k, v, self.projection, self.eps, self.k)

    def attended(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the base's; the values are projected after their sums where that is less work.

        Whoever replaces :meth:`project` or :meth:`attend` gets the base's.
        """
        own = EfficientNonLocalAttention
        if not projects_sums(self, own, self.m, x.shape[2] * x.shape[3]):
            return super().attended(x)
        q, k = self.query(x), self.key(x)
        value_map = weight_and_bias(self.value)
        return q, k, random_feature_attention(q, k, x, self.projection, self.eps, self.k, value_map)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, H, W]``."""
        if self.training and self.redraw_every:
            if self.forwards > 0 and self.forwards % self.redraw_every == 0:
                self.redraw()
            self.forwards += 1
        return super().forward(x)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """The weights ``[B, H, W]`` that the random features give: phi(q)·phi(k_j) / D."""
        rows_q = to_rows(normalise(q, self.k)[:, :, row : row + 1, col : col + 1])
        rows_k = to_rows(normalise(k, self.k))
        with no_autocast(q):
            phi_q, phi_k = _shifted_features(rows_q, rows_k, self.projection, self.eps)
            kernel = torch.bmm(phi_q, phi_k.mT)
        return (kernel / kernel.sum(-1, keepdim=True)).view(-1, *q.shape[2:])

    def exact_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Softmax of the inner products ``[B, H, W]``, what the features approximate."""
        return softmax_weights(normalise(q, self.k), normalise(k, self.k), row, col)

    def cost(self, height: int, width: int) -> Cost:
        """Core 2 N m (c + c_out) + N m / 2 MACs, as the paper counts the normaliser."""
        n, c, c_out = height * width, self.embedding, self.channels
        sums = projects_sums(self, EfficientNonLocalAttention, self.m, n)
        products = 2 * n * self.m * (c + c_out)
        return Cost(
            projections=n * self.channels * (2 * c + c_out),
            core=products + n * self.m / 2,
            executed=products + n * self.m,
            saved=(n - self.m) * c_out * self.channels if sums else 0,
        )
