"""Oracle of efficient non-local attention, Eq. 3–6."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import divided_by_norm, to_map, vectors, weighted_mean


def normalise(x: Tensor, amplification: float) -> Tensor:
    """Eq. 3: ``sqrt(k) · u / max(|u|, 5e-5)`` for every position of ``[B, c, H, W]``."""
    images = [
        [math.sqrt(amplification) * divided_by_norm(u) for u in vectors(x, b)]
        for b in range(x.shape[0])
    ]
    return to_map(images, *x.shape[2:])


def phi(u: Tensor, projection: Tensor, eps: float) -> Tensor:
    """``m^(-1/2) · (exp(F u − |u|²/2) + eps)``: ``[c]`` and F ``[m, c]`` to ``[m]``."""
    features = [
        (torch.exp(torch.dot(f, u) - torch.dot(u, u) / 2) + eps) / math.sqrt(len(projection))
        for f in projection.double()
    ]
    return torch.stack(features)


def random_feature_attention(
    q: Tensor, k: Tensor, v: Tensor, projection: Tensor, eps: float = 1e-4
) -> Tensor:
    """Eq. 1 with phi(Q_i)·phi(K_j) in place of exp(Q_i·K_j); q and k normalised already."""
    images = []
    for b in range(q.shape[0]):
        queries = [phi(u, projection, eps) for u in vectors(q, b)]
        keys = [phi(u, projection, eps) for u in vectors(k, b)]
        values = vectors(v, b)
        images.append([weighted_mean([torch.dot(x, y) for y in keys], values) for x in queries])
    return to_map(images, *q.shape[2:])
