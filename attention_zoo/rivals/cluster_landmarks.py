"""Density-peak landmarks: all queries attend to the means of some 3 % clusters of positions.

Papers: Selective Aggregation Transformer (SAT), Tran et al., 2026, arXiv 2604.07994; density peaks:
Rodriguez and Laio, Science 2014.
Equation: ``y_i = sum_m softmax_m(q_i·a_m / sqrt(c)) u_m``. u_m is the mean value of cluster m, a_m
its mean key, brought to the length of the longest key. Positions join the centre whose key is most
like theirs, by cosine. Centres have the largest ``density · distance to the nearest denser one``.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``, a ``[B, K, c]``, u ``[B, K, C]``.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import (
    Attention,
    AttentionError,
    Cost,
    check_qkv,
    embedding_channels,
    no_autocast,
    require_at_least,
    sum_dtype,
    to_map,
    to_rows,
)
from ..cores.softmax_rows import softmax_attention_lse
from ..cores.tiles import split_tiles
from ..implementations import outside_graphs, refuse_transforms
from ..layers import call_together
from ..nlsa import normalise_keys
from ..registry import register_attention

# Similarities that are held at once.
_TILE = 2**18
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@outside_graphs
def landmark_attention(
    q: Tensor, k: Tensor, v: Tensor, share: float = 0.03, sample: int = 4
) -> Tensor:
    """Softmax attention to the landmarks of :func:`density_clusters`.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        share: clusters as a share of N; there is one at least.
        sample: candidates for each centre.

    Returns:
        ``[B, c_out, H, W]``. No gradient flows through the choice of the clusters, but through the
        means over them.

    Raises:
        AttentionError: the shapes do not fit together, or share or sample is out of range.
    """
    refuse_transforms("cluster-landmarks")
    check_qkv(q, k, v)
    _check(share, sample)
    dtype = sum_dtype(v)
    with no_autocast(v):
        queries, keys, values = (to_rows(t).to(dtype) for t in (q, k, v))
        clusters, count = density_clusters(keys, share, sample)
        landmarks = landmark_keys(keys, clusters, count), cluster_means(values, clusters, count)
        out, _ = softmax_attention_lse(queries / math.sqrt(q.shape[1]), *landmarks)
        return to_map(out.to(v.dtype), like=v)


def _check(share: float, sample: int) -> None:
    if not 0 < share <= 1:
        raise AttentionError(f"share must be above 0 and at most 1, got {share!r}")
    require_at_least("sample", sample, 1)


def landmark_keys(keys: Tensor, clusters: Tensor, count: int) -> Tensor:
    """Mean keys of the clusters, as long as the longest key: ``[B, N, c]`` to ``[B, K, c]``."""
    longest = torch.linalg.vector_norm(keys, dim=2).amax(1).view(-1, 1, 1)
    return normalise_keys(cluster_means(keys, clusters, count)) * longest


def cluster_counts(n: int, share: float, sample: int) -> tuple[int, int]:
    """Clusters K of n positions, and candidates for their centres."""
    count = max(1, int(share * n + 1e-9))
    return count, min(n, sample * count)


@torch.no_grad()
def density_clusters(keys: Tensor, share: float, sample: int) -> tuple[Tensor, int]:
    """Clusters of the positions by density peaks among candidates.

    Args:
        keys: ``[B, N, c]``, float32 or float64.
        share: clusters as a share of N.
        sample: candidates for each centre; all positions are candidates if share · sample >= 1.

    Returns:
        The cluster of each position ``[B, N]``, and the number of clusters.
    """
    batch, n = (int(length) for length in keys.shape[:2])
    count, candidates = cluster_counts(n, share, sample)
    units = normalise_keys(keys)
    places = candidate_places(n, candidates, keys)
    centres = places[density_peaks(units[:, places], count)]  # [B, K]
    peaks = torch.gather(units, 1, centres.unsqueeze(2).expand(-1, -1, units.shape[2]))
    clusters = torch.empty(batch, n, dtype=torch.long, device=keys.device)
    for b, i in split_tiles(batch, n, count, _TILE)[0]:
        clusters[b, i] = torch.bmm(units[b, i], peaks[b].mT).argmax(2)
    # A centre that is like another one is its own all the same: no cluster is empty.
    own = torch.arange(count, device=keys.device).expand(batch, -1)
    return clusters.scatter_(1, centres, own), count


def candidate_places(n: int, candidates: int, like: Tensor) -> Tensor:
    """One of n positions in each of so many runs of nearly the same length.

    Multiples of the golden ratio place it within its run, so that candidates do not stand in
    columns of the map.
    """
    number = torch.arange(candidates, device=like.device)
    start, end = (torch.div(i * n, candidates, rounding_mode="floor") for i in (number, number + 1))
    # Of 32 bits each: the same in every order of the operations, and on devices without float64.
    step = int(_GOLDEN_RATIO * 2**31)
    return start + torch.div((number * step % 2**31) * (end - start), 2**31, rounding_mode="floor")


def density_peaks(units: Tensor, count: int) -> Tensor:
    """The candidates with the largest density times distance, ``[B, K]``, by tiles.

    Density is the mean of the K largest cosines with other candidates. Distance, 1 − cosine, is
    that to the nearest denser candidate; of the densest, to the farthest one. Of equal densities
    the first counts as the larger.

    Args:
        units: normalised keys of the candidates ``[B, S, c]``.
        count: K.
    """
    batch, s = (int(length) for length in units.shape[:2])
    density = units.new_zeros(batch, s)
    if s == 1:
        return density.long()
    tiles, _, _ = split_tiles(batch, s, s, _TILE)
    for b, i in tiles:
        likeness = torch.bmm(units[b, i], units[b].mT)
        likeness.diagonal(i.start, dim1=1, dim2=2).fill_(-math.inf)
        density[b, i] = likeness.topk(min(count, s - 1), sorted=False).values.mean(2)
    density, order = density.sort(dim=1, descending=True, stable=True)
    ranked = torch.gather(units, 1, order.unsqueeze(2).expand_as(units))
    distance = torch.empty_like(density)
    rank = torch.arange(s, device=units.device)
    for b, i in tiles:
        likeness = torch.bmm(ranked[b, i], ranked[b].mT)
        if i.start == 0:
            farthest = likeness[:, 0, 1:].amin(1)
        likeness.masked_fill_(rank >= rank[i, None], -math.inf)
        distance[b, i] = 1 - likeness.amax(2)
        if i.start == 0:
            distance[b, 0] = 1 - farthest
    score = density * distance.clamp_min_(0)
    best = score.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.gather(order, 1, best)


def cluster_means(rows: Tensor, clusters: Tensor, count: int) -> Tensor:
    """Means of rows ``[B, N, c]`` over their clusters ``[B, N]``: ``[B, K, c]``; none is empty."""
    first = count * torch.arange(len(rows), device=rows.device).unsqueeze(1)
    means = _Means.apply(rows.flatten(0, 1), (clusters + first).flatten(), len(rows) * count)
    return means.unflatten(0, (len(rows), count))


class _Means(torch.autograd.Function):
    """Of rows ``[R, c]`` over clusters ``[R]``; sums are in order of the rows, on a GPU too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, clusters: Tensor, count: int) -> Tensor:
        sizes = torch.zeros(count, dtype=torch.long, device=rows.device)
        sizes.scatter_add_(0, clusters, torch.ones_like(clusters))
        order = clusters.argsort(stable=True)
        sums = F.embedding_bag(order, rows.contiguous(), sizes.cumsum(0) - sizes, mode="sum")
        lengths = sizes.unsqueeze(1).to(rows.dtype)
        ctx.save_for_backward(clusters, lengths)
        return sums / lengths

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        clusters, lengths = ctx.saved_tensors
        return (grads[0] / lengths).index_select(0, clusters), None, None


