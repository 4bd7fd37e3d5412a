"""Oracle of non-local attention, Eq. 1: every position attends to every position."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import to_map, vectors, weighted_mean


def non_local_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``Y_i = sum_j exp(Q_i·K_j) V_j / sum_j exp(Q_i·K_j)``, without 1/sqrt(c)."""
    images = []
    for b in range(q.shape[0]):
        queries, keys, values = vectors(q, b), vectors(k, b), vectors(v, b)
        images.append(
            [
                weighted_mean([torch.exp(torch.dot(query, key)) for key in keys], values)
                for query in queries
            ]
        )
    return to_map(images, *q.shape[2:])
