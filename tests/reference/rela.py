"""Oracle of rank-enhanced linear attention without its convolution: the weight of every pair."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import to_map, vectors


def rectified_linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sums of the values, weighted by ``relu(q_i) · relu(k_j)``, over the weights' sum + 1e-6."""
    images = []
    for b in range(q.shape[0]):
        keys, values = [torch.relu(x) for x in vectors(k, b)], vectors(v, b)
        rows = []
        for query in vectors(q, b):
            weights = [torch.dot(torch.relu(query), key) for key in keys]
            total = sum(w * value for w, value in zip(weights, values, strict=True))
            rows.append(total / (sum(weights) + 1e-6))
        images.append(rows)
    return to_map(images, *q.shape[2:])
