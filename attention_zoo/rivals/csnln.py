"""Cross-scale non-local attention of CSNLN: patches attend to those of the map made smaller.

Paper: Cross-Scale Non-Local Attention, Mei et al., CVPR 2020, Section 3.2.
Equation: ``w_ij = softmax_j(a Q_i·K_j / max(|K_j|, 5e-5))``, and ``sum_j w_ij V_j`` is a patch; a
position's output is the mean of the patches that cover it. Q_i are 3x3 patches of q, K_j those of
k's means over s x s blocks, V_j those of v at every s-th row and column; a = 10.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``.
Numerics, see :mod:`attention_zoo.base`: error up to ``(2 u + 2 min(1, g)) max|v|``, with 9 c in
place of c. S is a times the largest norm of a patch of queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import (
    Attention,
    Cost,
    check_qkv,
    embedding_channels,
    no_autocast,
    require_at_least,
    sum_dtype,
)
from ..cores.softmax import refuse_second_derivative
from ..cores.tiles import step_length
from ..implementations import outside_graphs, refuse_transforms
from ..layers import call_together
from ..nlsa import MIN_NORM
from ..registry import register_attention

# Scores of a tile: it is square, and its border is worked on twice.
_TILE = 2**21
_LEAST_SIDE = 8


@outside_graphs
def cross_scale_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: int = 2, sharpness: float = 10.0
) -> Tensor:
    """3x3 patches attend to those of the map made smaller, and overlap.

    Beyond the border, patches repeat it. A block that the border cuts is the mean of its part in
    the map.

    Patches share their sums: ``Q_i·K_j`` is the sum of nine products of positions, each computed
    once, and weights are added up before they are multiplied with the values.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        scale: side of a block, s.
        sharpness: factor of the scores.

    Returns:
        ``[B, c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together, or scale is below 1.
    """
    refuse_transforms("csnln")
    check_qkv(q, k, v)
    require_at_least("scale", scale, 1)
    height, width = v.shape[2:]
    dtype = sum_dtype(v)
    with no_autocast(v):
        queries, keys = (t.to(dtype) for t in (q, k))
        blocks = F.avg_pool2d(keys, scale, ceil_mode=True, count_include_pad=False)
        factors = sharpness / patch_norms(blocks).clamp_min(MIN_NORM)
        bordered = (_border(t) for t in (queries, blocks, v[:, :, ::scale, ::scale].to(dtype)))
        out = _CrossScale.apply(*bordered, factors.flatten(1))
        cover = _cover(height, v)[:, None] * _cover(width, v)
        return (out[:, 1:-1, 1:-1].permute(0, 3, 1, 2) / cover).to(v.dtype)


def patch_norms(x: Tensor) -> Tensor:
    """Norm ``[B, H, W]`` of the 3 x 3 patch around each position of ``[B, c, H, W]``."""
    squares = F.pad(x, (1, 1, 1, 1), mode="replicate").square().sum(1)
    columns = squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:]
    return (columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]).clamp_min(1e-30).sqrt()


def _border(x: Tensor) -> Tensor:
    """``[B, c, H, W]`` to rows ``[B, H + 2, W + 2, c]``, the border repeated."""
    return F.pad(x, (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)


def _cover(length: int, like: Tensor) -> Tensor:
    """How many of the patches along a side cover each position."""
    at = torch.arange(length, device=like.device)
    return 1 + (at > 0).to(sum_dtype(like)) + (at < length - 1)


class _CrossScale(torch.autograd.Function):
    """Sum over patches of what each gets, by tiles of patches.

    Queries ``[B, H + 2, W + 2, c]``, keys and values ``[B, h + 2, w + 2, ·]`` with their borders,
    factors of the scores ``[B, h w]``; gives ``[B, H + 2, W + 2, c_out]``, border included.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, factors: Tensor) -> Tensor:
        q, k, v = (t.contiguous() for t in (q, k, v))
        ctx.save_for_backward(q, k, v, factors)
        out = v.new_zeros(*q.shape[:3], v.shape[3])
        for b, tile in _tiles(q, k):
            weights = _scores(q[b], k[b], tile).mul_(factors[b]).softmax(-1)
            part = torch.mm(_spread(weights, tile, k.shape), v[b].flatten(0, 1))
            into = out[b][tile]
            into.add_(part.view(into.shape))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        refuse_second_derivative("cross_scale_attention")
        q, k, v, factors = ctx.saved_tensors
        grad_q, grad_k, grad_v, grad_factors = (torch.zeros_like(t) for t in (q, k, v, factors))
        for b, tile in _tiles(q, k):
            keys, values = k[b].flatten(0, 1), v[b].flatten(0, 1)
            plain = _scores(q[b], k[b], tile)
            weights = torch.mul(plain, factors[b]).softmax(-1)
            grad = grads[0][b][tile].flatten(0, 1)
            grad_v[b] += torch.mm(_spread(weights, tile, k.shape).mT, grad).view(v.shape[1:])
            grad_scores = _gather(torch.mm(grad, values.mT), tile, k.shape)
            grad_scores.sub_((grad_scores * weights).sum(-1, keepdim=True)).mul_(weights)
            grad_factors[b] += plain.mul_(grad_scores).sum(0)
            grad_products = _spread(grad_scores.mul_(factors[b]), tile, k.shape)
            into = grad_q[b][tile]
            into.add_(torch.mm(grad_products, keys).view(into.shape))
            queries = q[b][tile].flatten(0, 1)
            grad_k[b] += torch.mm(grad_products.mT, queries).view(k.shape[1:])
        return grad_q, grad_k, grad_v, grad_factors