@register_attention("cluster-landmarks")
class ClusterLandmarkAttention(Attention):
    """SAT's selective aggregation attention with 1x1 embeddings: 3 % of N keys, all queries.

    Facts that the abstract leaves open are those of the released code: density is the mean of the K
    largest cosines among 4 K candidates, one in each of as many runs of positions; clusters are
    plain means, whose length is then that of the longest token. Clusters are made of keys, not of
    the block's input, and values stay plain means. Candidates are the same in training and
    evaluation; the released code draws them anew, and adds noise to densities. Similarities are
    worked on by tiles, twice.

    It has one head (SAT: 6). SAT's 1x1 convolution after the attention is then part of the value's,
    and is left out, as are LayerNorm, MLP and the layers of window attention in between.

    Args:
        channels: channels C of input and output.
        share: clusters as a share of N.
        sample: candidates for each centre of a cluster.
        reduction: query and key have C / reduction channels (2 in SAT).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "SAT-{share:g}"
    source: ClassVar[str] = "Selective Aggregation Transformer, Tran et al., 2026, arXiv 2604.07994"
    complexity: ClassVar[str] = "O(N²)"

    def __init__(
        self,
        channels: int,
        *,
        share: float = 0.03,
        sample: int = 4,
        reduction: int = 4,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        _check(share, sample)
        self.share, self.sample = share, sample
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return call_together(x, self.query, self.key, self.value)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`landmark_attention`."""
        return landmark_attention(q, k, v, self.share, self.sample)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Weights ``[B, H, W]``: a cluster's, shared out evenly among its positions."""
        with no_autocast(q):
            keys = to_rows(k).to(sum_dtype(q))
            clusters, count = density_clusters(keys, self.share, self.sample)
            query = q[:, :, row, col].to(keys.dtype) / math.sqrt(q.shape[1])
            scores = torch.einsum("bc,bkc->bk", query, landmark_keys(keys, clusters, count))
            sizes = torch.zeros_like(scores)
            sizes.scatter_add_(1, clusters, torch.ones_like(keys[:, :, 0]))
            return (scores.softmax(1) / sizes).gather(1, clusters).view(-1, *q.shape[2:])

    def cost(self, height: int, width: int) -> Cost:
        """Core N K (2 c + C) + S² c MACs for K clusters and S candidates; executed: S² c twice."""
        n, c, channels = height * width, self.embedding, self.channels
        count, candidates = cluster_counts(n, self.share, self.sample)
        of_clusters = n * count * (2 * c + channels)
        likeness = candidates**2 * c if candidates > 1 else 0
        return Cost(
            projections=n * channels * (2 * c + channels),
            core=of_clusters + likeness,
            executed=of_clusters + 2 * likeness,
        )
