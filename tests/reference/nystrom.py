"""Oracle of Nyström attention: three softmax matrices entry by entry, and the iteration."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .agent import region_means
from .maps import to_map, vectors


def softmax_matrix(queries: list[Tensor], keys: list[Tensor]) -> Tensor:
    """Row i: weights of query i over all keys, scores over the root of the width."""
    rows = []
    for query in queries:
        weights = [torch.exp(torch.dot(query, key) / math.sqrt(len(query))) for key in keys]
        rows.append(torch.stack(weights) / torch.stack(weights).sum())
    return torch.stack(rows)


def pseudo_inverse(a: Tensor, steps: int) -> Tensor:
    """``Z ← Z (13 I − A Z (15 I − A Z (7 I − A Z))) / 4``, from ``Aᵀ / (|A|_1 |A|_inf)``."""
    one = torch.eye(len(a), dtype=a.dtype)
    z = a.T / (a.abs().sum(0).max() * a.abs().sum(1).max())
    for _ in range(steps):
        z = z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z))) / 4
    return z


def nystrom_attention(q: Tensor, k: Tensor, v: Tensor, grid: int, steps: int = 6) -> Tensor:
    """Landmarks are means of regions."""
    images = []
    for b in range(q.shape[0]):
        queries, keys = vectors(q, b), vectors(k, b)
        some_queries, some_keys = region_means(q, b, grid), region_means(k, b, grid)
        z = pseudo_inverse(softmax_matrix(some_queries, some_keys), steps)
        weights = softmax_matrix(queries, some_keys) @ z @ softmax_matrix(some_queries, keys)
        images.append(list((weights @ torch.stack(vectors(v, b))).unbind(0)))
    return to_map(images, *q.shape[2:])
