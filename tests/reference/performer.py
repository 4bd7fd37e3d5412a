"""Oracle of the Performer's attention: positive random features, pair by pair."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import to_map, vectors, weighted_mean


def features(x: Tensor, projection: Tensor) -> Tensor:
    """``exp(f·u − |u|²/2)`` of ``u = x / c^(1/4)`` for every row f of F ``[m, c]``."""
    u = x / len(x) ** 0.25
    return torch.stack(
        [torch.exp(torch.dot(f, u) - torch.dot(u, u) / 2) for f in projection.double()]
    )


def kernel(query: Tensor, key: Tensor, projection: Tensor) -> Tensor:
    """The estimate of ``exp(q·k / sqrt(c))``: a mean over the rows of F."""
    return (features(query, projection) * features(key, projection)).mean()


def positive_feature_attention(q: Tensor, k: Tensor, v: Tensor, projection: Tensor) -> Tensor:
    """Every position's mean of the values, weighted by the kernel's estimates."""
    images = []
    for b in range(q.shape[0]):
        queries, keys = ([features(x, projection) for x in vectors(t, b)] for t in (q, k))
        values = vectors(v, b)
        images.append([weighted_mean([(x * y).mean() for y in keys], values) for x in queries])
    return to_map(images, *q.shape[2:])
