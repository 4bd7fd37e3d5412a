"""Oracle of content-aware token aggregation: centres, groups and both attentions, one by one.

Where the text leaves room: positions keep their order within a cluster; beyond its end the sorted
list is read backwards, and forwards again after that; a centre that nobody is nearest to stays,
but in the last step of k-means, where it returns to the module's buffer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import divided_by_norm, to_map, vectors, weighted_mean


def features_of(q: Tensor, k: Tensor) -> list[list[Tensor]]:
    """Query and key of each position, one after the other, per image."""
    return [
        [torch.cat(pair) for pair in zip(vectors(q, b), vectors(k, b), strict=True)]
        for b in range(q.shape[0])
    ]


def nearest(feature: Tensor, centres: list[Tensor]) -> int:
    """Number of the centre with the largest cosine."""
    cosines = [torch.dot(divided_by_norm(feature), divided_by_norm(t)).item() for t in centres]
    return cosines.index(max(cosines))


def around_the_mean(images: list[list[Tensor]], directions: Tensor) -> list[Tensor]:
    """Where k-means starts without centres: as far from the mean as the features are."""
    units = [divided_by_norm(u).detach() for features in images for u in features]
    mean = torch.stack(units).sum(0) / len(units)
    spread = math.sqrt(sum(torch.sum((u - mean) ** 2).item() for u in units) / len(units))
    return [divided_by_norm(mean + spread * d) for d in directions.double()]


def moved(images: list[list[Tensor]], centres: list[Tensor], empty: list[Tensor]) -> list[Tensor]:
    """Each centre at the mean direction of the features nearest to it, if there are any."""
    members: list[list[Tensor]] = [[] for _ in centres]
    for features in images:
        for u in features:
            members[nearest(u, centres)].append(divided_by_norm(u))
    return [
        divided_by_norm(torch.stack(units).sum(0)) if units else otherwise
        for units, otherwise in zip(members, empty, strict=True)
    ]


def fitted(
    images: list[list[Tensor]], start: list[Tensor], kept: list[Tensor], iterations: int
) -> list[Tensor]:
    """Centres after so many steps; the gradient flows through the last.

    Those without a position then are the kept ones.
    """
    centres = start
    for _ in range(iterations - 1):
        centres = [t.detach() for t in moved(images, centres, centres)]
    return moved(images, centres, kept)


def groups(clusters: list[int], size: int) -> list[tuple[list[int], list[int]]]:
    """(queries, keys) of each group, as positions."""
    order = [i for c in sorted(set(clusters)) for i in range(len(clusters)) if clusters[i] == c]
    size = min(size, len(order))
    endless = order + order[::-1]
    endless = endless * 3
    return [
        (order[start : start + size], endless[start : start + 2 * size])
        for start in range(0, len(order), size)
    ]


def head_means(query: Tensor, keys: list[Tensor], values: list[Tensor], heads: int) -> Tensor:
    """``sum_j softmax_j(q·k_j / sqrt(d)) v_j`` in each head, one after the other."""
    parts = []
    for head in range(heads):
        own = query.chunk(heads)[head]
        weights = [
            torch.exp(torch.dot(own, key.chunk(heads)[head]) / math.sqrt(len(own))) for key in keys
        ]
        parts.append(weighted_mean(weights, [value.chunk(heads)[head] for value in values]))
    return torch.cat(parts)


def group_attention(
    q: Tensor, k: Tensor, v: Tensor, clusters: list[list[int]], heads: int, size: int
) -> Tensor:
    """Every position's mean over its group and the next."""
    images = []
    for b in range(q.shape[0]):
        queries, keys, values = (vectors(t, b) for t in (q, k, v))
        outs = {}
        for members, seen in groups(clusters[b], size):
            for i in members:
                outs[i] = head_means(
                    queries[i], [keys[j] for j in seen], [values[j] for j in seen], heads
                )
        images.append([outs[i] for i in range(len(outs))])
    return to_map(images, *q.shape[2:])


def centre_attention(q: Tensor, keys: list[Tensor], values: list[Tensor], heads: int) -> Tensor:
    """Every position's mean over the centres."""
    images = [
        [head_means(query, keys, values, heads) for query in vectors(q, b)]
        for b in range(q.shape[0])
    ]
    return to_map(images, *q.shape[2:])
