"""Oracle of top-k attention: scores are sorted one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import to_map, vectors, weighted_mean


def largest(scores: list[Tensor], count: int) -> list[int]:
    """Positions of the largest scores, the largest first."""
    return sorted(range(len(scores)), key=lambda j: -scores[j].item())[:count]


def top_k_attention(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    """Mean of the values at the largest scores, weighted by exp(score), without 1/sqrt(c)."""
    images = []
    for b in range(q.shape[0]):
        queries, keys, values = vectors(q, b), vectors(k, b), vectors(v, b)
        outs = []
        for query in queries:
            scores = [torch.dot(query, key) for key in keys]
            chosen = largest(scores, count)
            weights = [torch.exp(scores[j]) for j in chosen]
            outs.append(weighted_mean(weights, [values[j] for j in chosen]))
        images.append(outs)
    return to_map(images, *q.shape[2:])
