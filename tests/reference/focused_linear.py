"""Oracle of focused linear attention: the weight of every pair of positions."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import to_map, vectors, weighted_mean


def focused(x: Tensor, focus: float) -> Tensor:
    """``|x| / |x^p| · x^p`` of a vector after a ReLU, which leaves 1e-6 at least."""
    x = torch.relu(x - 1e-6) + 1e-6
    powers = x**focus
    return powers * torch.sqrt((x * x).sum() / (powers * powers).sum())


def focused_linear_attention(q: Tensor, k: Tensor, v: Tensor, focus: float) -> Tensor:
    """Means of the values, weighted by ``phi(q_i) · phi(k_j)``."""
    images = []
    for b in range(q.shape[0]):
        keys = [focused(x, focus) for x in vectors(k, b)]
        queries = [focused(x, focus) for x in vectors(q, b)]
        values = vectors(v, b)
        images.append([weighted_mean([torch.dot(x, y) for y in keys], values) for x in queries])
    return to_map(images, *q.shape[2:])
