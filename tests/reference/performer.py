"""Oracle of the Performer's attention: positive random features, pair by pair."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import to_map, vectors, weighted_mean


def kernel(query: Tensor, key: Tensor, projection: Tensor) -> Tensor:
    """The estimate of ``exp(q·k / sqrt(c))`` from F ``[m, c]``: a mean over its rows."""
    root = len(query) ** 0.25
    a, b = query / root, key / root
    terms = [
        torch.exp(torch.dot(f, a) - torch.dot(a, a) / 2)
        * torch.exp(torch.dot(f, b) - torch.dot(b, b) / 2)
        for f in projection.double()
    ]
    return torch.stack(terms).mean()


def positive_feature_attention(q: Tensor, k: Tensor, v: Tensor, projection: Tensor) -> Tensor:
    """Every position's mean of the values, weighted by the kernel's estimates."""
    images = []
    for b in range(q.shape[0]):
        keys, values = vectors(k, b), vectors(v, b)
        images.append(
            [
                weighted_mean([kernel(query, key, projection) for key in keys], values)
                for query in vectors(q, b)
            ]
        )
    return to_map(images, *q.shape[2:])