#: Rows and columns of the bordered map.
_Tile = tuple[slice, slice]


def _sides(height: int, width: int, keys: int) -> tuple[int, int]:
    """Rows and columns of patches in a tile, for so many keys with their border."""
    side = max(_LEAST_SIDE, math.isqrt(_TILE // keys) - 2)
    return step_length(height, 1, side), step_length(width, 1, side)


def _tiles(q: Tensor, k: Tensor) -> Iterator[tuple[int, _Tile]]:
    """Image, and what the patches of each tile cover."""
    height, width = q.shape[1] - 2, q.shape[2] - 2
    down, across = _sides(height, width, k.shape[1] * k.shape[2])
    for b in range(len(q)):
        for i in range(0, height, down):
            for j in range(0, width, across):
                yield (
                    b,
                    (
                        slice(i, min(i + down, height) + 2),
                        slice(j, min(j + across, width) + 2),
                    ),
                )


def _scores(q: Tensor, k: Tensor, tile: _Tile) -> Tensor:
    """Products of patches, ``[patches of the tile, patches of k]``."""
    products = torch.mm(q[tile].flatten(0, 1), k.flatten(0, 1).mT)
    return _gather(products, tile, (1, *k.shape))


def _gather(products: Tensor, tile: _Tile, keys: tuple[int, ...]) -> Tensor:
    """Products of positions, summed over the nine of two patches."""
    rows, columns = (s.stop - s.start for s in tile)
    x = products.view(rows, columns, *keys[1:3])
    x = x[:-2, :, :-2].add(x[1:-1, :, 1:-1]).add_(x[2:, :, 2:])
    x = x[:, :-2, :, :-2].add(x[:, 1:-1, :, 1:-1]).add_(x[:, 2:, :, 2:])
    return x.flatten(2).flatten(0, 1)


def _spread(weights: Tensor, tile: _Tile, keys: tuple[int, ...]) -> Tensor:
    """The adjoint: the number of two patches is added to each of their nine pairs of positions."""
    rows, columns = (s.stop - s.start for s in tile)
    height, width = keys[1:3]
    x = weights.view(rows - 2, columns - 2, height - 2, width - 2)
    wide = x.new_zeros(rows - 2, columns, height - 2, width)
    wide[:, :-2, :, :-2] = x
    wide[:, 1:-1, :, 1:-1] += x
    wide[:, 2:, :, 2:] += x
    full = x.new_zeros(rows, columns, height, width)
    full[:-2, :, :-2] = wide
    full[1:-1, :, 1:-1] += wide
    full[2:, :, 2:] += wide
    return full.flatten(2).flatten(0, 1)


@register_attention("csnln")
class CrossScaleAttention(Attention):
    """CSNLN's cross-scale attention, its s-fold larger output brought back to the map's size.

    In the paper each patch of the smaller map selects a patch of 3s x 3s values of the full map.
    Patches overlap s positions apart, so the output is s times as large as the map, and a strided
    convolution of 3s x 3s shrinks it. Here a convolution of s x s does that. It acts only on blocks
    of the full map, so it stands before the attention: the value of a block is its convolution,
    which contains the 1x1 embedding of the values.

    Other differences: overlapping patches are averaged, not added up and divided by 6; borders are
    repeated, not filled with zeros; blocks are averaged, which is bilinear interpolation for s = 2;
    the norm of a key is at least 5e-5, not 1e-4; the embeddings have no PReLU.

    Args:
        channels: channels C of input and output.
        scale: side s of a block of keys (in the paper, the network's scale).
        sharpness: factor of the scores (10 in the released code).
        reduction: query and key have C / reduction channels (2 in the paper).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "CSNLN-x{scale}"
    source: ClassVar[str] = (
        "Cross-Scale Non-Local Attention, Mei et al., CVPR 2020, Section 3.2 (cross-scale)"
    )
    complexity: ClassVar[str] = "O(N²)"

    def __init__(
        self,
        channels: int,
        *,
        scale: int = 2,
        sharpness: float = 10.0,
        reduction: int = 4,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("scale", scale, 1)
        self.scale, self.sharpness = scale, sharpness
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, scale)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``.

        v at a position is the convolution of the block that begins there, zeros beyond the map.
        """
        beyond = self.scale - 1
        return *call_together(x, self.query, self.key), self.value(F.pad(x, (0, beyond, 0, beyond)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`cross_scale_attention`."""
        return cross_scale_attention(q, k, v, self.scale, self.sharpness)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Weights ``[B, H, W]`` of the position's values, at every scale-th row and column."""
        height, width = q.shape[2:]
        dtype = torch.promote_types(q.dtype, torch.float32)
        with no_autocast(q):
            blocks = F.avg_pool2d(k.to(dtype), self.scale, ceil_mode=True, count_include_pad=False)
            factors = self.sharpness / patch_norms(blocks).clamp_min(MIN_NORM)
            queries = F.pad(q.to(dtype), (1, 1, 1, 1), mode="replicate")
            h, w = blocks.shape[2:]
            patches = F.pad(blocks, (1, 1, 1, 1), mode="replicate")
            patches = patches.unfold(2, 3, 1).unfold(3, 3, 1)  # [B, c, h, w, 3, 3]
            found = blocks.new_zeros(len(q), h, w)
            covering = [
                (down, across)
                for down in (-1, 0, 1)
                for across in (-1, 0, 1)
                if 0 <= row - down < height and 0 <= col - across < width
            ]
            for down, across in covering:
                i, j = row - down, col - across
                patch = queries[:, :, i : i + 3, j : j + 3]
                scores = torch.einsum("bcyx,bchwyx->bhw", patch, patches) * factors
                weights = scores.flatten(1).softmax(1).view_as(scores) / len(covering)
                rows = (torch.arange(h, device=q.device) + down).clamp(0, h - 1)
                columns = (torch.arange(w, device=q.device) + across).clamp(0, w - 1)
                found.index_put_(
                    (torch.arange(len(q), device=q.device)[:, None, None], rows[:, None], columns),
                    weights,
                    accumulate=True,
                )
            whole = found.new_zeros(len(q), height, width)
            whole[:, :: self.scale, :: self.scale] = found
            return whole

    def cost(self, height: int, width: int) -> Cost:
        """Core 9 N (N / s²) (c + C) MACs, patch by patch; projections N C (2c + s² C).

        Executed: each pair of positions once, plus the borders of tiles and maps.
        """
        n, c, channels = height * width, self.embedding, self.channels
        h, w = (-(-length // self.scale) for length in (height, width))
        keys = (h + 2) * (w + 2)
        down, across = _sides(height, width, keys) if n else (1, 1)
        covered = (height + 2 * -(-height // down)) * (width + 2 * -(-width // across))
        return Cost(
            projections=n * channels * (2 * c + self.scale**2 * channels),
            core=9 * n * h * w * (c + channels),
            executed=covered * keys * (c + channels),
        )
